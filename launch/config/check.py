"""The first pass: every name, type and missing value of a table, checked against signatures read from source."""

from collections.abc import Iterator
from typing import Any

from launch.config.defaults import RESERVED
from launch.config.errors import meant
from launch.config.kinds import ANY, Kind, advice, fits
from launch.config.overlay import NAMED, nested, under
from launch.config.parts import TOP, Parts, named_parts
from launch.config.read import DEFAULT, Entry, Key, Table
from launch.config.shadow import COMPUTED, REQUIRED, Field
from launch.config.show import named
from launch.registry import GROUPS

ELSEWHERE = {
    "ckpt_path": "run.checkpoint",
    "seed_everything": "seed",
    "lr": "model.learning_rate",
}  # as others call them


class Check:
    """The mistakes of a table, in `problems`, and the keys whose values are no good, in `bad`.

    A flag's word that was read as a number where a string is wanted is put back to the string, in the table.
    """

    def __init__(self, table: Table, parts: Parts) -> None:
        self.table, self.parts = table, parts
        self.problems = list(parts.problems)
        self.bad: set[Key] = set()
        self._top_level()
        self._value(("seed",), Kind("int"))
        for part, signature in parts.signatures.items():
            self._reserved(part)
            self._fields(part, signature.fields, signature.open)

    def _complain(self, key: Key, entry: Entry, rule: str) -> None:
        self.bad.add(key)
        self.problems.append(f"{named(key, entry)}: {rule}")

    def _top_level(self) -> None:
        for key, entry in self.table.items():
            if key[0] in NAMED and len(key) > 1 and not key[1].isidentifier():
                self._complain(key, entry, "the name of a part is letters, digits and _")
            elif key[0] not in TOP:
                self._complain(key, entry, f"unknown key{self._elsewhere(key[0])}")
            elif key[0] == "seed" and len(key) > 1:
                self._complain(key, entry, "seed is no mapping, expected int")
            elif key[0] in NAMED and len(key) == 1 and entry.value is not None and entry.value != {}:
                self._complain(key, entry, "expected a mapping: a name for each, and its options")
            elif len(key) == 1 and key[0] not in (*NAMED, "seed") and entry.value != {}:
                self._complain(key, entry, "expected a mapping")
            elif key[0] in NAMED and len(key) == 2:
                self._part_entry(key, entry)

    def _part_entry(self, key: Key, entry: Entry) -> None:
        known = GROUPS[key[0]]
        if entry.value is None and key[1] not in known and meant(key[1], [*known]):
            self._complain(key, entry, f"nothing to take out{meant(key[1], [*known])}")
        elif entry.value is not None and entry.value != {}:
            self._complain(key, entry, "expected a mapping of options, a class, or null to take it out")

    def _reserved(self, part: Key) -> None:
        for key, entry in under(self.table, part) if part == ("trainer",) else ():
            if key[1] in RESERVED:
                self._complain(key, entry, f"not set here: it {RESERVED[key[1]]}")

    def _fields(self, part: Key, fields: dict[str, Field], is_open: bool = False) -> None:
        for key, entry in under(self.table, part):
            name = key[len(part)]
            if name not in fields and name != "class" and not is_open:
                self._complain(key, entry, f"not an option of {self._title(part)}{self._suggest(part, name, fields)}")
        for name, field in fields.items():
            self._field((*part, name), field)

    def _field(self, key: Key, field: Field) -> None:
        own, below = self.table.get(key), dict(under(self.table, key))
        inner = _mapping(field.kind)
        if own is None and not below:
            if field.default is REQUIRED:
                name = ".".join(key)
                wanted = f"required, expected {field.kind}; give it in a YAML file or as --{name} VALUE"
                self.problems.append(f"{name}: {wanted}")
        elif below or (own.value == {} and inner is not None):
            self._mapping(key, field.kind, inner, below)
        elif not any(key == bad[: len(key)] for bad in self.bad):
            self._value(key, field.kind)

    def _mapping(self, key: Key, kind: Kind, inner: Kind | None, below: Table) -> None:
        if inner is None:
            first, entry = next(iter(below.items()))
            self._complain(first, entry, f"{'.'.join(key)} is no mapping, expected {kind}")
        elif inner.name == "fields":
            self._fields(key, inner.fields)
        elif has_options(inner):
            for name in dict.fromkeys(path[len(key)] for path in below):
                self._field((*key, name), Field(inner.args[0], REQUIRED, ""))
        elif below and not fits(inner, value := value_at(self.table, key)):
            first, entry = next(iter(below.items()))
            self._complain(key, Entry(value, entry.source), f"expected {kind}")

    def _value(self, key: Key, kind: Kind) -> None:
        entry = self.table.get(key)
        if entry is None or fits(kind, entry.value):
            return
        if entry.text is not None and entry.value is not None and fits(kind, entry.text):
            self.table[key] = entry._replace(value=entry.text)
        else:
            self._complain(key, entry, advice(kind, entry.value, entry.text))

    def _title(self, part: Key) -> str:
        return self.parts.signatures[part].name if part in self.parts.signatures else ".".join(part)

    def _suggest(self, part: Key, name: str, fields: dict[str, Field]) -> str:
        return meant(name, [*fields], ".".join(part) + ".") or self._elsewhere(name)

    def _elsewhere(self, name: str) -> str:
        """Suggest a key of another part, or of the top level."""
        if name in ELSEWHERE:
            return f"; did you mean {ELSEWHERE[name]}?"
        if name in RESERVED:
            return f"; trainer.{name} {RESERVED[name]}"
        for part, signature in self.parts.signatures.items():
            if name in signature.fields:
                return f"; did you mean {'.'.join(part)}.{name}?"
        return meant(name, [*TOP])


