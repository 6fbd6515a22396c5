"""What an objective returns: sums with their counts, so that no mean of means can arise."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Term(NamedTuple):
    """One loss term of a micro-batch: the sum over its targets, how many they are, and the weight of their mean."""

    sum: Tensor
    count: int
    weight: float = 1.0


class LossTerms(NamedTuple):
    """All loss terms of a micro-batch, and statistics that are added up over micro-batches and ranks."""

    terms: dict[str, Term]
    statistics: dict[str, Tensor]

    def total(self, global_counts: Mapping[str, Tensor | float]) -> Tensor:
        """Return sum over terms of weight * sum / (count over the whole global batch)."""
        return sum(term.weight * term.sum / global_counts[name] for name, term in self.terms.items())


class Totals:
    """Adds up the terms and statistics of micro-batches, then over the ranks in one packed call."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, found: LossTerms) -> None:
        """Take in one micro-batch."""
        for name, term in found.terms.items():
            self.weights[name] = term.weight
            self._add(f"{name}/sum", term.sum.detach())
            self._add(f"{name}/count", torch.tensor(term.count))
        for name, value in found.statistics.items():
            self._add(name, value.detach())

    def _add(self, name: str, value: Tensor) -> None:
        value = value.double()
        self.values[name] = self.values[name] + value if name in self.values else value

    def complete(self) -> None:
        """Put zeros where another rank has values: a rank may have had no micro-batch of an evaluation at all."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        shapes: list = [None] * dist.get_world_size()
        dist.all_gather_object(shapes, ({name: tuple(v.shape) for name, v in self.values.items()}, self.weights))
        for found, weights in shapes:
            self.weights = weights | self.weights
            for name, shape in found.items():
                self.values.setdefault(name, torch.zeros(shape, dtype=torch.float64))

    def reduce(self, device: torch.device) -> None:
        """Add up over the ranks in one call; all must hold the same names and shapes."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        names = sorted(self.values)
        packed = torch.cat([self.values[name].to(device).reshape(-1) for name in names])
        dist.all_reduce(packed)
        pieces = packed.split([self.values[name].numel() for name in names])
        self.values = {name: piece.view(self.values[name].shape) for name, piece in zip(names, pieces, strict=True)}

    def means(self) -> dict[str, float]:
        """Return the mean of every term and, as `loss`, their weighted sum; waits for the device."""
        means = {
            name: (self.values[f"{name}/sum"] / self.values[f"{name}/count"].clamp(min=1)).item()
            for name in self.weights
        }
        return {"loss": sum(self.weights[name] * mean for name, mean in means.items()), **means}

    def statistics(self) -> dict[str, Tensor]:
        """Return the statistics, on the host."""
        own = {f"{name}/{part}" for name in self.weights for part in ("sum", "count")}
        return {name: value.cpu() for name, value in self.values.items() if name not in own}
