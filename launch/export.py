"""`launch export RUN --out FOLDER`: a checkpoint of any strategy becomes Hugging Face folders, without an engine."""

import argparse
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from launch.config.errors import ConfigError, short
from launch.config.overlay import expanded
from launch.config.resolved import CONFIG, resolve


def main(words: list[str]) -> int:
    """Export one checkpoint of a run; the exit code is 0 when the folder was written and read back."""
    given = parse(words)
    run, out = expanded(given.run, "export"), expanded(given.out, "--out")
    if not os.path.isfile(run / CONFIG):
        raise ConfigError(f"{short(run)}: is not the folder of a run that has trained (it holds no {CONFIG})")
    check_out(out)
    from datamodules.core.errors import DataError
    from lightning_modules.core.checkpoint.errors import CheckpointError

    try:
        print(*export(run, out, given.step), sep="\n")
    except (CheckpointError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise what the parser would print with its usage and exit code 2."""
        raise ConfigError(f"export: {message}; see python -m launch export --help")


def check_out(out: Path) -> None:
    """Refuse a place where no folder can be made.

    Raises:
        ConfigError: it is a file or a folder that holds something or is in use, or it is below a file.
    """
    try:
        if (out.exists() or out.is_symlink()) and (not out.is_dir() or any(out.iterdir()) or out.samefile(Path.cwd())):
            raise ConfigError(f"--out {short(out)}: exists; give another folder")
        out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--out {short(out)}: cannot be written: {reason}; give another folder") from None


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="python -m launch export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write; must not exist, or be empty")
    parser.add_argument("--step", metavar="N", help="step of the checkpoint, or best; by default the newest")
    return parser.parse_args(words)


def export(run: Path, out: Path, step: str | None) -> list[str]:
    """Write the folder beside its place, move it there when it is whole, and return what to tell the user.

    Raises:
        ConfigError, CheckpointError: the run or its checkpoint cannot be used.
    """
    from transformers.utils import logging

    from datamodules.core.wordpiece import load
    from launch.checkpoints import choose
    from lightning_modules.core.checkpoint.reader import read_weights
    from lightning_modules.core.warm_start import load_weights

    logging.disable_progress_bar()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate imports deepspeed to unwrap a model; it would search
    checkpoint = choose(run / "checkpoints", step)
    if checkpoint is None:
        raise ConfigError(f"{run}: holds no checkpoint yet")
    if not (run / "tokenizer").is_dir():
        raise ConfigError(f"{run / 'tokenizer'}: is missing; the run keeps its tokenizer there")
    tokenizer = load(run / "tokenizer")
    module = build(run, tokenizer)
    load_weights(module, read_weights(checkpoint), str(checkpoint))
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        module.eval().export(part, tokenizer)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise ConfigError(f"--out {short(out)}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    folders = sorted(path.parent for path in out.rglob("config.json"))
    lines = [f"exported {checkpoint.name} of {run}; every tensor was read back and compared"]
    return lines + [f'  AutoModel.from_pretrained("{folder}")' for folder in folders]


def build(run: Path, tokenizer: object) -> object:
    """Build the method of a run, untrained, from the run's own configuration.

    Raises:
        ConfigError: the method cannot be exported.
    """
    from lightning_modules.core.base import Method

    resolved = resolve(["--config", str(run / CONFIG)])
    module_name, _, class_name = resolved.parts.paths[("model",)].rpartition(".")
    options = {name: value for name, value in resolved.values["model"].items() if name != "class"}
    kind = getattr(import_module(module_name), class_name)
    if getattr(kind, "export", Method.export) is Method.export:
        raise ConfigError(f"model.class = {resolved.get('model.class')}: cannot be exported, it gives no export()")
    method = kind(**options)
    method.recall(run)
    method.build(tokenizer, resolved.get("data.sequence_length"))
    return method
