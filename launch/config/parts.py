"""Which class stands behind each part of the configuration."""

from launch.config import source
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
        for part in [("model",), ("data",), ("strategy",), *_named_parts(table)]:
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
                raise source.NotFound(f"unknown name{meant(str(entry.value), [*known])}; known: {', '.join(known)}; "
                                      "or a dotted path to a class of your own")  # fmt: skip
            self.signatures[part] = signature(path)
            self.paths[part] = path
        except (source.NotFound, SyntaxError) as error:
            key = (*part, "class") if (*part, "class") in table or len(part) == 1 else part
            self.problems.append(f"{named(key, entry)}: {error}")


def _named_parts(table: Table) -> list[Key]:
    """Return callbacks.<name> and loggers.<name> of those that are not taken out by null."""
    found = dict.fromkeys(key[:2] for key in table if key[0] in NAMED and len(key) > 1)
    return [part for part in found if table.get(part, Entry({}, "")).value is not None]
