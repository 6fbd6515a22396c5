"""A method and a data module that train in no time, with a switch for each way in which a run can end."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from datamodules.core.errors import DataError
from lightning_modules.core import stop
from lightning_modules.core.divergence import Diverged


@dataclass(frozen=True)
class Head:
    """Options in a group of their own."""

    width: int
    kind: Literal["linear", "mlp"] = "linear"


class Toy(LightningModule):
    """Fit a line. It learns at once.

    Args:
        hidden_size: Width of the layer.
        learning_rate: Step size.
        language: Any word;
            it is not used.
        ends: What happens at step `ends_at`.
        ends_at: The step at which it happens.
    """

    def __init__(
        self,
        hidden_size: int = 4,
        learning_rate: float = 0.1,
        max_positions: int = 64,
        language: str = "en",
        betas: tuple[float, float] = (0.9, 0.999),
        head: Head | None = None,
        weights: dict[str, float] | None = None,
        ends: Literal["", "diverged", "error", "data", "term"] = "",
        ends_at: int = 3,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.logged: dict[str, float] = {}
        self.seed = -1
        self.betas = betas
        self.hidden_size, self.learning_rate, self.ends, self.ends_at = hidden_size, learning_rate, ends, ends_at
        self.layer: nn.Linear | None = None

    def configure_model(self) -> None:
        if self.layer is None:
            if self.trainer.global_rank > 0:
                print("rank 1 was started with", sys.argv[1:], flush=True)
            self.layer = nn.Linear(self.hidden_size, 1)
            assert self.seed == self.trainer.datamodule.seed == torch.initial_seed()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)

    def training_step(self, micro_batches: list[Tensor], batch_idx: int) -> None:
        if self.trainer.global_step + 1 == self.ends_at:
            self._end()
        optimizer = self.optimizers()
        loss = sum(self.layer(batch).square().mean() for batch in micro_batches) / len(micro_batches)
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        self.logged = {"train/loss": loss.item()}
        for logger in self.trainer.loggers:
            logger.log_metrics(self.logged, step=self.trainer.global_step)
        if self.trainer.strategy.reduce_boolean_decision(bool(stop.requested()), all=False):
            self.trainer.should_stop = True

    def _end(self) -> None:
        if self.ends == "diverged":
            raise Diverged("loss nan at step 3")
        if self.ends == "error":
            raise RuntimeError("a fault of the code")
        if self.ends == "data":
            raise DataError("corpus.txt: line 3 is empty; remove it")
        if self.ends == "term" and self.trainer.global_rank == self.trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def validation_step(self, micro_batches: list[Tensor], batch_idx: int) -> None:
        self.logged = {"val/loss": float(self.layer(micro_batches[0]).square().mean()), "val/step": 0.0}

    def test_step(self, micro_batches: list[Tensor], batch_idx: int) -> None:
        self.logged = {"test/loss": float(self.layer(micro_batches[0]).square().mean())}

    def predict_step(self, micro_batches: list[Tensor], batch_idx: int) -> list[dict]:
        return [{"sample": batch_idx, "value": float(row)} for batch in micro_batches for row in self.layer(batch)]


class Stream:
    """Global batches from a step on, without end."""

    def __init__(self, data: "Points", step: int, count: int | None) -> None:
        self.data, self.step, self.count = data, step, count

    def __iter__(self) -> Iterator[list[Tensor]]:
        step, data = self.step, self.data
        while self.count is None or step < self.step + self.count:
            rank, ranks = data.trainer.global_rank, data.trainer.world_size
            rows = torch.randn(data.global_batch_size, 4, generator=torch.Generator().manual_seed(step))
            yield list(rows[rank::ranks].split(data.micro_batch_size))
            step += 1


class Points(LightningDataModule):
    """Random points."""

    def __init__(
        self,
        global_batch_size: int,
        source: str = "embedded",
        micro_batch_size: int = 4,
        sequence_length: int = 16,
        tokenizer: str | None = None,
        tag: str = "one",
        judged: str = "one",
    ) -> None:
        super().__init__()
        self.global_batch_size, self.micro_batch_size, self.source = global_batch_size, micro_batch_size, source
        self.sequence_length, self.fingerprint = sequence_length, tag
        self.validation_fingerprint = judged

    def describe(self) -> list[str]:
        return [f"points from {self.source}, without end"]

    def train_dataloader(self) -> Stream:
        return Stream(self, self.trainer.global_step, None)

    def val_dataloader(self) -> Stream:
        return Stream(self, 1000, 2)

    def test_dataloader(self) -> Stream:
        return Stream(self, 2000, 2)

    def predict_dataloader(self) -> Stream:
        return Stream(self, 3000, 2)


class Shout(Callback):
    """Print at every step."""

    def __init__(self, word: str = "step") -> None:
        if word == "silence":
            raise DataError("callbacks.shout.word: silence is no word")
        self.word = word

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        print(self.word, trainer.global_step, flush=True)


class Unfinished(Callback):
    """Leave a collective behind, which the last rank finishes while the others are on their way out."""

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if trainer.global_rank == 0:
            time.sleep(1.0)
        gathered = [torch.empty(1) for _ in range(trainer.world_size)]
        torch.distributed.group.WORLD.allgather(gathered, torch.ones(1))


class Poison(Callback):
    """Make the gradient of the last rank no number at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        if (trainer.global_step + 1, trainer.global_rank + 1) == (self.step, trainer.world_size):
            loss.register_hook(lambda slope: slope * float("nan"))


class Silent(Callback):
    """A callback without options."""


class Open(Shout):
    """A callback with arguments that only the class itself knows."""

    def __init__(self, loud: bool = False, **more: str) -> None:
        super().__init__(**more)
