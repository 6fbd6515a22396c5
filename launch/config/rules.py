"""Rules between keys: small functions that get values and return a complaint or None.

A module exports RULES, a list of (key paths, function). The first key is the one that is complained about. The key
`ranks` stands for the number of processes; while it is unknown (devices: auto) its rules wait for the second pass. A
rule is left out when one of its keys does not exist.
"""

import math
import re
import runpy
from collections.abc import Callable
from typing import Any

from datamodules.core.addresses import address_problem
from launch.config.errors import one_line
from launch.config.numbers import is_whole
from launch.config.overlay import nested, under
from launch.config.parts import Parts
from launch.config.read import DEFAULT, Entry, Key, Table
from launch.config.show import named
from launch.config.source import source_file
from launch.config.wall_time import seconds_of

Rule = tuple[tuple[str, ...], Callable[..., str | None]]


def batch_divides(batch: int, micro: int, ranks: int) -> str | None:
    """Every rank makes the same number of equal micro-batches."""
    unit = (micro or 1) * ranks
    if not batch or batch < 1 or batch % unit == 0:
        return None
    below, above = batch // unit * unit, (batch // unit + 1) * unit
    near = f"{below} or {above}" if below else str(above)
    fitting = batch // ranks if batch % ranks == 0 else 0
    fewer = f", or micro_batch_size {max(n for n in range(1, micro + 1) if fitting % n == 0)}" if fitting else ""
    return f"must be a multiple of micro_batch_size x ranks = {micro} x {ranks} = {unit}; nearest: {near}{fewer}"


def not_negative(number: float | None) -> str | None:
    """Rates and waits have no sign."""
    return "must not be negative" if number is not None and number < 0 else None


def fits_positions(length: int, positions: int) -> str | None:
    """A sequence has a row in the position table for every token."""
    if length > positions:
        return f"is over the model's {positions} positions; lower it or raise model.max_positions"
    return None


def known_precision(precision: str | int | None, strategy: str) -> str | None:
    """Masters, moments and norms stay in float32 at least; there is no loss scale."""
    zero = str(strategy).startswith("zero")
    own = ("bf16-true",) if zero else ("64", "64-true")
    if str(precision) in ("None", "32", "32-true", "bf16-mixed", *own):
        return None
    if precision == "bf16-true":
        return "needs float32 masters of the weights, which zero1, zero2 and zero3 keep; use bf16-mixed or one of them"
    wide = "" if zero else " 64-true,"
    return f"is not supported: use 32-true,{wide} or bf16-mixed, which keeps float32 weights and needs no loss scale"


def wall_time(given: str | int | None) -> str | None:
    """A length of time can be read and is not nothing."""
    if given is None or (seconds_of(given) or 0) > 0:
        return None
    return 'must be above 0, in seconds or as "h:mm:ss" or "d-hh:mm:ss"'


def printable(folder: str | None) -> str | None:
    """The name of a run's folder stands in messages, scripts and the titles of windows."""
    return "must be on one line, without control characters" if folder and one_line(folder) != folder else None


def whole_seed(seed: int) -> str | None:
    """A seed has 32 bits."""
    return None if 0 <= seed < 2**32 else "must be from 0 to 4294967295"


def known_devices(devices: Any) -> str | None:
    """Devices are a number of them, all of them, or a list of the numbers that the machine gives them."""
    words = devices.split(",") if isinstance(devices, str) else devices if isinstance(devices, list) else None
    if words is None:
        return None if devices is None or devices == -1 or 1 <= devices <= MOST_DEVICES else WANTED_DEVICES
    if words in (["auto"], ["-1"]):
        return None
    numbers = [str(word).strip() for word in words]
    if not numbers or len({*numbers}) < len(numbers) or not all(re.fullmatch("[0-9]{1,6}", word) for word in numbers):
        return WANTED_DEVICES
    return WANTED_DEVICES if devices == numbers[0] and not 1 <= int(devices) <= MOST_DEVICES else None


def listed_devices(devices: Any, accelerator: Any) -> str | None:
    """Cores of a CPU have no numbers to choose by."""
    listed = isinstance(devices, list) or (isinstance(devices, str) and "," in devices)
    return (
        "names devices, and a CPU has none; write how many processes, as 2" if listed and accelerator == "cpu" else None
    )


