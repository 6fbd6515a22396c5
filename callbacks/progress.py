"""What a person watches while a run goes on."""

import math
import sys
import time

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from callbacks.throughput import Throughput

RECENT_SECONDS = 30.0  # older steps count less and less
DAY = 86400.0
TOLD_AT = 3  # steps of an attempt after which a run of days is told


class Progress(Callback):
    """A progress bar with loss, tokens a second and time left; without a terminal, a line every few seconds.

    The first step and the last one have a line, however short the run.

    Args:
        every_n_seconds: Seconds between two lines where there is no terminal.
    """

    def __init__(self, every_n_seconds: float = 30.0) -> None:
        self.every_n_seconds = every_n_seconds
        self.pace = Pace()
        self._bar: tqdm | None = None
        self._line_at = 0.0
        self._line_step = self._first_step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar, or note the time."""
        self.pace = Pace()
        self._first_step = self._line_step = trainer.global_step
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Move on by one step."""
        now = time.perf_counter()
        self.pace.step_ended(now, getattr(module, "step_ended", 0.0))
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(" ".join(numbers(trainer, module)), refresh=False)
            self._bar.update(1)
        elif (
            trainer.global_step in (self._first_step + 1, trainer.max_steps)
            or now - self._line_at >= self.every_n_seconds
        ):
            self._line_at = now
            self._tell(trainer, module)
        left = trainer.max_steps - trainer.global_step
        if trainer.global_step == self._first_step + TOLD_AT and (seconds := self.pace.seconds_for(left)) > DAY:
            told = f"{left:,} steps are left and take {duration(seconds)} at the speed of the first ones"
            tqdm.write(f"{told}; trainer.max_steps says how many there are")
            sys.stdout.flush()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar, or show the last step."""
        if self._bar is not None:
            self._bar.close()
        elif trainer.is_global_zero and self._line_step != trainer.global_step:
            self._tell(trainer, module)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands alone."""
        if self._bar is not None:
            self._bar.close()

    def _tell(self, trainer: Trainer, module: LightningModule) -> None:
        self._line_step = step = trainer.global_step
        left = [f"left {duration(self.pace.seconds_for(trainer.max_steps - step))}"] if step < trainer.max_steps else []
        print(f"step {step}/{trainer.max_steps}", *numbers(trainer, module), *left, flush=True)


class Pace:
    """How long a step takes: the steps of the last half minute or so, and what stands between steps on the mean.

    The first step is left out as soon as there are others: it sets up and compiles.
    """

    def __init__(self) -> None:
        self.done = 0
        self._ended = self._seconds = self._steps = self._between = 0.0

    def step_ended(self, now: float, others_ended: float) -> None:
        """Take in a step.

        Args:
            now: when it ended.
            others_ended: when validation, checkpoints and all else after the step before had ended, in the same clock.
        """
        began = max(self._ended, others_ended)
        self.done += 1
        if self.done == 2:
            self._seconds = self._steps = 0.0
        if began:
            fade = math.exp(-(now - began) / RECENT_SECONDS)
            self._seconds, self._steps = fade * self._seconds + now - began, fade * self._steps + 1
            self._between += began - self._ended if self._ended else 0.0
        self._ended = now

    def seconds_for(self, steps: int) -> float:
        """Estimate how long some steps take."""
        if not self._steps:
            return 0.0
        return steps * (self._seconds / self._steps + self._between / self.done)


def numbers(trainer: Trainer, module: LightningModule) -> list[str]:
    """Write the newest loss with the step that it is of, and the speed."""
    found = []
    if "train/loss" in module.logged:
        step = getattr(module, "logged_step", trainer.global_step)
        of = f" (step {step})" if step != trainer.global_step else ""
        found.append(f"loss {module.logged['train/loss']:#.4g}{of}")
    speed = next((c.tokens_per_s for c in trainer.callbacks if isinstance(c, Throughput)), 0.0)
    return [*found, *([f"tokens/s {speed:,.0f}"] if speed else [])]


def duration(seconds: float) -> str:
    """Write a time as h:mm:ss, one of days in words."""
    if seconds < DAY:
        return tqdm.format_interval(seconds)
    days = seconds / DAY
    return f"{days:.1f} days" if days < 365 else f"{days / 365.25:,.1f} years"
