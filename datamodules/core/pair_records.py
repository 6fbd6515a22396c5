"""Reading pairs: which columns hold the texts and the label of a record, and the records themselves.

Three forms are known: (anchor, positive, negative ...), (sentence1, sentence2, score), and pairs with a label.
"""

import glob
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datamodules.core.corpus import described
from datamodules.core.errors import DataError
from datamodules.core.folders import Located
from datamodules.core.formats import format_of
from datamodules.core.labels import number_of, present, records_of, text_of
from datamodules.core.lines import Records
from datamodules.core.opening import kind_of
from datamodules.core.pair_options import Columns
from datamodules.core.segments import sentences_of
from datamodules.core.sources import EMBEDDED, find, is_hub_name, local

ANCHORS = ("anchor", "query", "question", "sentence1", "text1", "premise")
POSITIVES = ("positive", "passage", "document", "answer", "response", "sentence2", "text2", "hypothesis", "context")
NEGATIVE = re.compile(r"(?:hard_)?negative(?:_?(\d+))?")
ROLES = ("anchor", "positive", "negatives")
LABELS = ("score", "similarity", "label")  # the first one that is there; where classes are wanted, the last
MADE = {EMBEDDED: ("title", "sentence"), f"{EMBEDDED}:title": ("title",), f"{EMBEDDED}:sentence": ("sentence",)}
Wanted = Literal["score", "class"]  # what a label is, where there must be one


class Pair(NamedTuple):
    """The texts of a record, anchor or first sentence first, and its score or label; 1 where there is none."""

    texts: tuple[str, ...]
    label: float


@dataclass(frozen=True)
class Roles:
    """The columns of the texts and of the label; `sure` when the label's was named or can only hold numbers."""

    texts: tuple[str, ...]
    label: str | None
    sure: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        return self.texts if self.label is None else (*self.texts, self.label)


def located(name: str, root: str | None, split: str = "train") -> tuple[Path, ...]:
    """Find the files behind a name, as `found_under` does."""
    return found_under(name, root, split).files


def found_under(name: str, root: str | None, split: str = "train") -> Located:
    """Find the files behind a name; a relative path is looked up in the folder `root`.

    Raises:
        DataError: nothing is there.
    """
    if name in MADE:
        return find(EMBEDDED, split)
    if name.startswith(f"{EMBEDDED}:"):
        raise DataError(f"{name}: no such pairs; there are {', '.join(MADE)}")
    return find(under(root, name), split)


def under(root: str | None, name: str) -> str:
    """Put a relative path under a folder, unless it is the name of a data set of the hub."""
    if root is None or name in MADE or Path(name).is_absolute() or name.startswith("~"):
        return name
    path = local(root) / name
    is_local = path.exists() or glob.has_magic(name) or format_of(path) is not None
    return str(path) if is_local or not is_hub_name(name) else name


def roles_of(names: Iterable[str], columns: Columns, key: str, place: str, wanted: Wanted | None) -> Roles:
    """Find the columns of the texts and of the label among the names of a record; `wanted` says that it must be there.

    Raises:
        DataError: one is missing, or several could be meant.
    """
    names = list(names)
    found = []
    for role, usual in zip(ROLES, (ANCHORS, POSITIVES), strict=False):
        given = getattr(columns, role)
        fitting = [given] if given else [name for name in names if name.lower() in usual]
        known = ", ".join(map(repr, names)) or "nothing"
        if not fitting or fitting[0] not in names:
            lacking = f"{given!r}" if given else f"for the {role} ({', '.join(usual)})"
            unnamed = "is the header line missing? If not, " if any(name.count(" ") > 1 for name in names) else ""
            raise DataError(
                f"{place}: has no column {lacking}, only {known}; {unnamed}name it in data.{key}.columns.{role}"
            )
        if len(fitting) > 1:
            several = " and ".join(map(repr, fitting))
            raise DataError(f"{place}: {several} could be the {role}; name one in data.{key}.columns.{role}")
        found.append(fitting[0])
    for name in (negatives := negatives_of(names, columns)):
        if name not in names:
            raise DataError(f"{place}: has no column {name!r}, only {known}; correct data.{key}.columns.negatives")
    label = label_of(names, columns, wanted)
    if (label is None and wanted) or (label is not None and label not in names):
        lacking = f"{label!r}" if label else f"for the label ({', '.join(LABELS)})"
        raise DataError(f"{place}: has no column {lacking}, only {known}; name it in data.{key}.columns.label")
    return Roles((*found, *negatives), label, sure=bool(columns.label) or (label or "").lower() != "label")


