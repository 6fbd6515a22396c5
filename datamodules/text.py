"""Text for pre-training: from a file, a folder, the hub or the embedded corpus to flat batches."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from datamodules.core import wordpiece
from datamodules.core.corpus import Corpus, Plan, digest, text_description
from datamodules.core.errors import DataError
from datamodules.core.loader import Batching, Evaluation, FromStep, Steps, loader
from datamodules.core.packing import ExampleSource, Rows, Windows
from datamodules.core.publishing import alone
from datamodules.core.sources import EMBEDDED, Source, locate
from datamodules.core.tokenization import Recipe
from datamodules.core.wordpiece import TokenizerOptions

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerFast

SHORTEST_SEQUENCE = 8


class TextCorpus(LightningDataModule):
    """A text corpus, tokenised once under a cache folder and read in an order that is a function of (seed, step).

    Args:
        tokenizer: a tokenizer by name, or the training of one.
        global_batch_size: sequences of one optimizer step over all ranks.
        micro_batch_size: sequences that one forward pass holds.
        source: "embedded", a file, a folder, a pattern such as "texts/*.jsonl.gz", or a hub data set NAME:CONFIG:SPLIT.
        validation_source: the same for validation; without it, a share of the documents of `source` is held out.
        test_source: the same for the test; without it there is none, but for the embedded corpus.
        text_field: field or column that holds the text (jsonl, csv, tsv, parquet, arrow).
        documents: what a document of a txt file is.
        streaming: read and tokenise while training, without preparation; a weaker promise, see docs/data.md.
        sequence_length: longest example in tokens, special ones included.
        examples: ELECTRA's two segments; windows over all documents laid end to end; or pieces of single documents.
        sentences: what a sentence of a segment is: what ends like one in a line, or a whole line.
        length_grouping_steps: within windows of so many steps, sequences of like length share a micro-batch; 0: off.
        validation_fraction: share of the documents that is held out when there is no validation source.
        on_bad_record: refuse a bad line or record, or leave it out and count it.
        num_workers: processes that assemble batches ahead; 0 does it in the training process.
        num_prepare_processes: processes that tokenise; 0 means one for every core.
        cache_dir: where corpora and trained tokenizers live; by default tokamak in the user's cache folder.
    """

    def __init__(
        self,
        tokenizer: TokenizerOptions,
        global_batch_size: int,
        micro_batch_size: int,
        source: str = "embedded",
        validation_source: str | None = None,
        test_source: str | None = None,
        text_field: str = "text",
        documents: Literal["blank_line", "line", "file"] = "blank_line",
        streaming: bool = False,
        sequence_length: int = 128,
        examples: Literal["segments", "packed", "documents"] = "segments",
        sentences: Literal["split", "line"] = "split",
        length_grouping_steps: int = 0,
        validation_fraction: float = 0.01,
        on_bad_record: Literal["error", "skip"] = "error",
        num_workers: int = 0,
        num_prepare_processes: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.options = tokenizer
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.sources = {"train": source, "val": validation_source, "test": test_source}
        self.reading = {"text_field": text_field, "bounds": documents, "skip_bad": on_bad_record == "skip"}
        self.streaming, self.sequence_length, self.examples = streaming, sequence_length, examples
        self.sentences, self.length_grouping_steps = sentences, length_grouping_steps
        self.validation_fraction, self.num_workers = validation_fraction, num_workers
        self.num_prepare_processes = num_prepare_processes or len(os.sched_getaffinity(0))
        self.cache = cache_folder(cache_dir)
        self.seed = 0
        self.tokenizer: PreTrainedTokenizerFast | None = None
        self.places: Places | None = None
        self.corpora: dict[str, Corpus] = {}
        check_tokenizer(tokenizer)

    def prepare_data(self) -> None:
        """Trains the tokenizer and tokenises the corpora that are not there yet; Lightning calls it on one rank."""
        self.prepare()

    def prepare(self, part: int = 1, num_parts: int = 1) -> list[str]:
        """Prepares all corpora, or of each the shards of one part, and returns a line about each.

        Raises:
            DataError: the source, a record or the tokenizer is no good; or a part comes before the tokenizer.
        """
        lines = []
        tokenizer = self.make_tokenizer(may_train=num_parts == 1)
        plans = self.plans(tokenizer)
        for split, plan in plans.items():
            if num_parts == 1:
                plan.make(self.num_prepare_processes)
                lines.append(f"{split}: complete in {plan.folder}")
            else:
                there, count = plan.make_part(self.num_prepare_processes, part, num_parts)
                state = "complete" if there == count else f"{there} of {count} shards"
                lines.append(f"{split}: {state} in {plan.folder}")
        self.places = Places(str(tokenizer), {split: str(plan.folder) for split, plan in plans.items()})
        return lines

    def setup(self, stage: str | None = None) -> None:
        """Opens the tokenizer and the corpora, on every rank those that rank 0 has made."""
        if self.places is None and self.rank == 0:
            self.prepare()
        if self.world_size > 1:
            self.places = self.trainer.strategy.broadcast(self.places)
        self.tokenizer = wordpiece.load(self.places.tokenizer)
        self.corpora = {split: Corpus(Path(folder)) for split, folder in self.places.corpora.items()}
        if stage == "fit" and self.rank == 0 and self.trainer is not None:
            wordpiece.copy_into_run(self.tokenizer, Path(self.trainer.default_root_dir))
        self.note_small()

    def make_tokenizer(self, may_train: bool = True) -> str | Path:
        """Returns the name or folder of the tokenizer, trained if it is to be and has not been.

        Raises:
            DataError: it would have to be trained, and may not.
        """
        if self.options.name is not None:
            return self.options.name
        source = self.source("train")
        folder = self.cache / "tokenizers" / digest([text_description(source, self.cache), asdict(self.options.train)])
        if not folder.is_dir():
            if not may_train:
                raise DataError(f"{folder}: the trained tokenizer is not there yet; a part uses one that exists")
            with alone(folder, f"the tokenizer in {folder}"):
                if not folder.is_dir():
                    wordpiece.train(source, self.options.train, folder)
        return folder

    def source(self, split: str) -> Source | None:
        """Finds the text of a split; None when there is none."""
        name, share = self.sources[split], (0.0, 1.0)
        held_out = self.sources["val"] is None and self.sources["train"] != EMBEDDED and self.validation_fraction > 0
        if name is None and (self.sources["train"] == EMBEDDED or (split == "val" and held_out)):
            name = self.sources["train"]
        if held_out and split != "test":
            bound = self.validation_fraction
            share = (0.0, bound) if split == "val" else (bound, 1.0)
        return None if name is None else Source(locate(name, split), **self.reading, share=share)

    def plans(self, tokenizer: str | Path) -> dict[str, Plan]:
        """Says for every split that has text which corpus is to be made."""
        opened = wordpiece.load(str(tokenizer))
        recipe = Recipe(
            self.examples,
            self.sentences,
            self.sequence_length,
            self.seed,
            len(opened),
            opened.cls_token_id,
            opened.sep_token_id,
        )
        text = opened.backend_tokenizer.to_str()
        sources = {split: source for split in self.sources if (source := self.source(split)) is not None}
        return {split: Plan(split, source, recipe, text, self.cache) for split, source in sources.items()}

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """A hash of what decides the training data besides seed, batch and sequence length."""
        grouping = [self.length_grouping_steps, self.micro_batch_size] if self.length_grouping_steps else []
        return digest([Path(self.places.corpora["train"]).name, self.examples, grouping])

    def describe(self) -> list[str]:
        """Lines about the data for the start of a run."""
        trained = "" if self.options.name else " (trained)"
        lines = [f"tokenizer: {self.places.tokenizer}{trained}, {self.vocab_size:,} tokens"]
        for split, corpus in self.corpora.items():
            known = corpus.manifest
            line = f"{split}: {len(self.example_source(split)):,} examples ({self.examples}), "
            lines.append(line + f"{known['tokens']:,} tokens, {known['documents']:,} documents")
            if known["skipped"]:
                lines.append(f"{split}: {known['skipped']:,} bad records left out, the first: {known['messages'][0]}")
        return lines

    def example_source(self, split: str) -> ExampleSource:
        """Gives the examples of a split.

        Raises:
            DataError: the split has no text.
        """
        if split not in self.corpora:
            key = {"val": "validation_source", "test": "test_source"}[split]
            raise DataError(f"data.{key} = null: there is no text for {split}; name a source")
        if self.examples != "packed":
            return Rows(self.corpora[split])
        tokenizer = self.tokenizer
        return Windows(self.corpora[split], self.sequence_length, tokenizer.cls_token_id, tokenizer.sep_token_id)

    def note_small(self) -> None:
        """Warns when an epoch is shorter than a step."""
        count = len(self.example_source("train"))
        if count < self.global_batch_size:
            rank_zero_warn(
                f"data.source = {self.sources['train']!r}: {count} examples are fewer than one global batch of "
                f"{self.global_batch_size}, so examples repeat inside a step"
            )

    def is_special(self) -> NDArray[np.bool_]:
        """Marks the ids that no corruption may touch; [UNK] is not one of them."""
        tokenizer, marked = self.tokenizer, np.zeros(len(self.tokenizer), bool)
        ids = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id]
        marked[[number for number in ids if number is not None]] = True
        return marked

    def batching(self) -> Batching:
        """Shares a global batch over micro-batches and ranks."""
        return Batching(self.global_batch_size, self.micro_batch_size, self.rank, self.world_size)

    def train_dataloader(self) -> "DataLoader":
        """Yields this rank's share of every step from the one at which the trainer stands."""
        steps = Steps(
            self.example_source("train"), self.batching(), self.seed, self.is_special(), self.length_grouping_steps
        )
        return loader(steps, self.num_workers, FromStep(self.first_step))

    def first_step(self) -> int:
        """The step with which training begins or goes on."""
        return self.trainer.global_step if self.trainer is not None else 0

    def val_dataloader(self) -> "DataLoader | list[DataLoader]":
        """Yields every validation example once over all ranks; no loader when there is no validation text."""
        return self.evaluation("val") if "val" in self.corpora else []

    def test_dataloader(self) -> "DataLoader":
        """Yields every test example once over all ranks."""
        return self.evaluation("test")

    def evaluation(self, split: str) -> "DataLoader":
        """Loads a split in its own order."""
        return loader(Evaluation(self.example_source(split), self.batching(), self.is_special()), self.num_workers)


class Places(NamedTuple):
    """Where tokenizer and corpora are, as rank 0 tells the others."""

    tokenizer: str
    corpora: dict[str, str]


def cache_folder(given: str | None) -> Path:
    """Chooses the cache folder: the given one, or tokamak under XDG_CACHE_HOME or ~/.cache."""
    if given is not None:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tokamak"


def check_tokenizer(options: TokenizerOptions) -> None:
    """Refuses options that name no tokenizer, or two."""
    if (options.name is None) == (options.train is None):
        state = "neither is given" if options.name is None else "both are given"
        raise DataError(f"data.tokenizer: needs one of name and train, and {state}; e.g. train: {{vocab_size: 8192}}")
