"""Vectors of all ranks, with the right gradient for each rank's own."""

import torch
import torch.distributed as dist
from torch import Tensor


class _Gathered(torch.autograd.Function):
    """All ranks' rows, in the order of the ranks; a row's gradient is the sum of what all ranks make of it."""

    @staticmethod
    def forward(_: object, own_RX: Tensor) -> Tensor:
        everyone_BX = own_RX.new_empty(dist.get_world_size() * len(own_RX), *own_RX.shape[1:])
        dist.all_gather_into_tensor(everyone_BX, own_RX.contiguous())
        return everyone_BX

    @staticmethod
    def backward(_: object, slope_BX: Tensor) -> Tensor:
        own_RX = slope_BX.new_empty(len(slope_BX) // dist.get_world_size(), *slope_BX.shape[1:])
        dist.reduce_scatter_tensor(own_RX, slope_BX.contiguous())
        return own_RX


def gather_rows(own_RX: Tensor) -> Tensor:
    """Return the rows [B, ...] of all ranks, rank by rank; every rank must bring as many rows R.

    The gradient of the sum over ranks of what is computed from them arrives at the rank that brought a row: a loss on
    own rows against all rows needs no factor (open_clip's `local_loss` with `gather_with_grad`;
    mlfoundations/open_clip#616 has what goes wrong otherwise). The backward pass is a collective too.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return own_RX
    return _Gathered.apply(own_RX)


def own_rows(count: int) -> slice:
    """Return where this rank's rows are among all, if it brought `count` of them."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return slice(rank * count, (rank + 1) * count)
