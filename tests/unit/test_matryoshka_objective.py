"""Modes against their equations written out, draws, shares of ranks, and the mistakes that are often made."""

import dataclasses
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chi2_contingency
from torch import Tensor

from lightning_modules.core.pair_losses import Pairs, angle, info_nce
from lightning_modules.matryoshka2d import objective as objectives
from lightning_modules.matryoshka2d.modes import MODES, default_pairs, default_widths, settings
from lightning_modules.matryoshka2d.objective import Cell, Draw, draw, layers_needed, objective, plan, total

N, C, B, D = 5, 2, 6, 16
OWN = slice(0, B)


def stack_of(layers: int = N, width: int = D, seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(C, B, width, generator=generator, dtype=torch.float64).requires_grad_()
        for n in range(layers + 1)
    }


def base_of(own: slice):
    """Return a loss of rows that is not indifferent to the length of vectors, nor to which coordinates it sees."""

    def base(table_CBD: Tensor) -> Tensor:
        ramp = torch.linspace(1, 2, table_CBD.shape[-1], dtype=table_CBD.dtype)
        return ((table_CBD[0, own] - table_CBD[1, own]) * ramp).square().sum(-1).log1p().sum() / table_CBD.shape[1]

    return base


def base(x: Tensor) -> Tensor:
    return base_of(OWN)(x)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return the mean over texts of sum p (ln p - ln q), p of the teacher."""
    values = []
    for t, s in zip(teacher.reshape(C * B, -1), student.reshape(C * B, -1), strict=True):
        p, q = ((x / temperature).exp() / (x / temperature).exp().sum() for x in (t, s))
        values.append((p * (p.log() - q.log())).sum())
    return torch.stack(values).mean()


def align(x: Tensor, k: int, p: Tensor, temperature: float) -> Tensor:
    squares = torch.stack([(x[c, b, j] - p[c, b, j]) ** 2 for c in range(C) for b in range(B) for j in range(k)])
    return squares.mean() + temperature * kl(p, x[..., :k], temperature)


def check(found: Tensor, expected: Tensor, stack: dict[int, Tensor], where: dict[int, Tensor]) -> None:
    """Compare losses, and the gradients at every layer."""
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    found.backward()
    expected.backward()
    for layer, tensor in stack.items():
        ours, theirs = (torch.zeros_like(x) if x.grad is None else x.grad for x in (tensor, where[layer]))
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


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


# Draws


def p_value_bound(counts: list[int], cells: int) -> bool:
    expected = sum(counts) / cells
    return sum((count - expected) ** 2 / expected for count in counts) < chi2.ppf(0.999, cells - 1)


@pytest.mark.parametrize(
    ("mode", "layers", "widths"),
    [
        ("paper", range(1, 6), (8, 16, 32)),
        ("improved", range(1, 6), (8, 16, 32)),
        ("sentence_transformers_old", range(1, 6), (8, 16, 32, 64)),
        ("sentence_transformers", range(0, 6), (8, 16, 32, 64)),
    ],
)
def test_layers_and_widths_are_uniform_and_independent(mode, layers, widths):
    draws = [draw(settings(mode), 6, 64, 7, step) for step in range(6000)]
    layer, width = (Counter(values) for values in zip(*[(d.students[0][0], d.widths[0]) for d in draws], strict=True))
    assert sorted(layer) == list(layers) and sorted(width) == list(widths)
    assert p_value_bound(list(layer.values()), len(layer)) and p_value_bound(list(width.values()), len(width))
    together = Counter((d.students[0][0], d.widths[0]) for d in draws)
    assert chi2_contingency([[together[n, d] for d in widths] for n in layers]).pvalue > 1e-3
    own = [d.students[0][1][0] for d in draws]
    if MODES[mode].shared_widths:
        assert own == [d.widths[0] for d in draws]
    else:
        both = Counter(zip([d.widths[0] for d in draws], own, strict=True))
        assert chi2_contingency([[both[a, b] for b in widths] for a in widths]).pvalue > 1e-3
        assert p_value_bound(list(Counter(own).values()), len(widths))


def test_several_layers_and_widths_are_drawn_without_replacement():
    chosen = settings("sentence_transformers", layers_per_step=2, widths_per_step=3)
    draws = [draw(chosen, 5, 64, 7, step) for step in range(5000)]
    pairs = Counter(tuple(layer for layer, _ in d.students) for d in draws)
    assert sorted(pairs) == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    assert p_value_bound(list(pairs.values()), 10)
    assert all(len(set(d.widths)) == 3 and len(set(d.students[1][1])) == 3 for d in draws)
    assert p_value_bound(list(Counter(d.widths for d in draws).values()), 4)


def test_minus_one_and_too_many_mean_all():
    for count in (-1, 99):
        drawn = draw(settings("paper", layers_per_step=count, widths_per_step=count), 4, 32, 0, 0)
        assert [layer for layer, _ in drawn.students] == [1, 2, 3] and drawn.widths == (16, 8)


def test_draws_are_a_function_of_seed_and_step_alone():
    def several(seed: int) -> list[Draw]:
        return [draw(settings("sentence_transformers"), 12, 768, seed, step) for step in range(40)]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = several(3)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert several(3) == first != several(4)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])
    # a run that goes on under a newer Python or torch, or on another rank, must draw these
    frozen = [(768, 3, (256,)), (32, 2, (128,)), (16, 5, (128,)), (8, 0, (512,))]
    assert [(d.widths[0], *d.students[0]) for d in first[:4]] == frozen


def test_starbucks_draws_whole_pairs_whatever_their_order():
    pairs = [(4, 8), (1, 2), (3, 6), (N, D)]
    seen = Counter()
    for step in range(900):
        drawn = draw(settings("starbucks", pairs=pairs, layers_per_step=1), N, D, 0, step)
        seen.update((layer, widths[0]) for layer, widths in drawn.students)
        assert drawn.widths == ()
    assert set(seen) == set(pairs[:3]) and p_value_bound(list(seen.values()), 3)
    assert draw(settings("starbucks", pairs=[(1, 2), (N, 4)]), N, D, 0, 0).widths == (4,)


def test_the_names_of_terms_do_not_depend_on_the_draw():
    for mode in MODES:
        chosen = settings(mode)
        found = {
            tuple(sorted({cell.name for cell in plan(chosen, draw(chosen, N, D, 0, step), N, D)})) for step in range(30)
        }
        assert len(found) == 1


# What the divergence, the cut and the compression must not get wrong


def test_the_divergence_runs_from_teacher_to_student_over_raw_vectors():
    student, teacher = ((1 + seed) * stack_of(seed=seed)[0].detach().flatten(0, 1) for seed in (0, 1))
    found = objectives.divergence(student, teacher, 2.0) / len(student)
    torch.testing.assert_close(found, kl(teacher, student, 2.0), atol=1e-12, rtol=0)
    for wrong in (kl(student, teacher, 2.0), kl(unit(teacher), unit(student), 2.0), kl(teacher, student, 1.0)):
        assert abs(wrong - found) > 0.05 * found


@pytest.mark.parametrize(("power", "factor"), [(0, 1.0), (1, 0.5), (2, 0.25)])
def test_the_power_of_the_temperature_is_an_option(power, factor):
    stack, drawn = stack_of(), Draw((8,), ((2, (8,)),))
    parts = objective(
        {n: stack[n] for n in (2, N)}, drawn, base, OWN, settings("paper", kl_temperature=0.5, kl_power=power)
    )
    assert parts["kl"].weight == factor
    torch.testing.assert_close(parts["kl"].value, kl(stack[N], stack[2], 0.5), atol=1e-12, rtol=0)


def test_a_teacher_of_huge_coordinates_gives_finite_gradients():
    """As of causal language models: the softmax of the teacher underflows to 0, whose logarithm is infinite."""
    stack = {n: (1000 * x).float().detach().requires_grad_() for n, x in stack_of().items()}
    run("sentence_transformers_old", Draw((8,), ((2, (8,)),)), stack).backward()
    assert stack[N].grad.isfinite().all() and stack[2].grad.isfinite().all()
    assert (stack[N].grad != 0).any()


def test_base_losses_see_the_first_coordinates_scaled_anew_where_the_source_does():
    stack, seen = stack_of(), []
    drawn = Draw((8,), ((2, (4,)),))
    for mode in ("sentence_transformers", "paper"):
        needed = {n: stack[n] for n in (2, N)}
        objective(needed, drawn, lambda x: seen.append(x.detach()) or base(x), OWN, settings(mode))
    assert [tuple(x.shape) for x in seen] == [(C, B, 8), (C, B, 4), (C, B, D), (C, B, 8), (C, B, D), (C, B, 4)]
    torch.testing.assert_close(seen[0].norm(dim=-1), torch.ones(C, B, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(seen[0], unit(stack[N].detach()[..., :8]), atol=1e-12, rtol=0)
    assert torch.equal(seen[3], stack[N].detach()[..., :8]) and torch.equal(seen[5], stack[2].detach()[..., :4])


def test_the_exact_basis_is_the_singular_value_decomposition_with_fixed_signs():
    x = stack_of(width=24)[0].detach().flatten(0, 1)  # 12 rows: fewer than the 16 that are asked for
    found = objectives.exact_basis(x, 16)
    u, s, _ = torch.linalg.svd(torch.softmax(x.T @ x / math.sqrt(24), -1))
    torch.testing.assert_close(found.norm(dim=0), s[:16], atol=1e-10, rtol=0)
    torch.testing.assert_close(found.abs(), (u * s)[:, :16].abs(), atol=1e-9, rtol=0)
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()
    shuffled = objectives.exact_basis(x[torch.randperm(12)], 16)
    torch.testing.assert_close(shuffled, found, atol=1e-9, rtol=0)
    assert torch.equal(objectives.exact_basis(x, 16), found)


def test_the_random_basis_is_that_of_torch_and_is_keyed():
    x = stack_of(width=24)[0].detach().flatten(0, 1).float()
    state = torch.get_rng_state()
    found = objectives.random_basis(x, 8, key=2**63 + 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(objectives.random_basis(x, 8, key=2**63 + 5), found)
    assert not torch.allclose(objectives.random_basis(x, 8, key=6), found)
    torch.manual_seed((2**63 + 5) >> 1)
    u, s, _ = torch.svd_lowrank(torch.softmax(x.T @ x / math.sqrt(24), -1), q=8)
    torch.testing.assert_close(found, u @ torch.diag(s), atol=1e-6, rtol=0)
    exact = objectives.exact_basis(x, 24)
    torch.testing.assert_close(found.norm(dim=0), exact[:, :8].norm(dim=0), atol=0, rtol=0.1)


def test_each_layer_of_a_step_has_a_random_basis_of_its_own_and_steps_differ():
    stack = {n: stack_of()[0] for n in range(N + 1)}
    chosen = settings("espresso", as_released=True, widths=[4])
    first, again, later = (
        total(objective(stack, draw(chosen, N, D, 0, step), base, OWN, chosen)).item() for step in (0, 0, 1)
    )
    assert first == again != later


@pytest.mark.parametrize("kind", ["exact", "random"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compression_is_computed_in_float32_at_least(kind, dtype):
    stack = {n: (x.detach() / 4).to(dtype).requires_grad_() for n, x in stack_of().items()}
    wide = {n: x.detach().float().requires_grad_() for n, x in stack.items()}
    chosen = settings("espresso", widths=[10], alignment=kind)
    drawn = draw(chosen, N, D, 0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(stack, drawn, base, OWN, chosen)
    full = objective(wide, drawn, base, OWN, chosen)
    assert half["alignment"].value.dtype == torch.float32
    torch.testing.assert_close(half["alignment"].value, full["alignment"].value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_base_losses_get_float32_of_half_precision(mode):
    stack, seen = {n: x.detach().bfloat16() for n, x in stack_of().items()}, []
    drawn = draw(settings(mode), N, D, 0, 0)
    needed = {n: stack[n] for n in layers_needed(drawn, N)}
    with torch.autocast("cpu", torch.bfloat16):
        parts = objective(needed, drawn, lambda x: seen.append(x) or base(x), OWN, settings(mode))
    assert {x.dtype for x in seen} == {part.value.dtype for part in parts.values()} == {torch.float32}
    if MODES[mode].normalise:
        assert max((x.norm(dim=-1) - 1).abs().max() for x in seen) < 1e-6


@pytest.mark.parametrize("kind", ["exact", "random"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_give_such_a_loss_and_no_error(kind, value):
    stack = {n: x.detach().clone() for n, x in stack_of().items()}
    stack[2][0, 1, 3] = value
    chosen = settings("espresso", widths=[8], alignment=kind)
    assert not total(objective(stack, draw(chosen, N, D, 0, 0), base, OWN, chosen)).isfinite()


@pytest.mark.parametrize("kind", ["exact", "random"])
def test_no_gradient_passes_through_the_compression(kind):
    chosen = settings("espresso", widths=[4], alignment=kind, last_weight=0.0)
    ours, x = stack_of(), stack_of()
    drawn = draw(chosen, N, D, 0, 0)
    find = objectives._basis(kind, drawn.key)
    constant = {n: find(x[n].detach().flatten(0, 1), 4, n) for n in x}
    total(objective(ours, drawn, base, OWN, chosen)).backward()
    total(objective(x, drawn, base, OWN, chosen, basis=lambda _, width, layer: constant[layer])).backward()
    p = (x[2] @ constant[2]).detach()
    weight = 1 / (1 + math.log(2)) / (N - 1)
    expected = stack_of()[2]
    ((base(expected[..., :4]) + align(expected, 4, p, 1.0)) * weight).backward()
    torch.testing.assert_close(ours[2].grad, x[2].grad, atol=1e-12, rtol=0)
    torch.testing.assert_close(ours[2].grad, expected.grad, atol=1e-12, rtol=0)


def test_a_compression_wider_than_the_vectors_is_refused():
    for find in (objectives.exact_basis, lambda x, k: objectives.random_basis(x, k, 0)):
        with pytest.raises(ValueError, match="width 16 cannot be compressed to 17"):
            find(torch.randn(4, 16), 17)


def test_alignment_with_a_teacher_at_every_token_adds_up_over_micro_batches():
    torch.manual_seed(0)
    hidden, teacher = torch.randn(11, 6, dtype=torch.float64), torch.randn(11, 6, dtype=torch.float64)
    p, q = teacher.softmax(-1), hidden.softmax(-1)
    expected = (p * (p.log() - q.log())).sum() / 4
    parts = [objectives.token_alignment(hidden[own], teacher[own], 4) for own in (slice(0, 7), slice(7, 11))]
    torch.testing.assert_close(sum(parts), expected, atol=1e-12, rtol=0)


# Duplicates


def test_examples_with_a_text_seen_before_are_left_out():
    keys = torch.tensor([[1, 2, 1, 4, 5, 6, 9], [11, 12, 13, 12, 5, 4, 13]])
    # 2: its anchor was seen, its positive 13 is not looked at; 3: its positive; 4: equal texts; 5: 4 was seen in 3
    rows, own = objectives.first_occurrences(keys, slice(1, 4))
    assert rows.tolist() == [0, 1, 6] and own == slice(1, 2)
    assert objectives.first_occurrences(keys, slice(3, 5))[1] == slice(2, 2)


def test_shares_add_up_after_duplicates_were_left_out():
    keys = torch.tensor([[1, 2, 1, 4, 5, 6], [11, 12, 13, 14, 12, 16]])
    stack = stack_of()
    chosen, drawn = settings("improved", as_released=True), Draw((8,), ((2, (8,)),))

    def loss(own: slice) -> Tensor:
        rows, left = objectives.first_occurrences(keys, own)
        kept = {n: stack[n][:, rows] for n in (2, N)}
        return total(objective(kept, drawn, lambda x: info_nce(x, Pairs(left)), left, chosen))

    torch.testing.assert_close(loss(slice(0, 3)) + loss(slice(3, B)), loss(OWN), atol=1e-12, rtol=0)


# Settings


def test_settings_are_frozen_and_overridden_by_what_is_given():
    chosen = settings("paper", weighting=None, kl_temperature=0.3, widths=[32, 8])
    assert chosen == dataclasses.replace(MODES["paper"], kl_temperature=0.3, widths=(32, 8))
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.weighting = "log"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "2d"}, "mode = 2d: must be one of paper, improved"),
        ({"depth": 1}, "depth: is no option"),
        ({"weighting": "sqrt"}, "weighting = sqrt: must be one of uniform, log, linear"),
        ({"kl_power": 3}, "kl_power = 3: must be one of 0, 1, 2"),
        ({"layers_per_step": -2}, "layers_per_step = -2"),
        ({"first_layer": 2}, "first_layer must be 0 or 1"),
        ({"kl_temperature": -1.0}, "kl_temperature must not be below 0"),
        ({"widths": [8, 8]}, "one stands there twice"),
        ({"widths": [8, 16], "width_weights": [1.0]}, "as many entries"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        settings(options.pop("mode", "paper"), **options)


@pytest.mark.parametrize(
    ("mode", "options", "layers", "message"),
    [
        ("paper", {"widths": [32]}, N, r"widths = \[32\]: need at least one, from 1 to the encoder's 16"),
        ("paper", {"widths": [0, 8]}, N, r"widths = \[0, 8\]"),
        ("paper", {}, 1, "an encoder of 1 layers has no layer below the last"),
        ("espresso", {"last_layer": -3}, 3, "has no layer below the last"),
        ("starbucks", {"pairs": [(9, 4)]}, N, r"pairs: \[9, 4\] is outside of 5 layers of width 16"),
        ("starbucks", {"pairs": [(2, 4), (2, 8)]}, N, "a layer stands in two"),
    ],
)
def test_draws_that_an_encoder_cannot_give_are_refused(mode, options, layers, message):
    with pytest.raises(ValueError, match=message):
        draw(settings(mode, **options), layers, D, 0, 0)


def test_cells_are_plain_numbers_on_the_host():
    cells = plan(settings("paper"), draw(settings("paper"), N, D, 0, 0), N, D)
    assert all(isinstance(cell, Cell) and type(cell.layer) is type(cell.width) is int for cell in cells)
