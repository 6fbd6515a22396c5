"""The divergence, the cut, the compression and the filter of duplicates, and what is often wrong with them."""

import math

import pytest
import torch
from torch import Tensor

from lightning_modules.core.pair_losses import Pairs, info_nce
from lightning_modules.matryoshka2d import objective as objectives
from lightning_modules.matryoshka2d.modes import MODES, settings
from lightning_modules.matryoshka2d.objective import Draw, draw, layers_needed, objective, total
from tests.stacks import OWN, B, C, D, N, align, base, kl, stack_of, unit


def run(mode: str, drawn: Draw, stack: dict[int, Tensor], basis=None, **options) -> Tensor:
    needed = {layer: stack[layer] for layer in layers_needed(drawn, N)}
    return total(objective(needed, drawn, base, OWN, settings(mode, **options), basis=basis))


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
