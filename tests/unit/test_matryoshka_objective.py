"""Modes against their equations written out, the frozen table of their terms, identities, shares of ranks."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_modules.core.pair_losses import Pairs, angle, info_nce
from lightning_modules.matryoshka2d.modes import MODES, default_pairs, default_widths, settings
from lightning_modules.matryoshka2d.objective import Draw, draw, layers_needed, objective, plan, total
from tests.stacks import OWN, B, C, D, N, align, base, base_of, check, kl, stack_of, unit


def run(mode: str, drawn: Draw, stack: dict[int, Tensor], basis=None, **options) -> Tensor:
    needed = {layer: stack[layer] for layer in layers_needed(drawn, N)}
    return total(objective(needed, drawn, base, OWN, settings(mode, **options), basis=basis))


# Every mode against its equation, written out


def test_paper_is_four_base_losses_and_a_divergence():
    stack, x = stack_of(), stack_of()
    for n, d, temperature in ((2, 4, 1.0), (4, 8, 2.0)):
        found = run("paper", Draw((d,), ((n, (d,)),)), stack, kl_temperature=temperature)
        expected = base(x[N]) + base(x[n]) + base(x[N][..., :d]) + base(x[n][..., :d])
        check(found, expected + temperature**2 * kl(x[N], x[n], temperature), stack, x)


def test_improved_weighs_students_down_and_the_divergence_up():
    stack, x, n, d, temperature = stack_of(), stack_of(), 3, 4, 2.0
    found = run("improved", Draw((d,), ((n, (d,)),)), stack, kl_temperature=temperature)
    expected = base(x[N]) + base(x[n]) / n + base(x[N][..., :d]) + base(x[n][..., :d]) / n
    check(found, expected + temperature * math.log(2 + n) * kl(x[N], x[n], temperature), stack, x)


@pytest.mark.parametrize("as_released", [False, True])
def test_espresso_trains_all_layers_and_the_released_one_is_off_by_one(as_released):
    stack, x, k, temperature = stack_of(), stack_of(), 6, 1.5
    bases = {n: torch.randn(D, k, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in x}
    chosen = settings("espresso", as_released, widths=[k], alignment_temperature=temperature)
    drawn = draw(chosen, N, D, 0, 0)
    found = total(objective(stack, drawn, base, OWN, chosen, basis=lambda _, width, layer: bases[layer][:, :width]))
    p = {n: (x[n] @ bases[n]).detach() for n in x}
    expected = base(x[N]) + base(x[N][..., :k]) + align(x[N], k, p[N], temperature)
    for i in range(0, N - 1) if as_released else range(1, N):
        term = base(x[i][..., :k]) + align(x[i], k, p[i], temperature)
        expected = expected + term / (1 + math.log(1 + i if as_released else i)) / (N - 1)
    check(found, expected, stack, x)
    silent = [n for n in stack if n < N and (stack[n].grad is None or (stack[n].grad == 0).all())]
    assert silent == ([N - 1] if as_released else [0])


def test_starbucks_compares_each_pair_with_the_last_layer_cut_alike():
    stack, x, pairs = stack_of(), stack_of(), [(1, 2), (2, 4), (4, 8), (N, D)]
    chosen = settings("starbucks", pairs=pairs)
    found = total(objective(stack, draw(chosen, N, D, 0, 0), base, OWN, chosen))
    expected = base(unit(x[N]))
    for n, d in pairs[:-1]:
        expected = expected + base(unit(x[n][..., :d])) + 0.3 * kl(x[N][..., :d], x[n][..., :d], 1.0)
    check(found, expected, stack, x)


@pytest.mark.parametrize("weighting", ["uniform", "log", "linear"])
def test_sentence_transformers_counts_from_the_embeddings_and_detaches(weighting):
    stack, x = stack_of(), stack_of()
    drawn = Draw((8,), ((0, (4,)), (3, (16,))))
    found = run("sentence_transformers", drawn, stack, weighting=weighting)
    weight = {"uniform": lambda i: 1, "log": lambda i: 1 / (1 + math.log(1 + i)), "linear": lambda i: 1 / (1 + i)}
    expected = base(unit(x[N][..., :8]))
    for n, d in ((0, 4), (3, 16)):
        expected = expected + weight[weighting](n) * base(unit(x[n][..., :d])) / 2
        expected = expected + 0.3 * kl(x[N].detach(), x[n], 0.3)
    check(found, expected, stack, x)


def test_old_sentence_transformers_counts_from_the_first_layer_and_moves_its_teacher():
    stack, x = stack_of(), stack_of()
    found = run("sentence_transformers_old", Draw((8,), ((1, (4,)), (3, (16,)))), stack)
    expected = base(unit(x[N][..., :8]))
    for n, d in ((1, 4), (3, 16)):
        expected = expected + base(unit(x[n][..., :d])) / n / 2 + 0.3 * kl(x[N], x[n], 0.3)
    check(found, expected, stack, x)


def test_one_dimension_and_plain_have_no_students():
    stack, x = stack_of(), stack_of()
    chosen = settings("matryoshka_1d", widths=[4, D, 8], width_weights=[0.5, 1.0, 2.0])
    drawn = draw(chosen, N, D, 0, 0)
    assert drawn.students == () and layers_needed(drawn, N) == (N,)
    expected = 0.5 * base(unit(x[N][..., :4])) + base(unit(x[N])) + 2 * base(unit(x[N][..., :8]))
    check(total(objective({N: stack[N]}, drawn, base, OWN, chosen)), expected, stack, x)
    drawn = draw(settings("plain"), N, D, 0, 0)
    assert drawn[:2] == ((), ())
    assert run("plain", drawn, stack) == base(stack[N])


# The frozen table: what a step of every mode is made of


def test_the_terms_of_every_mode_are_these():
    def terms(mode: str, **options) -> list[tuple]:
        chosen = settings(mode, **options)
        given = chosen.fixed_pairs or mode in ("espresso", "matryoshka_1d", "plain")
        drawn = draw(chosen, 4, 32, 0, 0) if given else Draw((8,), ((2, (16,)),))
        return [(*cell[:3], round(cell.weight, 4)) for cell in plan(chosen, drawn, 4, 32)]

    four = [("last", 4, 32, 1), ("last_cut", 4, 8, 1)]
    assert terms("paper") == [*four, ("shallow", 2, 32, 1), ("shallow_cut", 2, 16, 1), ("kl", 2, 32, 1)]
    students = [("shallow", 2, 32, 0.5), ("shallow_cut", 2, 16, 0.5), ("kl", 2, 32, 1.3863)]
    assert terms("improved") == [*four, *students]
    two = [("last_cut", 4, 8, 1), ("shallow_cut", 2, 16, 1), ("kl", 2, 32, 0.3)]
    assert terms("sentence_transformers") == two
    assert terms("sentence_transformers", weighting="linear")[1] == ("shallow_cut", 2, 16, 0.3333)
    assert terms("sentence_transformers_old") == [two[0], ("shallow_cut", 2, 16, 0.5), two[2]]
    assert terms("starbucks") == [
        ("last", 4, 32, 1),
        *[("shallow_cut", 1, 2, 1), ("kl", 1, 2, 0.3)],
        *[("shallow_cut", 2, 4, 1), ("kl", 2, 4, 0.3)],
        *[("shallow_cut", 3, 10, 1), ("kl", 3, 10, 0.3)],
    ]
    students = [(n, round(1 / (1 + math.log(n)) / 3, 4)) for n in (1, 2, 3)]
    assert terms("espresso") == [
        *[("last", 4, 32, 1), ("last_cut", 4, 16, 1), ("alignment", 4, 16, 1)],
        *[(name, n, 16, weight) for n, weight in students for name in ("shallow_cut", "alignment")],
    ]
    assert terms("matryoshka_1d") == [("last_cut", 4, d, 1) for d in (32, 16, 8)]
    assert terms("plain") == [("last", 4, 32, 1)]


def test_the_defaults_of_every_mode_are_those_of_its_source():
    assert list(MODES) == [
        *("paper", "improved", "espresso", "starbucks"),
        *("sentence_transformers_old", "sentence_transformers", "matryoshka_1d", "plain"),
    ]
    assert {mode for mode in MODES if MODES[mode].detach_teacher} == {"sentence_transformers"}
    assert default_widths(settings("paper"), 768) == (8, 16, 32, 64, 128, 256, 512)
    assert default_widths(settings("paper"), 512) == (8, 16, 32, 64, 128, 256)
    assert default_widths(settings("sentence_transformers"), 384) == (8, 16, 32, 64, 128, 256, 384)
    assert default_widths(settings("espresso"), 768) == (128,)
    assert default_pairs(12, 768) == ((2, 32), (4, 64), (6, 128), (8, 256), (10, 512), (12, 768))
    assert default_pairs(6, 384) == ((1, 16), (2, 32), (3, 64), (4, 128), (5, 256), (6, 384))
    released = settings("espresso", as_released=True)
    assert (released.first_layer, released.last_layer, released.alignment) == (0, -2, "random")
    assert settings("paper", as_released=True).encoder_passes == 2
    assert settings("improved", as_released=True).drop_duplicates


def test_full_width_is_trained_at_both_layers_or_only_where_it_is_drawn():
    for step in range(50):
        chosen = settings("paper")
        cells = plan(chosen, draw(chosen, N, D, 0, step), N, D)
        assert {cell.layer for cell in cells if cell.width == D and cell.name in ("last", "shallow")} >= {N}
        assert sum(cell.width == D and cell.name in ("last", "shallow") for cell in cells) == 2
    chosen = settings("sentence_transformers", widths=[D, 8, 4])
    without = [D not in draw(chosen, N, D, 0, step).widths for step in range(300)]
    assert 0.55 < np.mean(without) < 0.78  # two of three
    always = settings("sentence_transformers", widths=[8, 4], full_width="all")
    cells = plan(always, draw(always, N, D, 0, 0), N, D)
    assert [cell.name for cell in cells if cell.width == D] == ["last", "shallow", "kl"]


# Identities


def test_without_students_weight_and_temperature_a_base_loss_remains():
    stack, drawn = stack_of(), Draw((D,), ((2, (D,)),))
    found = run("sentence_transformers", drawn, stack, student_weight=0.0, kl_temperature=0.0, normalise=False)
    assert found == base(stack[N])
    found.backward()
    assert (stack[2].grad == 0).all()  # zero, and there: strategies need a gradient


def test_paper_at_full_width_is_twice_the_base_losses_and_the_divergence():
    stack, n = stack_of(), 3
    found = run("paper", Draw((D,), ((n, (D,)),)), stack)
    expected = 2 * (base(stack[N]) + base(stack[n])) + kl(stack[N], stack[n], 1.0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_student_that_equals_its_teacher_has_no_divergence():
    stack = stack_of()
    parts = objective({N: stack[N], 2: stack[N]}, Draw((8,), ((2, (8,)),)), base, OWN, settings("paper"))
    assert parts["kl"].value == 0 and torch.equal(parts["last"].value, parts["shallow"].value)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("mode", ["paper", "improved", "sentence_transformers", "sentence_transformers_old"])
def test_the_divergence_moves_the_last_layer_only_if_it_is_not_detached(mode, detach):
    stack = stack_of()
    run(mode, Draw((8,), ((2, (8,)),)), stack, last_weight=0.0, student_weight=0.0, detach_teacher=detach).backward()
    assert (stack[N].grad == 0).all() == detach
    assert (stack[2].grad != 0).any()


def test_a_fixed_teacher_takes_the_place_of_the_last_layer():
    stack, x, teacher = stack_of(), stack_of(), stack_of(seed=1)[0].detach()
    drawn = Draw((8,), ((2, (8,)),))
    needed = {n: stack[n] for n in (2, N)}
    found = total(objective(needed, drawn, base, OWN, settings("paper"), teacher_CBD=teacher))
    expected = base(x[N]) + base(x[2]) + base(x[N][..., :8]) + base(x[2][..., :8]) + kl(teacher, x[2], 1.0)
    check(found, expected, stack, x)
    with pytest.raises(ValueError, match="the teacher's vectors"):
        objective(needed, drawn, base, OWN, settings("paper"), teacher_CBD=teacher[..., :8])


# Over ranks

SHARED = {
    **{mode: {} for mode in MODES},
    "paper, all layers": {"layers_per_step": -1},
    "paper, detached": {"detach_teacher": True},
    "improved, log": {"weighting": "log", "kl_weighting": "linear"},
    "espresso, random": {"alignment": "random", "first_layer": 0, "last_layer": -2},
    "sentence_transformers, two": {"layers_per_step": 2, "widths_per_step": 2},
}


@pytest.mark.parametrize("name", SHARED)
def test_shares_of_two_ranks_and_their_gradients_add_up(name):
    chosen = settings(name.partition(",")[0], **SHARED[name])
    drawn = draw(chosen, N, D, 0, 3)
    needed = layers_needed(drawn, N)
    keys, labels = torch.arange(C * B).view(C, B), torch.linspace(0, 1, B, dtype=torch.float64)

    def loss(stack: dict[int, Tensor], own: slice) -> Tensor:
        def both(table: Tensor) -> Tensor:
            pairs = Pairs(own, labels, keys)
            return base_of(own)(table) + info_nce(table, pairs, symmetric=True) + angle(table, pairs, cosine_w=1.0)

        return total(objective({n: stack[n] for n in needed}, drawn, both, own, chosen))

    whole, parts = stack_of(), stack_of()
    expected = loss(whole, OWN)
    expected.backward()
    shares = [loss(parts, slice(0, 2)), loss(parts, slice(2, B)), loss(parts, slice(B, B))]
    for share in shares:
        share.backward(retain_graph=True)
    torch.testing.assert_close(sum(shares), expected, atol=1e-12, rtol=0)
    for n in needed:
        torch.testing.assert_close(parts[n].grad, whole[n].grad, atol=1e-12, rtol=0)
