"""A callback that measures what a process of a real run holds more than before its model was built.

The kernel keeps the largest resident size of a process (VmHWM); writing 5 to /proc/self/clear_refs starts it anew. Of
it, memory that the process allocated counts: pages of libraries, which are read from files as their code is first run,
do not (RssFile, which only grows). The save in flight is held until the next step is over, so that its copy is there in
that step on every machine, however fast its disk is.
"""

import json
import threading
from pathlib import Path

import lightning.pytorch as pl

from lightning_modules.core.checkpoint import publish

PATIENCE_SECONDS = 120.0


def resident(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise KeyError(name)


class Memory(pl.Callback):
    """Write the peaks to memory_RANK.json in the run's folder, in bytes.

    Args:
        holds: step whose save goes on until the step after it is over; 0 for none.
    """

    def __init__(self, holds: int = 0) -> None:
        self.holds, self.peaks = holds, {}
        self.goes_on = threading.Event()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.holds:
            publish.Save._write = _holding(publish.Save._write, self.goes_on)
        self.before = resident("RssAnon") + resident("RssShmem")
        self.restart()

    def restart(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def note(self, name: str) -> None:
        """Keep the peak since the last note."""
        self.peaks[name] = resident("VmHWM") - resident("RssFile") - self.before
        self.restart()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note("built")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if self.holds and trainer.global_step == self.holds:
            self.note("steps")
        if self.holds and trainer.global_step == self.holds + 1:
            self.note("steps beside a save")
            self.goes_on.set()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note("end")
        Path(trainer.default_root_dir, f"memory_{trainer.global_rank}.json").write_text(json.dumps(self.peaks))


def _holding(write: object, goes_on: threading.Event) -> object:
    def held(save: publish.Save) -> None:
        goes_on.wait(PATIENCE_SECONDS)
        write(save)

    return held
