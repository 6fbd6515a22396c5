"""A sweep: runs below one folder that differ in a few values, and their table. Imports nothing heavy."""

import fcntl
import itertools
import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from launch.config.errors import ConfigError, short
from launch.run_folder import RunFolder, read_json, write_json, write_whole

SWEEP, TABLE = "sweep.json", "sweep.md"
MAX_TASKS = 1000  # of an array, as SLURM comes
MAX_NAME = 200
CODES = {0: "done", 1: "failed", 3: "diverged", 75: "stopped"}


class Member(NamedTuple):
    """One run of a sweep: the name of its folder, its values by key, as they were written."""

    name: str
    values: dict[str, str]

    @property
    def words(self) -> list[str]:
        """Return the flags that set the values."""
        return [f"--{key}={value}" for key, value in self.values.items()]


def members(arrays: list[str]) -> list[Member]:
    """Return the runs for words such as `model.learning_rate=1e-4,2e-4`: every value with every other key's.

    Raises:
        ConfigError: a word is not of that form, a key is given twice or cannot be swept, two runs would share a folder.
    """
    given: dict[str, list[str]] = {}
    for word in arrays:
        key, equals, values = word.partition("=")
        if not equals or not key or not all(found := split(values)):
            raise ConfigError(f"--array {short(word)}: write KEY=VALUE,VALUE,... as model.learning_rate=1e-4,2e-4")
        if key.split(".")[0] in ("run", "config"):
            raise ConfigError(f"--array {short(word)}: {key} is the same for the whole sweep")
        if key in given:
            raise ConfigError(f"--array {short(word)}: {key} is given twice; write all its values after one --array")
        given[key] = found
    products = itertools.product(*given.values()) if given else ()
    made = [dict(zip(given, values, strict=True)) for values in products]
    if len(made) > MAX_TASKS:
        raise ConfigError(f"--array: {len(made)} runs, at most {MAX_TASKS}; make several sweeps")
    found = [Member(_name(values), values) for values in made]
    names = [member.name for member in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--array: two runs would have the folder {twice}; give values that differ in letters")
    return found


def split(text: str) -> list[str]:
    """Split at the commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "\"'":
            quote = letter if not quote else ("" if letter == quote else quote)
        depth += (letter in "[{") - (letter in "]}") if not quote else 0
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _name(values: dict[str, str]) -> str:
    name = re.sub(r"[^\w.+=,@-]", "_", ",".join(f"{key}={value}" for key, value in values.items()))
    if len(name) > MAX_NAME:
        raise ConfigError(f"--array: {short(name)} is too long for a folder; sweep over fewer keys or shorter values")
    return name


def write_members(folder: Path, found: list[Member]) -> None:
    """Write down which folders are runs of the sweep; those of an earlier submission stay."""
    old = read_json(folder / SWEEP) or {}
    write_json(folder / SWEEP, old | {member.name: member.values for member in found})


def write_table(folder: Path) -> None:
    """Write sweep.md from what the runs have left; one task at a time, so that the last to end sees all."""
    with (folder / f".{SWEEP}.lock").open("a") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        write_whole(folder / TABLE, table(folder))


def table(folder: Path) -> str:
    """Return a Markdown table of the runs in the order in which they were submitted.

    Raises:
        ConfigError: the folder holds no sweep.
    """
    found = read_json(folder / SWEEP)
    if found is None:
        raise ConfigError(f"{short(folder)}: no sweep; `launch slurm --array KEY=VALUE,... --run.dir DIR` makes one")
    if not all(_is_member(name, values) for name, values in found.items()):
        raise ConfigError(f"{short(folder / SWEEP)}: is damaged: expected folders' names, each with its values by key")
    keys = list(dict.fromkeys(key for values in found.values() for key in values))
    runs = {name: _metrics(folder / name / "metrics.jsonl") for name in found}
    metric = _metric(list(runs.values()))
    head = [*keys, "step", "train/loss", *([metric, f"best {metric}"] if metric else []), "outcome"]
    rows = [head, ["---"] * len(head)]
    for name, values in found.items():
        lines = runs[name]
        own = [_shown(_last(lines, "train/loss"))]
        if metric:
            own += [_shown(_last(lines, metric)), _shown(_best(lines, metric))]
        step, outcome = _outcome(RunFolder(folder / name))
        rows.append([*(values.get(key, "") for key in keys), str(step), *own, outcome])
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


def _is_member(name: str, values: Any) -> bool:
    is_name = name not in ("", ".", "..") and "/" not in name
    return is_name and isinstance(values, dict) and all(isinstance(value, str) for value in values.values())


def _metrics(file: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    with suppress(OSError):
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                lines += [line] if isinstance(line, dict) else []
    return lines


def _metric(runs: list[list[dict[str, Any]]]) -> str:
    """Return the validated value to show: val/loss, or else the first that any run has."""
    names = [name for lines in runs for line in lines for name in line if name.startswith("val/")]
    return "val/loss" if "val/loss" in names else next(iter(names), "")


def _numbers(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines if isinstance(line.get(name), int | float)]


def _last(lines: list[dict[str, Any]], name: str) -> float | None:
    return next(iter(_numbers(lines, name)[-1:]), None)


def _best(lines: list[dict[str, Any]], name: str) -> float | None:
    best = min if name.endswith("loss") else max
    return best((number for number in _numbers(lines, name) if math.isfinite(number)), default=None)


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def _outcome(folder: RunFolder) -> tuple[int, str]:
    """Return the step that a run has reached, and how its newest attempt ended."""
    outcome = read_json(folder.path / "outcome.json") or {}
    jobs, attempts = folder.job_lines(), folder.ledger()
    if not jobs:
        return folder.newest_step(), "not started"
    if jobs[-1]["event"] == "job_start":
        return folder.newest_step(), "running"
    if jobs[-1].get("then") == "requeue":
        return folder.newest_step(), "requeued"
    code = jobs[-1].get("code")
    reason = str(outcome.get("reason", "")) if attempts and outcome.get("code") == code else ""
    word = CODES.get(code, f"code {code}") if jobs[-1].get("then") != "capped" else "no progress"
    step = outcome.get("step", folder.newest_step())
    return step, word if code == 0 or not reason else f"{word}: {short(reason)}"
