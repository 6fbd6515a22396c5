"""The checkpoint behaviour that every strategy shares: `ckpt_path` is a folder of slices.

`SlicedCheckpoint` stands in front of a Lightning strategy, `class SlicedDDP(SlicedCheckpoint, DDPStrategy)`. It takes
the model and optimizer state away from Lightning's own checkpoint, writes it as slices in a thread, and reads it back
into whatever the new run holds.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.layouts import layout_of
from lightning_modules.core.checkpoint.publish import Save, begin
from lightning_modules.core.checkpoint.reader import Reader
from lightning_modules.core.checkpoint.schema import check_form, check_whole
from lightning_modules.core.checkpoint.slices import snapshot
from lightning_modules.core.checkpoint.verify import TRAINER, open_file, verify
from lightning_modules.core.checkpoint.whole import (
    describe_groups,
    persistent_buffers,
    plain,
    restore_buffers,
    restore_groups,
)
from lightning_modules.core.weights import shape_of

T = TypeVar("T")

_log = logging.getLogger(__name__)


class SlicedCheckpoint:
    """Mixin in front of a Lightning strategy; every rank has to enter `save_checkpoint` and `load_checkpoint`.

    `gathers_in_forward` says that a forward pass needs all ranks; `last_blocked_seconds` is how long the last save held
    up the training; `skipped_steps` are the steps that made no update, and `of_run` is what a checkpoint knows its run
    by, both kept in the manifest; `on_published` is called on rank 0, in the thread, with each published folder.
    """

    restore_checkpoint_after_setup = True
    lightning_restore_optimizer = False

    last_blocked_seconds: float = 0.0
    skipped_steps: tuple[int, ...] = ()
    of_run: Mapping[str, Any] = MappingProxyType({})
    gathers_in_forward = False
    on_published: Callable[[Path], None] | None = None
    _saving: Save | None = None

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Give Lightning nothing: the weights are in the shards."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Give Lightning nothing: the optimizer state is in the shards."""
        return {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Do nothing: `load_checkpoint` has read the weights."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Do nothing: `load_checkpoint` has read the optimizer state."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Save into a folder; returns when host memory holds a copy, while a thread goes on to write it.

        Raises:
            CheckpointError: the save before this one failed, or this one cannot begin.
        """
        entered = time.perf_counter()
        self.settle()
        final = Path(filepath)
        temp = self.on_rank_zero(lambda: begin(final))
        if temp is not None:
            save = Save(final, temp, self.global_rank, self.world_size)
            layout = layout_of(self)
            save.shard = snapshot(layout.slices(), self.global_rank, self.world_size)
            save.whole = {
                "lightning": plain(checkpoint, TRAINER),
                "buffers": plain(persistent_buffers(self.lightning_module), TRAINER),
                "optimizers": describe_groups(layout.groups()),
            }
            save.facts = {
                "step": checkpoint["global_step"],
                "strategy": type(self).__name__,
                "skipped_steps": list(self.skipped_steps),
                "run": dict(self.of_run),
            }
            save.on_published = self.on_published
            save.thread.start()
            self._saving = save
        self.last_blocked_seconds = time.perf_counter() - entered

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights, buffers and, when fitting, optimizers from a folder; returns the rest for Lightning.

        Raises:
            CheckpointError: the checkpoint is damaged, or does not fit this model and its optimizers.
        """
        folder = Path(self.broadcast(str(checkpoint_path)))
        manifest = self._verify_together(folder)
        reader, whole = Reader(folder, manifest["world_size"]), open_file(folder / TRAINER)
        check_whole(whole, folder / TRAINER, is_complete=True)
        if (step := whole["lightning"]["global_step"]) != manifest["step"]:
            raise CheckpointError(f"{folder / TRAINER}: is of step {step}, the manifest of step {manifest['step']}")
        module, layout = self.lightning_module, layout_of(self)
        self._check_states(whole["lightning"], folder / TRAINER)
        reader.match({name: shape_of(parameter) for name, parameter in module.named_parameters()})
        with torch.no_grad():
            if module.trainer.state.fn == TrainerFn.FITTING:
                restore_groups(layout.groups(), whole["optimizers"], folder)
                layout.allocate(reader)
            for piece in layout.slices():
                for key, target in piece.tensors.items():
                    reader.read_into(piece.name, key, piece.start, target)
            layout.loaded()
            restore_buffers(module, whole["buffers"], folder)
        self.skipped_steps = tuple(manifest["skipped_steps"])
        return whole["lightning"]

    def _check_states(self, saved: dict[str, Any], path: Path) -> None:
        trainer = self.lightning_module.trainer
        if trainer.state.fn != TrainerFn.FITTING:
            return
        check_form(saved["loops"]["fit_loop"], trainer.fit_loop.state_dict(), path, "fit_loop")
        for callback in trainer.callbacks:
            check_form(saved.get("callbacks", {}).get(callback.state_key, {}), callback.state_dict(), path, "callbacks")

    def check_savable(self) -> None:
        """Refuse now what a save would refuse later, once the optimizers have made their first step.

        Raises:
            CheckpointError: the strategy or an optimizer cannot be saved as slices.
        """
        for _ in layout_of(self).slices():
            pass

    def settle(self, wait: bool = True) -> None:
        """See to the save in flight, on every rank together: if all are done, or one failed, it is closed.

        Raises:
            CheckpointError: the save failed on any rank; raised on all of them at the same step.
        """
        while self._saving is not None:
            votes = torch.tensor(
                [self._saving.finished, self._saving.failed], dtype=torch.int32, device=self.root_device
            )
            if self.world_size > 1:
                torch.distributed.all_reduce(votes)
            finished, failed = votes.tolist()
            if finished == self.world_size or failed:
                self._close()
            elif not wait:
                return
            else:
                time.sleep(0.01)

    def _close(self) -> None:
        save, self._saving = self._saving, None
        save.abandon()
        save.thread.join()
        errors = [error for error in self._gather(save.error) if error is not None]
        if errors:
            # rank 0 may only report that it stopped waiting; the cause is what the other rank says
            raise CheckpointError(errors[-1])
        _log.info("saved %s", save.final)

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Let rank 0 do something, and every rank have its result.

        Raises:
            CheckpointError: it failed there; raised on every rank.
        """
        result, error = None, None
        if self.global_rank == 0:
            try:
                result = work()
            except (CheckpointError, OSError) as caught:
                error = str(caught)
        result, error = self.broadcast((result, error))
        if error is not None:
            raise CheckpointError(error)
        return result

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Look after the save in flight at every step boundary."""
        self.settle(wait=False)
        super().on_train_batch_start(batch, batch_idx)

    def on_train_end(self) -> None:
        """Wait for the last save."""
        self.settle()
        super().on_train_end()

    def teardown(self) -> None:
        """After an exception, let the thread finish if it can; the other ranks may be gone, so nobody is asked."""
        if self._saving is not None:
            self._saving.leave()
            if self._saving.error is not None:
                _log.error("%s", self._saving.error)
            self._saving = None
        super().teardown()

    def _verify_together(self, folder: Path) -> dict[str, Any]:
        manifest, fault = {}, None
        try:
            manifest = verify(folder, self.global_rank, self.world_size)
        except CheckpointError as error:
            fault = str(error)
        for found in self._gather(fault):
            if found is not None:
                raise CheckpointError(found)
        return manifest

    def _gather(self, value: T) -> list[T]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values
