"""Losses that see the vectors of the whole global batch: of all micro-batches and all ranks at once.

A step has three parts: vectors of every micro-batch, the loss on all of them with its slope at each vector, and the
backward pass from these slopes through the encoder. Without cached gradients all graphs are kept in
between. With them the first part keeps none and the third runs the encoder again (Gao et al. 2021, arXiv:2101.06983,
section 3.2), so that memory does not grow with the global batch; the masks of dropout are keyed by micro-batch, so both
passes have the same.

Shape suffixes: P examples of a micro-batch, R of a rank, B of the global batch, X the rest of an example's vectors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.core.batches import TextBatch
from lightning_modules.core.base import TRAIN, Method
from lightning_modules.core.gather import gather_rows, own_rows
from lightning_modules.core.keyed import seed_generators
from lightning_modules.core.step import backward, passes
from lightning_modules.core.terms import LossTerms, Totals

NOTHING = LossTerms({}, {})


class Embedded(NamedTuple):
    """What an encoder makes of a micro-batch: vectors, one learnt number for the loss, and terms of its own."""

    vectors_PX: Tensor  # float32 at least, one row an example
    scale: Tensor | None = None
    terms: LossTerms = NOTHING  # of losses that need no other example


class Slopes(NamedTuple):
    """The derivative of the rank's part of the loss at what it was made of."""

    vectors_RX: Tensor
    scale: Tensor | None


class WholeBatchMethod(Method):
    """A method whose loss compares examples; a subclass gives `embed`, `known` and `compare`.

    Args:
        cached_gradients: run the encoder twice instead of keeping the graphs of all micro-batches.
    """

    texts_per_example = 2  # at least: hard negatives are known to the data alone

    def __init__(self, cached_gradients: bool) -> None:
        super().__init__()
        self.cached_gradients = cached_gradients

    # What a method gives

    def embed(self, batch: TextBatch) -> Embedded:
        """Run the encoder on one micro-batch."""
        raise TypeError(f"{type(self).__name__} gives no embed()")

    def known(self, batch: TextBatch) -> dict[str, Tensor]:
        """Return what the loss needs of each example besides its vectors, [P, ...] each, such as its label."""
        return {}

    def compare(self, vectors_BX: Tensor, known: dict[str, Tensor], own: slice, scale: Tensor | None) -> LossTerms:
        """Return this rank's share of the loss of the global batch: rows `own` of it are the rank's."""
        raise TypeError(f"{type(self).__name__} gives no compare()")

    def passes_kept(self, micro_batches: int) -> int:
        """Keep all graphs of a step, or one."""
        return 1 if self.cached_gradients else micro_batches

    # The step

    def learn(
        self, micro_batches: list[TextBatch], counts: dict[str, Tensor | float], logs: bool
    ) -> tuple[Totals, list[Tensor]]:
        """Give every parameter its gradient; returns the terms, and this rank's share of the loss in parts."""
        if not self.cached_gradients or len(micro_batches) == 1:
            return self._learn_at_once(micro_batches, counts, logs)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            found = [part for batch in micro_batches for part in self(self._embed_seeded, [batch])]
        totals, shares, slopes = self._slopes(found, micro_batches, counts, logs)
        sizes = [len(part.vectors_PX) for part in found]
        with passes(self, len(micro_batches)) as contexts:
            for number, (batch, context) in enumerate(zip(micro_batches, contexts, strict=True)):
                with context:
                    with self.trainer.precision_plugin.forward_context():
                        again = self(self._embed_seeded, [batch])
                    own = slice(sum(sizes[:number]), sum(sizes[: number + 1]))
                    self._descend(again, slopes.vectors_RX[own], slopes.scale if number == 0 else None, counts)
        return totals, shares

    def _learn_at_once(
        self, micro_batches: list[TextBatch], counts: dict[str, Tensor | float], logs: bool
    ) -> tuple[Totals, list[Tensor]]:
        with passes(self, 1) as (context,), context:
            with self.trainer.precision_plugin.forward_context():
                found = self(self._embed_seeded, micro_batches)
            totals, shares, slopes = self._slopes(found, micro_batches, counts, logs)
            self._descend(found, slopes.vectors_RX, slopes.scale, counts)
        return totals, shares

    def _embed_seeded(self, micro_batches: list[TextBatch]) -> list[Embedded]:
        found = []
        for batch in micro_batches:
            seed_generators(self.seed, TRAIN, batch["position"])
            found.append(self.embed(batch))
        return found

    def _slopes(
        self,
        found: Sequence[Embedded],
        micro_batches: list[TextBatch],
        counts: dict[str, Tensor | float],
        logs: bool,
    ) -> tuple[Totals, list[Tensor], Slopes]:
        """Compare the vectors of all ranks, and differentiate the loss at this rank's own."""
        vectors_RX = torch.cat([part.vectors_PX.detach() for part in found]).requires_grad_()
        scale = found[0].scale if found[0].scale is None else found[0].scale.detach().requires_grad_()
        known = [self.known(batch) for batch in micro_batches]
        together = {name: gather_rows(torch.cat([part[name] for part in known])) for name in known[0]}
        with torch.enable_grad():
            terms = self.compare(gather_rows(vectors_RX), together, own_rows(len(vectors_RX)), scale)
            loss = terms.total(counts)
            slopes = torch.autograd.grad(loss, [vectors_RX] if scale is None else [vectors_RX, scale])
        totals = Totals()
        for part in (terms, *(part.terms for part in found)) if logs else ():
            totals.add(part)
        shares = [loss.detach(), *(part.terms.total(counts).detach() for part in found if part.terms.terms)]
        return totals, shares, Slopes(slopes[0], None if scale is None else slopes[1])

    def _descend(
        self,
        found: Sequence[Embedded],
        slopes_RX: Tensor,
        slope: Tensor | None,
        counts: dict[str, Tensor | float],
    ) -> None:
        """Go on with the backward pass from the slopes: their product with what they belong to has that gradient."""
        loss = (torch.cat([part.vectors_PX for part in found]) * slopes_RX).sum()
        loss = loss + sum(part.terms.total(counts) for part in found)
        if slope is not None:
            loss = loss + (found[0].scale * slope).sum()
        elif found[0].scale is not None:
            loss = loss + 0.0 * found[0].scale.sum()  # later passes of a step give it a gradient too
        backward(self, loss * self.trainer.world_size)  # strategies average over the ranks
