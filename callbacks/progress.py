"""What a person watches while a run goes on."""

import sys
import time

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from callbacks.throughput import Throughput


class Progress(Callback):
    """A progress bar with loss, tokens a second and time left; without a terminal, a line every few seconds.

    Args:
        every_n_seconds: Seconds between two lines where there is no terminal.
    """

    def __init__(self, every_n_seconds: float = 30.0) -> None:
        self.every_n_seconds = every_n_seconds
        self._bar: tqdm | None = None
        self._line_at = self._started = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar, or note the time."""
        self._started = self._line_at = time.perf_counter()
        self._first_step = trainer.global_step
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Move on by one step."""
        if self._bar is not None:
            self._bar.set_postfix(self._numbers(trainer, module), refresh=False)
            self._bar.update(1)
        elif trainer.is_global_zero and time.perf_counter() - self._line_at >= self.every_n_seconds:
            self._line_at = time.perf_counter()
            numbers = " ".join(f"{name} {value}" for name, value in self._numbers(trainer, module).items())
            print(f"step {trainer.global_step}/{trainer.max_steps} {numbers} left {self._left(trainer)}", flush=True)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands alone."""
        self.on_train_end(trainer, module)

    def _numbers(self, trainer: Trainer, module: LightningModule) -> dict[str, str]:
        numbers = {}
        if "train/loss" in module.logged:
            numbers["loss"] = f"{module.logged['train/loss']:.3f}"
        speed = next((c.tokens_per_s for c in trainer.callbacks if isinstance(c, Throughput)), 0.0)
        if speed:
            numbers["tokens/s"] = f"{speed:,.0f}"
        return numbers

    def _left(self, trainer: Trainer) -> str:
        done = trainer.global_step - self._first_step
        seconds = (time.perf_counter() - self._started) / done * (trainer.max_steps - trainer.global_step)
        return tqdm.format_interval(seconds)