def has_options(kind: Kind) -> bool:
    """Tell whether a kind is a mapping of names to mappings whose keys are known."""
    inner = _mapping(kind.args[0]) if kind.name == "dict" and kind.args else None
    return inner is not None and inner.name == "fields"


def _mapping(kind: Kind) -> Kind | None:
    """Return the member of a kind that a mapping can be."""
    members = kind.args if kind.name == "union" else (kind,)
    return next((member for member in members if member.name in ("fields", "dict", "any")), None)


def value_at(table: Table, key: Key) -> Any:
    """Return the value of a key, nested if the table holds it in parts."""
    if key in table:
        return table[key].value
    return nested({path[len(key) :]: entry for path, entry in under(table, key)})


def complete(table: Table, parts: Parts) -> Table:
    """Return the table in reading order, with the defaults of the signatures (Lightning's own left out)."""
    found: Table = {("seed",): table[("seed",)]} if ("seed",) in table else {}
    for part in [("model",), ("data",), ("trainer",), ("strategy",), *named_parts(table), ("run",)]:
        found |= {key: entry for key, entry in table.items() if key == (*part, "class")}
        if part in parts.signatures and part != ("trainer",):
            found |= dict(_with_defaults(part, parts.signatures[part].fields, table))
        rest = {key: entry for key, entry in table.items() if key[: len(part)] == part and key not in found}
        found |= {
            key: entry for key, entry in rest.items() if key != part or not any(k[: len(part)] == part for k in found)
        }
    return found


def _with_defaults(part: Key, fields: dict[str, Field], table: Table) -> Iterator[tuple[Key, Entry]]:
    for name, field in fields.items():
        key = (*part, name)
        below = dict(under(table, key))
        inner = _mapping(field.kind) or ANY
        if inner.name == "fields" and (below or (key not in table and field.default is COMPUTED)):
            yield from _with_defaults(key, inner.fields, table)
        elif key in table or below:
            yield from ({key: table[key]} if key in table else below).items()
        elif field.default is not REQUIRED and field.default is not COMPUTED:
            yield key, Entry(field.default, DEFAULT)
