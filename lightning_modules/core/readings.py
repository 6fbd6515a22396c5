"""What a step leaves on its way from the device and a later step reads: votes to stop, norms of gradients, losses.

Nothing here waits for a step that is under way, and all ranks read the same numbers at the same step.
"""

import math
from collections import deque
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_modules.core import stop

if TYPE_CHECKING:
    from lightning_modules.core.base import Method


class Late:
    """A number on its way from the device, to be read when the step after it is under way: then nothing waits."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().to("cpu", non_blocking=True)
        self.arrival = torch.cuda.Event() if value.is_cuda else None
        if self.arrival is not None:
            self.arrival.record()

    def read(self) -> float:
        """Return the number."""
        if self.arrival is not None:
            self.arrival.synchronize()  # a formality, but without it the host may read too early
        return self.value.item()


class Readings:
    """The open readings of a method, and what follows from them; every rank calls every method of this."""

    def __init__(self, method: "Method") -> None:
        self.method = method
        self._ballot: Late | None = None  # votes to stop of the step before
        self._norms: deque[tuple[int, Late, list]] = deque()  # of the newest steps: number, gradient, batches
        self._share: Tensor | None = None  # this rank's share of the newest step's loss, where losses are watched
        self._loss: tuple[int, Late, list] | None = None  # the loss of the step before, with its number and batches
        self._batches: list = []

    def exchange(self, counts: dict[str, float]) -> dict[str, Tensor | float]:
        """Add up every term's targets over the ranks; votes to stop and the last loss ride along."""
        packed = torch.tensor([*counts.values(), float(bool(stop.requested())), 0.0], dtype=torch.float64)
        self._packed = len(packed)
        several = self.method.trainer.world_size > 1
        if several or self._share is not None:
            packed = packed.to(self.method.device, non_blocking=True)
        if self._share is not None:
            packed[-1] = self._share
        if several:
            dist.all_reduce(packed)
        self._act_on(votes=packed[-2], loss=packed[-1])
        # A term without any target has the sum 0: dividing by 1 keeps it 0, and keeps its gradient defined.
        return dict(zip(counts, packed[:-2].clamp(min=1).unbind(), strict=True))

    def _act_on(self, votes: Tensor, loss: Tensor) -> None:
        """End the run if any rank voted for it one step ago, and look at the loss of two steps ago."""
        trainer = self.method.trainer
        if self._ballot is not None and self._ballot.read() > 0:
            trainer.should_stop = True
        self._ballot = Late(votes)
        if self._loss is not None and self.method.divergence.is_spike(value := self._loss[1].read()):
            step, _, batches = self._loss
            self._deal_with(step, f"the loss jumped to {value:.6g}", batches, updated=True)
        elif self._share is not None:
            self._loss = trainer.global_step, Late(loss), self._batches

    def add_norm(self, norm: Tensor, batches: list) -> None:
        """Keep the norm of the step's whole gradient."""
        self._norms.append((self.method.trainer.global_step, Late(norm), batches))

    def add_loss(self, shares: list[Tensor], batches: list) -> None:
        """Keep this rank's share of the step's loss, given in parts."""
        self._share, self._batches = torch.stack(shares).double().sum(), batches

    def settle(self, under_way: int = 0) -> None:
        """Look at the gradients of the steps so far, and deal with one that is not finite.

        Args:
            under_way: how many of the newest steps are left for later, so that nobody waits for them.

        Raises:
            Diverged: the rule for such steps ends the run.
        """
        while len(self._norms) > under_way:
            step, norm, batches = self._norms.popleft()
            if not math.isfinite(norm.read()):
                self._deal_with(step, "the gradient is not finite", batches, updated=False)

    def _deal_with(self, step: int, what: str, batches: list, updated: bool) -> None:
        if self.method.divergence.act(self.method, step, what, batches, updated):  # what is still open was left behind
            self._norms.clear()
            self._loss = self._share = None

    def open_losses(self) -> list[tuple[int, float]]:
        """Return the losses of the newest steps that were not looked at yet, with their steps.

        They belong into a checkpoint: the run that goes on from it must find what this one would.
        """
        found = [(self._loss[0], self._loss[1].read())] if self._loss is not None else []
        if self._share is not None:
            total = torch.zeros(self._packed, dtype=torch.float64, device=self._share.device)
            total[-1] = self._share
            if self.method.trainer.world_size > 1:
                dist.all_reduce(total)  # as it is added up in the step: another form could round differently
            found.append((self.method.trainer.global_step, total[-1].item()))
        return found

    def reopen_losses(self, losses: list[tuple[int, float]]) -> None:
        """Look at these losses in the next steps; without the batches that they are of."""
        trainer = self.method.trainer
        for step, loss in losses:
            value = torch.tensor(loss, dtype=torch.float64, device=self.method.device)
            if step < trainer.global_step:
                self._loss = step, Late(value), []
            else:
                self._share, self._batches = value * (trainer.global_rank == 0), []
