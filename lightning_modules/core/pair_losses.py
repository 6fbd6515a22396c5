"""Losses of embeddings over a whole global batch of pairs, triplets or longer tuples.

Shape suffixes: C columns (0 the anchor or first text, 1 its positive or second text, the others hard negatives), B
examples of the global batch, D width, R rows that a rank answers for, M candidates, P pairs.

An example may have fewer hard negatives than columns: what is not there takes no part in a loss, nor in its mean.

Every rank holds the table [C, B, D] of all vectors and gets its share of the loss: the sum of the shares over ranks,
and of their gradients, is what one process would get. Losses that are a mean over rows take the rank's own rows; those
that are one number of the whole batch are scaled by the rank's part of the rows.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.core.precision import widened


class Pairs(NamedTuple):
    """What a loss knows of the global batch besides its vectors."""

    own: slice  # examples of the global batch that this rank answers for, with a start and a stop
    label_B: Tensor | None = None  # score or label of each example
    key_CB: Tensor | None = None  # int64, equal for equal texts
    there_CB: Tensor | None = None  # bool, False for a hard negative that an example has not; None: all are there


def in_full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute in float32 at least, whatever the type of the first argument and of the autocast around it."""

    @wraps(loss)
    def widely(table: Tensor, *arguments: object, **options: object) -> Tensor:
        device = table.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return loss(widened(table), *arguments, **options)

    return widely


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to length one; a zero vector stays zero, and gets no gradient."""
    square = (x * x).sum(-1, keepdim=True)
    alive = square > 0
    return x * (torch.where(alive, square, 1).rsqrt() * alive)


def _part(own: slice, total: int) -> float:
    return (own.stop - own.start) / total


def _count(last_CBD: Tensor, pairs: Pairs) -> int | Tensor:
    """Count the texts of the last columns that are there; at least one, to divide by."""
    columns, examples = last_CBD.shape[:2]
    return columns * examples if pairs.there_CB is None else pairs.there_CB[-columns:].sum().clamp(min=1)


@in_full_precision
def info_nce(
    table_CBD: Tensor,
    pairs: Pairs,
    scale: float | Tensor = 20.0,
    symmetric: bool = False,
    mask_duplicates: bool = False,
    false_negative_margin: float | None = None,
) -> Tensor:
    """Return InfoNCE: -log softmax(scale * cos(anchor, .))[its positive], the mean over the anchors.

    Candidates of an anchor are all positives and all hard negatives of the batch. `symmetric` takes the mean of this
    and of the other direction, positives against all anchors. `mask_duplicates` leaves out candidates that are no
    negatives by their text: equal to the anchor or its positive, or the positive of an equal anchor.
    `false_negative_margin` m leaves out those with cos > cos(anchor, positive) + m (Qwen3 Embedding, arXiv 2506.05176,
    with m = .1).

    Raises:
        ValueError: duplicates are to be masked and there are no keys.
    """
    unit_CBD, own = unit(table_CBD), pairs.own
    anchor_BD, positive_BD = unit_CBD[0], unit_CBD[1]
    forward_RM, backward_RB = _same_text(pairs, len(table_CBD)) if mask_duplicates else (None, None)
    if pairs.there_CB is not None:
        lacks_M = ~pairs.there_CB[1 : len(table_CBD)].flatten()
        forward_RM = lacks_M.expand(own.stop - own.start, -1) if forward_RM is None else forward_RM | lacks_M
    candidate_MD = unit_CBD[1:].flatten(0, 1)
    loss = _cross_entropy(anchor_BD[own] @ candidate_MD.T, own, scale, forward_RM, false_negative_margin)
    if symmetric:
        backward = _cross_entropy(positive_BD[own] @ anchor_BD.T, own, scale, backward_RB, false_negative_margin)
        loss = (loss + backward) / 2
    return loss / table_CBD.shape[1]


def _cross_entropy(
    cosine_RM: Tensor, own: slice, scale: float | Tensor, banned_RM: Tensor | None, margin: float | None
) -> Tensor:
    """Add up -log softmax at the own rows' positives, which are the candidates of the same numbers."""
    row_R = torch.arange(len(cosine_RM), device=cosine_RM.device)
    positive_R = row_R + own.start
    logits_RM = cosine_RM * scale
    if margin is not None:
        found_RM = cosine_RM.detach()
        above_RM = found_RM > found_RM[row_R, positive_R][:, None] + margin
        banned_RM = above_RM if banned_RM is None else banned_RM | above_RM
    if banned_RM is not None:
        banned_RM = banned_RM.index_put((row_R, positive_R), banned_RM.new_zeros(()))
        logits_RM = logits_RM.masked_fill(banned_RM, float("-inf"))
    return F.cross_entropy(logits_RM, positive_R, reduction="sum")


