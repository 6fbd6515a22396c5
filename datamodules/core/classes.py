"""The names of classes: how a label in a file is read as one, their order, and where a run keeps them."""

import json
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyarrow import Schema

from datamodules.core.errors import DataError, MissingLabel

LABELS_FILE = "labels.json"  # in the run's folder: the names of the classes, in the order of the outputs
WHOLE_NUMBER = re.compile(r"(-?[0-9]{1,18})(?:\.0*)?")  # tables write 2 as 2.0 where a column has gaps
OTHER_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?inf(?:inity)?", re.IGNORECASE)
# As tables and statistics programs write it; "-" is that of SNLI. Not "none", which is a class of many data sets.
MISSING = ("", "-", "nan", "+nan", "-nan", "na", "n/a", "<na>", "#n/a", "null", "nat")
NO_LABEL = "-1"  # of the hub's data sets, where nobody has given one


class ClassName(str):
    """The name that a data set has for a class, with the number that stands in its file."""

    __slots__ = ("number",)
    number: int

    @classmethod
    def of(cls, name: str, number: int) -> "ClassName":
        """Join name and number."""
        made = cls(name)
        made.number = number
        return made


class Nameless(int):
    """The number of a class that the data set has no name for."""


def is_missing(value: Any) -> bool:
    """Say whether a value stands for no label: null, NaN, an empty text, or how tables and SNLI write it."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


@dataclass(frozen=True)
class Naming:
    """How labels are read as names of classes.

    Args:
        known: the names that a run has begun with; None where they are found in the training examples.
        any_word: take -1 and words for missing labels as classes of their own.
    """

    known: tuple[str, ...] | None = None
    any_word: bool = False

    @cached_property
    def exact(self) -> frozenset[str]:
        """The known names."""
        return frozenset(self.known or ())

    @cached_property
    def numbers(self) -> dict[str, str]:
        """The known names by their plain writing: "2.0", which runs of before may have, by 2."""
        return {plain(name): name for name in reversed(self.known or ())}

    def read(self, value: Any, field: str, place: str) -> str:
        """Read a label as the name of a class: 2.0 as 2, true as True.

        Raises:
            DataError: it is missing, or neither a word nor a whole number.
        """
        if isinstance(value, str) and value in self.exact:
            return str(value)
        if (name := plain(value)) in self.numbers:
            return self.numbers[name]
        if isinstance(value, ClassName):
            return self.numbers.get(str(value.number), value)
        if not self.any_word and (is_missing(value) or name == NO_LABEL):
            allowed = ", or, if it is a class, set data.accept to [labels]" if name else ""
            raise MissingLabel(f"{place}: {field!r} = {value!r:.60} is a missing label; leave the record out{allowed}")
        if isinstance(value, Nameless):
            raise DataError(f"{place}: {field!r} = {value} has no name among those of the data set; correct it")
        if not name or OTHER_NUMBER.fullmatch(name):
            raise DataError(f"{place}: {field!r} = {value!r:.60} names no class; give a word or a whole number")
        return name


def plain(value: Any) -> str:
    """Write a label plainly, a whole number without a point; empty where it can name no class."""
    if isinstance(value, ClassName):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        return ""
    whole = WHOLE_NUMBER.fullmatch(str(value))
    return whole[1] if whole else str(value)


def ordered(names: Collection[str]) -> list[str]:
    """Put names in the order of the data set that gives them, else of their numbers, else of the alphabet."""
    if all(isinstance(name, ClassName) for name in names):
        return sorted(map(str, sorted(names)), key={str(name): name.number for name in names}.get)
    if all(WHOLE_NUMBER.fullmatch(name) for name in names):
        return sorted(map(str, names), key=lambda name: (int(name), name))  # "1" and "01" are two classes of one number
    return sorted(map(str, names))


def alike(names: Collection[str]) -> list[str]:
    """Tell, one in a line, of classes whose names differ in capitals or white space alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.split()).casefold(), []).append(name)
    several = (", ".join(map(repr, group)) for group in groups.values() if len(group) > 1)
    return [
        f"warning: {group} are different classes, though only capitals or spaces tell them apart" for group in several
    ]


def read_names(run: Path) -> list[str] | None:
    """Read the names of the classes that a run began with; None where it has kept none.

    Raises:
        DataError: the file holds something else.
    """
    file = run / LABELS_FILE
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}); restore it: it names the classes of the run") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise DataError(f"{file}: is no list of different names; restore it: it names the classes of the run")
    return names


def class_labels(schema: Schema, folder: Path) -> dict[str, list[ClassName]]:
    """Find the columns whose numbers stand for names, as `datasets` writes it into a schema, or beside the file."""
    try:
        written = (schema.metadata or {}).get(b"huggingface")
        info = json.loads(written)["info"] if written else json.loads((folder / "dataset_info.json").read_text())
        columns = info["features"].items()
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}
    return {name: named(kind["names"]) for name, kind in columns if is_class_label(kind) and name in schema.names}


def is_class_label(kind: Any) -> bool:
    """Say whether a feature of `datasets` is a ClassLabel with names."""
    if not isinstance(kind, dict) or kind.get("_type") != "ClassLabel":
        return False
    names = kind.get("names")
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def named(names: Iterable[str]) -> list[ClassName]:
    """Number names from 0."""
    return [ClassName.of(name, number) for number, name in enumerate(names)]


def with_names(row: dict[str, Any], columns: dict[str, list[ClassName]]) -> dict[str, Any]:
    """Put names in the place of numbers; -1, which stands for no label, stays."""
    for column, names in columns.items():
        if isinstance(number := row[column], int) and number >= 0:
            row[column] = names[number] if number < len(names) else Nameless(number)
    return row
