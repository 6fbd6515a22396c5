"""Reading pairs: the records, and the texts and labels in them.

Three forms are known: (anchor, positive, negative ...), (sentence1, sentence2, score), and pairs with a label.
"""

import glob
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.core.account import Account
from datamodules.core.classes import ClassName, is_missing, plain
from datamodules.core.corpus import described
from datamodules.core.errors import DataError
from datamodules.core.folders import Located
from datamodules.core.formats import format_of
from datamodules.core.labels import number_of, present, records_of, text_of
from datamodules.core.lines import Records
from datamodules.core.opening import kind_of
from datamodules.core.pair_columns import Finder, Roles, Wanted, may_hold_lists
from datamodules.core.pair_options import Columns
from datamodules.core.segments import sentences_of
from datamodules.core.sources import EMBEDDED, find, is_hub_name, local

NO_LABEL = "-"  # where the annotators of SNLI did not agree
MADE = {EMBEDDED: ("title", "sentence"), f"{EMBEDDED}:title": ("title",), f"{EMBEDDED}:sentence": ("sentence",)}
EMPTY_NEGATIVES = "of the hard negatives are empty, and take no part"
SEVERAL_POSITIVES = "of the records hold several positives, each of which is a pair"


class Pair(NamedTuple):
    """The texts of a record, anchor or first sentence first, and its score or label; 1 where there is none."""

    texts: tuple[str, ...]
    label: float


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


@dataclass(frozen=True)
class Reading:
    """Files with pairs and how their records are read; `key` is where the options stand, as "sources.nli".

    `accepts` and `before` are those of Finder.
    """

    name: str
    files: tuple[Path, ...]
    key: str
    columns: Columns
    labels: dict[str, float | None] | None = None
    wanted: Wanted | None = None
    accepts: bool = False
    before: bool = False

    @cached_property
    def finder(self) -> Finder:
        """What finds the columns. There must be a label where its words were given a meaning."""
        wanted = self.wanted or ("score" if self.labels and self.columns.label != "" else None)
        return Finder(self.columns, self.key, wanted, self.accepts, self.before)

    def description(self, cache: Path) -> list[Any]:
        """Describe all that decides the pairs, for a fingerprint."""
        made = self.name if self.name in MADE else None
        files = [described(path, cache) for path in self.files]
        rules = [] if self.before or made else ["columns 2"]
        return [made, files, asdict(self.columns), self.labels, self.wanted, *rules]

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
                if record.keys() != names:
                    roles, names = self.roles_in([*record], roles, place), record.keys()
                    labelled = (roles.label is not None) if labelled is None else labelled
                    if labelled != (roles.label is not None):
                        raise DataError(
                            f"{place}: {'has no label' if labelled else f'has a label, {roles.label!r}'}, and files "
                            f"before it {'have' if labelled else 'have none'}; make two sources of them"
                        )
                    bad.account.read(*roles.columns)
                yield from self.counted(record, roles, place, bad)

    def roles_in(self, names: list[str], first: Roles | None, place: str) -> Roles:
        """Find the columns of a record; texts and label stand where the first one of the file has them.

        Raises:
            DataError: it has a label where the first one has none, or a column that is not read and may not be.
        """
        if first is None:
            return self.finder.roles(names, place)
        if first.label is None and (label := self.finder.label(names)) in names:
            raise DataError(
                f"{place}: has {label!r}, which the first record has not; give it to all, or leave it out with "
                f"data.{self.key}.columns: {{label: ''}}"
            )
        if self.before and (more := [name for name in self.finder.negatives(names) if name not in first.negatives]):
            raise DataError(f"{place}: has {more[0]!r}, which the first record has not; the run began without it")
        found = replace(first, negatives=self.finder.negatives(names))
        self.finder.refuse_unread(names, found.columns, place)
        return found

    def counted(self, record: dict[str, Any], roles: Roles, place: str, bad: Records) -> Iterator[Pair]:
        """Yield the pairs of a record and count what becomes of it."""
        found, refused = [], bad.account.left_out["refused"]
        with forgiving(bad):
            found = self.pairs_of(record, roles, place, bad.account)
        if found:
            bad.account.used += 1
            yield from found
        elif bad.account.left_out["refused"] == refused:
            bad.account.leave_out("without a label")

    def roles(self) -> tuple[str, ...]:
        """Name the columns that are read, as the first record has them."""
        if self.name in MADE:
            return (" or ".join(MADE[self.name]), "rest of the lead")
        place, record = next(found for path in self.files for found in records(path, Records(None, skip_bad=True)))
        return self.finder.roles(record, place).columns

    def pairs_of(self, record: dict[str, Any], roles: Roles, place: str, account: Account) -> list[Pair]:
        """Take the pairs out of a record, one for each positive; none when its label says to leave it out."""
        label = 1.0 if roles.label is None else self.label(record, roles, place)
        if roles.label is not None and (self.labels or not roles.sure):  # a class, and no score
            account.classes[word_of(record[roles.label], self.labels)] += 1
        if label is None:
            return []
        anchor = full_text(record, roles.anchor, f"{self.key}.columns.anchor", place)
        key = f"{self.key}.columns.positive"
        if roles.label is None:
            positives = several(record, roles.positive, key, place)
        else:  # which of several texts it would belong to is not known
            positives = [full_text(record, roles.positive, key, place)]
        negatives = []
        for name in roles.negatives:
            held = several(record, name, f"{self.key}.columns.negatives", place, may_lack=True)
            account.note(EMPTY_NEGATIVES, held.count(""))
            negatives += filter(None, held)
        account.note(SEVERAL_POSITIVES, len(positives) > 1)
        return [Pair((anchor, positive, *negatives), label) for positive in positives]

    def label(self, record: dict[str, Any], roles: Roles, place: str) -> float | None:
        """Read the label as a number, by the meaning of words where one is given."""
        value = present(record, roles.label, f"{self.key}.columns.label", place)
        value = value.number if self.before and isinstance(value, ClassName) else value
        return number_for(value, roles.label, self.labels, self.key, place, roles.sure)


