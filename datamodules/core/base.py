"""What every DataModule of text shares: its place among the ranks, its batch sizes, its position."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import LightningDataModule

from datamodules.core.account import Accept, Account, check
from datamodules.core.loader import Batching

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ACCOUNT_FILE = "data.json"  # in the run's folder


class TextDataModule(LightningDataModule):
    """A DataModule whose batches are a function of (seed, step); `seed` is set by the launcher."""

    def __init__(
        self, global_batch_size: int, micro_batch_size: int, sequence_length: int, accept: list[Accept] | None = None
    ) -> None:
        super().__init__()
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.sequence_length = sequence_length
        self.accept = accept or []
        self.seed = 0
        self.tokenizer: PreTrainedTokenizerFast | None = None

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def kept_tokenizer(self) -> Path | None:
        """The tokenizer in the folder of a run that has checkpoints, for the case that the named one is gone."""
        run = Path(self.trainer.default_root_dir) if self.trainer is not None else None
        return run / "tokenizer" if run and any(run.glob("checkpoints/step_*")) else None

    def accounts(self) -> dict[str, Account]:
        """Give the accounts of what was prepared, by split, source or set."""
        return {}

    def check_accounts(self, is_corpus: bool) -> None:
        """Refuse data of which much is lost or unknown, unless the run has begun with it.

        Raises:
            DataError: naming the split, the share, and the option that allows it.
        """
        if self.kept_tokenizer is None:
            check(self.accounts(), self.accept, is_corpus)

    def report(self) -> dict[str, Any]:
        """Write the accounts as plain values."""
        return {name: account.as_dict() for name, account in self.accounts().items()}

    def epochs(self, steps: int) -> dict[str, float]:
        """Tell how many times so many steps go through the training data, by source; one without a name is all of it.

        Nothing where that is not known.
        """
        return {}

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self.tokenizer)

    def batching(self) -> Batching:
        """Share a global batch over micro-batches and ranks."""
        return Batching(self.global_batch_size, self.micro_batch_size, self.rank, self.world_size)

    def first_step(self) -> int:
        """The step with which training begins or goes on."""
        return self.trainer.global_step if self.trainer is not None else 0


def rules_of(file: Path) -> dict[str, Any]:
    """Read from a run's account by which rules its data was read; nothing where it does not say."""
    try:
        rules = json.loads(file.read_text(encoding="utf-8"))["rules"]
        return rules if isinstance(rules, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
