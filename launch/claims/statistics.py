"""From scores over seeds to a verdict."""

import math
from collections.abc import Sequence
from typing import NamedTuple

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"


class Interval(NamedTuple):
    """A mean over `count` seeds with its two-sided t-interval; without bounds where there are fewer than two seeds."""

    mean: float
    low: float | None
    high: float | None
    count: int


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return mean -+ t * s / sqrt(n), with Student's t of n - 1 degrees of freedom.

    Of the differences between two arms, seed by seed, this is the paired interval.
    """
    count = len(values)
    mean = sum(values) / count if count else math.nan
    if count < 2:
        return Interval(mean, None, None, count)
    from scipy.stats import t

    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.5 + level / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def verdict(interval: Interval) -> str:
    """Say whether a difference that should be positive is: only if the whole interval says so."""
    if interval.low is None or math.isnan(interval.mean):
        return OPEN
    if interval.low > 0:
        return HOLDS
    return FAILS if interval.high <= 0 else OPEN
