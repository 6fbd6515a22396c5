"""An encoder that gives vectors at any of its layers.

Shape suffixes: T tokens of a micro-batch, B its sequences, D width.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from datamodules.core.batches import TextBatch
from lightning_modules.core.encoders import Encoder
from lightning_modules.core.pooling import pool
from lightning_modules.core.precision import widened
from lightning_modules.core.sentence_form import Form, Head
from lightning_modules.matryoshka2d.modes import LARGEST_SCALE


class LearntScale(nn.Module):
    """A factor of the cosines, trained as its logarithm."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((1,), math.log(first)))  # by this name it is not decayed

    def forward(self) -> Tensor:
        """Return the factor, at most 100; a shape of [1]. At the limit its gradient stays, so that it can come back."""
        log = widened(self.bias)
        above = (log - math.log(LARGEST_SCALE)).clamp(min=0)
        return (log - above.detach()).exp()


class Embedder(nn.Module):
    """An encoder, how its tokens become one vector, and the learnt scale of its loss, if there is one.

    What stands between pooling and the scaling to length one is shared by all layers.
    """

    def __init__(self, config: PreTrainedConfig, form: Form, scale: float | None = None) -> None:
        super().__init__()
        self.encoder, self.form = Encoder(config), form
        self.head = Head(form.head)
        self.scale = None if scale is None else LearntScale(scale)

    def forward(self, batch: TextBatch, layers: Iterable[int]) -> list[Tensor]:
        """Return the hidden states [T, D] of the given layers."""
        return self.encoder(batch, layers)

    def pooled(self, hidden_TD: Tensor, batch: TextBatch) -> Tensor:
        """Return one vector for each sequence [B, D], in float32 at least."""
        return self.head(pool(hidden_TD, batch["layout"], self.form.pooling))[:, : self.form.dim]

    def vectors(self, batch: TextBatch, layers: Iterable[int]) -> Tensor:
        """Return the vectors of the given layers, [L, B, D]."""
        return torch.stack([self.pooled(hidden_TD, batch) for hidden_TD in self(batch, layers)])
