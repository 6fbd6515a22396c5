"""Medians of per-round ratios with their interval, and whether a goal is met."""

import math
from statistics import median
from typing import Any, NamedTuple

CONFIDENCE = 0.95
LEAST_ROUNDS = 20  # with fewer, nothing is said about goals


class Goal(NamedTuple):
    """The speed of one system as a multiple of another's, and how much it should be; None is measured only."""

    above: str
    below: str
    least: float | None = None


def interval(values: list[float]) -> tuple[float, float]:
    """Return the narrowest pair of order statistics that holds the median with at least 95 % confidence.

    The median lies between the k-th smallest and the k-th largest of n values with probability
    1 - 2 P(Binomial(n, 1/2) < k), whatever the distribution. With fewer than six values no pair reaches 95 %: the
    smallest and the largest are returned.
    """
    values, n = sorted(values), len(values)
    k, outside = 0, 0.0
    while k < n // 2:
        outside += 2 * math.comb(n, k) / 2**n
        if 1 - outside < CONFIDENCE:
            break
        k += 1
    k = max(k, 1)
    return values[k - 1], values[n - k]


def compared(goal: Goal, speeds: dict[str, list[float]], setting: str) -> dict[str, Any]:
    """Compare two systems round by round; a goal is met if the interval reaches it, after at least 20 rounds."""
    ratios = [a / b for a, b in zip(speeds[goal.above], speeds[goal.below], strict=True)]
    low, high = interval(ratios)
    decided = goal.least is not None and len(ratios) >= LEAST_ROUNDS
    return {
        "setting": setting,
        "comparison": f"{goal.above} / {goal.below}",
        "goal": goal.least,
        "median": median(ratios),
        "interval": [low, high],
        "rounds": len(ratios),
        "met": high >= goal.least if decided else None,
    }
