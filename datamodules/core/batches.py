"""What the loaders hand to the methods: flat token batches with their layout.

Shape suffixes: T tokens of a micro-batch (no padding), B sequences of a micro-batch; of pairs, P examples of a
micro-batch and C columns, the texts of an example.
Both `lightning_modules` and `datamodules` import this module, so it imports torch and typing only.
"""

from itertools import pairwise
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

TOKENS_PER_GROUP = 1024  # a block of scores stays in the processor's cache, and short sequences share one
NO_TEXT = 0  # the key of a hard negative that an example has not
SHORTEST_IN_GROUP = 0.7  # of its longest


class Group(NamedTuple):
    """Neighbouring sequences that attention pads to one width: tokens [start, stop), rows [row, row + rows)."""

    start: int
    stop: int
    row: int
    rows: int
    width: int
    ragged: bool


class FlatLayout(NamedTuple):
    """Where the sequences of a flat batch begin and end; numbers that steer Python stay on the host.

    `padded_T` is a token's place in its own group's block [rows, width], flattened.
    """

    cu_seqlens: Tensor  # int32 [B+1]
    lens_B: Tensor  # int64, descending
    padded_T: Tensor  # int64
    groups: tuple[Group, ...]
    max_len: int
    min_len: int


class Filler(TypedDict, total=False):
    """Marks examples of an evaluation that another rank counts."""

    filler: bool


class TextBatch(Filler):
    """One micro-batch of text, its sequences sorted by length, longest first."""

    ids_T: Tensor  # int64
    position_T: Tensor  # int64, position inside the sequence
    type_T: Tensor  # int64, 0 for segment A, 1 for segment B
    special_T: Tensor  # bool, tokens that no corruption may touch
    sequence_T: Tensor  # int64, row of the sequence in this micro-batch
    sample_B: Tensor  # int64, place of the sequence in the global order: the key of its randomness
    layout: FlatLayout
    lens: list[int]  # length of each sequence
    maskable: list[int]  # tokens of each sequence that are not special
    position: int  # smallest place in the global order: the key of the micro-batch's dropout


class LabelledBatch(TextBatch):
    """One micro-batch of text with a label for each sequence."""

    label_B: Tensor  # int64, number of the class; float32 where a number is predicted


class PairBatch(TextBatch):
    """One micro-batch of P examples of C texts each.

    Column 0 is the anchor or first text, column 1 its positive or second text, the others are hard negatives, of which
    an example may have fewer. The texts that are there, C * P at most, are sequences of one flat batch, longest first.
    `sample_B` is the place of a text's example in the global order, the same for all texts of an example.
    """

    slot_B: Tensor  # int64, column * P + example: the place of each sequence in the table [C * P]
    num_columns: int
    key_CP: Tensor  # int64, hash of each text with its prompt: equal texts have equal keys; NO_TEXT where there is none
    is_ragged: bool  # whether examples of the source have different numbers of hard negatives
    label_P: Tensor  # float32, score or label of the example; 1 where the data has none
    has_labels: bool  # whether the source has any that is not 1
    source: str  # name of the source from which the batch was drawn


def flat_layout(
    lens: list[int], tokens_per_group: int = TOKENS_PER_GROUP, shortest: float = SHORTEST_IN_GROUP
) -> FlatLayout:
    """Lay sequences of the given lengths (longest first) end to end.

    Args:
        lens: their lengths.
        tokens_per_group: how many tokens are attended to together, padding included; one sequence at least.
        shortest: how short a sequence of a group may be, as a share of its longest.

    Raises:
        ValueError: no sequence, a length below one, or lengths that are not in descending order.
    """
    if not lens or min(lens) < 1 or any(a < b for a, b in pairwise(lens)):
        raise ValueError(f"lengths must be positive and in descending order, got {lens}")
    lens_B = torch.tensor(lens, dtype=torch.int64)
    cu_seqlens = torch.zeros(len(lens) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lens_B.cumsum(0)
    starts = cu_seqlens.tolist()
    groups, row = [], 0
    while row < len(lens):
        end = min(row + max(tokens_per_group // lens[row], 1), len(lens))
        end = next((other for other in range(row, end) if lens[other] < shortest * lens[row]), end)
        groups.append(Group(starts[row], starts[end], row, end - row, lens[row], lens[row] != lens[end - 1]))
        row = end
    width_B = torch.tensor([group.width for group in groups for _ in range(group.rows)])
    row_in_group_B = torch.cat([torch.arange(group.rows) for group in groups])
    position_T = torch.arange(starts[-1]) - torch.repeat_interleave(cu_seqlens[:-1].long(), lens_B)
    padded_T = torch.repeat_interleave(row_in_group_B * width_B, lens_B) + position_T
    return FlatLayout(cu_seqlens, lens_B, padded_T, tuple(groups), lens[0], lens[-1])