def known_accelerator(accelerator: Any) -> str | None:
    """Name what Lightning knows, or give a class of an accelerator by class_path."""
    is_class = accelerator is None or isinstance(accelerator, dict | list) or "." in str(accelerator)
    return None if is_class or accelerator in ACCELERATORS else f"expected one of {', '.join(ACCELERATORS)}"


def known_profiler(profiler: Any) -> str | None:
    """Name what Lightning knows, or give a class of a profiler by class_path."""
    is_class = profiler is None or isinstance(profiler, dict | list) or "." in str(profiler)
    return None if is_class or profiler in PROFILERS else f"expected one of {', '.join(PROFILERS)}, or a class_path"


def seconds_between(seconds: float) -> str | None:
    """Time goes on between two lines."""
    return None if 0 < seconds < math.inf else "must be above 0 and finite"


def no_empty_name(name: str | None) -> str | None:
    """Nothing is called nothing; null stands for what is not given."""
    return "is empty; give a name, or null" if name == "" else None


def between(least: int, most: int) -> Callable[[int | None], str | None]:
    """Make the rule of a number that something is built, started or held in memory for."""

    def rule(number: int | None) -> str | None:
        if not isinstance(number, int) or least <= number <= most:
            return None
        return f"must be at least {least}" if number < least else f"must be at most {most:,}"

    return rule


def single_is_one_device(strategy: str, devices: Any) -> str | None:
    """The strategy `single` starts no other process."""
    many = len(devices) > 1 if isinstance(devices, list) else isinstance(devices, int) and devices > 1
    return "runs on one device; use --config configs/strategy/ddp.yaml" if strategy == "single" and many else None


def single_is_one_node(strategy: str, nodes: int) -> str | None:
    """The strategy `single` is one process in all."""
    many = strategy == "single" and nodes and nodes > 1
    return "is one process on one node; use --config configs/strategy/ddp.yaml" if many else None


def no_variable(folder: str) -> str | None:
    """TensorBoard's logger would put a variable's value in its place, and nothing else of the run would."""
    return "holds a $, and variables are not filled in here; write the folder out" if "$" in str(folder) else None


ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps", "tpu")
PROFILERS = ("simple", "advanced", "pytorch", "xla")
NAMES = (
    *("run.dir", "model.init_from", "model.fixed_teacher", "data.source", "data.validation_source", "data.test_source"),
    *("data.predict_source", "data.cache_dir", "data.root", "data.tokenizer.name"),
)
MOST_DEVICES = 4096  # of a node
WANTED_DEVICES = f"expected how many, from 1 to {MOST_DEVICES}; auto; or a list of their numbers, each once, as [0, 1]"
BOUNDS = {
    "trainer.max_steps": (1, 2**53),
    "trainer.num_nodes": (1, 65_536),
    "trainer.log_every_n_steps": (1, 2**53),
    "data.global_batch_size": (1, 2**24),
    "data.micro_batch_size": (1, 2**24),
    "data.sequence_length": (1, 2**24),
    "data.num_workers": (0, 1024),
    "data.num_prepare_processes": (0, 1024),
    "data.num_examples": (1, 2**31),
    "data.tokenizer.train.vocab_size": (1, 2**24),
    "run.checkpoint": (0, 2**53),
    "callbacks.checkpoint.every_n_steps": (1, 2**53),
    "callbacks.checkpoint.keep_last": (1, 2**31),
    "callbacks.checkpoint.keep_every_n_steps": (1, 2**53),
    "callbacks.validation.every_n_steps": (1, 2**53),
    "callbacks.validation.max_batches": (1, 2**53),
    "callbacks.electra_panel.every_n_steps": (1, 2**53),
    **{
        f"model.{group}{name}": (1, most)
        for group in ("", "untrained.")
        for name, most in (
            ("hidden_size", 2**20),
            ("embedding_size", 2**20),
            ("intermediate_size", 2**24),
            ("num_layers", 10_000),
            ("num_heads", 2**16),
            ("max_positions", 2**26),
        )
    },
}  # what is far over that is refused before memory is touched or processes are started
RULES: list[Rule] = [
    (("seed",), whole_seed),
    (("trainer.precision", "strategy.class"), known_precision),
    (("data.global_batch_size", "data.micro_batch_size", "ranks"), batch_divides),
    (("data.sequence_length", "model.max_positions"), fits_positions),
    (("run.dir",), printable),
    (("run.dir",), address_problem),
    (("run.dir",), no_variable),
    (("model.init_from",), address_problem),
    (("run.max_wall_time",), wall_time),
    (("model.learning_rate",), not_negative),
    (("model.warmup_steps",), not_negative),
    *(((key,), between(*bounds)) for key, bounds in BOUNDS.items()),
    *(((key,), no_empty_name) for key in NAMES),
    (("callbacks.progress.every_n_seconds",), seconds_between),
    (("trainer.accelerator",), known_accelerator),
    (("trainer.profiler",), known_profiler),
    (("trainer.devices",), known_devices),
    (("trainer.devices", "trainer.accelerator"), listed_devices),
    (("strategy.class", "trainer.devices"), single_is_one_device),
    (("strategy.class", "trainer.num_nodes"), single_is_one_node),
]


