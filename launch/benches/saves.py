"""Saves and loads of a running model on both ranks, ours and those of the library that the strategy stands on."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from launch.benches.ratios import interval

if TYPE_CHECKING:
    from lightning import Trainer

    from launch.cli import Cli

TIMED = ("save", "blocked", "copy", "load", "peer_save", "peer_load")
SETTLED_STEPS = 2  # the optimizer's state exists from the first step on


def run(cli: "Cli", gate: Any) -> None:
    """Train two steps, and then save and load for ever, a round each step of the gate."""
    from lightning import Callback

    class Rounds(Callback):
        def on_train_batch_end(self, trainer: "Trainer", *_: object) -> None:
            if trainer.global_step < SETTLED_STEPS:
                return
            rounds = Round(trainer)
            while True:
                gate.step()
                found = rounds.measure()
                if trainer.is_global_zero:
                    gate.counts.update(found)

    cli.trainer.callbacks.append(Rounds())
    cli.run()


class Round:
    """One save and one load each way, in an order that is reversed from round to round."""

    def __init__(self, trainer: "Trainer") -> None:
        from lightning.pytorch.strategies import DeepSpeedStrategy

        self.trainer, self.strategy, self.number = trainer, trainer.strategy, 0
        self.folder = Path(trainer.default_root_dir)
        is_zero = isinstance(self.strategy, DeepSpeedStrategy)
        self.peer_save = self._deepspeed_save if is_zero else self._dcp_save
        self.peer_load = self._deepspeed_load if is_zero else self._dcp_load

    def measure(self) -> dict[str, float]:
        """Return seconds by what was done."""
        self.number += 1
        self.ours, self.theirs = self.folder / f"ours_{self.number}", self.folder / f"theirs_{self.number}"
        work = {
            "save": self._save,
            "peer_save": self.peer_save,
            "copy": self._copy,
            "load": lambda: self.strategy.load_checkpoint(self.ours),
            "peer_load": self.peer_load,
        }
        names = list(work) if self.number % 2 else ["peer_save", "copy", "save", "peer_load", "load"]
        found = {name: self._timed(work[name]) for name in names}
        found["blocked"] = self.strategy.last_blocked_seconds
        found["mebibytes"] = sum(file.stat().st_size for file in self.ours.iterdir()) / 2**20
        self.strategy.barrier()
        if self.trainer.is_global_zero:
            shutil.rmtree(self.ours)
            shutil.rmtree(self.theirs)
        return found

    def _timed(self, work: Callable[[], object]) -> float:
        self.strategy.barrier()
        began = time.perf_counter()
        kept = work()
        self.strategy.barrier()
        seconds = time.perf_counter() - began
        del kept  # not inside: giving memory back is no part of a copy
        return seconds

    def _save(self) -> None:
        self.trainer.save_checkpoint(self.ours)
        self.strategy.settle()

    def _copy(self) -> list[Any]:
        from lightning_modules.core.checkpoint.layouts import layout_of

        return [tensor.clone() for piece in layout_of(self.strategy).slices() for tensor in piece.tensors.values()]

    def _deepspeed_save(self) -> None:
        self.strategy.model.save_checkpoint(str(self.theirs), tag="tag")
        self._sync()

    def _deepspeed_load(self) -> None:
        self.strategy.model.load_checkpoint(str(self.theirs), tag="tag")

    def _dcp_state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self.strategy.model, self.trainer.optimizers)
        return {"model": model, "optimizer": optimizer}

    def _dcp_save(self) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save(self._dcp_state(), checkpoint_id=str(self.theirs))
        self._sync()

    def _dcp_load(self) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import set_state_dict

        state = self._dcp_state()
        dcp.load(state, checkpoint_id=str(self.theirs))
        model, optimizers = self.strategy.model, self.trainer.optimizers
        set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    def _sync(self) -> None:
        """Do for their files what our save does for ours; the second rank's are among them."""
        self.strategy.barrier()
        if self.trainer.is_global_zero:
            for file in self.theirs.rglob("*"):
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())


def table(timed: dict[str, dict[str, Any]]) -> list[str]:
    """Return the seconds of every strategy as the lines of a table."""
    names = {"save": "save", "peer_save": "peer's save", "blocked": "blocked", "copy": "copy"}
    names |= {"load": "load", "peer_load": "peer's load"}
    lines = ["", "## Saves and loads, in seconds", "", "| strategy | peer | MiB | " + " | ".join(names.values()) + " |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for strategy, found in timed.items():
        cells = []
        for name in names:
            low, high = interval(found["seconds"][name])
            cells.append(f"{median(found['seconds'][name]):.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {strategy} | {found['peer']} | {found['mebibytes']:.0f} | " + " | ".join(cells) + " |")
    return lines
