"""Dropout whose masks are cheap on a CPU: four decisions from one 64-bit random number.

torch draws one number for each element; on a CPU that is an eighth of a training step in float32 and a fifth in bf16.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16  # a decision has 16 bits: a share is kept to the nearest 1 / 65,536


@torch.compiler.disable  # the generator's whole range cannot be asked for in a compiled graph
def keep_mask(shape: torch.Size, p: float, like: Tensor) -> Tensor:
    """Return 0 for the dropped share p of the places and 1 / (1 - p) for the others, in the type of `like`, on the CPU.

    The numbers come from torch's CPU generator, so that seeding it fixes the mask.
    """
    count, dropped = math.prod(shape), round(p * LEVELS)
    numbers = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # the whole range, sign included
    lanes = numbers.view(torch.int16)[:count].view(shape)
    return (lanes >= dropped - LEVELS // 2).to(like.dtype).mul_(LEVELS / (LEVELS - dropped))


def dropout(x: Tensor, p: float) -> Tensor:
    """Drop the share p of the elements and scale the others up."""
    return x * keep_mask(x.shape, p, x) if x.is_cpu else F.dropout(x, p)


class Dropout(nn.Dropout):
    """`nn.Dropout` with cheap masks."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop while training."""
        return dropout(x, self.p) if self.training and 0.0 < self.p < 1.0 else super().forward(x)


def cheap_dropout(network: nn.Module) -> None:
    """Put the cheap form in place of every `nn.Dropout` of a network."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
