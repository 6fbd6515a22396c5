"""One vector for each sequence of a flat batch.

Shape suffixes: T tokens of a micro-batch, B its sequences, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.core.batches import FlatLayout
from lightning_modules.core.precision import widened

POOLERS = ("cls", "mean", "last", "weighted_mean")


def pool(hidden_TD: Tensor, layout: FlatLayout, how: str) -> Tensor:
    """Return one vector for each sequence, [B, D], in float32 at least.

    `cls` is the first token, `last` the last; `mean` weighs all tokens alike, `weighted_mean` by 1, 2, ..., their
    number (SGPT, arXiv 2202.08904). There is no padding, so none can be averaged in.

    Raises:
        ValueError: an unknown pooler.
    """
    starts_B = layout.cu_seqlens[:-1].long()
    if how == "cls":
        return widened(hidden_TD[starts_B])
    if how == "last":
        return widened(hidden_TD[starts_B + layout.lens_B - 1])
    if how not in POOLERS:
        raise ValueError(f"pooling = {how}: must be one of {', '.join(POOLERS)}")
    hidden_TD = widened(hidden_TD)
    token_T = torch.arange(len(hidden_TD), device=hidden_TD.device)
    length_T, start_T = (
        torch.repeat_interleave(x_B, layout.lens_B, output_size=len(token_T)) for x_B in (layout.lens_B, starts_B)
    )
    weight_T = 1 / length_T.to(hidden_TD.dtype)
    if how == "weighted_mean":
        weight_T = weight_T * 2 * (token_T - start_T + 1) / (length_T + 1)
    # a bag adds up in a fixed order, also on a GPU, where index_add does not
    return F.embedding_bag(token_T, hidden_TD, starts_B, mode="sum", per_sample_weights=weight_T)
