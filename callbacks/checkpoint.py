"""When to save, and which saves to keep."""

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.publish import discard_leftovers, reached, remove, sync_folder, temporary
from lightning_modules.core.checkpoint.strategy import SlicedCheckpoint
from lightning_modules.core.checkpoint.verify import complete_steps, step_folder

BEST = "best"


@dataclass(frozen=True)
class KeepBest:
    """Which validated value decides on the best checkpoint."""

    metric: str
    mode: Literal["min", "max"] = "max"


@runtime_checkable
class Validated(Protocol):
    """A callback that validates: its last values by name, and the step that they are of."""

    last: dict[str, float]
    last_step: int


class Checkpoint(LightningCheckpoint):  # Lightning runs its subclasses after all other callbacks
    """Saves every so many steps into `checkpoints/` of the run's folder and deletes what is no longer needed.

    Args:
        every_n_steps: steps between two saves.
        keep_last: how many of the newest checkpoints are kept.
        keep_every_n_steps: checkpoints of multiples of this are kept for good.
        save_last: save at the end too, and when the run is stopped.
        keep_best: keep the checkpoint with the best validated value too; `checkpoints/best` leads to it. Only steps
            that are both validated and saved take part.

    Raises:
        CheckpointError: a number is below one, the strategy is not one of Tokamak's, or `keep_best` asks for a value
            that nobody measures.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        keep_last: int = 2,
        keep_every_n_steps: int | None = None,
        save_last: bool = True,
        keep_best: KeepBest | None = None,
    ) -> None:
        super().__init__()
        options = {"every_n_steps": every_n_steps, "keep_last": keep_last, "keep_every_n_steps": keep_every_n_steps}
        for key, value in options.items():
            if value is not None and value < 1:
                raise CheckpointError(f"callbacks.checkpoint.{key}: {value} is below 1")
        self.every_n_steps, self.keep_last, self.keep_every_n_steps = every_n_steps, keep_last, keep_every_n_steps
        self.save_last, self.keep_best = save_last, keep_best
        self.best_step: int | None = None
        self.best_value: float | None = None
        self._saved_step = 0
        self._checked = False
        self._blocked_seconds: float | None = None  # of the last save, until it is logged

    def state_dict(self) -> dict[str, Any]:
        """Keep the best so far."""
        return {"best_step": self.best_step, "best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best so far."""
        self.best_step, self.best_value = state_dict["best_step"], state_dict["best_value"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Clear away what a killed run left behind."""
        if stage != "fit":
            return
        if not isinstance(trainer.strategy, SlicedCheckpoint):
            raise CheckpointError(f"strategy {type(trainer.strategy).__name__}: cannot be saved; use single or ddp")
        if self.keep_best is not None and self._validation(trainer) is None:
            raise CheckpointError(
                "callbacks.checkpoint.keep_best: needs callbacks.validation, which measures the value"
            )
        self._checkpoints = Path(trainer.default_root_dir) / "checkpoints"
        trainer.strategy.on_rank_zero(lambda: discard_leftovers(self._checkpoints))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let `best` say what the restored state says."""
        self._saved_step = trainer.global_step
        trainer.strategy.on_rank_zero(lambda: self._link_best(self.best_step))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, or the last step."""
        if not self._checked:
            trainer.strategy.check_savable()
            self._checked = True
        step = trainer.global_step
        self._report(trainer, step)
        is_last = step == trainer.max_steps or trainer.should_stop
        if step % self.every_n_steps == 0 or (self.save_last and is_last):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if the data ended before the steps did."""
        if self.save_last:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if step == self._saved_step:
            return
        self._saved_step = step
        self._judge(trainer, step)
        for logger in trainer.loggers:
            logger.save()  # what was logged up to this step must not be younger than the checkpoint
        trainer.strategy.on_published = partial(self._published, self.best_step)
        trainer.save_checkpoint(step_folder(self._checkpoints, step), weights_only=False)
        self._blocked_seconds = trainer.strategy.last_blocked_seconds

    def _report(self, trainer: pl.Trainer, step: int) -> None:
        """Log how long the last save held up the training, with the next step that is logged anyway."""
        if self._blocked_seconds is None or step % trainer.log_every_n_steps:
            return
        for logger in trainer.loggers:
            logger.log_metrics({"perf/save_blocked_seconds": self._blocked_seconds}, step)
        self._blocked_seconds = None

    def _judge(self, trainer: pl.Trainer, step: int) -> None:
        """Decide whether this step is the best so far; rank 0 decides for all."""
        if self.keep_best is None:
            return
        validation = self._validation(trainer)
        if validation is None or validation.last_step != step:
            return
        metric = self.keep_best.metric
        if metric not in validation.last:
            known = ", ".join(sorted(validation.last)) or "none"
            raise CheckpointError(f"callbacks.checkpoint.keep_best.metric: no value {metric}; there are: {known}")
        value = float(trainer.strategy.broadcast(validation.last[metric]))
        sign = 1.0 if self.keep_best.mode == "max" else -1.0
        if math.isfinite(value) and (self.best_value is None or sign * value > sign * self.best_value):
            self.best_step, self.best_value = step, value

    def _published(self, best_step: int | None, folder: Path) -> None:
        """Rank 0, in the saving thread: lead `best` to its folder, then delete."""
        self._link_best(best_step)
        published = int(folder.name.removeprefix("step_"))
        # later ones are leftovers of the run that was resumed here from an older step: each is replaced when reached
        steps = [step for step in complete_steps(self._checkpoints) if step <= published]
        for step in steps[: -self.keep_last]:
            is_kept_for_good = self.keep_every_n_steps is not None and step % self.keep_every_n_steps == 0
            if step != best_step and not is_kept_for_good:
                remove(step_folder(self._checkpoints, step))

    def _link_best(self, step: int | None) -> None:
        if step is None or step not in complete_steps(self._checkpoints):
            return
        link, target = self._checkpoints / BEST, step_folder(self._checkpoints, step)
        if link.is_symlink() and os.readlink(link) == target.name:
            return
        fresh = temporary(link)
        fresh.symlink_to(target.name)
        fresh.replace(link)
        sync_folder(self._checkpoints)
        reached("best")

    @staticmethod
    def _validation(trainer: pl.Trainer) -> Validated | None:
        return next((callback for callback in trainer.callbacks if isinstance(callback, Validated)), None)
