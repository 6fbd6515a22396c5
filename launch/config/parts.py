"""Which class stands behind each part of the configuration."""

import os

from launch.config import sorts, source
from launch.config.defaults import start_table
from launch.config.errors import meant
from launch.config.overlay import NAMED
from launch.config.read import Entry, Key, Table
from launch.config.shadow import Signature, signature
from launch.config.show import named
from launch.registry import GROUPS, RUN, TRAINER

TOP = ("seed", "model", "data", "trainer", "strategy", "callbacks", "loggers", "run")


class Parts:
    """The parts of a table: key -> dotted class path, and its signature where the source was found."""

    def __init__(self, table: Table) -> None:
        self.paths: dict[Key, str] = {("trainer",): TRAINER, ("run",): RUN}
        self.signatures: dict[Key, Signature] = {key: signature(path) for key, path in self.paths.items()}
        self.problems: list[str] = []
        self.importable: set[str] = set()  # what a value may name for the second pass to import
        self._runs = run_folders(table)
        for part in [("model",), ("data",), ("strategy",), *named_parts(table)]:
            if not _is_out(table, part):
                self._choose(part, table)
        for part, path in self.paths.items():
            self._look_below(part, path, {key: entry for key, entry in table.items() if key[: len(part)] == part})

    def _choose(self, part: Key, table: Table) -> None:
        known = GROUPS[part[0]]
        entry = table.get((*part, "class"))
        if entry is None and len(part) == 1:
            self.problems.append(f"{part[0]}.class: required; one of {', '.join(known)}, or a dotted path to a class")
            return
        if entry is None:
            first = next(e for k, e in table.items() if k[:2] == part)
            entry = Entry(part[1], first.source)
        path = known.get(entry.value, entry.value) if isinstance(entry.value, str) else ""
        try:
            if "." not in path:
                choice = f"known: {', '.join(known)}, or a dotted path to a class of your own"
                raise source.NotFound(f"unknown name; {choice}{meant(str(entry.value), [*known])}")
            sorts.check_part(part, path, self._runs)
            self.signatures[part] = signature(path)
            self.paths[part] = path
        except (source.NotFound, SyntaxError) as error:
            key = (*part, "class") if (*part, "class") in table or len(part) == 1 else part
            self.problems.append(f"{named(key, entry)}: {error}")

    def _look_below(self, part: Key, path: str, table: Table) -> None:
        for key, entry, value in sorts.class_paths(part, table):
            try:
                sorts.check_below(path, value, self._runs)
            except (source.NotFound, SyntaxError) as error:
                self.problems.append(f"{named(key, entry)}: {error}")
        self.importable |= sorts.importable(path, table, self._runs)


def run_folders(table: Table) -> list[str]:
    """Return the folder that becomes a run's, if it is given: it is one from its first start on."""
    given = table.get(("run", "dir"), Entry(None, "")).value
    return [os.path.expanduser(given)] if isinstance(given, str) and given else []


def named_parts(table: Table) -> list[Key]:
    """Return callbacks.<name> and loggers.<name>, launch's own first and then in the order in which they were given."""
    given = dict.fromkeys(key[:2] for key in table if key[0] in NAMED and len(key) > 1)
    found = [part for part in dict.fromkeys([*start_table(), *given]) if part in given]
    return sorted(found, key=lambda part: NAMED.index(part[0]))


def _is_out(table: Table, part: Key) -> bool:
    return part in table and table[part].value is None
