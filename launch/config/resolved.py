"""From the words of a command line to a checked configuration."""

import hashlib
import json
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.config import overlay
from launch.config.brought import lay_tokenizer
from launch.config.callbacks import idle_callbacks
from launch.config.check import Check, complete
from launch.config.defaults import start_table
from launch.config.errors import ConfigError
from launch.config.numbers import is_whole
from launch.config.parts import Parts
from launch.config.read import Entry, Key, Table
from launch.config.rules import broken, missing_sources, ranks_of, rules_for
from launch.config.show import lines, named
from launch.config.tasks import JOB, Tasks, lay_tasks

RUN_FILE = "run.json"
CONFIG = "config.yaml"
NEXT_CONFIG = "config.next.yaml"  # of an attempt that has not begun to train; then it becomes config.yaml


@dataclass(frozen=True)
class Resolved:
    """A checked configuration.

    `table` holds every value with its source, in reading order; `parts` maps a key such as `callbacks.progress` to the
    dotted path of its class; `notes` are lines that the user should see once.
    """

    table: Table
    parts: Parts
    notes: list[str] = field(default_factory=list)
    first_config: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """Return the values as nested dictionaries; a part that null took out is None."""
        return overlay.nested(self.table)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of one key such as `data.sequence_length`."""
        entry = self.table.get(tuple(key.split(".")))
        return default if entry is None else entry.value

    @property
    def run_dir(self) -> Path:
        """Return the run's folder: run.dir, the folder of a run's own config.yaml, or runs/<folder>/<name>."""
        if given := self.get("run.dir"):
            return overlay.expanded(given, "run.dir")
        first = Path(self.first_config or CONFIG)
        if is_stored(first):
            return first.parent
        return Path("runs", first.resolve().parent.name, first.stem)

    def text(self) -> str:
        """Return the configuration as YAML whose comments are the sources."""
        return lines(with_first_sources(self.table))

    def run_text(self) -> str:
        """Return what the run's folder keeps: all but `run`, which says where and how to start."""
        return lines(with_first_sources(self.of_the_run()))

    def of_the_run(self) -> Table:
        """Return the table without `run`, and without what a SLURM job says: the next one may have other nodes."""
        return {key: entry for key, entry in self.table.items() if key[0] != "run" and entry.source != JOB}

    def digest(self) -> str:
        """Return a hash of the values, wherever they were given."""
        values = [[".".join(key), entry.value] for key, entry in sorted(self.of_the_run().items())]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def with_first_sources(table: Table) -> Table:
    """Name for values of a run's own configuration the file or flag that first gave them, which it notes."""
    written: dict[str, list[str]] = {}
    found = {}
    for key, entry in table.items():
        name, _, number = entry.source.rpartition(":")
        if name.endswith(CONFIG) and name not in written:
            written[name] = noted_lines(name)
        if is_whole(number) and 0 < int(number) <= len(written.get(name, [])):
            comment = written[name][int(number) - 1].rpartition("  # ")
            entry = entry._replace(source=comment[2] if comment[1] else entry.source)
        found[key] = entry
    return found


def noted_lines(name: str) -> list[str]:
    """Read the lines of a run's own configuration, as sources call it; none if it is no run's."""
    for path in (Path(name), overlay.PROJECT / name):
        if is_stored(path):
            with suppress(OSError, UnicodeDecodeError):
                return path.read_text(encoding="utf-8").splitlines()
    return []


def is_stored(file: Path) -> bool:
    """Tell whether a file is the configuration of a run's folder."""
    return file.name in (CONFIG, NEXT_CONFIG) and os.path.isfile(file.parent / RUN_FILE)


def resolve(words: list[str], command: str = "config", tasks: Tasks | None = None) -> Resolved:
    """Merge the files and flags of a command line, left to right, and check the result.

    Args:
        words: `--config FILE`, `--key value`, `--key=value` and `--key` (true), in any order.
        command: What will run; `fit` needs trainer.max_steps.
        tasks: The processes of the SLURM job that it will run in, if there is one.

    Raises:
        ConfigError: every mistake that was found, one line each.
    """
    found, notes, first = merge(words)
    if problem := _no_run(found, words):
        raise ConfigError(problem)
    of_job = lay_tasks(found, tasks, stored_files(words)) if tasks else []
    parts = Parts(found)
    lay_tokenizer(found, parts)
    check = Check(found, parts)
    problems = [*of_job, *check.problems]
    if command == "fit" and ("trainer", "max_steps") not in found:
        problems.append("trainer.max_steps: required for fit, expected int; give it in a YAML file or as a flag")
    if command == "fit":
        problems += idle_callbacks(parts, found)
    table = complete(found, parts)
    problems += broken(rules_for(parts), table, check.bad, ranks_of(table))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return Resolved(table, parts, notes, first)


