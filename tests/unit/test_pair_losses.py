"""Losses against loops over pairs, over ranks, and where their inputs are degenerate."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_modules.core import pair_losses as losses
from lightning_modules.core.pair_losses import Pairs

B, D = 7, 8
OWN = slice(0, B)
LABELS = torch.tensor([0.1, 0.9, 0.9, 0.4, 0.0, 1.0, 0.4], dtype=torch.float64)
KEYS = torch.tensor([[1, 2, 1, 4, 5, 6, 7], [11, 12, 13, 14, 12, 1, 17], [21, 12, 23, 24, 5, 26, 27]])

CASES = {
    "info_nce": (3, losses.info_nce),
    "info_nce_pairs": (2, losses.info_nce),
    "info_nce_symmetric": (3, partial(losses.info_nce, symmetric=True)),
    "info_nce_masked": (3, partial(losses.info_nce, mask_duplicates=True, symmetric=True, false_negative_margin=0.1)),
    "cosent": (2, losses.cosent),
    "cosent_triplets": (4, losses.cosent),
    "angle_loss": (2, losses.angle_loss),
    "angle_A": (2, partial(losses.angle, cosine_w=1.0)),
    "angle_A_integers": (2, partial(losses.angle, cosine_w=1.0, integer_labels=True)),
    "angle_B": (3, partial(losses.angle, cosine_w=1.0)),
    "angle_B_0.6": (3, partial(losses.angle, cosine_w=1.0, cln_w=2.0)),
    "cosine_regression": (2, losses.cosine_regression),
    "cosine_regression_triplets": (4, losses.cosine_regression),
    "triplet": (4, losses.triplet),
    "triplet_cosine": (3, partial(losses.triplet, margin=0.2, distance="cosine")),
    "triplet_manhattan": (3, partial(losses.triplet, distance="manhattan")),
}


def table(columns: int, width: int = D, seed: int = 0) -> Tensor:
    return torch.randn(columns, B, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(columns: int, own: slice = OWN) -> Pairs:
    return Pairs(own, LABELS, KEYS[:columns] if columns < 4 else None)


def cos(x: Tensor, y: Tensor) -> Tensor:
    return x @ y / (x.norm() * y.norm())


# Against loops


def nce(rows: list[tuple[Tensor, list[Tensor]]], scale: float) -> Tensor:
    """Take the mean of -log softmax at the first of the candidates of each row."""
    scores = [torch.stack([cos(anchor, candidate) for candidate in candidates]) * scale for anchor, candidates in rows]
    return torch.stack([score.logsumexp(0) - score[0] for score in scores]).mean()


def ordered(scores: list[Tensor], labels: list[float]) -> Tensor:
    """Compare all pairs of labelled scores."""
    wrong = [
        (low - high).exp()
        for low, y_low in zip(scores, labels, strict=True)
        for high, y_high in zip(scores, labels, strict=True)
        if y_low < y_high
    ]
    return torch.log(1 + sum(wrong))


def complex_angle(x: Tensor, y: Tensor) -> Tensor:
    """Divide by the definition: z / w over |z| / |w|, real and imaginary parts added up."""
    half = len(x) // 2
    z, w = torch.complex(x[:half], x[half:]), torch.complex(y[:half], y[half:])
    quotient = z * w.conj() / w.abs().square().sum() / (z.norm() / w.norm())
    return (quotient.real.sum() + quotient.imag.sum()).abs()


def test_info_nce_is_cross_entropy_over_all_other_columns():
    x = table(4)
    rows = [(x[0, i], [x[1, i], *(x[c, k] for c in (1, 2, 3) for k in range(B) if (c, k) != (1, i))]) for i in range(B)]
    torch.testing.assert_close(losses.info_nce(x, pairs(4), 15.0), nce(rows, 15.0), atol=1e-12, rtol=0)


def test_the_other_direction_looks_for_anchors_alone():
    x = table(3)
    forward = losses.info_nce(x, pairs(3), 20.0)
    rows = [(x[1, i], [x[0, i], *(x[0, k] for k in range(B) if k != i)]) for i in range(B)]
    expected = (forward + nce(rows, 20.0)) / 2
    torch.testing.assert_close(losses.info_nce(x, pairs(3), 20.0, symmetric=True), expected, atol=1e-12, rtol=0)


def test_texts_that_are_no_negatives_are_masked():
    """By hand: rows 0 and 2 share an anchor, 1 and 4 a positive; the positive of 5 is the anchor of 0 and 2."""
    x, keys = table(3), KEYS.tolist()
    forward, backward = [], []
    for i in range(B):
        anchor, positive = keys[0][i], keys[1][i]
        banned = {(1, k) for k in range(B) if keys[0][k] == anchor}
        banned |= {(c, k) for c in (1, 2) for k in range(B) if keys[c][k] in (anchor, positive)}
        kept = [x[c, k] for c in (1, 2) for k in range(B) if (c, k) not in banned]
        forward.append((x[0, i], [x[1, i], *kept]))
        others = [k for k in range(B) if keys[0][k] not in (anchor, positive) and keys[1][k] != positive]
        backward.append((x[1, i], [x[0, i], *(x[0, k] for k in others)]))
    assert [len(candidates) for _, candidates in forward] == [12, 12, 12, 14, 11, 14, 14]
    assert [len(candidates) for _, candidates in backward] == [6, 6, 6, 7, 6, 5, 7]
    found = losses.info_nce(x, pairs(3), mask_duplicates=True)
    torch.testing.assert_close(found, nce(forward, 20.0), atol=1e-12, rtol=0)
    found = losses.info_nce(x, pairs(3), mask_duplicates=True, symmetric=True)
    torch.testing.assert_close(found, (nce(forward, 20.0) + nce(backward, 20.0)) / 2, atol=1e-12, rtol=0)


def test_candidates_nearer_than_the_positive_by_a_margin_are_masked():
    x, margin, rows = table(3), 0.1, []
    for i in range(B):
        limit = cos(x[0, i], x[1, i]) + margin
        others = [x[c, k] for c in (1, 2) for k in range(B) if (c, k) != (1, i)]
        rows.append((x[0, i], [x[1, i], *(other for other in others if cos(x[0, i], other) <= limit)]))
    assert 1 < min(len(candidates) for _, candidates in rows) < 2 * B
    found = losses.info_nce(x, pairs(3), false_negative_margin=margin)
    torch.testing.assert_close(found, nce(rows, 20.0), atol=1e-12, rtol=0)


def test_masks_change_nothing_where_there_is_nothing_to_mask():
    x, own = table(3), Pairs(OWN, key_CB=torch.arange(3 * B).view(3, B))
    found = losses.info_nce(x, own, mask_duplicates=True, symmetric=True, false_negative_margin=2.0)
    assert found == losses.info_nce(x, own, symmetric=True)


def test_cosent_compares_every_ordered_pair():
    x = table(2)
    expected = ordered([cos(x[0, i], x[1, i]) * 20 for i in range(B)], LABELS.tolist())
    torch.testing.assert_close(losses.cosent(x, pairs(2)), expected, atol=1e-12, rtol=0)


def test_hard_negatives_become_pairs_of_the_opposite_label():
    x = table(4)
    scores = [cos(x[0, i], x[c, i]) * 20 for c in (1, 2, 3) for i in range(B)]
    labels = [*LABELS.tolist(), *(1 - LABELS).tolist(), *(1 - LABELS).tolist()]
    torch.testing.assert_close(losses.cosent(x, pairs(4)), ordered(scores, labels), atol=1e-12, rtol=0)
    expected = ordered(scores, [1.0] * B + [0.0] * 2 * B)
    torch.testing.assert_close(losses.cosent(x, Pairs(OWN)), expected, atol=1e-12, rtol=0)


def test_the_angle_loss_is_a_complex_quotient():
    x = table(2)
    expected = ordered([complex_angle(x[0, i], x[1, i]) * 3 for i in range(B)], LABELS.tolist())
    torch.testing.assert_close(losses.angle_loss(x, pairs(2), 3.0), expected, atol=1e-12, rtol=0)


def test_the_in_batch_term_weighs_partners_by_label():
    x = table(2)
    texts = [(c, i) for i in range(B) for c in (0, 1)]
    rows = [(x[c, i], [x[1 - c, i], *(x[t] for t in texts if t[1] != i)]) for c, i in texts]
    weights = LABELS.repeat_interleave(2)
    values = torch.stack([nce([row], 20.0) for row in rows])
    found = losses.in_batch_nce(x, pairs(2))
    torch.testing.assert_close(found, (values * weights).mean(), atol=1e-12, rtol=0)
    whole = (values * (LABELS >= 1).double().repeat_interleave(2)).mean()  # .9 counts as 0, and stays in the mean
    torch.testing.assert_close(losses.in_batch_nce(x, pairs(2), integer_labels=True), whole, atol=1e-12, rtol=0)


def test_labels_below_one_leave_nothing_of_the_released_in_batch_term():
    x = table(2).requires_grad_()
    below = Pairs(OWN, torch.full((B,), 0.9))
    loss = losses.in_batch_nce(x, below, integer_labels=True)
    loss.backward()
    assert loss == 0 and (x.grad == 0).all()
    assert losses.in_batch_nce(x, below) > 0.1


def test_larger_labels_match_other_texts_by_accident_as_released():
    """Partner * label: text 0 (partner 1, label 2) meets text 2 of label 1, for 1 * 2 = 2 * 1."""
    place, label = torch.arange(4), torch.tensor([2, 2, 1, 1])
    assert losses._targets_as_released(place, label).nonzero().tolist() == [
        [0, 1],
        [0, 2],
        [1, 0],
        [2, 3],
        [3, 1],
        [3, 2],
    ]


def test_the_formats_of_angle_are_sums_of_their_terms():
    two, three, free = table(2), table(3), Pairs(OWN)
    expected = 30 * losses.in_batch_nce(two, pairs(2)) + losses.angle_loss(two, pairs(2))
    assert losses.angle(two, pairs(2)) == expected
    expected = 0.5 * losses.cosent(three, free) + 30 * losses.info_nce(three, free) + losses.angle_loss(three, free)
    torch.testing.assert_close(losses.angle(three, pairs(3), cosine_w=0.5), expected, atol=1e-12, rtol=0)
    expected = (3 * losses.info_nce(three[:2], free) + 4 * losses.info_nce(three, free)) / 2
    found = losses.angle(three, pairs(3), ibn_w=3.0, cln_w=4.0, angle_w=0.0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert losses.angle(two, free, ibn_tau=5.0) == losses.info_nce(two, free, 5.0)


def test_regression_and_triplets_are_means_over_rows():
    x = table(4)
    errors = [(cos(x[0, i], x[1, i]) - LABELS[i]) ** 2 for i in range(B)]
    found = losses.cosine_regression(x[:2], pairs(2))
    torch.testing.assert_close(found, torch.stack(errors).mean(), atol=1e-12, rtol=0)
    measures = {
        "euclidean": lambda a, b: (a - b).norm(),
        "manhattan": lambda a, b: (a - b).abs().sum(),
        "cosine": lambda a, b: 1 - cos(a, b),
    }
    for name, measure in measures.items():
        found = losses.triplet(x, pairs(4), 0.5, name)
        excess = [measure(x[0, i], x[1, i]) - measure(x[0, i], x[c, i]) + 0.5 for i in range(B) for c in (2, 3)]
        assert any(value < 0 for value in excess)
        torch.testing.assert_close(found, torch.stack(excess).relu().mean(), atol=1e-12, rtol=0)


# Different numbers of hard negatives

THERE = torch.tensor([[1] * B, [1] * B, [1, 0, 1, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0, 0]]).bool()
MANY_KEYS = torch.cat([KEYS, torch.tensor([[31, 0, 0, 2, 35, 0, 0]])]).masked_fill(~THERE, 0)
HELD = [(c, k) for c in (1, 2, 3) for k in range(B) if THERE[c, k]]


def nce_of_what_is_there(x: Tensor) -> Tensor:
    rows = [(x[0, i], [x[1, i], *(x[c, k] for c, k in HELD if (c, k) != (1, i))]) for i in range(B)]
    return nce(rows, 20.0)


def nce_of_other_texts(x: Tensor) -> Tensor:
    keys, rows = MANY_KEYS.tolist(), []
    for i in range(B):
        same = [
            (c, k) for c, k in HELD if keys[c][k] in (keys[0][i], keys[1][i]) or (c == 1 and keys[0][k] == keys[0][i])
        ]
        rows.append((x[0, i], [x[1, i], *(x[c, k] for c, k in HELD if (c, k) not in same)]))
    assert sum(len(candidates) for _, candidates in rows) < B * len(HELD)
    return nce(rows, 20.0)


def scored(x: Tensor, score) -> list[Tensor]:
    return [score(x[0, k], x[c, k]) * 20 for c, k in HELD]


def opposite(y: Tensor | None) -> list[float]:
    return [float((1 if y is None else y[k]) if c == 1 else 0 if y is None else 1 - y[k]) for c, k in HELD]


def regression_of_what_is_there(x: Tensor) -> Tensor:
    return torch.stack(
        [(cos(x[0, k], x[c, k]) - y) ** 2 for (c, k), y in zip(HELD, opposite(LABELS), strict=True)]
    ).mean()


def triplets_of_what_is_there(x: Tensor) -> Tensor:
    excess = [(x[0, k] - x[1, k]).norm() - (x[0, k] - x[c, k]).norm() + 5 for c, k in HELD if c > 1]
    return torch.stack(excess).relu().mean()


def angle_of_what_is_there(x: Tensor) -> Tensor:
    angles = ordered(scored(x, complex_angle), opposite(None))
    return ordered(scored(x, cos), opposite(None)) + 30 * nce_of_what_is_there(x) + angles


RAGGED = {
    "info_nce": (losses.info_nce, nce_of_what_is_there),
    "info_nce_masked": (partial(losses.info_nce, mask_duplicates=True), nce_of_other_texts),
    "cosent": (losses.cosent, lambda x: ordered(scored(x, cos), opposite(LABELS))),
    "angle_loss": (losses.angle_loss, lambda x: ordered(scored(x, complex_angle), opposite(LABELS))),
    "angle": (partial(losses.angle, cosine_w=1.0), angle_of_what_is_there),
    "cosine_regression": (losses.cosine_regression, regression_of_what_is_there),
    "triplet": (losses.triplet, triplets_of_what_is_there),
}


@pytest.mark.parametrize("nothing", [0.0, 100.0], ids=["zeros", "anything"])
@pytest.mark.parametrize("name", RAGGED)
def test_a_hard_negative_that_is_not_there_takes_no_part(name, nothing):
    """Losses and gradients are those of a loop over what is there, over ranks too."""
    loss, by_hand = RAGGED[name]
    x = table(4).masked_fill(~THERE[..., None], nothing)
    whole, parts, loop = (x.clone().requires_grad_() for _ in range(3))
    expected = by_hand(loop)
    expected.backward()
    found = loss(whole, Pairs(OWN, LABELS, MANY_KEYS, THERE))
    found.backward()
    for own in (slice(0, 3), slice(3, B)):
        loss(parts, Pairs(own, LABELS, MANY_KEYS, THERE)).backward()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for x in (whole, parts):
        torch.testing.assert_close(x.grad, loop.grad, atol=1e-12, rtol=0)
        assert (x.grad[~THERE] == 0).all() and (x.grad[2:][THERE[2:]] != 0).any()


@pytest.mark.parametrize("name", RAGGED)
def test_a_batch_in_which_no_example_has_a_hard_negative(name):
    x, there = table(4).requires_grad_(), THERE.clone()
    there[2:] = False
    value = RAGGED[name][0](x, Pairs(OWN, LABELS, MANY_KEYS, there))
    value.backward()
    assert value.isfinite() and x.grad.isfinite().all() and (x.grad[2:] == 0).all()


# Over ranks


@pytest.mark.parametrize("cuts", [(0, 3, 7), (0, 2, 2, 7), (0, 0, 7)], ids=["3+4", "2+0+5", "0+7"])
@pytest.mark.parametrize("name", CASES)
def test_shares_of_ranks_and_their_gradients_add_up(name, cuts):
    columns, loss = CASES[name]
    whole, parts = (table(columns).requires_grad_() for _ in range(2))
    expected = loss(whole, pairs(columns))
    expected.backward()
    shares = [loss(parts, pairs(columns, slice(a, b))) for a, b in pairwise(cuts)]
    for share in shares:
        share.backward(retain_graph=True)
    torch.testing.assert_close(sum(shares), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.grad, whole.grad, atol=1e-12, rtol=0)


def test_only_the_own_rows_with_their_gradients_would_be_wrong():
    """What a gather without gradient gives: other rows as constants. The test above must be able to see it."""
    x = table(2).requires_grad_()
    losses.info_nce(x, pairs(2)).backward()
    whole, x.grad = x.grad, None
    for own in (slice(0, 3), slice(3, B)):
        mask = torch.zeros(B, 1).index_fill(0, torch.arange(own.start, own.stop), 1)
        losses.info_nce(x * mask + x.detach() * (1 - mask), pairs(2, own)).backward()
    assert (x.grad - whole).abs().max() > 0.01 * whole.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name):
    columns, loss = CASES[name]
    assert torch.autograd.gradcheck(lambda x: loss(x, pairs(columns, slice(1, 6))), table(columns).requires_grad_())


def test_a_learnable_scale_gets_its_gradient_from_every_rank():
    x, scale = table(3), torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    losses.info_nce(x, pairs(3), scale, symmetric=True).backward()
    whole, scale.grad = scale.grad, None
    for own in (slice(0, 3), slice(3, B)):
        losses.info_nce(x, pairs(3, own), scale, symmetric=True).backward()
    torch.testing.assert_close(scale.grad, whole, atol=1e-12, rtol=0)
    step = 1e-5
    ends = [losses.info_nce(x, pairs(3), 20.0 + sign * step, symmetric=True) for sign in (1, -1)]
    assert whole.item() == pytest.approx((ends[0] - ends[1]).item() / (2 * step), rel=1e-6)


# Where inputs are degenerate


@pytest.mark.parametrize("name", CASES)
def test_zero_vectors_give_finite_losses_and_get_no_gradient_of_direction(name):
    columns, loss = CASES[name]
    x = table(columns)
    x[0, 1] = x[1, 2] = x[:, 3] = 0
    x.requires_grad_()
    value = loss(x, pairs(columns))
    value.backward()
    assert value.isfinite() and x.grad.isfinite().all() and x.grad.abs().max() < 1e3
    if name not in ("triplet", "triplet_manhattan"):
        assert (x.grad[0, 1] == 0).all() and (x.grad[:, 3] == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_equal_vectors_give_finite_gradients(name):
    columns, loss = CASES[name]
    x = torch.ones(columns, B, D, dtype=torch.float64).requires_grad_()
    loss(x, pairs(columns)).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("loss", [losses.cosent, losses.angle_loss])
@pytest.mark.parametrize("labels", [torch.full((B,), 0.5), torch.zeros(B)], ids=["half", "zero"])
def test_a_batch_without_an_ordered_pair_has_loss_zero(loss, labels):
    x = table(2).requires_grad_()
    value = loss(x, Pairs(OWN, labels))
    value.backward()
    assert value == 0 and (x.grad == 0).all()


def test_a_batch_of_one_is_no_special_case():
    x, one = table(3)[:, :1].clone().requires_grad_(), Pairs(slice(0, 1), torch.ones(1))
    for loss in (losses.info_nce, losses.cosent, losses.angle, losses.triplet, losses.cosine_regression):
        value = loss(x, one)
        value.backward()
        assert value.isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize("width", [1, 7])
def test_the_angle_loss_refuses_an_odd_width(width):
    with pytest.raises(ValueError, match=f"halves of a vector .* width {width} is odd"):
        losses.angle(table(2, width), pairs(2))


def test_other_losses_take_a_width_of_one():
    for columns, loss in (CASES["info_nce"], CASES["cosent"], CASES["cosine_regression"], CASES["triplet"]):
        x = table(columns, 1).requires_grad_()
        loss(x, pairs(columns)).backward()
        assert x.grad.isfinite().all()


def test_large_scales_do_not_overflow():
    x = table(2).float().requires_grad_()
    for loss in (losses.cosent, losses.info_nce, losses.angle_loss):
        value = loss(x, pairs(2), 1e4)
        value.backward()
        assert value.isfinite() and x.grad.isfinite().all()


def test_what_a_loss_lacks_is_named():
    with pytest.raises(ValueError, match="needs the keys of the texts"):
        losses.info_nce(table(2), Pairs(OWN), mask_duplicates=True)
    for loss in (losses.cosent, losses.angle_loss, losses.cosine_regression):
        with pytest.raises(ValueError, match="give labels, or hard negatives"):
            loss(table(2), Pairs(OWN))
    with pytest.raises(ValueError, match="triplets need a hard negative"):
        losses.triplet(table(2), pairs(2))
    with pytest.raises(ValueError, match="a distance of euclidean, manhattan, cosine; got dot"):
        losses.triplet(table(3), pairs(3), distance="dot")
    with pytest.raises(ValueError, match="needs a weight above 0"):
        losses.angle(table(3), pairs(3), ibn_w=0.0, angle_w=0.0)


@pytest.mark.parametrize("name", CASES)
def test_losses_are_computed_in_float32_whatever_surrounds_them(name):
    columns, loss = CASES[name]
    half = table(columns).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(half, pairs(columns))
    assert found.dtype == torch.float32
    assert math.isclose(found, loss(half.float(), pairs(columns)), rel_tol=1e-6)
