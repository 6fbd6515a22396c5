"""Pairs of texts for embeddings: from files, the hub or the embedded articles to flat batches, and what judges them."""

import json
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from datamodules.core import pair_rules, wordpiece
from datamodules.core.account import Accept, Account, told
from datamodules.core.base import ACCOUNT_FILE, TextDataModule
from datamodules.core.corpus import account_of, digest, manifest_of
from datamodules.core.errors import DataError
from datamodules.core.loader import Evaluation, FromStep, loader
from datamodules.core.pair_loader import PairSteps, Part
from datamodules.core.pair_options import EvaluationSet, PairSource
from datamodules.core.pair_order import quotas
from datamodules.core.pair_preparation import ANY_TOKENIZER, GROUPS, PairPlaces, PairPreparation
from datamodules.core.pair_store import Store
from datamodules.core.pair_suite import Suite
from datamodules.core.preparation import cache_folder
from datamodules.core.tasks import Task
from datamodules.core.wordpiece import TokenizerOptions

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

BEFORE, COLUMNS = 1, 2  # rules by which columns are found


class TextPairs(TextDataModule):
    """Pairs of texts, tokenised once under a cache folder and read in an order that is a function of (seed, step).

    A record holds an anchor, a positive and perhaps hard negatives, or two sentences and a score or label. Every global
    batch is drawn from one source.

    Args:
        tokenizer: a tokenizer by name, or the training of one on the texts of all sources.
        global_batch_size: examples of one optimizer step over all ranks.
        micro_batch_size: examples that one forward pass holds; in an evaluation, texts.
        source: pairs to train on, as a path or as a mapping with a path; "embedded" makes them from Wikipedia articles.
        sources: a mixture instead: name -> path, or mapping with a path and a weight.
        validation: sets for validation: name -> mapping with a task; null: what comes with the embedded articles.
        test: the same for the test.
        root: folder in which relative paths of files are looked up; by default the working directory.
        sequence_length: longest text in tokens, special ones included.
        no_duplicates: let examples change places so that no text stands twice in a global batch.
        on_bad_record: refuse a record without a full text or a good label, or leave it out and count it.
        quotes_join: let a quoted field of a .tsv hold tabs and line breaks; without it a row of a .tsv is a line.
        accept: take data although more than a fifth of its tokens is unknown, or a label or negatives are not read.
        num_workers: processes that assemble batches ahead; 0 does it in the training process.
        cache_dir: where tokenised texts and trained tokenizers live; by default tokamak in the user's cache folder.
    """

    def __init__(
        self,
        tokenizer: TokenizerOptions,
        global_batch_size: int,
        micro_batch_size: int,
        source: str | PairSource | None = None,
        sources: dict[str, str | PairSource | None] | None = None,
        validation: dict[str, EvaluationSet | None] | None = None,
        test: dict[str, EvaluationSet | None] | None = None,
        root: str | None = None,
        sequence_length: int = 128,
        no_duplicates: bool = True,
        on_bad_record: Literal["error", "skip"] = "error",
        quotes_join: bool = False,
        accept: list[Accept] | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(global_batch_size, micro_batch_size, sequence_length, accept)
        sets = {"validation": validation, "test": test}
        refuse_contradictions(source=source, sources=sources, **sets, sequence_length=sequence_length)
        given = there(sources) or {"train": source}
        self.sources = {name: PairSource(it) if isinstance(it, str) else it for name, it in sorted(given.items())}
        self.preparation = PairPreparation(
            tokenizer=tokenizer,
            sources=self.sources,
            keys={name: f"sources.{name}" if sources else "source" for name in self.sources},
            sets={split: None if sets[key] is None else there(sets[key]) for split, key in GROUPS.items()},
            root=root,
            sequence_length=sequence_length,
            skip_bad=on_bad_record == "skip",
            quotes_join=quotes_join,
            cache=cache_folder(cache_dir),
            accept=tuple(self.accept),
        )
        self.preparation.check()
        self.no_duplicates, self.num_workers = no_duplicates, num_workers
        self.places: PairPlaces | None = None
        self.parts: list[Part] = []
        self.suites: dict[str, Suite] = {}

    @property
    def trains(self) -> bool:
        """Whether training pairs are wanted: to judge a run, its tokenizer and the sets are enough."""
        return self.trainer is None or self.trainer.training or self.kept_tokenizer is None

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenise the texts that are not there yet; Lightning calls it on one rank."""
        kept = self.kept_tokenizer
        if kept and began_before(kept.parent / ACCOUNT_FILE):
            self.preparation = replace(self.preparation, before=True)
        self.places = self.preparation.make(kept, self.trains)
        self.check_accounts(is_corpus=False)
        if kept is None:  # what was prepared with data.accept may be used without
            accounts = self.accounts()
            for name in self.sources:
                account = accounts[name]
                finder = self.preparation.reading(name).finder
                finder.refuse_unread(account.columns, account.columns_read, f"data.{self.preparation.keys[name]}")

    def report(self) -> dict[str, Any]:
        """Write the accounts as plain values, and by which rules columns are found."""
        return {**super().report(), "rules": {"columns": BEFORE if self.preparation.before else COLUMNS}}

    def accounts(self) -> dict[str, Account]:
        """Give the account of each source, of the texts of each split's sets, and of each set."""
        found = {name: account_of(manifest_of(Path(folder))) for name, folder in self.places.train.items()}
        for split, folder in self.places.suites.items():
            manifest = manifest_of(Path(folder))
            found[split] = account_of(manifest)
            sets = manifest.get("accounts", {}).items()
            found |= {f"{split} {name}": Account.of(account) for name, account in sets}
        for name, account in found.items():
            for folder in self.preparation.located(name):
                account.pass_over(folder)
        return found

    def setup(self, stage: str | None = None) -> None:
        """Open the tokenizer and the stores, on every rank those that rank 0 has made."""
        if self.places is None and self.rank == 0:
            self.prepare_data()
        if self.world_size > 1:
            self.places = self.trainer.strategy.broadcast(self.places)
        self.tokenizer = wordpiece.load(self.places.tokenizer, ANY_TOKENIZER)
        stores = {name: Store(Path(folder)) for name, folder in self.places.train.items()}
        weights = {name: self.sources[name].weight or len(store.arrays["text"]) for name, store in stores.items()}
        self.parts = [Part(name, weights[name], store) for name, store in stores.items()]
        self.suites = {split: Suite(Store(Path(folder))) for split, folder in self.places.suites.items()}
        if stage == "fit" and self.rank == 0 and self.trainer is not None:
            wordpiece.copy_into_run(self.tokenizer, Path(self.trainer.default_root_dir))
        self.note_small()

    def note_small(self) -> None:
        """Warn when an epoch of a source is shorter than a step."""
        for part in self.parts:
            if len(part) < self.global_batch_size:
                rank_zero_warn(
                    f"data.{self.preparation.keys[part.name]}: {len(part)} pairs are fewer than one global batch of "
                    f"{self.global_batch_size}, so pairs repeat inside a step"
                )

    @property
    def fingerprint(self) -> str | None:
        """A hash of what decides the training data besides seed, batch and sequence length; None without them."""
        if not self.parts:
            return None
        parts = [[part.name, part.weight, Path(self.places.train[part.name]).name] for part in self.parts]
        return digest([parts, self.no_duplicates])

    @property
    def validation_fingerprint(self) -> str | None:
        """A hash of what decides the sets of the validation; None where there are none."""
        return Path(self.places.suites["val"]).name if "val" in self.places.suites else None

    def describe(self) -> list[str]:
        """Lines about the data for the start of a run."""
        trained = "" if self.preparation.tokenizer.name else " (trained)"
        lines = [f"tokenizer: {self.places.tokenizer}{trained}, {self.vocab_size:,} tokens"]
        lines += wordpiece.told(Path(self.places.tokenizer))
        turns = quotas([part.weight for part in self.parts]) if self.parts else np.zeros(0)
        accounts = self.accounts()
        for part, share in zip(self.parts, turns / turns.sum(), strict=True):
            known, name = part.store.told, "" if len(self.parts) == 1 else f"{part.name}, {share:.1%} of the steps: "
            columns = ", ".join(known["columns"])
            lines.append(f"train: {name}{known['examples']:,} pairs ({columns}); {sizes(known)}")
            lines += told(accounts[part.name], part.name)
        for split, suite in self.suites.items():
            sets = ", ".join(f"{name} ({kind})" for name, (kind, _) in suite.store.told["sets"].items())
            lines.append(f"{split}: {sets}; {sizes(suite.store.told)}")
            for name in suite.store.told.get("accounts", {}):
                lines += told(accounts[f"{split} {name}"], f"{split} {name}")
        if "val" not in self.suites:
            lines.append("val: none, so nothing is validated; name sets in data.validation")
        return lines

    def epochs(self, steps: int) -> dict[str, float]:
        """Divide what each source's share of the steps takes by its pairs."""
        turns = quotas([part.weight for part in self.parts])
        taken = steps * self.global_batch_size * turns / turns.sum()
        found = {part.name: float(share) / len(part) for part, share in zip(self.parts, taken, strict=True)}
        return found if len(found) > 1 else {"": next(iter(found.values()))}

    def is_special(self) -> NDArray[np.bool_]:
        """Mark the ids that stand for no text."""
        marked = np.zeros(len(self.tokenizer), bool)
        marked[self.tokenizer.all_special_ids] = True
        return marked

    def train_dataloader(self) -> "DataLoader":
        """Yield this rank's share of every step from the one at which the trainer stands."""
        steps = PairSteps(self.parts, self.batching(), self.seed, self.is_special(), self.no_duplicates)
        return loader(steps, self.num_workers, FromStep(self.first_step))

    def val_dataloader(self) -> "DataLoader | list[DataLoader]":
        """Yield every text of the validation sets once over all ranks; no loader when there are none."""
        return self.evaluation("val") if "val" in self.suites else []

    def test_dataloader(self) -> "DataLoader":
        """Yield every text of the test sets once over all ranks."""
        return self.evaluation("test")

    def evaluation(self, split: str) -> "DataLoader":
        """Load the texts of a split's sets, those of like length together; `sample_B` holds their numbers.

        Raises:
            DataError: there are no sets.
        """
        if split not in self.suites:
            key = f"data.{GROUPS[split]}"
            raise DataError(
                f"{key} = null: there are no sets to judge by; name one, as "
                f"--{key} '{{mine: {{task: sts, path: FILE}}}}'"
            )
        return loader(Evaluation(self.suites[split], self.batching(), self.is_special()), self.num_workers)

    def tasks(self, split: Literal["val", "test"]) -> list[Task]:
        """Give the sets of a split; they refer to texts by the numbers in `sample_B`."""
        return self.suites[split].tasks() if split in self.suites else []

    def num_texts(self, split: Literal["val", "test"]) -> int:
        """Count the texts of a split's sets, equal ones once."""
        return len(self.suites[split]) if split in self.suites else 0


def began_before(file: Path) -> bool:
    """Say whether a run began, as its account tells, when fewer columns were known: it goes on with those."""
    try:
        return json.loads(file.read_text())["rules"]["columns"] < COLUMNS
    except (FileNotFoundError, KeyError):
        return True
    except (OSError, ValueError, TypeError, RecursionError):
        return False  # what it began with is compared all the same


def there(given: dict[str, Any] | None) -> dict[str, Any]:
    """Leave out of a mapping what null has taken out."""
    return {name: options for name, options in (given or {}).items() if options is not None}


def refuse_contradictions(**options: Any) -> None:
    """Apply the rules that a configuration is checked by.

    Raises:
        DataError: what they complain about.
    """
    if problem := pair_rules.first_broken(plain(options)):
        raise DataError(problem)


def plain(options: Any) -> Any:
    """Write options as a configuration has them."""
    if isinstance(options, dict):
        return {name: plain(value) for name, value in options.items()}
    return asdict(options) if is_dataclass(options) else options


def sizes(known: dict) -> str:
    """Say how many texts and tokens a store has, and what was cut."""
    cut = f", {known['cut'] / known['texts']:.1%} of them cut" if known["cut"] else ""
    return f"{known['texts']:,} texts, {known['tokens']:,} tokens{cut}"