def check_ranks(resolved: Resolved, ranks: int) -> None:
    """Apply the rules that had to wait until the number of ranks was known.

    Raises:
        ConfigError: what they complain about.
    """
    if ranks_of(resolved.table) is None:
        entry = Entry(ranks, resolved.table[("trainer", "devices")].source)
        rules = [rule for rule in rules_for(resolved.parts) if "ranks" in rule[0]]
        if problems := broken(rules, resolved.table, set(), entry):
            raise ConfigError(*problems)


def look_for_sources(resolved: Resolved) -> None:
    """Look for the files that training reads, before anything heavy is imported for it.

    Raises:
        ConfigError: what is not there.
    """
    if problems := missing_sources(resolved.table, resolved.parts):
        raise ConfigError(*problems)


def merge(words: list[str]) -> tuple[Table, list[str], str | None]:
    """Return the merged table, notes, and the first --config as it was found.

    Raises:
        ConfigError: files that cannot be read, words that are no flags.
    """
    table, notes, problems = start_table(), [], []
    first = None
    for name, word in with_stored(flags(words)):
        try:
            if name == "config":
                path = overlay.find_file(word)
                if not os.path.exists(overlay.expanded(word, "--config")):
                    notes.append(f"--config {word}: not in this folder, so it is that of the project, {path}")
                first = first or str(path)
                overlay.apply_file(table, path, notes)
            else:
                overlay.apply_flag(table, name, word, notes)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    _remove_emptied(table)
    return table, notes, first


def with_stored(given: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the flags with the configuration of their run.dir in front, if they name a run and no --config."""
    folders = [word for name, word in given if name == "run.dir"]
    if folders and all(name != "config" for name, _ in given):
        file = overlay.expanded(folders[-1], "run.dir") / CONFIG
        if is_stored(file) and os.path.isfile(file):
            return [("config", str(file)), *given]
    return given


def _no_run(table: Table, words: list[str]) -> str | None:
    """Say what is wrong with a run.dir that is all there is to find a configuration by."""
    given = table.get(("run", "dir"))
    if ("model", "class") in table or given is None or any(name == "config" for name, _ in flags(words)):
        return None
    folder = overlay.expanded(str(given.value), "run.dir")
    problem = "no such folder"
    if os.path.lexists(folder):
        problem = f"is not the folder of a run, it lacks {RUN_FILE} or {CONFIG}"
    return f"{named(('run', 'dir'), given)}: {problem}; give the folder of a run, or --config FILE to begin one"


def stored_files(words: list[str]) -> set[str]:
    """Return the configurations of runs among the --config files, as sources call them."""
    paths = [overlay.find_file(word) for name, word in with_stored(flags(words)) if name == "config"]
    return {overlay.shown(path) for path in paths if is_stored(path)}


def flags(words: list[str]) -> list[tuple[str, str]]:
    """Split the words into pairs of key and value.

    Raises:
        ConfigError: a word that belongs to no flag, or --config without a file.
    """
    found, problems, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        if word == "-c":
            name = "config"
        elif not word.startswith("--") or not name:
            run = Path(word, "run.json").is_file()
            fix = f"a run is given as --run.dir {word}" if run else "write --key value, and files as --config FILE"
            problems.append(f"{word}: not a flag; {fix}")
            continue
        if not has_value:
            follows = bool(rest) and not rest[0].startswith("--")
            value = rest.pop(0) if follows else ("" if name == "config" else "true")
        if name == "config" and not value:
            problems.append("--config: give a file")
            continue
        found.append((name, value))
    if problems:
        raise ConfigError(*problems)
    return found


def with_values(words: list[str], switches: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the flags of a command that has no configuration, all of which but the switches take a value.

    Raises:
        ConfigError: as of `flags`, or a value is missing.
    """
    found = dict(flags(words))
    empty = [name for name in found if name not in switches and f"--{name}=true" not in words and found[name] == "true"]
    if problems := [f"--{name}: give a value" for name in empty]:
        raise ConfigError(*problems)
    return found


def command_shown(name: str, words: list[str], root: str | None) -> str:
    """Return the command line as a report shows it: a data root is the reader's own, so that it reads FOLDER."""
    shown = {root: "FOLDER", f"--data.root={root}": "--data.root=FOLDER"}
    return shlex.join(["python", "-m", "launch", name, *(shown.get(word, word) for word in words)])


def _remove_emptied(table: Table) -> None:
    """`callbacks: null` takes out all of them: say so for each that is known, so that the text reads back the same."""
    for group in overlay.NAMED:
        whole = table.get((group,))
        if whole is not None and whole.value is None:
            del table[(group,)]
            names: list[Key] = [key for key in start_table() if key[0] == group]
            table.update({key: whole for key in names})


def main(words: list[str]) -> int:
    """Print the resolved configuration: `python -m launch config`."""
    resolved = resolve(words)
    print(*resolved.notes, sep="\n", end="\n" if resolved.notes else "", file=sys.stderr)
    print(resolved.text(), end="")
    return 0
