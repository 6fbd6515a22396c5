"""Sets that embeddings are judged on: read into one table of texts, with the numbers of the texts of each set."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datamodules.core.account import Accept
from datamodules.core.classes import Naming
from datamodules.core.corpus import described
from datamodules.core.errors import DataError
from datamodules.core.labels import present, text_of
from datamodules.core.lines import Records
from datamodules.core.pair_columns import Finder, Wanted
from datamodules.core.pair_judgements import BEIR, NAMED, SPLITS, Judged, beir_files, rows_of
from datamodules.core.pair_options import Columns, EvaluationSet, Prompts
from datamodules.core.pair_records import (
    MADE,
    Reading,
    forgiving,
    full_text,
    located,
    number_for,
    records,
    under,
    word_of,
)  # fmt: skip
from datamodules.core.pair_store import Texts, key_of
from datamodules.core.sources import local

AT_ONCE = 2048  # texts that are tokenised together
SAME_TEXT = "of the queries stand among the documents word for word, and are ranked there: pairs have no ids"
OWN_LEFT_OUT = "of the queries are documents too, under the same id, which is left out of their own ranking, as in BEIR"
OWN_RANKED = "of the queries are documents too, under the same id, and find themselves, as data.{key}.rank_own says"
JUDGEMENT = ("query-id", "corpus-id", "score")
TEXTS = ("text", "sentence", "anchor", "query", "question", "document")
Numbers = dict[str, ArrayLike]


@dataclass(frozen=True)
class SetPlan:
    """A set of a split, its files found; `key` is where its options stand, as "validation.stsb"."""

    name: str
    key: str
    options: EvaluationSet
    files: dict[str, tuple[Path, ...]]
    sequence_length: int
    accept: tuple[Accept, ...] = ()  # what is not refused

    def description(self, cache: Path) -> list[Any]:
        """Describe all that decides the set, for a fingerprint."""
        apart = ("path", "train", *BEIR, "rank_own")
        options = {name: value for name, value in asdict(self.options).items() if name not in apart}
        files = {part: [described(path, cache) for path in paths] for part, paths in self.files.items()}
        made = self.options.path if self.options.path in MADE else None
        rules = [f"rank_own={self.options.rank_own}"] if "corpus" in files else []
        rules += ["columns 2"] if self.options.task == "retrieval" and "path" in files and not made else []
        return [self.name, options, made, files, self.sequence_length, *rules]

    @property
    def sides(self) -> list[tuple[str, int]]:
        """The prompt and the most tokens of first and second texts."""
        prompts = self.options.prompts or Prompts()
        limits = (self.options.query_tokens, self.options.passage_tokens)
        return [(prompts.of_column(side), limits[side] or self.sequence_length) for side in (0, 1)]

    @property
    def columns(self) -> Columns:
        """Where texts and label stand."""
        return self.options.columns or Columns()

    def add(self, side: int, texts: Iterable[str], table: Texts) -> array:
        """Put texts into the table, as first or second ones."""
        prompt, limit = self.sides[side]
        table.encoder.check_prompt(prompt, limit, self.key)
        numbers, rest = array("q"), iter(texts)
        while some := [prompt + text for text in islice(rest, AT_ONCE)]:
            numbers.extend(table.add(some, [limit] * len(some)))
        return numbers

    def read(self, table: Texts, bad: Records) -> Numbers:
        """Put the texts of the set into the table and return its numbers.

        Raises:
            DataError: a record is no good, or there is too little to judge by.
        """
        kind = self.options.task
        if kind == "classification":
            return self.classification(table, bad)
        if kind == "retrieval":
            return self.retrieval(table, bad)
        pairs = [*self.reading("score" if kind == "sts" else "class").pairs(bad)]
        first, second = (self.add(side, (pair.texts[side] for pair in pairs), table) for side in (0, 1))
        numbers = [pair.label for pair in pairs]
        if kind == "sts":
            self.refuse_same(numbers, "score")
            return {"first": first, "second": second, "score": np.array(numbers, np.float32)}
        if odd := next((number for number in numbers if number not in (0, 1)), None):
            raise DataError(
                f"{self.files['path'][0]}: label {odd:g} is neither 0 nor 1; say what it stands for in "
                f"data.{self.key}.labels"
            )
        self.refuse_same(numbers, "label")
        return {"first": first, "second": second, "label": np.array(numbers, np.int64)}

    def reading(self, wanted: Wanted | None) -> Reading:
        """Say how pairs are read."""
        options = self.options
        columns = Columns(self.columns.anchor, self.columns.positive, [], self.columns.label)
        accepts = "columns" in self.accept
        return Reading(str(options.path), self.files["path"], self.key, columns, options.labels, wanted, accepts)

    def refuse_same(self, values: list[Any], what: str) -> None:
        """Refuse a set with which nothing can be compared."""
        if len(set(values)) < 2:
            raise DataError(
                f"{self.files['path'][0]}: {f'every {what} is {values[0]}' if values else 'no record'}, so nothing can "
                f"be judged by data.{self.key}; give another file"
            )

    def retrieval(self, table: Texts, bad: Records) -> Numbers:
        """Read queries, documents and judgements; queries for which nothing is relevant are left out."""
        if "corpus" in self.files:
            return self.beir(table, bad)
        pairs = [*self.reading(None).pairs(bad)]
        queries = number_of_each(pair.texts[0] for pair in pairs if pair.label > 0)
        documents = number_of_each(pair.texts[1] for pair in pairs)
        judged = [(queries[q], documents[d], label) for (q, d), label in pairs if q in queries]
        bad.account.note(SAME_TEXT, len(queries.keys() & documents.keys()))
        return {"query": self.add(0, queries, table), "document": self.add(1, documents, table)} | self.best(judged)

    def beir(self, table: Texts, bad: Records) -> Numbers:
        """Read a set in the form of BEIR: corpus and queries with _id and text, judgements that name the ids."""
        judged = [*self.grades(bad)]
        wanted = {query for query, _, grade in judged if grade > 0}
        queries: dict[str, int] = {}
        documents: dict[str, int] = {}
        found = {
            "query": self.add(0, self.texts_by_id("queries", queries, wanted, bad), table),
            "document": self.add(1, self.texts_by_id("corpus", documents, None, bad), table),
        }
        rows = rows_of(judged, wanted, queries, documents, bad.account)
        if wanted and not any(row >= 0 and grade > 0 for _, row, grade in rows):
            part = "corpus" if queries else "queries"
            raise DataError(
                f"{self.files['qrels'][0]}: none of its {part} is in {self.files[part][0]}; give what belongs together"
            )
        found |= self.best(rows)
        own = [documents.get(query, -1) for query in queries]
        if shared := sum(row >= 0 for row in own):
            bad.account.notes[OWN_RANKED.format(key=self.key) if self.options.rank_own else OWN_LEFT_OUT] += shared
            found |= {} if self.options.rank_own else {"own": np.array(own, np.int64)}
        return found

    def grades(self, bad: Records) -> Iterator[Judged]:
        """Yield the judgements: query, document, grade."""
        for path in self.files["qrels"]:
            for place, record in records(path, bad):
                bad.account.read(*JUDGEMENT)
                with forgiving(bad):
                    query, document, value = (present(record, name, f"{self.key}.qrels", place) for name in JUDGEMENT)
                    grade = number_for(value, "score", self.options.labels, self.key, place, sure=True)
                    if grade is not None:
                        bad.account.note(f"judgements are from {path.parent.name}/{path.name}", 1)
                        yield word_of(query), word_of(document), grade
                    else:
                        bad.account.leave_out("without a grade")

    def texts_by_id(self, part: str, rows: dict[str, int], wanted: set[str] | None, bad: Records) -> Iterator[str]:
        """Yield texts, each with its title in front, and note in `rows` which row has which id."""
        texts: dict[str, int] = {}
        for path in self.files[part]:
            for place, record in records(path, bad):
                bad.account.read("_id", "title", "text")
                with forgiving(bad):
                    name = word_of(present(record, "_id", f"{self.key}.{part}", place))
                    known = {**record, "title": "" if record.get("title") is None else record["title"]}
                    title = text_of(known, "title", f"{self.key}.{part}", place)
                    text = text_of(record, "text", f"{self.key}.{part}", place)
                    whole = f"{title} {text}"
                    if texts.setdefault(name, key := key_of(whole)) != key:
                        raise DataError(f"{place}: the id {name!r} stands there twice, with two texts; correct one")
                    if name in rows:
                        bad.account.leave_out("there twice")
                    elif wanted is not None and name not in wanted:
                        bad.account.leave_out("without a relevant document")
                    else:
                        rows[name] = len(rows)
                        bad.account.used += 1
                        yield whole.strip() or " "  # known collections have empty documents

    def best(self, judged: list[tuple[int, int, float]]) -> Numbers:
        """Collect the judgements: of several of one pair the highest grade counts, and 0 is the lowest.

        Raises:
            DataError: there are none.
        """
        grades: dict[tuple[int, int], float] = {}
        for query, document, grade in judged:
            grades[query, document] = max(grade, grades.get((query, document), 0.0))
        if not grades:
            raise DataError(
                f"{next(iter(self.files.values()))[0]}: no query has a relevant document, so nothing can be judged by "
                f"data.{self.key}; see data.{self.key}.labels"
            )
        rows = np.array([*grades], np.int64)
        return {"judged": rows[:, 0], "document_of": rows[:, 1], "grade": np.array([*grades.values()], np.float32)}

    def classification(self, table: Texts, bad: Records) -> Numbers:
        """Read texts with classes; the classes are those of the training part, in the order of the alphabet."""
        train, test = ([*self.classed(part, bad)] for part in ("train", "path"))
        names = {name: number for number, name in enumerate(sorted({label for _, label, _ in train}))}
        self.refuse_same([label for _, label, _ in train], "class")
        for _, label, place in test:
            if label not in names:
                raise DataError(
                    f"{place}: class {label!r} is not in data.{self.key}.train; correct it, or add examples of it"
                )
        found: Numbers = {}
        for part, rows in (("train", train), ("test", test)):
            found[part] = self.add(0, (text for text, _, _ in rows), table)
            found[f"{part}_label"] = np.array([names[label] for _, label, _ in rows], np.int64)
        return found

    def classed(self, part: str, bad: Records) -> Iterator[tuple[str, str, str]]:
        """Yield the texts of a part with their classes and places."""
        for path in self.files[part]:
            for place, record in records(path, bad):
                with forgiving(bad):
                    name = self.columns.anchor or next((name for name in TEXTS if name in record), TEXTS[0])
                    label = Finder(self.columns, self.key, "class").label(record) or "label"
                    text = full_text(record, name, f"{self.key}.columns.anchor", place)
                    known = self.class_of(record, label, place)
                    bad.account.read(name, label)
                    if known is not None:
                        bad.account.used += 1
                        yield text, known, place
                    else:
                        bad.account.leave_out("without a label")

    def class_of(self, record: dict[str, Any], label: str, place: str) -> str | None:
        """Read the class of a text; None when `labels` says to leave it out."""
        value = present(record, label, f"{self.key}.columns.label", place)
        if self.options.labels is None:
            return str(Naming(any_word="labels" in self.accept).read(value, label, place))
        number = number_for(value, label, self.options.labels, self.key, place, sure=True)
        return None if number is None else word_of(number)


def number_of_each(texts: Iterable[str]) -> dict[str, int]:
    """Number texts, equal ones once."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def planned(
    sets: dict[str, EvaluationSet], group: str, split: str, root: str | None, length: int, accept: tuple[Accept, ...]
) -> list[SetPlan]:
    """Find the files of the sets of a split; `group` is the key of data that holds them.

    Raises:
        DataError: one is not there.
    """
    plans = []
    for name, options in sets.items():
        given = {part: found for part in ("path", "train", *BEIR) if (found := getattr(options, part)) is not None}
        if options.task == "retrieval" and "path" in given and (folder := local(under(root, given["path"]))).is_dir():
            parts = {**beir_files(folder, split), **given}
            lacking = [part for part in BEIR if part not in parts]
            if len(lacking) == 1:
                usual = NAMED[lacking[0]].format(SPLITS[split][0])
                fix = f"name another file in data.{group}.{name}.{lacking[0]}"
                raise DataError(f"{folder}: holds files in the form of BEIR, but no {usual}; {fix}")
            given = {part: parts[part] for part in BEIR} if not lacking else given
        files = {part: located(path, root, "train" if part == "train" else split) for part, path in given.items()}
        if "corpus" in files and options.columns is not None:
            raise DataError(f"data.{group}.{name}.columns: has no meaning for files in the form of BEIR; take it out")
        plans.append(SetPlan(name, f"{group}.{name}", options, files, length, accept))
    return plans


def read_sets(plans: list[SetPlan], table: Texts, counted: Callable[[], Records]) -> tuple[Numbers, dict[str, Any]]:
    """Read the sets of a split into one table; return their numbers, and what is told of them."""
    found, told, accounts = {}, {}, {}
    for plan in plans:
        bad = counted()
        numbers = plan.read(table, bad)
        accounts[plan.name] = bad.account.as_dict()
        told[plan.name] = [plan.options.task, {name: len(values) for name, values in numbers.items()}]
        found |= {f"{plan.name}.{name}": values for name, values in numbers.items()}
    return found, {"sets": told, "accounts": accounts}
