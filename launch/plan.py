"""`launch plan`: memory, steps, tokens, checkpoints and time of a configuration, on a machine without a GPU.

The networks are built on the meta device, so a plan of 7 billion parameters takes as long as one of a million. Nothing
of the data is opened: the vocabulary is as large as the configuration says, or the tokenizer that it names.
"""

import json
import math
import os
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from datamodules.core.packaged import shipped
from launch.config.errors import ConfigError, short
from launch.config.numbers import is_whole
from launch.config.overlay import expanded
from launch.config.resolved import Resolved, check_ranks, resolve
from launch.config.rules import ranks_of
from launch.config.show import named

if TYPE_CHECKING:
    from launch.planning.activations import Kept
    from launch.planning.memory import Line
    from launch.planning.sizes import Sizes

USAGE = """usage: python -m launch plan --config FILE [--config FILE ...] [--key value ...]

Prints parameters, memory of a rank under every strategy with its formulas, tokens, steps, checkpoints and time. No
data or network is opened.

  --ranks N                processes in all, where trainer.devices is auto, or to try another number
  --vocab-size N           tokens of the vocabulary, where the configuration names a tokenizer that is no local folder
  --tokens-per-second X    estimate the time from this speed of all ranks together
  --from RUN               estimate it from the speed that a run has measured (perf/tokens_per_s in its metrics.jsonl)
"""
FLAGS = ("--ranks", "--vocab-size", "--tokens-per-second", "--from")


class Plan(NamedTuple):
    """A configuration, counted."""

    resolved: Resolved
    ranks: int
    strategy: str
    vocab_size: int
    on_gpu: bool
    size: int  # bytes of a weight
    sizes: "Sizes"
    kept: "list[Kept]"
    memory: "dict[str, list[Line]]"  # of every strategy, by name
    texts_per_example: int
    checkpoint_bytes: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch of full sequences."""
        texts = self.resolved.get("data.global_batch_size") * self.texts_per_example
        return texts * self.resolved.get("data.sequence_length")

    @property
    def kept_checkpoints(self) -> int:
        """How many checkpoints the disk holds at most: those that are kept, and the next one while it is written."""
        get, prefix = self.resolved.get, "callbacks.checkpoint."
        if get(prefix + "every_n_steps") is None:
            return 0
        steps, forever = get("trainer.max_steps"), get(prefix + "keep_every_n_steps")
        best = get(prefix + "keep_best") is not None or get(prefix + "keep_best.metric") is not None
        return get(prefix + "keep_last") + 1 + best + (steps // forever if forever else 0)


def main(words: list[str]) -> int:
    """Print the plan of a configuration.

    Raises:
        ConfigError: mistakes in the words or the configuration, or something that a plan cannot know.
    """
    if not words or "--help" in words or "-h" in words:
        print(USAGE, end="")
        return 0
    given, rest = _flags(words)
    speed = _speed(given)
    plan = plan_of(resolve(rest, "fit"), _count(given, "--ranks"), _count(given, "--vocab-size"))
    from launch.planning.report import report

    print(*plan.resolved.notes, sep="\n", end="\n" if plan.resolved.notes else "")
    print(report(plan, *speed))
    return 0


def plan_of(resolved: Resolved, ranks: int | None = None, vocab_size: int | None = None) -> Plan:
    """Count a configuration.

    Raises:
        ConfigError: the number of ranks or the size of the vocabulary is nowhere stated, or the method cannot be built.
    """
    vocab_size = vocab_size or _vocabulary(resolved)
    ranks = ranks or _ranks(resolved)
    check_ranks(resolved, ranks)
    os.environ["HF_HUB_OFFLINE"] = "1"  # an encoder that is named is looked for on this machine alone
    from launch.planning import activations, memory, sizes

    method = sizes.build(resolved, vocab_size)
    counted = sizes.measure(method)
    get, precision = resolved.get, str(resolved.get("trainer.precision") or "32-true")
    on_gpu, mixed = _on_gpu(resolved), precision == "bf16-mixed"
    size = sizes.weight_bytes(resolved)
    recompute = bool(get("trainer.activation_checkpointing"))
    texts = get("data.micro_batch_size") * method.texts_per_example
    run = activations.Pass(texts, get("data.sequence_length"), size, mixed, on_gpu, recompute)
    kept = activations.kept(method, run)
    every, steps = get("callbacks.checkpoint.every_n_steps"), get("trainer.max_steps")

    def setting(strategy: str) -> memory.Setting:
        count = 1 if strategy == "single" else ranks
        passes = max(1, get("data.global_batch_size") // (get("data.micro_batch_size") * count))
        graphs = method.passes_kept(passes)
        return memory.Setting(
            sizes=counted,
            ranks=count,
            micro_batches=passes // graphs,  # backward passes of a step
            size=size,
            mixed=mixed,
            on_gpu=on_gpu,
            activations=graphs * sum(part.bytes for part in kept),
            scratch=get("model.optimizer") == "as_released",
            saves=every is not None,
            saves_while_training=every is not None and every < steps,
            options=sizes.strategy_options(resolved),
        )

    allowed = [name for name in memory.FORMULAS if precision != "bf16-true" or name.startswith("zero")]
    lines = {strategy: memory.lines_of(strategy, setting(strategy)) for strategy in allowed}
    checkpoint = counted.trained * max(4, size) * (1 + memory.MOMENTS) + counted.frozen * size + counted.buffers
    known = resolved, ranks, _strategy(resolved), vocab_size, on_gpu, size, counted, kept, lines
    return Plan(*known, method.texts_per_example, checkpoint)


def _strategy(resolved: Resolved) -> str:
    name = resolved.get("strategy.class")
    return "zero3_offload" if name == "zero3" and resolved.get("strategy.offload") else name


def _on_gpu(resolved: Resolved) -> bool:
    kind = resolved.get("trainer.accelerator") or "auto"
    if kind != "auto":
        return kind in ("gpu", "cuda")
    import torch

    return torch.cuda.is_available()


def _vocabulary(resolved: Resolved) -> int:
    if trained := resolved.get("data.tokenizer.train.vocab_size"):
        return trained
    key = ("data", "tokenizer", "name")
    if size := _tokens_of(str(resolved.get("data.tokenizer.name"))):
        return size
    stated = named(key, resolved.table[key]) if key in resolved.table else "data.tokenizer"
    raise ConfigError(
        f"{stated}: no folder with a tokenizer.json that opens, and a plan fetches nothing; state the size "
        "of the vocabulary as --vocab-size N"
    )


def _tokens_of(name: str) -> int | None:
    """Count the tokens of a tokenizer that is a folder here, or ships with a package."""
    try:
        file = Path(shipped(name), "tokenizer.json")
    except FileNotFoundError:  # a package that is not installed
        return None
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file)).get_vocab_size()
    except Exception:  # of what is wrong with a file, tokenizers raises bare ones
        return None


def _ranks(resolved: Resolved) -> int:
    if entry := ranks_of(resolved.table):
        return entry.value
    key = ("trainer", "devices")
    raise ConfigError(f"{named(key, resolved.table[key])}: give the number of processes as --ranks N")


def _flags(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Take the plan's own flags out of the words."""
    given, rest, left = {}, [], list(words)
    while left:
        word = left.pop(0)
        name, has_value, value = word.partition("=")
        if name not in FLAGS:
            rest.append(word)
            continue
        if not has_value:
            value = left.pop(0) if left and not left[0].startswith("--") else ""
        if not value:
            raise ConfigError(f"{name}: give a value")
        given[name] = value
    return given, rest


