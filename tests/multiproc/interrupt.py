"""A callback that ends its process, or asks it to stop, at a chosen moment of a real run."""

import os
import signal
from typing import Literal

from lightning import Callback, LightningModule, Trainer

from lightning_modules.core.checkpoint import publish


class Interrupt(Callback):
    """Signal this process once.

    Args:
        moment: between two steps, inside a backward pass or inside a validation; else a point of a save.
        step: at how many completed steps; for a point of a save, of that step.
        rank: on this rank.
        name: of the signal.
    """

    def __init__(
        self,
        moment: Literal["step", "backward", "validation", "write", "shard", "synced", "renamed", "end"],
        step: int,
        rank: int = 0,
        name: str = "SIGTERM",
    ) -> None:
        self.moment, self.step, self.rank, self.number = moment, step, rank, getattr(signal, name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer, self.armed = trainer, trainer.global_rank == self.rank
        publish.reached = self.reach
        evaluate = pl_module.evaluation_step
        pl_module.evaluation_step = lambda batches: (self.reach("validation"), evaluate(batches))

    def reach(self, moment: str) -> None:
        if self.armed and moment == self.moment and self.trainer.global_step >= self.step:
            self.armed = False
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, *_: object) -> None:
        self.reach("step")

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: object) -> None:
        if self.moment == "backward":
            loss.register_hook(lambda _: self.reach("backward"))
