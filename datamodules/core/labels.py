"""Reading labelled examples: one or two texts and a label a record. A fault names the file, the line, and a fix."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datamodules.core.account import Account
from datamodules.core.classes import ClassName, Naming, class_labels, ordered, with_names
from datamodules.core.errors import DataError
from datamodules.core.lines import Records, half_pair, json_values
from datamodules.core.opening import kind_of
from datamodules.core.tables import rows_of, schema_of, table_rows

Labels = Literal["classes", "numbers"]
FOUND = Naming()  # in the training examples


class Example(NamedTuple):
    """One labelled example; the label is the name of a class, a number, or None where it is not wanted."""

    first: str
    second: str | None
    label: str | float | None
    place: str  # file and line, for complaints


@dataclass(frozen=True)
class Fields:
    """Where texts and label of a record stand, and what a label is."""

    text: str
    pair: str | None
    label: str | None  # None: no label is read
    labels: Labels
    naming: Naming = FOUND

    @property
    def read(self) -> list[str]:
        """The fields that are read."""
        return [name for name in (self.text, self.pair, self.label) if name is not None]

    def example(self, record: Any, place: str) -> Example:
        """Take an example out of a record.

        Raises:
            DataError: a field is missing or of another type.
        """
        if not isinstance(record, dict):
            raise DataError(f"{place}: not a record but {str(record)[:40]!r}; write one JSON object a line")
        first = text_of(record, self.text, "text_field", place)
        second = text_of(record, self.pair, "pair_field", place) if self.pair else None
        label = None if self.label is None else self.label_of(record, place)
        return Example(first, second, label, place)

    def label_of(self, record: dict[str, Any], place: str) -> str | float:
        """Read the label as the name of a class or as a number."""
        value = present(record, self.label, "label_field", place)
        if self.labels == "numbers":
            return number_of(value.number if isinstance(value, ClassName) else value, self.label, place)
        if isinstance(value, str) and (problem := half_pair(value)):
            raise DataError(f"{place}: {problem}; write the label as UTF-8 without escapes")
        return self.naming.read(value, self.label, place)


def present(record: dict[str, Any], name: str, key: str, place: str) -> Any:
    """Look a field up.

    Raises:
        DataError: there is no such field.
    """
    if name not in record:
        known = ", ".join(map(repr, record)) or "nothing"
        raise DataError(f"{place}: has no field {name!r}, only {known}; add it, or set data.{key}")
    return record[name]


def text_of(record: dict[str, Any], name: str, key: str, place: str) -> str:
    """Look a text up."""
    value = present(record, name, key, place)
    if not isinstance(value, str):
        raise DataError(f"{place}: {name!r} = {value!r:.60} is no text; write a string, or set data.{key}")
    if problem := half_pair(value):
        raise DataError(f"{place}: {problem}; write the text as UTF-8 without escapes")
    return value


def number_of(value: Any, name: str, place: str, fix: str = "set data.labels to classes") -> float:
    """Read a finite number, also from the text of a table."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise DataError(f"{place}: {name!r} = {value!r:.60} is no number; correct it, or {fix}")
    return number


def read_examples(files: tuple[Path, ...], fields: Fields, records: Records | None = None) -> list[Example]:
    """Read all examples of some files, in order; the account of `records` counts them.

    Raises:
        DataError: a record is no good, or there is none.
    """
    records = records or Records(fields.text, can_skip=False)
    records.account.files += len(files)
    found = [fields.example(record, place) for path in files for place, record in records_of(path, records)]
    if not found:
        raise DataError(f"{files[0]}: holds no example; write one record a line")
    records.account.read(*fields.read)
    return found


def records_of(path: Path, records: Records | None = None) -> Iterator[tuple[str, Any]]:
    """Yield each record of a file with its place; a text column that is named must be there and hold strings.

    Raises:
        DataError: the file cannot be read, or its format has no fields.
    """
    records, kind = records or Records(None), kind_of(path)
    if kind in (".jsonl", ".json"):
        for value in json_values(path, 0, math.inf, records):
            yield records.place(path), value
    elif kind in (".csv", ".tsv"):
        rows = table_rows(path, records)
        header = next(rows)
        yield from ((records.place(path), dict(zip(header, row, strict=True))) for row in rows)
    elif kind in (".parquet", ".arrow"):
        names = class_labels(schema_of(path, records), path.parent)
        rows = (with_names(row, names) for row in rows_of(path, records))
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows))
    else:
        raise DataError(f"{path}: has no fields for a label; give jsonl, json, csv, tsv, parquet or arrow")


def class_names(examples: list[Example]) -> list[str]:
    """Collect the classes of the training examples, in their order.

    Raises:
        DataError: there is only one.
    """
    names = {example.label for example in examples}
    if len(names) < 2:
        raise DataError(f"{examples[0].place}: every label is {str(names.pop())!r}; there is nothing to learn")
    return ordered(names)


def class_number(example: Example, numbers: dict[str, int], whose: str = "training labels") -> int:
    """Look the number of an example's class up; `whose` says where the classes come from.

    Raises:
        DataError: there is no such class.
    """
    if example.label not in numbers:
        known = ", ".join(map(repr, list(numbers)[:8])) + (", ..." if len(numbers) > 8 else "")
        raise DataError(
            f"{example.place}: label {str(example.label)!r} is none of the {whose} {known}; correct it, or train "
            "a new run with examples of it"
        )
    return numbers[example.label]


def count(examples: list[Example], account: Account, has_classes: bool) -> None:
    """Count the examples that are used, their classes, and texts that stand there again."""
    account.used = account.examples = len(examples)
    if drawn_away := account.records - len(examples):
        account.left_out["not drawn"] = drawn_away
    labels: dict[tuple[str, str | None], object] = {}
    for example in examples:
        if has_classes and example.label is not None:
            account.classes[str(example.label)] += 1
        known = labels.setdefault(example[:2], example.label)
        if known != example.label:
            account.note("of the texts stand there again with another label", 1)
    account.duplicated = len(examples) - len({example[:3] for example in examples})