def several(record: dict[str, Any], name: str, key: str, place: str, may_lack: bool = False) -> list[str]:
    """Read the texts of a column that may hold a list, in a table one that is written as JSON.

    What is null or empty, where it may lack, is an empty text.

    Raises:
        DataError: there is none, or one is no text.
    """
    value = record.get(name) if may_lack else present(record, name, key, place)
    if isinstance(value, str) and may_hold_lists(name) and value.strip()[:1] == "[" and value.strip()[-1:] == "]":
        value = listed(value, name, place)
    items = value if isinstance(value, list) else [value]
    if not items and not may_lack:
        raise DataError(f"{place}: {name!r} is an empty list; write a text into it")
    if may_lack:
        return ["" if is_empty(item) else full_text({name: item}, name, key, place) for item in items]
    return [full_text({name: item}, name, key, place) for item in items]


def listed(written: str, name: str, place: str) -> list[Any]:
    """Read a list that a table holds as JSON.

    Raises:
        DataError: it is none.
    """
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        raise DataError(f'{place}: {name!r} = {written!r:.60} is no list in JSON; write ["one", "two"]') from None


def is_empty(value: Any) -> bool:
    """Say whether a value is none: null, NaN or no characters."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


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
        if isinstance(record, dict):
            yield place, record
        else:
            bad.bad(place, f"not a record but {str(record)[:40]!r}", "write one JSON object a line")


def number_for(
    value: Any, name: str, labels: dict[str, float | None] | None, key: str, place: str, sure: bool
) -> float | None:
    """Read a score, label or grade; None when `labels` says to leave its record out.

    Raises:
        DataError: it is no number and stands for none, or its meaning is not sure.
    """
    word = word_of(value, labels)
    if labels is None and isinstance(value, bool):
        return float(value)
    if labels is None:
        meant = f"say what words stand for, as data.{key}.labels: {{{word:.20}: 1}}"
        number = number_of(value, name, place, "leave the record out" if is_missing(value) else meant)
        if not sure and not 0 <= number <= 1:
            raise DataError(
                f"{place}: {name!r} = {word} is not from 0 to 1; say what it stands for in data.{key}.labels, or that "
                f"it is a score with data.{key}.columns.label: {name}"
            )
        return number
    if word == NO_LABEL and word not in labels:
        return None
    if word not in labels:
        raise DataError(
            f"{place}: {name!r} = {word!r:.60} is none of data.{key}.labels ({', '.join(labels)}); add it, with null "
            "to leave such records out"
        )
    return labels[word]


def word_of(value: Any, labels: Collection[str] | None = None) -> str:
    """Write a label as a configuration does: 2.0 as 2; of what can be written in two ways, the one in `labels`."""
    ways = [str(int(value) if isinstance(value, float) and value.is_integer() else value)]
    ways += [str(value).lower()] if isinstance(value, bool) else [plain(value)]
    ways += [str(value.number)] if isinstance(value, ClassName) else []
    return next((way for way in ways if way in (labels or ())), ways[0])


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
