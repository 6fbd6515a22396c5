"""Types as they can be read from source, and whether a value fits one."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A type: int, float, bool, str, none, any, literal, union, list, tuple, dict (its values) or fields (a dataclass).

    `args` are the inner kinds, for a literal its values; `fields` are the fields of a dataclass by name.
    """

    name: str
    args: tuple[Any, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        if self.name == "literal":
            return "one of " + ", ".join(map(_word, self.args))
        if self.name == "union":
            return " or ".join(map(str, self.args))
        if self.name == "fields":
            return "a mapping of " + ", ".join(self.fields)
        inside = f" of {', '.join(map(str, self.args))}" if self.args else ""
        return {"none": "null", "dict": "mapping"}.get(self.name, self.name) + inside


ANY = Kind("any")


def union(*kinds: Kind) -> Kind:
    """Return the kind of a value that may be of any of these."""
    members: list[Kind] = []
    for kind in kinds:
        members += kind.args if kind.name == "union" else (kind,)
    words = [word for member in members if member.name == "literal" for word in member.args]
    others = [member for member in dict.fromkeys(members) if member.name != "literal"]
    members = [*([Kind("literal", tuple(words))] if words else []), *others]
    return ANY if ANY in members else members[0] if len(members) == 1 else Kind("union", tuple(members))


def fits(kind: Kind, value: Any) -> bool:
    """Tell whether a value, as YAML gives it, is of a kind. An int is a float too; true is no int."""
    if kind.name == "any":
        return True
    if kind.name == "union":
        return any(fits(member, value) for member in kind.args)
    if kind.name == "literal":
        return any(type(value) is type(word) and value == word for word in kind.args)
    if kind.name in ("list", "tuple"):
        return isinstance(value, list) and _items_fit(kind, value)
    if kind.name in ("dict", "fields"):
        inner = kind.args[0] if kind.args and kind.name == "dict" else ANY
        return isinstance(value, dict) and all(fits(inner, item) for item in value.values())
    if kind.name == "none":
        return value is None
    if isinstance(value, bool):
        return kind.name == "bool"
    return isinstance(value, {"int": int, "float": (int, float), "str": str, "bool": bool}[kind.name])


def _items_fit(kind: Kind, value: list) -> bool:
    if kind.name == "list":
        return all(fits(kind.args[0], item) for item in value)
    return len(value) == len(kind.args) and all(map(fits, kind.args, value))


def advice(kind: Kind, value: Any, text: str | None) -> str:
    """Say what was expected, and what to write where that is plain."""
    kinds = kind.args if kind.name == "union" else (kind,)
    names = [member.name for member in kinds]
    if "int" in names and isinstance(value, float) and value.is_integer():
        return f"expected {kind}; write {int(value)}"
    if "str" in names and not isinstance(value, str | list | dict) and value is not None and text is None:
        return f"expected {kind}; put it in quotes"
    if "bool" in names and str(value).lower() in ("yes", "no", "on", "off"):
        return f"expected {kind}; write {'true' if str(value).lower() in ('yes', 'on') else 'false'}"
    return f"expected {kind}"


def _word(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false", "''": '""'}.get(repr(value), str(value))
