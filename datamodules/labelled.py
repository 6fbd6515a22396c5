"""Labelled text for fine-tuning: one or two texts and a class or a number, from files or the embedded articles."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.core import wordpiece
from datamodules.core.account import Accept, Account, told
from datamodules.core.base import TextDataModule
from datamodules.core.classes import LABELS_FILE, Naming, alike, read_names
from datamodules.core.encoded import Encoded, WithLabels
from datamodules.core.errors import DataError, MissingLabel
from datamodules.core.labels import Example, Fields, Labels, class_names, class_number, count, read_examples
from datamodules.core.lines import Records
from datamodules.core.loader import Evaluation, FromStep, Steps, loader
from datamodules.core.made_tasks import MADE, check_name, make_examples, refuse_idle
from datamodules.core.order import sample_at
from datamodules.core.preparation import Preparation, cache_folder
from datamodules.core.publishing import write_atomically
from datamodules.core.sources import EMBEDDED, has_part
from datamodules.core.wordpiece import TokenizerOptions

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

SOURCE_KEYS = {
    "train": "source",
    "val": "validation_source",
    "test": "test_source",
    "predict": "predict_source",
}
READ = {"validate": ("val",), "test": ("test",), "predict": ("predict",)}  # by stage; fit reads all


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
        quotes_join: let a quoted field of a .tsv hold tabs and line breaks; without it a row of a .tsv is a line.
        accept: take data although more than a fifth of its tokens is unknown, or labels that mostly mean "no label".
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
        quotes_join: bool = False,
        accept: list[Accept] | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(global_batch_size, micro_batch_size, sequence_length, accept)
        if num_examples is not None and num_examples < 1:
            raise DataError(f"data.num_examples = {num_examples}: must be at least 1, or null for all")
        made = source if source in MADE else None
        self.sources = {
            "train": source,
            "val": validation_source or made,
            "test": test_source or made,
            "predict": predict_source or test_source or made,
        }
        for split, name in self.sources.items():
            check_name(name, f"data.{SOURCE_KEYS[split]}")
        if all(name in MADE for name in self.sources.values() if name):
            refuse_idle(text_field=text_field, pair_field=pair_field, label_field=label_field, labels=labels)
        self.preparation = Preparation(
            tokenizer=tokenizer,
            sources={"train": EMBEDDED if made else source, "val": None, "test": None},
            reading={"text_field": text_field, "can_skip": False, "quotes_join": quotes_join},
            validation_fraction=0.0,
            streaming=False,
            recipe={"examples": "documents", "sentences": "line", "sequence_length": sequence_length},
            num_processes=1,
            cache=cache_folder(cache_dir),
        )
        self.preparation.check()
        self.fields = Fields(text_field, pair_field, label_field, labels, Naming(any_word="labels" in self.accept))
        self.quotes_join = quotes_join
        self.num_examples, self.num_workers = num_examples, num_workers
        self.tokenizer_place: str | None = None
        self.label_names: list[str] = []
        self.splits: dict[str, Encoded] = {}
        self.read: dict[str, Account] = {}
        self.trained_on: frozenset[int] = frozenset()  # hashes of the texts
        self.without_labels: dict[str, str] = {}  # parts that nobody has named, and why they are not read

    @property
    def began(self) -> Path | None:
        """The folder of the run whose classes are to be gone on with; None in its first start."""
        run = Path(self.trainer.default_root_dir) if self.trainer is not None else None
        return run if run and (not self.trainer.training or self.kept_tokenizer) else None

    def prepare_data(self) -> None:
        """Train the tokenizer if that is wanted; Lightning calls it on one rank."""
        self.tokenizer_place = str(self.preparation.make_tokenizer(self.kept_tokenizer))

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise on every rank the examples that a stage needs."""
        wanted = [split for split in self.needed(stage) if split not in self.splits]
        if not wanted and self.tokenizer is not None:
            return
        if self.tokenizer_place is None and self.rank == 0:
            self.prepare_data()
        if self.world_size > 1:
            self.tokenizer_place = self.trainer.strategy.broadcast(self.tokenizer_place)
        self.tokenizer = wordpiece.load(self.tokenizer_place)
        read = self.learn_names(wanted)
        for split in wanted:
            try:
                self.splits[split] = self.encoded(split, read.pop(split, None) or self.examples(split))
            except MissingLabel as error:  # as in the test parts of GLUE
                if self.sources[split] is not None or stage == split:
                    raise
                self.without_labels[split] = str(error)
        self.check_accounts(is_corpus=False)
        if stage == "fit" and self.rank == 0 and self.trainer is not None:
            self.leave_in_run(Path(self.trainer.default_root_dir))

    def needed(self, stage: str | None) -> list[str]:
        """Name the splits that a stage reads: all for fit, so that each fault is told early."""
        own = self.sources["predict"] != self.sources["test"]
        splits = READ.get(stage) or [split for split in SOURCE_KEYS if own or split != "predict"]
        return [split for split in splits if self.source_of(split)]

    def source_of(self, split: str) -> str | None:
        """Give the source of a split: the one that is named, or the folder of the training part that has one for it."""
        name, train = self.sources[split], self.sources["train"]
        return train if name is None and split != "train" and has_part(train, split, self.preparation.found) else name

    def learn_names(self, wanted: list[str]) -> dict[str, list[Example]]:
        """Learn the names of the classes: of a run that has begun its own, else those of the training examples.

        Returns the training examples, if they were read and are wanted.

        Raises:
            DataError: a run with checkpoints has lost its names.
        """
        known = self.label_names or (read_names(self.began) if self.began else None)
        if known is None and self.kept_tokenizer:
            raise DataError(f"{self.began / LABELS_FILE}: is missing; restore it: it names the classes of the run")
        if known is not None:
            self.know(known)
            return {}
        train = self.examples("train")
        self.know(class_names(train) if self.fields.labels == "classes" else [])
        return {"train": train} if "train" in wanted else {}

    @property
    def whose(self) -> str:
        """Say where the classes come from."""
        return f"classes of the run ({self.began / LABELS_FILE})" if self.began else "training labels"

    def know(self, names: list[str]) -> None:
        """Take names for those of the classes.

        Raises:
            DataError: labels are numbers and names are given, or the other way round.
        """
        if bool(names) != (self.fields.labels == "classes"):
            raise DataError(
                f"data.labels = {self.fields.labels}: the run began with {'classes' if names else 'numbers'}; "
                "go on with those, or take a new run.dir"
            )
        self.label_names = names
        self.fields = replace(self.fields, naming=replace(self.fields.naming, known=tuple(names)))

    def examples(self, split: str) -> list[Example]:
        """Read or make the examples of a split.

        Raises:
            DataError: a record is no good.
        """
        name, account = self.source_of(split), Account()
        self.read[split] = account
        if name in MADE:
            made = make_examples(name, "test" if split == "predict" else split)
            account.records = len(made)
            return (
                [example._replace(label=None) for example in made] if split == "predict" else self.chosen(split, made)
            )
        fields = replace(self.fields, label=None) if split == "predict" else self.fields
        found = self.preparation.found(name, split)
        if self.sources[split] is None:
            found.serve(name)
        account.pass_over(found)
        records = Records(fields.text, can_skip=False, quotes_join=self.quotes_join, account=account)
        return self.chosen(split, read_examples(found.files, fields, records))

    def chosen(self, split: str, examples: list[Example]) -> list[Example]:
        """Draw `num_examples` of the training examples; of other splits take all."""
        if split != "train" or self.num_examples is None or self.num_examples >= len(examples):
            return examples
        places = sample_at(np.arange(self.num_examples), len(examples), self.seed)
        return [examples[place] for place in sorted(places.tolist())]

    def encoded(self, split: str, examples: list[Example]) -> "Encoded":
        """Tokenise examples and number their labels."""
        numbers = {name: number for number, name in enumerate(self.label_names)}
        if examples[0].label is None:
            labels = torch.zeros(len(examples), dtype=torch.int64)
        elif self.fields.labels == "classes":
            labels = torch.tensor([class_number(example, numbers, self.whose) for example in examples])
        else:
            labels = torch.tensor([example.label for example in examples], dtype=torch.float32)
        count(examples, account := self.read[split], self.fields.labels == "classes")
        self.compare(split, [hash(example[:2]) for example in examples])
        return Encoded(examples, self.tokenizer, self.sequence_length, labels, account)

    def compare(self, split: str, texts: list[int]) -> None:
        """Count the texts, by their hashes, that judge and are trained on too, and classes that are hardly there."""
        account = self.read[split]
        if split == "train":
            self.trained_on = frozenset(texts)
            alone = sum(number == 1 for number in account.classes.values())
            account.note("of the classes have one example alone", alone)
        elif split != "predict":
            both = sum(text in self.trained_on for text in texts)
            account.note("of the examples have a text that is trained on too", both)

    def accounts(self) -> dict[str, Account]:
        """Give the account of each split that was read."""
        return {split: self.read[split] for split in self.splits}

    def leave_in_run(self, run: Path) -> None:
        """Write the tokenizer and the names of the classes into the run."""
        wordpiece.copy_into_run(self.tokenizer, run)
        write_atomically(run / LABELS_FILE, json.dumps(self.label_names) + "\n")

    @property
    def fingerprint(self) -> str | None:
        """A hash of the training examples, as ids and labels, and of the names of the classes; None without them."""
        if "train" not in self.splits:
            return None
        return hashlib.sha256(self.splits["train"].content() + json.dumps(self.label_names).encode()).hexdigest()[:32]

    @property
    def validation_fingerprint(self) -> str | None:
        """A hash of the validation examples; None without them."""
        return hashlib.sha256(self.splits["val"].content()).hexdigest()[:32] if "val" in self.splits else None

    def describe(self) -> list[str]:
        """Lines about the data for the start of a run."""
        lines = [f"tokenizer: {self.tokenizer_place}, {self.vocab_size:,} tokens"]
        lines += wordpiece.told(Path(self.tokenizer_place))
        if self.label_names:
            more = f", ... ({len(self.label_names):,} in all)" if len(self.label_names) > 12 else ""
            shown = ", ".join(self.label_names[:12]) + more
            lines += [f"classes: {shown}", *alike(self.label_names)]
        for split, examples in self.splits.items():
            cut = f", {examples.num_cut:,} of them cut to {self.sequence_length} tokens" if examples.num_cut else ""
            lines.append(f"{split}: {len(examples):,} examples{cut}")
            lines += told(self.read[split], split)
        for split, reason in self.without_labels.items():
            lines.append(f"{split}: the part of {self.sources['train']} is left out, as it lacks labels: {reason}")
        if "val" not in self.splits:
            lines.append("val: none, so nothing is validated; name data.validation_source")
        return lines

    def epochs(self, steps: int) -> dict[str, float]:
        """Divide what the steps take by the examples that there are."""
        return {"": steps * self.global_batch_size / len(self.splits["train"])}

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
