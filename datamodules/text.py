"""Text for pre-training: from a file, a folder, the hub or the embedded corpus to flat batches."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from datamodules.core import wordpiece
from datamodules.core.account import Accept, Account, told
from datamodules.core.base import ACCOUNT_FILE, TextDataModule, rules_of
from datamodules.core.corpus import Corpus, account_of, digest, manifest_of
from datamodules.core.errors import DataError
from datamodules.core.loader import Evaluation, FromStep, Steps, loader
from datamodules.core.packing import ExampleSource, Rows, Windows
from datamodules.core.preparation import Places, Preparation, cache_folder
from datamodules.core.wordpiece import TokenizerOptions

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from datamodules.core.streaming import Stream


class TextCorpus(TextDataModule):
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
        sentences: what a sentence of a segment is: "unicode", what ends like one in any writing, where nothing is lost;
            "split", what ends like one in English, or "line", a whole line: there what is over an example is lost.
        length_grouping_steps: within windows of so many steps, sequences of like length share a micro-batch; 0: off.
        validation_fraction: share of the documents that is held out when there is no validation source.
        on_bad_record: refuse a bad line or record, or leave it out and count it.
        quotes_join: let a quoted field of a .tsv hold tabs and line breaks; without it a row of a .tsv is a line.
        accept: take data although more than a fifth of its tokens is unknown to the tokenizer, or lost by cutting.
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
        sentences: Literal["unicode", "split", "line"] = "unicode",
        length_grouping_steps: int = 0,
        validation_fraction: float = 0.01,
        on_bad_record: Literal["error", "skip"] = "error",
        quotes_join: bool = False,
        accept: list[Accept] | None = None,
        num_workers: int = 0,
        num_prepare_processes: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(global_batch_size, micro_batch_size, sequence_length, accept)
        self.preparation = Preparation(
            tokenizer=tokenizer,
            sources={"train": source, "val": validation_source, "test": test_source},
            reading={
                "text_field": text_field,
                "bounds": documents,
                "skip_bad": on_bad_record == "skip",
                "quotes_join": quotes_join,
            },
            validation_fraction=validation_fraction,
            streaming=streaming,
            recipe={"examples": examples, "sentences": sentences, "sequence_length": sequence_length},
            num_processes=num_prepare_processes or len(os.sched_getaffinity(0)),
            cache=cache_folder(cache_dir),
        )
        self.preparation.check()
        self.examples, self.num_workers = examples, num_workers
        self.length_grouping_steps = length_grouping_steps
        self.places: Places | None = None
        self.corpora: dict[str, Corpus] = {}
        self.stream: Stream | None = None
        self.stream_states: dict[str, Any] | None = None

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenise the corpora that are not there yet; Lightning calls it on one rank.

        Raises:
            DataError: the text is no good, or a stream is not of the files that the run began with.
        """
        if self.kept_tokenizer and self.trainer.training and self.preparation.streaming:
            began = rules_of(self.kept_tokenizer.parent / ACCOUNT_FILE).get("stream")
            if began not in (None, self.preparation.stream_hash()):
                raise DataError(
                    f"data.source = {self.preparation.sources['train']}: is not the text that the run began with; give "
                    "the same files, or another --run.dir"
                )
        self.places = self.preparation.make(self.seed, self.kept_tokenizer)
        self.check_accounts(is_corpus=True)

    def report(self) -> dict[str, Any]:
        """Write the accounts as plain values, and a hash of the files that are streamed."""
        streamed = self.preparation.stream_hash() if self.preparation.streaming else None
        return {**super().report(), **({"rules": {"stream": streamed}} if streamed else {})}

    def accounts(self) -> dict[str, Account]:
        """Give the account of each split that is prepared."""
        found = {split: account_of(manifest_of(Path(folder))) for split, folder in self.places.corpora.items()}
        for split, account in found.items():
            account.pass_over(self.preparation.located(split))
        return found

    def setup(self, stage: str | None = None) -> None:
        """Open the tokenizer and the corpora, on every rank those that rank 0 has made."""
        if self.places is None and self.rank == 0:
            self.prepare_data()
        if self.world_size > 1:
            self.places = self.trainer.strategy.broadcast(self.places)
        self.tokenizer = wordpiece.load(self.places.tokenizer)
        self.corpora = {split: Corpus(Path(folder)) for split, folder in self.places.corpora.items()}
        if stage == "fit" and self.rank == 0 and self.trainer is not None:
            wordpiece.copy_into_run(self.tokenizer, Path(self.trainer.default_root_dir))
        if not self.preparation.streaming:
            self.note_small()

    @property
    def fingerprint(self) -> str:
        """A hash of what decides the training data besides seed, batch and sequence length."""
        grouping = [self.length_grouping_steps, self.micro_batch_size] if self.length_grouping_steps else []
        return digest([self.places.fingerprint, self.examples, grouping])

    @property
    def validation_fingerprint(self) -> str | None:
        """A hash of what decides the validation examples; None where there are none."""
        return Path(self.places.corpora["val"]).name if "val" in self.places.corpora else None

    def describe(self) -> list[str]:
        """Lines about the data for the start of a run."""
        trained = "" if self.preparation.tokenizer.name else " (trained)"
        lines = [f"tokenizer: {self.places.tokenizer}{trained}, {self.vocab_size:,} tokens"]
        lines += wordpiece.told(Path(self.places.tokenizer))
        if self.preparation.streaming:
            lines.append(f"train: streamed from {self.preparation.sources['train']}, windows of {self.sequence_length}")
            found = self.preparation.located_for_stream()
            (account := Account(files=len(found.files))).pass_over(found)
            lines += told(account, "train")
        accounts = self.accounts()
        for split, corpus in self.corpora.items():
            known, count = corpus.manifest, len(self.example_source(split))
            sizes = f"{known['tokens']:,} tokens, {known['documents']:,} documents"
            lines.append(f"{split}: {count:,} examples ({self.examples}), {sizes}")
            lines += told(accounts[split], split)
        return lines

    def epochs(self, steps: int) -> dict[str, float]:
        """Divide what the steps take by the examples that there are; of a stream that is not known."""
        if self.preparation.streaming:
            return {}
        return {"": steps * self.global_batch_size / len(self.example_source("train"))}

    def example_source(self, split: str) -> ExampleSource:
        """Give the examples of a split.

        Raises:
            DataError: the split has no text.
        """
        if split not in self.corpora:
            key = {"train": "source", "val": "validation_source", "test": "test_source"}[split]
            raise DataError(f"data.{key} = null: there is no text for {split}; name a source")
        if self.examples != "packed":
            return Rows(self.corpora[split])
        tokenizer = self.tokenizer
        return Windows(self.corpora[split], self.sequence_length, tokenizer.cls_token_id, tokenizer.sep_token_id)

    def note_small(self) -> None:
        """Warn when an epoch is shorter than a step."""
        count = len(self.example_source("train"))
        if count < self.global_batch_size:
            rank_zero_warn(
                f"data.source = {self.preparation.sources['train']!r}: {count} examples are fewer than one global "
                f"batch of {self.global_batch_size}, so examples repeat inside a step"
            )

    def is_special(self) -> NDArray[np.bool_]:
        """Mark the ids that no corruption may touch; [UNK] is not one of them."""
        tokenizer, marked = self.tokenizer, np.zeros(len(self.tokenizer), bool)
        ids = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id]
        marked[[number for number in ids if number is not None]] = True
        return marked

    def token_counts(self) -> NDArray[np.int64]:
        """Count how often each id occurs in the training text; special ones count as never."""
        if self.preparation.streaming:
            raise DataError(
                "data.streaming = true: the text is never there as a whole to be counted; prepare it instead"
            )
        return self.corpora["train"].token_counts(self.vocab_size) * ~self.is_special()

    def train_dataloader(self) -> "DataLoader":
        """Yield this rank's share of every step from the one at which the trainer stands."""
        if self.preparation.streaming:
            return self.streaming_loader()
        steps = Steps(
            self.example_source("train"), self.batching(), self.seed, self.is_special(), self.length_grouping_steps
        )
        return loader(steps, self.num_workers, FromStep(self.first_step))

    def val_dataloader(self) -> "DataLoader | list[DataLoader]":
        """Yield every validation example once over all ranks; no loader when there is no validation text."""
        return self.evaluation("val") if "val" in self.corpora else []

    def test_dataloader(self) -> "DataLoader":
        """Yield every test example once over all ranks."""
        return self.evaluation("test")

    def evaluation(self, split: str) -> "DataLoader":
        """Load a split in its own order."""
        return loader(Evaluation(self.example_source(split), self.batching(), self.is_special()), self.num_workers)

    def streaming_loader(self) -> "DataLoader":
        """Stream this rank's share, from where the checkpoint says that it stood."""
        from datamodules.core.streaming import Stream, own_state

        recipe = self.preparation.recipe_for(self.tokenizer, self.seed)
        text = self.tokenizer.backend_tokenizer.to_str()
        self.stream = Stream(
            self.preparation.streamed(), text, recipe, self.batching(), self.is_special(), self.rank, self.world_size
        )
        if self.stream_states is not None:
            self.stream.state = own_state(self.stream_states, self.rank, self.world_size)
        return loader(self.stream, num_workers=0)

    def teardown(self, stage: str) -> None:
        """Tell what is known of a stream when the run ends."""
        if self.stream is not None and stage == "fit":
            whose = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
            print(*told(self.stream.account, f"data: train{whose}, as far as it was read"), sep="\n", flush=True)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, or when streaming where every rank stands; all ranks must call it."""
        from datamodules.core.streaming import gathered

        return gathered(self.stream.state_at(self.first_step())) if self.stream is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the stream that is opened next."""
        self.stream_states = state_dict or None