def negatives_of(names: list[str], columns: Columns) -> list[str]:
    """Find the columns of hard negatives, in the order of their numbers."""
    if columns.negatives is not None:
        return columns.negatives
    found = [(int(match[1] or 0), name) for name in names if (match := NEGATIVE.fullmatch(name.lower()))]
    return [name for _, name in sorted(found)]


def label_of(names: list[str], columns: Columns, wanted: Wanted | None) -> str | None:
    """Find the column of the label; None when there is none or it is not wanted."""
    if columns.label is not None:
        return columns.label or None
    by_name = {name.lower(): name for name in reversed(names)}
    usual = LABELS[::-1] if wanted == "class" else LABELS
    return next((by_name[name] for name in usual if name in by_name), None)


@dataclass(frozen=True)
class Reading:
    """Files with pairs and how their records are read; `key` is where the options stand, as "sources.nli"."""

    name: str
    files: tuple[Path, ...]
    key: str
    columns: Columns
    labels: dict[str, float | None] | None = None
    wanted: Wanted | None = None

    @property
    def needs(self) -> Wanted | None:
        """What a label is, where there must be one: there must where its words were given a meaning."""
        return self.wanted or ("score" if self.labels and self.columns.label != "" else None)

    def description(self, cache: Path) -> list[Any]:
        """Describe all that decides the pairs, for a fingerprint."""
        made = self.name if self.name in MADE else None
        files = [described(path, cache) for path in self.files]
        return [made, files, asdict(self.columns), self.labels, self.wanted]

    def pairs(self, bad: Records) -> Iterator[Pair]:
        """Yield the pairs; bad records are refused, or counted in `bad`.

        Raises:
            DataError: a record or a whole file is no good.
        """
        labelled = None
        for path in self.files:
            bad.account.files += 1
            if self.name in MADE:
                for pair in embedded(path, self.name):
                    bad.account.see()
                    bad.account.used += 1
                    yield pair
                continue
            roles, names = None, None
            for place, record in records(path, bad):
                if roles is None:
                    roles, names = roles_of(record, self.columns, self.key, place, self.needs), record.keys()
                    labelled = (roles.label is not None) if labelled is None else labelled
                    if labelled != (roles.label is not None):
                        raise DataError(
                            f"{place}: {'has no label' if labelled else f'has a label, {roles.label!r}'}, and files "
                            f"before it {'have' if labelled else 'have none'}; make two sources of them"
                        )
                    bad.account.read(*roles.columns)
                elif record.keys() != names:
                    self.refuse_more([*record], roles, place)
                pair, refused = None, bad.account.left_out["refused"]
                with forgiving(bad):
                    pair = self.pair(record, roles, place)
                if pair is not None:
                    bad.account.used += 1
                    yield pair
                elif bad.account.left_out["refused"] == refused:
                    bad.account.leave_out("without a label")

    def refuse_more(self, names: list[str], roles: Roles, place: str) -> None:
        """Refuse a record with a label or negatives where the first one, by which columns are chosen, had none.

        Raises:
            DataError: naming the column.
        """
        label, negatives = label_of(names, self.columns, self.needs), negatives_of(names, self.columns)
        more = [label] if roles.label is None and label in names else []
        more += [name for name in negatives if name in names and name not in roles.columns]
        if more:
            left_out = "label: ''" if more[0] == label else "negatives: []"
            raise DataError(
                f"{place}: has {more[0]!r}, which the first record has not; give it to all, or leave it out with "
                f"data.{self.key}.columns: {{{left_out}}}"
            )

    def roles(self) -> tuple[str, ...]:
        """Name the columns that are read, as the first record has them."""
        if self.name in MADE:
            return (" or ".join(MADE[self.name]), "rest of the lead")
        place, record = next(found for path in self.files for found in records(path, Records(None, skip_bad=True)))
        return roles_of(record, self.columns, self.key, place, self.needs).columns

    def pair(self, record: dict[str, Any], roles: Roles, place: str) -> Pair | None:
        """Take a pair out of a record; None when its label says to leave it out."""
        label = 1.0 if roles.label is None else self.label(record, roles, place)
        if label is None:
            return None
        keys = [f"{self.key}.columns.{ROLES[min(number, 2)]}" for number in range(len(roles.texts))]
        return Pair(tuple(full_text(record, *role, place) for role in zip(roles.texts, keys, strict=True)), label)

    def label(self, record: dict[str, Any], roles: Roles, place: str) -> float | None:
        """Read the label as a number, by the meaning of words where one is given."""
        value = present(record, roles.label, f"{self.key}.columns.label", place)
        return number_for(value, roles.label, self.labels, self.key, place, roles.sure)