def _same_text(pairs: Pairs, columns: int) -> tuple[Tensor, Tensor]:
    """Mark candidates [R, M] and anchors [R, B] whose text says that they are no negatives of the own rows."""
    if pairs.key_CB is None:
        raise ValueError("mask_duplicates needs the keys of the texts")
    anchor_B, positive_B = pairs.key_CB[0], pairs.key_CB[1]
    anchor_R1, positive_R1 = anchor_B[pairs.own, None], positive_B[pairs.own, None]
    candidate_M = pairs.key_CB[1:columns].flatten()
    forward_RM = (candidate_M == anchor_R1) | (candidate_M == positive_R1)
    forward_RM[:, : len(anchor_B)] |= anchor_B == anchor_R1
    backward_RB = (anchor_B == anchor_R1) | (anchor_B == positive_R1) | (positive_B == positive_R1)
    return forward_RM, backward_RB


def labelled_pairs(
    table_CBD: Tensor, label_B: Tensor | None, there_CB: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return first [P, D], second [P, D] and label [P] of the pairs that are there, P = (C - 1) B at most.

    With hard negatives the positive has the example's label y (1 if there is none) and each negative 1 - y.

    Raises:
        ValueError: two columns without labels.
    """
    columns, examples = table_CBD.shape[:2]
    if label_B is None and columns == 2:
        raise ValueError("this loss compares labelled pairs; give labels, or hard negatives")
    label_B = table_CBD.new_ones(examples) if label_B is None else label_B.to(table_CBD.dtype)
    label_P = torch.cat([label_B, *[1 - label_B] * (columns - 2)])
    first_PD, second_PD = table_CBD[:1].expand(columns - 1, -1, -1).flatten(0, 1), table_CBD[1:].flatten(0, 1)
    if there_CB is None:
        return first_PD, second_PD, label_P
    there_P = there_CB[1:columns].flatten()
    return first_PD[there_P], second_PD[there_P], label_P[there_P]


def ordering_loss(score_P: Tensor, label_P: Tensor) -> Tensor:
    """Return log(1 + sum over pairs i, j with label_i < label_j of exp(score_i - score_j)), in O(P log P).

    Sorted from the highest label down, the j of an i are those in front of its group of equal labels.
    """
    label_P, order_P = label_P.sort(descending=True, stable=True)
    score_P = score_P[order_P]
    higher_P = torch.searchsorted(-label_P, -label_P)
    # as two equal rows: a GPU scans a lone row of many values in an order that varies
    sums_P = torch.logcumsumexp(-score_P.expand(2, -1), 1)[0]
    in_front = torch.cat([score_P.new_full((1,), float("-inf")), sums_P])
    return torch.cat([score_P.new_zeros(1), score_P + in_front[higher_P]]).logsumexp(0)


@in_full_precision
def cosent(table_CBD: Tensor, pairs: Pairs, scale: float | Tensor = 20.0) -> Tensor:
    """Return CoSENT: cosines of pairs must be ordered as their labels are (kexue.fm/archives/8847).

    Raises:
        ValueError: two columns without labels.
    """
    first_PD, second_PD, label_P = labelled_pairs(unit(table_CBD), pairs.label_B, pairs.there_CB)
    loss = ordering_loss((first_PD * second_PD).sum(-1) * scale, label_P)
    return loss * _part(pairs.own, table_CBD.shape[1])


def angle_score(first_PD: Tensor, second_PD: Tensor) -> Tensor:
    """Return |sum of the real and imaginary parts of z / w, normalised|, z and w made of the vectors' halves (AnglE).

    It equals |cos(x, y) + sum of (x_im y_re - x_re y_im) / (|x| |y|)|; of a zero vector it is 0.

    Raises:
        ValueError: an odd width.
    """
    width = first_PD.shape[-1]
    if width % 2:
        raise ValueError(f"the angle loss takes halves of a vector as real and imaginary part: width {width} is odd")
    (a, b), (c, d) = unit(first_PD).chunk(2, -1), unit(second_PD).chunk(2, -1)
    return (a * c + b * d + b * c - a * d).sum(-1).abs()


@in_full_precision
def angle_loss(table_CBD: Tensor, pairs: Pairs, scale: float | Tensor = 20.0) -> Tensor:
    """Return the angle term of AnglE (arXiv 2309.12871, as in the authors' code): angle scores ordered as the labels.

    Raises:
        ValueError: an odd width, or two columns without labels.
    """
    first_PD, second_PD, label_P = labelled_pairs(table_CBD, pairs.label_B, pairs.there_CB)
    loss = ordering_loss(angle_score(first_PD, second_PD) * scale, label_P)
    return loss * _part(pairs.own, table_CBD.shape[1])


@in_full_precision
def in_batch_nce(table_CBD: Tensor, pairs: Pairs, scale: float | Tensor = 20.0, integer_labels: bool = False) -> Tensor:
    """Return AnglE's in-batch term: each text of a labelled pair against all other texts, the mean over the 2 B texts.

    The target of a text is its partner, weighted by the pair's label between 0 and 1. With `integer_labels` it is what
    the authors' code makes of labels: they are cut to integers, so that .9 counts as 0.

    Raises:
        ValueError: no labels, or another number of columns than two.
    """
    if table_CBD.shape[0] != 2 or pairs.label_B is None:
        raise ValueError("the in-batch term of AnglE is made for labelled pairs")
    text_TD = unit(table_CBD.transpose(0, 1).flatten(0, 1))  # first and second text of an example are neighbours
    place_T = torch.arange(len(text_TD), device=text_TD.device)
    label_T = pairs.label_B.repeat_interleave(2, output_size=len(text_TD))
    if integer_labels:
        target_TT = _targets_as_released(place_T, label_T.long())
    else:
        target_TT = ((place_T ^ 1)[:, None] == place_T) * label_T.to(text_TD.dtype).clamp(0, 1)[:, None]
    rows = slice(2 * pairs.own.start, 2 * pairs.own.stop)
    itself_RT = place_T[rows, None] == place_T
    logits_RT = (text_TD[rows] @ text_TD.T * scale).masked_fill(itself_RT, -1e12)  # finite: the target there is 0
    return -(logits_RT.log_softmax(-1) * target_TT[rows]).sum() / len(text_TD)


def _targets_as_released(place_T: Tensor, label_T: Tensor) -> Tensor:
    """Mark targets as the authors' code does: where partner * label = place * label of the other, if neither is 0.

    With labels of 0 and 1 these are the partners of label 1; with larger labels other texts match by accident.
    """
    partner_T = torch.where(label_T == 0, -1, (place_T ^ 1) * label_T)
    other_T = torch.where(label_T == 0, -2, place_T * label_T)
    return partner_T[:, None] == other_T


@in_full_precision
def angle(
    table_CBD: Tensor,
    pairs: Pairs,
    cosine_w: float = 0.0,
    ibn_w: float = 30.0,
    angle_w: float = 1.0,
    cln_w: float | None = None,
    cosine_tau: float = 20.0,
    ibn_tau: float = 20.0,
    angle_tau: float = 20.0,
    integer_labels: bool = False,
) -> Tensor:
    """Return AnglE's sum of three losses; what is given decides on the authors' format.

    A, two columns with labels: cosine_w CoSENT + ibn_w in-batch NCE + angle_w angle loss.
    B, hard negatives: cosine_w CoSENT + ibn_w InfoNCE + angle_w angle loss, the positive of label 1, negatives of 0.
    With `cln_w` the middle is (ibn_w InfoNCE of the pairs + cln_w InfoNCE) / 2, as in release 0.6, where this is C.
    C, two columns without labels: InfoNCE, whatever the weights.
    A term of weight 0 is not computed. Defaults are those of the recipe for NLI.

    Raises:
        ValueError: an odd width where the angle loss is computed, or weights that are all 0.
    """
    hard = table_CBD.shape[0] > 2
    if not hard and pairs.label_B is None:
        return info_nce(table_CBD, pairs, ibn_tau)
    if hard:
        pairs = pairs._replace(label_B=None)
    terms = [
        (cosine_w, lambda: cosent(table_CBD, pairs, cosine_tau)),
        (0 if hard else ibn_w, lambda: in_batch_nce(table_CBD, pairs, ibn_tau, integer_labels)),
        (ibn_w if hard and cln_w is None else 0, lambda: info_nce(table_CBD, pairs, ibn_tau)),
        (ibn_w / 2 if hard and cln_w is not None else 0, lambda: info_nce(table_CBD[:2], pairs, ibn_tau)),
        (cln_w / 2 if hard and cln_w is not None else 0, lambda: info_nce(table_CBD, pairs, ibn_tau)),
        (angle_w, lambda: angle_loss(table_CBD, pairs, angle_tau)),
    ]
    if not any(weight > 0 for weight, _ in terms):
        raise ValueError("the AnglE loss needs a weight above 0")
    return sum(weight * loss() for weight, loss in terms if weight > 0)


@in_full_precision
def cosine_regression(table_CBD: Tensor, pairs: Pairs) -> Tensor:
    """Return the mean of (cos - label)^2 over the pairs.

    Raises:
        ValueError: two columns without labels.
    """
    label_B = None if pairs.label_B is None else pairs.label_B[pairs.own]
    there_CR = None if pairs.there_CB is None else pairs.there_CB[:, pairs.own]
    first_PD, second_PD, label_P = labelled_pairs(unit(table_CBD[:, pairs.own]), label_B, there_CR)
    errors = ((first_PD * second_PD).sum(-1) - label_P).square().sum()
    return errors / _count(table_CBD[1:], pairs)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": lambda x, y: torch.linalg.vector_norm(x - y, dim=-1),
    "manhattan": lambda x, y: (x - y).abs().sum(-1),
    "cosine": lambda x, y: 1 - (unit(x) * unit(y)).sum(-1),
}


@in_full_precision
def triplet(table_CBD: Tensor, pairs: Pairs, margin: float = 5.0, distance: str = "euclidean") -> Tensor:
    """Return the mean of max(0, d(anchor, positive) - d(anchor, negative) + margin) over rows and hard negatives.

    Raises:
        ValueError: no hard negative, or an unknown distance.
    """
    if len(table_CBD) < 3 or distance not in DISTANCES:
        raise ValueError(f"triplets need a hard negative and a distance of {', '.join(DISTANCES)}; got {distance}")
    measure, own_CRD = DISTANCES[distance], table_CBD[:, pairs.own]
    excess = measure(own_CRD[0], own_CRD[1]) - measure(own_CRD[:1], own_CRD[2:]) + margin
    if pairs.there_CB is not None:
        excess = excess.masked_fill(~pairs.there_CB[2:, pairs.own], 0)
    return excess.relu().sum() / _count(table_CBD[2:], pairs)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "info_nce": info_nce,
    "cosent": cosent,
    "angle": angle,
    "cosine_regression": cosine_regression,
    "triplet": triplet,
}
