"""Which class stands behind each part of the configuration."""

from launch.config import source
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
        for part in [("model",), ("data",), ("strategy",), *named_parts(table)]:
            if not _is_out(table, part):
                self._choose(part, table)

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
            self.signatures[part] = signature(path)
            self.paths[part] = path
        except (source.NotFound, SyntaxError) as error:
            key = (*part, "class") if (*part, "class") in table or len(part) == 1 else part
            self.problems.append(f"{named(key, entry)}: {error}")


def named_parts(table: Table) -> list[Key]:
    """Return callbacks.<name> and loggers.<name>, launch's own first and then in the order in which they were given."""
    given = dict.fromkeys(key[:2] for key in table if key[0] in NAMED and len(key) > 1)
    found = [part for part in dict.fromkeys([*start_table(), *given]) if part in given]
    return sorted(found, key=lambda part: NAMED.index(part[0]))


def _is_out(table: Table, part: Key) -> bool:
    return part in table and table[part].value is None
