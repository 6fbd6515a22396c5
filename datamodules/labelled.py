"""Labelled text for fine-tuning: one or two texts and a class or a number, from files or the embedded articles."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.core import wordpiece
from datamodules.core.base import TextDataModule
from datamodules.core.batches import LabelledBatch, TextBatch
from datamodules.core.encoded import Encoded
from datamodules.core.errors import DataError
from datamodules.core.labels import Example, Fields, Labels, class_names, class_number, read_examples
from datamodules.core.loader import Evaluation, FromStep, Steps, loader
from datamodules.core.made_tasks import MADE, make_examples
from datamodules.core.order import sample_at
from datamodules.core.preparation import Preparation, cache_folder
from datamodules.core.publishing import write_atomically
from datamodules.core.sources import EMBEDDED, locate
from datamodules.core.wordpiece import TokenizerOptions

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

Samples = Callable[[NDArray[np.int64]], NDArray[np.int64]]  # places in the global order -> numbers of examples
LABELS_FILE = "labels.json"  # in the run's folder: the names of the classes, in the order of the outputs
SOURCE_KEYS = {
    "train": "source",
    "val": "validation_source",
    "test": "test_source",
    "predict": "predict_source",
}


class LabelledText(TextDataModule):
    """Labelled text, tokenised in memory and read in an order that is a function of (seed, step).

    A source is a file, a folder, a pattern such as "texts/*.jsonl.gz", a hub data set NAME:CONFIG:SPLIT, or a task made
    from the embedded articles: "embedded:topic", "embedded:same_article" or "embedded:in_order", whose validation and
    test parts come with it.

    Args:
        tokenizer: that of the encoder which is fine-tuned, by name or folder; or the training of one.
        global_batch_size: examples of one optimizer step over all ranks.
        micro_batch_size: examples that one forward pass holds.
        source: labelled examples to train on.
        validation_source: the same for validation.
        test_source: the same for the test.
        predict_source: texts to predict, without labels; by default those of the test.
        text_field: field or column of the text.
        pair_field: field or column of a second text.
        label_field: field or column of the label.
        labels: a label is a class, by name or whole number, or a number to be predicted.
        sequence_length: longest example in tokens, special ones included; of a pair the longer text is cut first.
        num_examples: train on so many examples of `source` only, drawn by the seed; null for all.
        num_workers: processes that assemble batches ahead; 0 does it in the training process.
        cache_dir: where a trained tokenizer lives; by default tokamak in the user's cache folder.
    """

    def __init__(
        self,
        tokenizer: TokenizerOptions,
        global_batch_size: int,
        micro_batch_size: int,
        source: str,
        validation_source: str | None = None,
        test_source: str | None = None,
        predict_source: str | None = None,
        text_field: str = "text",
        pair_field: str | None = None,
        label_field: str = "label",
        labels: Labels = "classes",
        sequence_length: int = 128,
        num_examples: int | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(global_batch_size, micro_batch_size, sequence_length)
        made = source if source in MADE else None
        self.sources = {
            "train": source,
            "val": validation_source or made,
            "test": test_source or made,
            "predict": predict_source,
        }
        self.preparation = Preparation(
            tokenizer=tokenizer,
            sources={"train": EMBEDDED if made else source, "val": None, "test": None},
            reading={"text_field": text_field},
            validation_fraction=0.0,
            streaming=False,
            recipe={"examples": "documents", "sentences": "line", "sequence_length": sequence_length},
            num_processes=1,
            cache=cache_folder(cache_dir),
        )
        self.preparation.check()
        self.fields = Fields(text_field, pair_field, label_field, labels)
        self.num_examples, self.num_workers = num_examples, num_workers
        self.tokenizer_place: str | None = None
        self.label_names: list[str] = []
        self.splits: dict[str, Encoded] = {}

    def prepare_data(self) -> None:
        """Trains the tokenizer if that is wanted; Lightning calls it on one rank."""
        self.tokenizer_place = str(self.preparation.make_tokenizer(self.kept_tokenizer))

    def setup(self, stage: str | None = None) -> None:
        """Reads and tokenises the examples on every rank; the training data comes first and gives the labels."""
        if self.splits:
            return
        if self.tokenizer_place is None and self.rank == 0:
            self.prepare_data()
        if self.world_size > 1:
            self.tokenizer_place = self.trainer.strategy.broadcast(self.tokenizer_place)
        self.tokenizer = wordpiece.load(self.tokenizer_place)
        train = self.chosen(self.examples("train"))
        self.label_names = class_names(train) if self.fields.labels == "classes" else []
        self.splits["train"] = self.encoded(train)
        for split in ("val", "test", "predict"):
            if self.sources[split] is not None:
                self.splits[split] = self.encoded(self.examples(split))
        if stage == "fit" and self.rank == 0 and self.trainer is not None:
            self.leave_in_run(Path(self.trainer.default_root_dir))

    def examples(self, split: str) -> list[Example]:
        """Reads or makes the examples of a split.

        Raises:
            DataError: a record is no good.
        """
        name = self.sources[split]
        if name in MADE:
            return make_examples(name, "test" if split == "predict" else split)
        if name == EMBEDDED or name.startswith(f"{EMBEDDED}:"):
            raise DataError(f"data.{SOURCE_KEYS[split]} = {name!r}: no such task; there are {', '.join(MADE)}")
        fields = self.fields
        if split == "predict":
            fields = Fields(fields.text, fields.pair, None, fields.labels)
        return read_examples(locate(name, split), fields)

    def chosen(self, examples: list[Example]) -> list[Example]:
        """Draws `num_examples` of the training examples."""
        if self.num_examples is None or self.num_examples >= len(examples):
            return examples
        places = sample_at(np.arange(self.num_examples), len(examples), self.seed)
        return [examples[place] for place in sorted(places.tolist())]

    def encoded(self, examples: list[Example]) -> "Encoded":
        """Tokenises examples and numbers their labels."""
        numbers = {name: number for number, name in enumerate(self.label_names)}
        if examples[0].label is None:
            labels = torch.zeros(len(examples), dtype=torch.int64)
        elif self.fields.labels == "classes":
            labels = torch.tensor([class_number(example, numbers) for example in examples])
        else:
            labels = torch.tensor([example.label for example in examples], dtype=torch.float32)
        return Encoded(examples, self.tokenizer, self.sequence_length, labels)

    def leave_in_run(self, run: Path) -> None:
        """Writes the tokenizer and the names of the classes into the run.

        Raises:
            DataError: the run was started with other classes.
        """
        wordpiece.copy_into_run(self.tokenizer, run)
        file = run / LABELS_FILE
        if file.exists() and json.loads(file.read_text()) != self.label_names:
            raise DataError(f"{file}: has other classes than data.source; go on with those, or take a new run.dir")
        write_atomically(file, json.dumps(self.label_names) + "\n")

    @property
    def fingerprint(self) -> str:
        """A hash of the training examples, as ids and labels, and of the names of the classes."""
        return hashlib.sha256(self.splits["train"].content() + json.dumps(self.label_names).encode()).hexdigest()[:32]

    def describe(self) -> list[str]:
        """Lines about the data for the start of a run."""
        lines = [f"tokenizer: {self.tokenizer_place}, {self.vocab_size:,} tokens"]
        if self.label_names:
            shown = ", ".join(self.label_names[:12]) + (", ..." if len(self.label_names) > 12 else "")
            lines.append(f"classes: {shown}")
        for split, examples in self.splits.items():
            cut = f", {examples.num_cut:,} of them cut to {self.sequence_length} tokens" if examples.num_cut else ""
            lines.append(f"{split}: {len(examples):,} examples{cut}")
        if "val" not in self.splits:
            lines.append("val: none, so nothing is validated; name data.validation_source")
        return [*lines, f"an epoch has {len(self.splits['train']) / self.global_batch_size:.1f} steps"]

    def is_special(self) -> NDArray[np.bool_]:
        """Marks the ids that stand for no text."""
        marked = np.zeros(len(self.tokenizer), bool)
        marked[self.tokenizer.all_special_ids] = True
        return marked

    def train_dataloader(self) -> "DataLoader":
        """Yields this rank's share of every step from the one at which the trainer stands."""
        examples = self.splits["train"]
        steps = Steps(examples, self.batching(), self.seed, self.is_special())
        labelled = WithLabels(steps, examples.labels, partial(sample_at, n=len(examples), seed=self.seed))
        return loader(labelled, self.num_workers, FromStep(self.first_step))

    def val_dataloader(self) -> "DataLoader | list[DataLoader]":
        """Yields every validation example once over all ranks; no loader when there is no validation data."""
        return self.evaluation("val") if "val" in self.splits else []

    def test_dataloader(self) -> "DataLoader":
        """Yields every test example once over all ranks."""
        return self.evaluation("test")

    def predict_dataloader(self) -> "DataLoader":
        """Yields what is to be predicted, in its own order."""
        return self.evaluation("predict" if "predict" in self.splits else "test")

    def evaluation(self, split: str) -> "DataLoader":
        """Loads a split in its own order.

        Raises:
            DataError: there is none.
        """
        if split not in self.splits:
            raise DataError(f"data.{SOURCE_KEYS[split]} = null: there are no examples for {split}; name a source")
        examples = self.splits[split]
        items = Evaluation(examples, self.batching(), self.is_special())
        return loader(WithLabels(items, examples.labels, np.asarray), self.num_workers)


class WithLabels(Dataset[list[LabelledBatch]]):
    """Adds to every micro-batch the labels of its samples, found by their places in the global order."""

    def __init__(self, batches: Dataset[list[TextBatch]], labels: torch.Tensor, sample_of: Samples) -> None:
        self.batches, self.labels, self.sample_of = batches, labels, sample_of

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> list[LabelledBatch]:
        return [
            {**batch, "label_B": self.labels[self.sample_of(batch["sample_B"].numpy())]} for batch in self.batches[item]
        ]