def missing_sources(table: Table, parts: Parts) -> list[str]:
    """Return complaints about files that training would read, from the lists SOURCES in the files rules.py."""
    return broken(rules_for(parts, "SOURCES"), table, set(), None)


def rules_for(parts: Parts, name: str = "RULES") -> list[Rule]:
    """Return the core rules and those in the files rules.py beside the classes of model, data and the rest."""
    rules, seen = list(RULES) if name == "RULES" else [], set()
    for path in parts.paths.values():
        package = path.rpartition(".")[0].rpartition(".")[0]
        file = source_file(f"{package}.rules") if package and not path.startswith(("lightning.", "launch.")) else None
        if file and file not in seen:
            seen.add(file)
            rules += runpy.run_path(str(file)).get(name, [])  # the file alone: its package is not imported
    return rules


def count_of(devices: Any) -> int | None:
    """Return how many devices a value names: a number, also as text, or a list; None for words such as `auto`."""
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if isinstance(devices, int) or (isinstance(devices, str) and is_whole(devices)) else None


def ranks_of(table: Table) -> Entry | None:
    """Return the number of ranks with its source, or None while only the machine knows it."""

    def entry(*key: str) -> Entry:
        return table.get(key, Entry(1, DEFAULT))

    devices, nodes = entry("trainer", "devices"), entry("trainer", "num_nodes")
    if entry("strategy", "class").value == "single":
        return Entry(1, "strategy single")
    count = count_of(devices.value)
    if count is None or count < 1 or not isinstance(nodes.value, int) or nodes.value < 1:
        return None
    sources = [devices.source, *([nodes.source] if nodes.value != 1 else [])]
    return Entry(count * nodes.value, ", ".join(sources))


def _named(rules: list[Rule]) -> set[str]:
    return {name for keys, _ in rules for name in keys}


def _mapping(name: str, table: Table, bad: set[Key]) -> Entry | None:
    """Return a key whose value stands in the table piece by piece, with the source of the first; None if one is bad."""
    whole = tuple(name.split("."))
    below = dict(under(table, whole))
    if not below or any(key[: len(whole)] == whole for key in bad):
        return None
    return Entry(nested({key[len(whole) :]: entry for key, entry in below.items()}), next(iter(below.values())).source)


def _complaint(rule: Callable[..., str | None], values: list[Any]) -> str | None:
    try:
        return rule(*values)
    except TypeError:  # an option of the same name, of another class and kind than the rule is about
        return None


def broken(rules: list[Rule], table: Table, bad: set[Key], ranks: Entry | None) -> list[str]:
    """Return the complaints of all rules whose keys have good values; what a rule of one key refuses is no good."""
    known = {".".join(key): entry for key, entry in table.items() if key not in bad}
    if ranks:
        known["ranks"] = ranks
    known |= {name: entry for name in _named(rules) - {*known} if (entry := _mapping(name, table, bad))}
    problems, refused = [], set()
    for keys, rule in sorted(rules, key=lambda rule: len(rule[0]) > 1):
        is_known = all(key in known for key in keys) and (len(keys) == 1 or refused.isdisjoint(keys))
        if is_known and (complaint := _complaint(rule, [known[key].value for key in keys])):
            others = ", ".join(named(key, known[key]) for key in keys[1:])
            problems.append(f"{named(keys[0], known[keys[0]])}: {complaint}" + (f" [{others}]" if others else ""))
            refused |= {*keys} if len(keys) == 1 else set()
    return problems
