"""The flags of `launch slurm` that are not keys of the configuration; every value is checked before it is written."""

import re
from typing import NamedTuple

from launch.config.errors import ConfigError, meant, short

NAME = r"[A-Za-z0-9_.,+@=:/-]+"
USAGE = """usage: python -m launch slurm --config FILE [...] [--key value ...] --nodes N --gpus-per-node G --time T
       python -m launch slurm table RUN    shows the runs of a sweep

Writes RUN/job.sbatch: a job that trains, saves when SLURM's time is nearly up, has itself requeued and goes on.
"""
REST = r"(?::([0-5]?\d))?(?::([0-5]?\d))?"
MINUTES = re.compile(rf"(?:(\d{{1,4}})-(\d{{1,2}}){REST}|(\d{{1,6}}){REST})", re.ASCII)


class Option(NamedTuple):
    """What a flag may be given, and what it does; several: it may come more than once."""

    pattern: str
    wanted: str
    text: str
    several: bool = False


NUMBER = r"[1-9][0-9]{0,5}"
OPTIONS = {
    "nodes": Option(NUMBER, "a whole number", "nodes of the job (1)"),
    "gpus-per-node": Option(rf"([A-Za-z0-9_.-]+:)?{NUMBER}", "G or TYPE:G", "GPUs, and one task for each, on a node"),
    "tasks-per-node": Option(NUMBER, "a whole number", "tasks on a node, for jobs without GPUs"),
    "time": Option(MINUTES.pattern, "minutes, h:mm:ss or d-hh:mm:ss", "time limit of one attempt"),
    "array": Option(r"[^\x00-\x1f]+", "KEY=VALUE,VALUE,...", "a sweep: one run for each value", several=True),
    "array-limit": Option(NUMBER, "a whole number", "runs of a sweep at a time"),
    "partition": Option(NAME, "a name", "for sbatch"),
    "account": Option(NAME, "a name", "for sbatch"),
    "qos": Option(NAME, "a name", "for sbatch"),
    "constraint": Option(r"[A-Za-z0-9_.,&|()\[\]*!+:=-]+", "features", "for sbatch"),
    "mem": Option(r"[0-9]{1,9}[KMGT]?", "a size as 64G", "memory of each node"),
    "cpus-per-task": Option(NUMBER, "a whole number", "CPUs for each task"),
    "sbatch": Option(r"--[a-z][a-z-]*(=[^\x00-\x1f]*)?", "--name or --name=value", "any other line of sbatch", True),
    "setup": Option(r"[^\x00-\x1f]+", "a file", "shell commands that come first, such as `module load cuda`"),
    "job-name": Option(NAME, "a name", "the job's name (the run's folder)"),
    "lead": Option(NUMBER, "seconds", "how long before the time limit the run is told to save"),
    "attempts": Option(NUMBER, "a whole number", "attempts without progress until the job is given up (3)"),
    "wait": Option(NUMBER, "seconds", "how long ranks may outlive the first one that ends (60)"),
}
SWITCHES = {
    "submit": "submit the script too",
    "snapshot": "copy the code, so that later edits do not reach the job",
}
OURS = {  # lines that the script has already
    *("array", "chdir", "error", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "no-requeue"),
    *("nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time", "wait", "wrap"),
}


class Given(NamedTuple):
    """Values by option, the switches that are on, and the words that are left for the configuration."""

    values: dict[str, str]
    lists: dict[str, list[str]]
    switches: set[str]
    rest: list[str]


def parse(words: list[str]) -> Given:
    """Take our own flags out of the words.

    Raises:
        ConfigError: a value that an option does not take; all that were found.
    """
    found, problems, left = Given({}, {}, set(), []), [], list(words)
    while left:
        word = left.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in (*OPTIONS, *SWITCHES):
            if word.startswith("--") and "." not in name and (near := meant(name, [*OPTIONS, *SWITCHES], "--")):
                problems.append(f"{short(word)}: no such flag{near}")
            found.rest.append(word)
        elif name in SWITCHES:
            found.switches.add(name)
            problems += [f"--{name}: takes no value"] if has_value else []
        else:
            value = value if has_value else (left.pop(0) if left else "")
            problems += _take(found, name, value)
    if problems:
        raise ConfigError(*problems)
    return found


def _take(found: Given, name: str, value: str) -> list[str]:
    option = OPTIONS[name]
    if not re.fullmatch(option.pattern, value, re.ASCII):
        return [f"--{name} {short(value) or '(nothing)'}: expected {option.wanted}"]
    word = value.removeprefix("--").partition("=")[0]
    if name == "sbatch" and (ours := next((line for line in sorted(OURS) if line.startswith(word)), None)):
        meant = "" if ours == word else f", and sbatch may take it for --{ours}"  # it completes what is begun
        return [f"--sbatch {short(value)}: launch writes that line{meant}; see `python -m launch slurm --help`"]
    if option.several:
        found.lists.setdefault(name, []).append(value)
    elif name in found.values:
        return [f"--{name} {value}: given twice; keep one"]
    else:
        found.values[name] = value
    return []


def seconds_of(time: str) -> int:
    """Return the seconds of a time limit as sbatch reads it: minutes, m:ss, h:mm:ss, d-h, d-h:mm or d-h:mm:ss."""
    days, hours, minutes, seconds, *plain = MINUTES.fullmatch(time).groups()
    if days is not None:
        return ((int(days) * 24 + int(hours)) * 60 + int(minutes or 0)) * 60 + int(seconds or 0)
    numbers = [int(number) for number in plain if number is not None]
    if len(numbers) == 3:
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)


def usage() -> str:
    """Return the help of the command."""
    names = [*OPTIONS, *SWITCHES]
    width = max(map(len, names)) + 2
    lines = [f"  --{name:<{width}}{option.text}: {option.wanted}" for name, option in OPTIONS.items()]
    lines += [f"  --{name:<{width}}{text}" for name, text in SWITCHES.items()]
    return "\n".join([USAGE, *lines, ""])
