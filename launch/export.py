"""`launch export RUN --out FOLDER`: a checkpoint of any strategy becomes Hugging Face folders, without an engine."""

import argparse
import ast
import glob
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from launch.config.errors import ConfigError, one_line, short
from launch.config.overlay import expanded
from launch.config.resolved import CONFIG, Resolved, resolve
from launch.config.source import base_names, lookup
from launch.importing import importing

METHODS_OWN = ("layers", "dim", "all_cells")  # flags that are handed to a method whose export() names them


def main(words: list[str]) -> int:
    """Export one checkpoint of a run; the exit code is 0 when the folder was written and read back."""
    given = parse(words)
    run, out = expanded(given.run, "export"), expanded(given.out, "--out")
    if not os.path.isfile(run / CONFIG):
        raise ConfigError(f"{short(run)}: is not the folder of a run that has trained (it holds no {CONFIG})")
    check_out(out)
    resolved = resolve(["--config", str(run / CONFIG)])
    options = own_options(resolved, given)
    from datamodules.core.errors import DataError
    from lightning_modules.core.checkpoint.errors import CheckpointError

    try:
        print(*export(resolved, run, out, given.step, options), sep="\n")
    except (CheckpointError, DataError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
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
    parser.add_argument("--layers", type=int, metavar="N", help="keep the first N layers; of methods that can be cut")
    parser.add_argument("--dim", type=int, metavar="D", help="keep the first D coordinates of the vectors")
    parser.add_argument("--all-cells", action="store_true", help="write every cell of the run's grid, as FOLDER/3x128")
    return parser.parse_args(words)


def own_options(resolved: Resolved, given: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that the method itself acts on.

    Raises:
        ConfigError: its export() knows nothing of one.
    """
    told = {name: getattr(given, name) for name in METHODS_OWN}
    options = {name: value for name, value in told.items() if value is not None and value is not False}
    known = parameters_of_export(resolved.parts.paths[("model",)])
    kind = resolved.get("model.class")
    unknown = [f"--{name.replace('_', '-')}" for name in options if name not in known]
    if unknown:
        raise ConfigError(*(f"{flag}: model.class = {kind} knows nothing of it; leave it out" for flag in unknown))
    return options


def parameters_of_export(path: str) -> list[str]:
    """Return the names of the parameters of a class's export(), read from source."""
    for name in base_names(path):
        found = lookup(name)
        for node in getattr(found[0] if found else None, "body", []):
            if isinstance(node, ast.FunctionDef) and node.name == "export":
                return [parameter.arg for parameter in (*node.args.args, *node.args.kwonlyargs)]
    return []


def export(resolved: Resolved, run: Path, out: Path, step: str | None, options: dict[str, Any]) -> list[str]:
    """Write the folder beside its place, move it there when it is whole, and return what to tell the user.

    Raises:
        ConfigError, CheckpointError: the run or its checkpoint cannot be used.
    """
    with importing():
        from transformers.utils import logging

        from datamodules.core.wordpiece import load
        from launch.checkpoints import choose, step_of
        from lightning_modules.core.checkpoint.reader import read_weights
        from lightning_modules.core.warm_start import load_weights

    logging.disable_progress_bar()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate imports deepspeed to unwrap a model; it would search
    checkpoint = choose(run / "checkpoints", step)
    if checkpoint is None:
        raise ConfigError(f"{run}: holds no checkpoint yet")
    if not (run / "tokenizer").is_dir():
        raise ConfigError(f"{run / 'tokenizer'}: is missing; the run keeps its tokenizer there")
    tokenizer = load(run / "tokenizer", {})  # what it must hold was asked when the run began
    module = build(resolved, run, tokenizer, options)
    load_weights(module, read_weights(checkpoint), str(checkpoint))
    known = parameters_of_export(resolved.parts.paths[("model",)])
    facts = {name: value for name, value in {"run": run, "step": step_of(checkpoint)}.items() if name in known}
    with beside(out) as part:
        told = module.eval().export(part, tokenizer, **facts, **options) or []
    lines = [f"exported {checkpoint.name} of {run}; every tensor was read back and compared", *told]
    return lines + [f"  {call}" for call in opened_by(out)]


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Give a folder beside a place to write into, and move it there when it is whole.

    What killed processes of this host have left there is removed.

    Raises:
        ConfigError: the disk is full, or the like.
    """
    stem = f".{out.name}.{os.uname().nodename}."
    part = out.with_name(f"{stem}{os.getpid()}.part")
    try:
        for left in out.parent.glob(f"{glob.escape(stem)}*.part"):
            if not _runs(left.name.removeprefix(stem).removesuffix(".part")):
                shutil.rmtree(left, ignore_errors=True)
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except Exception as error:
        found = re.search(r"(.*) \(os error \d+\)", str(error))  # how libraries written in Rust tell of it
        if not isinstance(error, OSError) and not found:
            raise
        reason = found[1].rpartition(": ")[2] if found else getattr(error, "strerror", None) or error
        raise ConfigError(f"--out {short(out)}: cannot be written: {reason}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _runs(process: str) -> bool:
    """Tell whether there is a process of that number."""
    return process.isdecimal() and Path("/proc", process).exists()


def opened_by(out: Path) -> list[str]:
    """Say how each folder that was written is opened."""
    sentences = {path.parent for path in out.rglob("modules.json")}
    networks = {path.parent for path in out.rglob("config.json")} - sentences
    calls = [(folder, "SentenceTransformer") for folder in sentences]
    calls += [
        (folder, f"{auto_class(folder)}.from_pretrained") for folder in networks if folder.parent not in sentences
    ]
    return [f'{call}("{folder}")' for folder, call in sorted(calls)]


def auto_class(folder: Path) -> str:
    """Return transformers' name for what reads all of a network, its head included."""
    import transformers

    known = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ["Model"]
    head = re.search(r"For[A-Z]\w+$", known[0])
    if head and hasattr(transformers, f"AutoModel{head[0]}"):
        return f"AutoModel{head[0]}"
    return "AutoModel" if known[0].endswith("Model") and "LMHead" not in known[0] else known[0]


def build(resolved: Resolved, run: Path, tokenizer: Any, options: dict[str, Any]) -> Any:
    """Build the method of a run, untrained, from the run's own configuration.

    Raises:
        ConfigError: the method cannot be exported, or not so.
    """
    with importing():
        from launch.classes import imported
        from lightning_modules.core.base import Method

        kind = imported(resolved.parts, ("model",))
    if not issubclass(kind, Method) or kind.export is Method.export:
        raise ConfigError(f"model.class = {resolved.get('model.class')}: cannot be exported, it gives no export()")
    method = kind(**{name: value for name, value in resolved.values["model"].items() if name != "class"})
    method.recall(run)
    if options:
        try:
            method.check_export(tokenizer, **options)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    method.build(tokenizer, resolved.get("data.sequence_length"))
    return method
