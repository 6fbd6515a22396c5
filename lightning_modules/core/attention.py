"""Attention over flat token batches: the one place in which padding exists.

Shape suffixes: T tokens of a micro-batch, H heads, D head size, R rows of a group, W its width.

Importing this module registers the implementation "flat" with transformers, so that any encoder built with
`attn_implementation="flat"` takes a flat batch: `model(ids[None], position_ids=position[None], layout=layout)`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from datamodules.core.batches import FlatLayout, Group, TextBatch
from lightning_modules.core.dropout import dropout
from lightning_modules.core.precision import widened


def attend(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: FlatLayout, dropout_p: float = 0.0, scale: float | None = None
) -> Tensor:
    """Let each sequence of a flat batch attend to itself; shapes [T, H, D] in and out.

    On CUDA in half precision this is the varlen flash kernel, or the jagged one where probabilities are dropped
    (varlen has no dropout); everywhere else it is padded attention on groups of sequences of like length.
    """
    if not q_THD.is_cuda or q_THD.dtype == torch.float32:
        return _grouped(q_THD, k_THD, v_THD, layout, dropout_p, scale)
    if dropout_p > 0.0:
        return _jagged(q_THD, k_THD, v_THD, layout, dropout_p, scale)
    return _varlen(q_THD, k_THD, v_THD, layout, scale)


def _grouped(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: FlatLayout, p: float, scale: float | None) -> Tensor:
    outputs = [
        _group(group, q_THD, k_THD, v_THD, layout, p, scale)
        if group.ragged
        else _even(group, q_THD, k_THD, v_THD, p, scale)
        for group in layout.groups
    ]
    return torch.cat(outputs)


def _even(group: Group, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, p: float, scale: float | None) -> Tensor:
    blocks = (
        x[group.start : group.stop].unflatten(0, (group.rows, group.width)).transpose(1, 2)
        for x in (q_THD, k_THD, v_THD)
    )
    out_RHWD = _block(*blocks, None, p, scale)
    return out_RHWD.transpose(1, 2).flatten(0, 1)


def _group(
    group: Group, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: FlatLayout, p: float, scale: float | None
) -> Tensor:
    place_T = layout.padded_T[group.start : group.stop]
    lens_R = layout.lens_B[group.row : group.row + group.rows]
    keep_R11W = (torch.arange(group.width, device=lens_R.device) < lens_R[:, None])[:, None, None]

    def pad(x_THD: Tensor) -> Tensor:
        block = x_THD.new_zeros(group.rows * group.width, *x_THD.shape[1:])
        block = block.index_copy(0, place_T, x_THD[group.start : group.stop])
        return block.unflatten(0, (group.rows, group.width)).transpose(1, 2)

    out_RHWD = _block(pad(q_THD), pad(k_THD), pad(v_THD), keep_R11W, p, scale)
    return out_RHWD.transpose(1, 2).flatten(0, 1)[place_T]


def _block(q: Tensor, k: Tensor, v: Tensor, keep_R11W: Tensor | None, p: float, scale: float | None) -> Tensor:
    """Attend inside padded blocks [R, H, W, D]; `keep_R11W` is false for keys that are padding.

    With dropout torch has no fused kernel on a CPU, and its plain one checks every row for having no key at all.
    Written out, with cheap masks, it is faster.
    """
    if p == 0.0 or q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep_R11W, dropout_p=p, scale=scale)
    scores_RHWW = (q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)
    if keep_R11W is not None:
        scores_RHWW = scores_RHWW.masked_fill(~keep_R11W, float("-inf"))
    return dropout(widened(scores_RHWW).softmax(-1), p).to(v.dtype) @ v


def _varlen(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: FlatLayout, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # torch >= 2.10

    cu, longest = layout.cu_seqlens, layout.max_len
    return varlen_attn(q_THD, k_THD, v_THD, cu_seq_q=cu, cu_seq_k=cu, max_q=longest, max_k=longest, scale=scale)


def _jagged(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: FlatLayout, p: float, scale: float | None) -> Tensor:
    def nest(x_THD: Tensor) -> Tensor:  # lengths are given, so that nothing waits for the device
        nested = torch.nested.nested_tensor_from_jagged(
            x_THD.contiguous(), layout.cu_seqlens, min_seqlen=layout.min_len, max_seqlen=layout.max_len
        )
        return nested.transpose(1, 2)

    out = F.scaled_dot_product_attention(nest(q_THD), nest(k_THD), nest(v_THD), dropout_p=p, scale=scale)
    return out.transpose(1, 2).values()


def encode(encoder: PreTrainedModel, ids_T: Tensor, batch: TextBatch) -> Tensor:
    """Return the last hidden states [T, D] of a flat batch."""
    return encoder(
        ids_T[None],
        token_type_ids=batch["type_T"][None],
        position_ids=batch["position_T"][None],
        layout=batch["layout"],
    ).last_hidden_state[0]


@torch.compiler.disable  # its groups are numbers on the host: a graph would be made for every batch
def _flat_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: FlatLayout | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    if layout is None:
        raise ValueError("a flat batch needs its layout (pass layout=...): without it, sequences would see each other")
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))  # [1, H, T, D] each
    return attend(q_THD, k_THD, v_THD, layout, dropout, scaling).unsqueeze(0), None


ALL_ATTENTION_FUNCTIONS.register("flat", _flat_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("flat", lambda **_: None)
