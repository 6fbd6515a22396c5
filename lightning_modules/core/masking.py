"""Which tokens of a flat batch are drawn for prediction.

Shape suffixes: T tokens of a micro-batch, B its sequences, M drawn slots.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.core.batches import TextBatch
from lightning_modules.core.keyed import keyed_uniform


class Slots(NamedTuple):
    """Drawn places of a flat batch in ascending order; with replacement a place can come more than once."""

    place_M: Tensor  # int64, into the token axis
    sample_M: Tensor  # int64, place of the slot's sequence in the global order
    rank_M: Tensor  # int64, number of the slot in its sequence


def slot_counts(batch: TextBatch, fraction: float, max_slots: int, replacement: bool) -> list[int]:
    """Return the slots of each sequence: k = clamp(round(fraction * n), 1, max_slots), n all tokens of the sequence.

    The product is taken in float32 and halves are rounded to even, as in the released code. Without replacement k is at
    most the tokens that may be drawn.
    """
    rounded = np.rint(np.asarray(batch["lens"], np.float32) * np.float32(fraction))
    counts = np.clip(rounded, 1, max_slots).astype(int).tolist()
    if replacement:
        return [k if room else 0 for k, room in zip(counts, batch["maskable"], strict=True)]
    return [min(k, room) for k, room in zip(counts, batch["maskable"], strict=True)]


def draw_slots(batch: TextBatch, counts: list[int], key: int, replacement: bool) -> Slots:
    """Draw `counts[b]` slots of each sequence, uniformly over the tokens that are not special (ELECTRA, section 2).

    A draw is a function of the key and the sequence's place in the global order, on any device and number of ranks.
    """
    device = batch["ids_T"].device
    num_slots = sum(counts)
    counts_B = torch.tensor(counts).to(device, non_blocking=True)

    def spread(x_B: Tensor) -> Tensor:  # the size is given, so that nothing waits for the device
        return torch.repeat_interleave(x_B, counts_B, output_size=num_slots)

    rank_M = torch.arange(num_slots, device=device) - spread(counts_B.cumsum(0) - counts_B)
    start_M = spread(batch["layout"].cu_seqlens[:-1].long())
    sample_M = spread(batch["sample_B"])
    if replacement:
        room_M = spread(torch.tensor(batch["maskable"]).to(device, non_blocking=True))
        among_M = (keyed_uniform(key, sample_M, rank_M).double() * room_M).long()
        candidates_first_T = torch.argsort(batch["sequence_T"] * 2 + batch["special_T"], stable=True)
        place_M = candidates_first_T[start_M + among_M]
    else:
        sample_T = batch["sample_B"][batch["sequence_T"]]
        draw_T = keyed_uniform(key, sample_T, batch["position_T"]).double()
        draw_T = torch.where(batch["special_T"], 1 - 2.0**-30, draw_T)  # above every draw, below the next sequence
        shuffled_T = torch.argsort(batch["sequence_T"] + draw_T, stable=True)
        place_M = shuffled_T[start_M + rank_M]
    return Slots(place_M.sort().values, sample_M, rank_M)
