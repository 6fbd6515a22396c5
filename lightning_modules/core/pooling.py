"""One vector for each sequence of a flat batch.

Shape suffixes: T tokens of a micro-batch, B its sequences, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.core.batches import FlatLayout
from lightning_modules.core.precision import widened

POOLERS = ("cls", "mean", "last", "weighted_mean", "max", "mean_sqrt_len")


def pool(hidden_TD: Tensor, layout: FlatLayout, how: str | Sequence[str], skip: int = 0) -> Tensor:
    """Return one vector for each sequence, [B, D], in float32 at least; of several poolers side by side, [B, n D].

    `cls` is the first token, `last` the last; `mean` weighs all tokens alike, `weighted_mean` by 1, 2, ..., their
    number (SGPT, arXiv 2202.08904); `max` is the largest value of each coordinate, `mean_sqrt_len` the sum over the
    root of the number. There is no padding, so none can be averaged in. The first `skip` tokens of each sequence do
    not count, though places are numbered with them (a prompt, as in sentence-transformers).

    Raises:
        ValueError: an unknown pooler, or a sequence of no more than `skip` tokens.
    """
    if not isinstance(how, str):
        return torch.cat([pool(hidden_TD, layout, one, skip) for one in how], -1)
    if how not in POOLERS:
        raise ValueError(f"pooling = {how}: must be one of {', '.join(POOLERS)}")
    starts_B = layout.cu_seqlens[:-1].long() + skip
    if skip and bool((layout.lens_B <= skip).any()):
        raise ValueError(f"a text has no token beside the {skip} of its prompt; give longer texts or a shorter prompt")
    if how == "cls":
        return widened(hidden_TD[starts_B])
    if how == "last":
        return widened(hidden_TD[starts_B + layout.lens_B - skip - 1])
    hidden_TD = widened(hidden_TD)
    token_T = torch.arange(len(hidden_TD), device=hidden_TD.device)
    length_T, start_T = (
        torch.repeat_interleave(x_B, layout.lens_B, output_size=len(token_T))
        for x_B in (layout.lens_B - skip, starts_B)
    )
    if how == "max":
        return _largest(hidden_TD, layout, token_T >= start_T)
    length_T = length_T.to(hidden_TD.dtype)
    weight_T = 1 / (length_T.sqrt() if how == "mean_sqrt_len" else length_T)
    if how == "weighted_mean":
        weight_T = weight_T * 2 * (token_T - start_T + skip + 1) / (length_T + 2 * skip + 1)
    if skip:
        weight_T = weight_T * (token_T >= start_T)
    # a bag adds up in a fixed order, also on a GPU, where index_add does not
    return F.embedding_bag(token_T, hidden_TD, layout.cu_seqlens[:-1].long(), mode="sum", per_sample_weights=weight_T)


def _largest(hidden_TD: Tensor, layout: FlatLayout, counts_T: Tensor) -> Tensor:
    """Return the largest value of each coordinate over the tokens that count, [B, D]; of equal ones the first."""
    keep_BW = torch.arange(layout.max_len, device=hidden_TD.device) < layout.lens_B[:, None]
    padded_BWD = hidden_TD.new_full((*keep_BW.shape, hidden_TD.shape[-1]), float("-inf"))
    padded_BWD[keep_BW] = hidden_TD.masked_fill(~counts_T[:, None], float("-inf"))
    return padded_BWD.max(1).values