def _count(given: dict[str, str], flag: str) -> int | None:
    word = given.get(flag)
    if word is not None and not (is_whole(word) and int(word) > 0):
        raise ConfigError(f"{flag} = {short(word)}: expected a whole number above 0")
    return int(word) if word else None


def _speed(given: dict[str, str]) -> tuple[float | None, str]:
    """Return tokens a second of all ranks, with where the number is from; None if none was given."""
    if "--from" in given and "--tokens-per-second" in given:
        raise ConfigError("--from: is given beside --tokens-per-second; take one of them away")
    if "--from" in given:
        return measured_speed(expanded(given["--from"], "--from"))
    word = given.get("--tokens-per-second")
    if word is None:
        return None, ""
    try:
        speed = float(word)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise ConfigError(f"--tokens-per-second = {short(word)}: expected a number above 0")
    return speed, "given"


def measured_speed(run: Path) -> tuple[float, str]:
    """Return the median speed of a run's logged steps, but for the first one, and a description.

    Raises:
        ConfigError: the run has measured none.
    """
    name, file = "perf/tokens_per_s", run / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--from {short(run)}: {file.name} cannot be read ({error}); give a run's folder") from None
    values = [line[name] for line in lines if isinstance(line, dict) and isinstance(line.get(name), int | float)]
    values = [value for value in values[1:] or values if 0 < value < math.inf]
    if not values:
        raise ConfigError(f"--from {short(run)}: its metrics.jsonl holds no {name}; give --tokens-per-second X")
    return median(values), f"median of {len(values)} measurements in {run}"