def full_text(record: dict[str, Any], name: str, key: str, place: str) -> str:
    """Look a text up that says something.

    Raises:
        DataError: it is missing, no string, empty, or no characters.
    """
    text = text_of(record, name, key, place)
    if not text.strip():
        raise DataError(f"{place}: {name!r} is empty; write a text")
    return text


def records(path: Path, bad: Records) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a file with their places.

    Raises:
        DataError: the format has no columns, the file cannot be read, or a record is none.
    """
    if kind_of(path) == ".txt":
        raise DataError(f"{path}: a txt file has no columns; give jsonl, json, csv, tsv, parquet or arrow")
    for place, record in records_of(path, bad):
        if not isinstance(record, dict):
            raise DataError(f"{place}: not a record but {str(record)[:40]!r}; write one JSON object a line")
        yield place, record


def number_for(
    value: Any, name: str, labels: dict[str, float | None] | None, key: str, place: str, sure: bool
) -> float | None:
    """Read a score, label or grade; None when `labels` says to leave its record out.

    Raises:
        DataError: it is no number and stands for none, or its meaning is not sure.
    """
    word = word_of(value)
    if labels is None:
        number = number_of(value, name, place, f"say what words stand for, as data.{key}.labels: {{{word:.20}: 1}}")
        if not sure and not 0 <= number <= 1:
            raise DataError(
                f"{place}: {name!r} = {word} is not from 0 to 1; say what it stands for in data.{key}.labels, or that "
                f"it is a score with data.{key}.columns.label: {name}"
            )
        return number
    if word not in labels:
        raise DataError(
            f"{place}: {name!r} = {word!r:.60} is none of data.{key}.labels ({', '.join(labels)}); add it, with null "
            "to leave such records out"
        )
    return labels[word]


def word_of(value: Any) -> str:
    """Write a label as a configuration does: 2.0 as 2."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


@contextmanager
def forgiving(bad: Records) -> Iterator[None]:
    """Pass over a bad record with a note in `bad`, when that skips them.

    Raises:
        DataError: bad records are errors.
    """
    try:
        yield
    except DataError as error:
        if not bad.skip_bad:
            raise DataError(f"{error}, or set data.on_bad_record to skip") from None
        bad.account.refuse(str(error))


def embedded(path: Path, name: str) -> Iterator[Pair]:
    """Pair the title or the first sentence of every embedded article with the rest of its lead, where there is one."""
    for _, article in records_of(path):
        first, *rest = sentences_of(article["text"], "split")
        if rest:
            starts = {"title": article["title"], "sentence": first}
            yield from (Pair((starts[kind], " ".join(rest)), 1.0) for kind in MADE[name])
