"""Attention over flat token batches: the one place in which padding exists.

Shape suffixes: T tokens of a micro-batch, H heads, G heads of keys and values, D head size, R rows of a group, W its
width.

Importing this module registers the implementation "flat" with transformers, so that any encoder built with
`attn_implementation="flat"` takes a flat batch: `model(ids[None], position_ids=position[None], layout=layout)`.
It registers no mask of that name: transformers then makes none, and does not wait for the device to look for packing.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from datamodules.core.batches import FlatLayout, Group, TextBatch
from lightning_modules.core.dropout import dropout
from lightning_modules.core.precision import widened

CHANGES_SCORES = ("softcap", "position_bias", "s_aux")  # what some families hand to their attention besides


class Reach(NamedTuple):
    """Which keys of its own sequence a query sees: none after it if causal, and only those less than `window` away."""

    causal: bool = False
    window: int | None = None


EVERYTHING = Reach()
HALF = (torch.float16, torch.bfloat16)  # what flash kernels take
Kernel = Literal["varlen", "jagged", "grouped"]


def kernel_of(device: str, dtype: torch.dtype, dropout_p: float, reach: Reach) -> Kernel:
    """Choose how a batch is attended to, from the type of its device and what is asked.

    On CUDA in half precision this is the varlen flash kernel, or the jagged one where probabilities are dropped
    (varlen has no dropout, jagged no reach); everywhere else it is padded attention on groups of like length.
    """
    if device != "cuda" or dtype not in HALF:
        return "grouped"
    if dropout_p == 0.0:
        return "varlen"
    return "jagged" if reach == EVERYTHING else "grouped"


def attend(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    layout: FlatLayout,
    dropout_p: float = 0.0,
    scale: float | None = None,
    reach: Reach = EVERYTHING,
) -> Tensor:
    """Let each sequence of a flat batch attend to itself; shapes [T, H, D] in and out, G heads of keys divide H."""
    queries_per_key = q_THD.shape[1] // k_TGD.shape[1]
    if queries_per_key > 1:
        k_TGD, v_TGD = (x_TGD.repeat_interleave(queries_per_key, 1) for x_TGD in (k_TGD, v_TGD))
    kernel = KERNELS[kernel_of(q_THD.device.type, q_THD.dtype, dropout_p, reach)]
    return kernel(q_THD, k_TGD, v_TGD, layout, dropout_p, scale, reach)


def _grouped(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: FlatLayout, p: float, scale: float | None, reach: Reach
) -> Tensor:
    # split, not sliced: the gradient of each slice is as large as the whole
    sizes = [group.stop - group.start for group in layout.groups]
    parts = zip(layout.groups, *(x_THD.split(sizes) for x_THD in (q_THD, k_THD, v_THD)), strict=True)
    outputs = [
        _ragged(group, qkv, layout, p, scale, reach) if group.ragged else _even(group, qkv, p, scale, reach)
        for group, *qkv in parts
    ]
    return torch.cat(outputs)


def _even(group: Group, qkv: list[Tensor], p: float, scale: float | None, reach: Reach) -> Tensor:
    blocks = (x.unflatten(0, (group.rows, group.width)).transpose(1, 2) for x in qkv)
    out_RHWD = _block(*blocks, _within(group.width, reach, qkv[0].device), p, scale)
    return out_RHWD.transpose(1, 2).flatten(0, 1)


def _ragged(group: Group, qkv: list[Tensor], layout: FlatLayout, p: float, scale: float | None, reach: Reach) -> Tensor:
    place_T = layout.padded_T[group.start : group.stop]
    lens_R = layout.lens_B[group.row : group.row + group.rows]
    keep = (torch.arange(group.width, device=lens_R.device) < lens_R[:, None])[:, None, None]
    if (within_WW := _within(group.width, reach, lens_R.device)) is not None:
        # a padded query may be out of reach of every real key: let it see itself, its output is not read
        keep = keep & within_WW | torch.eye(group.width, dtype=torch.bool, device=lens_R.device)

    def pad(x_THD: Tensor) -> Tensor:
        block = x_THD.new_zeros(group.rows * group.width, *x_THD.shape[1:]).index_copy(0, place_T, x_THD)
        return block.unflatten(0, (group.rows, group.width)).transpose(1, 2)

    out_RHWD = _block(*map(pad, qkv), keep, p, scale)
    return out_RHWD.transpose(1, 2).flatten(0, 1)[place_T]


def _within(width: int, reach: Reach, device: torch.device) -> Tensor | None:
    """Mark [query, key] in reach; None where every key is."""
    if not reach.causal and (reach.window is None or reach.window >= width):
        return None
    place_W = torch.arange(width, device=device)
    back_WW = place_W[:, None] - place_W
    seen_WW = back_WW >= 0 if reach.causal else torch.ones_like(back_WW, dtype=torch.bool)
    return seen_WW if reach.window is None else seen_WW & (back_WW.abs() < reach.window)


def _block(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, p: float, scale: float | None) -> Tensor:
    """Attend inside padded blocks [R, H, W, D]; `keep`, broadcast to [R, H, W, W], is false for keys that are not seen.

    With dropout torch has no fused kernel on a CPU, and its plain one checks every row for having no key at all.
    Written out, with cheap masks, it is faster.
    """
    if p == 0.0 or not q.is_cpu:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=p, scale=scale)
    scores_RHWW = (q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-1, -2)
    if keep is not None:
        scores_RHWW = scores_RHWW.masked_fill(~keep, float("-inf"))
    return dropout(widened(scores_RHWW).softmax(-1), p).to(v.dtype) @ v


def _varlen(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: FlatLayout, p: float, scale: float | None, reach: Reach
) -> Tensor:
    """Run the flash kernel for sequences of unequal lengths; it drops nothing, and takes heads of a multiple of 8."""
    from torch.nn.attention.varlen import varlen_attn  # with windows from torch 2.11 on (pytorch#172238)

    cu, longest, size = layout.cu_seqlens, layout.max_len, q_THD.shape[-1]
    if odd := -size % 8:  # zeros change neither scores nor what is read of them
        q_THD, k_THD, v_THD = (F.pad(x_THD, (0, odd)) for x_THD in (q_THD, k_THD, v_THD))
        scale = scale or size**-0.5
    back = -1 if reach.window is None else reach.window - 1
    window = (back, 0 if reach.causal else back)
    out_THD = varlen_attn(
        q_THD, k_THD, v_THD, cu_seq_q=cu, cu_seq_k=cu, max_q=longest, max_k=longest, scale=scale, window_size=window
    )
    return out_THD[..., :size]


def _jagged(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: FlatLayout, p: float, scale: float | None, reach: Reach
) -> Tensor:
    """Run torch's nested attention, in which every key of a sequence is in reach."""

    def nest(x_THD: Tensor) -> Tensor:  # lengths are given, so that nothing waits for the device
        nested = torch.nested.nested_tensor_from_jagged(
            x_THD.contiguous(), layout.cu_seqlens, min_seqlen=layout.min_len, max_seqlen=layout.max_len
        )
        return nested.transpose(1, 2)

    out = F.scaled_dot_product_attention(nest(q_THD), nest(k_THD), nest(v_THD), dropout_p=p, scale=scale)
    return out.transpose(1, 2).values()


KERNELS: dict[Kernel, Callable[..., Tensor]] = {"varlen": _varlen, "jagged": _jagged, "grouped": _grouped}


def encode(encoder: PreTrainedModel, ids_T: Tensor, batch: TextBatch) -> Tensor:
    """Return the last hidden states [T, D] of a flat batch."""
    has_types = encoder.config.type_vocab_size > 1  # else a second text has the type of the first
    type_T = batch["type_T"] if has_types else torch.zeros_like(batch["type_T"])
    return encoder(
        ids_T[None],
        token_type_ids=type_T[None],
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
    sliding_window: int | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    if layout is None:
        raise ValueError("a flat batch needs its layout (pass layout=...): without it, sequences would see each other")
    if unknown := [name for name in CHANGES_SCORES if options.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} asks its attention for {unknown[0]}, which the flat form has not")
    q_THD, k_TGD, v_TGD = (x[0].transpose(0, 1) for x in (query, key, value))  # [1, H, T, D] each
    reach = Reach(bool(getattr(module, "is_causal", False)), sliding_window)
    return attend(q_THD, k_TGD, v_TGD, layout, dropout, scaling, reach).unsqueeze(0), None


ALL_ATTENTION_FUNCTIONS.register("flat", _flat_attention)
