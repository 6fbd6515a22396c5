"""Learning-rate schedules as functions of the number of updates already made, in [0, 1] of the peak."""

import math
from collections.abc import Callable
from functools import partial


def linear(step: int, warmup_steps: int, total_steps: int) -> float:
    """Rise linearly to the peak, then fall linearly to zero at `total_steps`."""
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def multiplied(step: int, warmup_steps: int, total_steps: int) -> float:
    """Warm-up times decay, both running from step 0, as in the released ELECTRA (model/optimization.py).

    The released code, run by TensorFlow 1.15, reads its step counter after the update has raised it, so that nearly
    always LR(step + 1) was applied there; this is the formula that its source states.
    """
    warm = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return max(0.0, 1.0 - step / total_steps) * warm


def cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Rise linearly to the peak, then fall along half a cosine to zero."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(step: int, warmup_steps: int, total_steps: int) -> float:
    """Rise linearly to the peak and stay there."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "linear": linear,
    "multiplied": multiplied,
    "cosine": cosine,
    "constant": constant,
}


def schedule(name: str, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """Return the named schedule as a function of the step alone."""
    return partial(SCHEDULES[name], warmup_steps=warmup_steps, total_steps=total_steps)
