"""When to save, and which saves to keep."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from lightning_modules.core import stop
from lightning_modules.core.base import Method
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.publish import (
    discard_leftovers,
    reached,
    remove,
    set_aside,
    sync_folder,
    temporary,
)
from lightning_modules.core.checkpoint.strategy import SlicedCheckpoint
from lightning_modules.core.checkpoint.verify import complete_steps, step_folder

BEST = "best"


@dataclass(frozen=True)
class KeepBest:
    """Which validated value decides on the best checkpoint.

    Args:
        metric: its name, such as val/auc.
        mode: which end is better; by default the low one for a loss and the high one for all else.
    """

    metric: str
    mode: Literal["min", "max"] | None = None

    def better(self, value: float, best: float) -> bool:
        """Tell whether a value beats the best so far."""
        mode = self.mode or ("min" if self.metric.endswith("loss") else "max")
        return value > best if mode == "max" else value < best


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
        step, value = state_dict.get("best_step"), state_dict.get("best_value")
        if not (step is None or isinstance(step, int)) or not (value is None or isinstance(value, float | int)):
            raise CheckpointError(f"best_step = {step!r:.40}, best_value = {value!r:.40}: no checkpoint has these")
        self.best_step, self.best_value = step, value

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Clear away what a killed run left behind."""
        if stage != "fit":
            return
        if not isinstance(trainer.strategy, SlicedCheckpoint):
            raise CheckpointError(
                f"strategy {type(trainer.strategy).__name__}: cannot be saved; use one of configs/strategy"
            )
        if self.keep_best is not None and self._validation(trainer) is None:
            raise CheckpointError(
                "callbacks.checkpoint.keep_best: needs callbacks.validation, which measures the value"
            )
        self._checkpoints = Path(trainer.default_root_dir) / "checkpoints"
        trainer.strategy.on_rank_zero(lambda: writable(self._checkpoints))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let `best` say what the restored state says."""
        self._saved_step = trainer.global_step
        if trainer.global_step:
            stop.standing = f"the checkpoint of step {trainer.global_step} stands"
        trainer.strategy.check_savable()
        self._require_metric(pl_module.value_names("val") if isinstance(pl_module, Method) else None)
        later = trainer.strategy.on_rank_zero(lambda: set_aside(self._checkpoints, trainer.global_step))
        if later and trainer.is_global_zero:
            named = ", ".join(map(str, later))
            print(f"checkpoints of later steps ({named}) were moved to {self._checkpoints / 'set_aside'}", flush=True)
        trainer.strategy.on_rank_zero(lambda: self._link_best(self.best_step))

    def on_roll_back(self, step: int) -> None:
        """Forget a best checkpoint of a later step: it was set aside."""
        if self.best_step is not None and self.best_step > step:
            self.best_step = self.best_value = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, or the last step."""
        if not self._checked:
            trainer.strategy.check_savable()
            self._checked = True
        step = trainer.global_step
        validation = self._validation(trainer)
        self._require_metric(validation.last if validation is not None else None)
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
        if isinstance(trainer.lightning_module, Method):
            trainer.lightning_module.readings.settle()  # what is wrong with this step must be known before it is saved
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

    def _require_metric(self, found: Collection[str] | None) -> None:
        """Refuse the name of a value that nobody measures, at the first validation at the latest."""
        if found and self.keep_best is not None and self.keep_best.metric not in found:
            known = ", ".join(sorted(found))
            raise CheckpointError(
                f"callbacks.checkpoint.keep_best.metric: no value {self.keep_best.metric}; there are: {known}"
            )

    def _judge(self, trainer: pl.Trainer, step: int) -> None:
        """Decide whether this step is the best so far; rank 0 decides for all."""
        if self.keep_best is None:
            return
        validation = self._validation(trainer)
        if validation is None or validation.last_step != step:
            return
        metric = self.keep_best.metric
        value = float(trainer.strategy.broadcast(validation.last[metric]))
        if math.isfinite(value) and (self.best_value is None or self.keep_best.better(value, self.best_value)):
            self.best_step, self.best_value = step, value

    def _published(self, best_step: int | None, folder: Path) -> None:
        """Rank 0, in the saving thread: lead `best` to its folder, then delete."""
        self._link_best(best_step)
        stop.standing = f"the checkpoint of step {int(folder.name.removeprefix('step_'))} stands"
        published = int(folder.name.removeprefix("step_"))
        steps = [step for step in complete_steps(self._checkpoints) if step <= published]
        for step in steps[: -self.keep_last]:
            is_kept_for_good = self.keep_every_n_steps is not None and step % self.keep_every_n_steps == 0
            if step != best_step and not is_kept_for_good:
                remove(step_folder(self._checkpoints, step))

    def _link_best(self, step: int | None) -> None:
        link = self._checkpoints / BEST
        if step is None or step not in complete_steps(self._checkpoints):
            if link.is_symlink() and not link.exists():  # what it led to was set aside
                link.unlink()
            return
        target = step_folder(self._checkpoints, step)
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


def writable(checkpoints: Path) -> None:
    """Make the folder, and clear away what a killed run left behind.

    Raises:
        CheckpointError: nothing can be written there.
    """
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        probe = temporary(checkpoints / "probe")
        probe.mkdir()
        probe.rmdir()
        discard_leftovers(checkpoints)
    except OSError as error:
        raise CheckpointError(f"{checkpoints}: cannot be written ({error.strerror})") from error
