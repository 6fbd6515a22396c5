import math

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from lightning_modules.core.optim import ReleasedAdam, build_optimizer, layer_scale, parameter_groups
from lightning_modules.core.schedules import schedule


def test_multiplied_schedule_at_the_points_that_define_it():
    rate = schedule("multiplied", 10_000, 1_000_000)
    assert rate(0) == 0.0
    assert math.isclose(rate(5_000), (1 - 0.005) * 0.5)
    assert math.isclose(rate(10_000), 0.99)
    assert math.isclose(rate(500_000), 0.5)
    assert rate(1_000_000) == 0.0


@pytest.mark.parametrize(
    ("name", "reference"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_schedules_equal_transformers(name, reference):
    theirs = reference(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 7, 40).lr_lambdas[0]
    ours = schedule(name, 7, 40)
    assert [ours(t) for t in range(45)][:41] == pytest.approx([theirs(t) for t in range(45)][:41])


def test_constant_schedule_warms_up():
    rate = schedule("constant", 4, 10)
    assert [rate(t) for t in (0, 1, 4, 10, 50)] == [0.0, 0.25, 1.0, 1.0, 1.0]
    assert schedule("constant", 0, 10)(0) == 1.0


def test_released_adam_equals_three_steps_by_hand():
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = ReleasedAdam([{"params": [w], "weight_decay": 0.01}], lr=0.1)
    m = v = torch.zeros(2, dtype=torch.float64)
    expected = w.detach().clone()
    for gradient in ([0.5, -1.0], [0.1, 0.2], [-3.0, 0.0]):
        g = torch.tensor(gradient, dtype=torch.float64)
        w.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected = expected - 0.1 * (m / (v.sqrt() + 1e-6) + 0.01 * expected)
        torch.testing.assert_close(w.detach(), expected, atol=1e-12, rtol=1e-12)


def test_released_adam_is_torch_adamw_without_bias_correction():
    """AdamW at step t with lr * sqrt(1 - b2^t) undone and eps scaled is the uncorrected update."""
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    released = ReleasedAdam([ours], lr=1e-2)
    reference = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.0)
    for t in range(1, 5):
        ours.grad = torch.randn(5, dtype=torch.float64)
        theirs.grad = ours.grad.clone()
        root = math.sqrt(1 - 0.999**t)
        reference.param_groups[0].update(lr=1e-2 * (1 - 0.9**t) / root, eps=1e-6 / root)
        released.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_layer_decay_forms():
    paper = [layer_scale(depth, 12, 0.8, "paper") for depth in range(14)]
    released = [layer_scale(depth, 12, 0.8, "as_released") for depth in range(14)]
    assert paper[13] == released[13] == 1.0  # the head
    assert paper[12] == 0.8 and released[12] == pytest.approx(0.8**2)  # the top layer
    assert paper[1] == pytest.approx(0.8**12) and released[1] == pytest.approx(0.8**13)
    assert paper[0] == pytest.approx(0.8**13) and released[0] == pytest.approx(0.8**14)  # the embeddings


def test_groups_decay_neither_biases_nor_normalisations():
    model = nn.ModuleDict({"dense": nn.Linear(2, 2), "LayerNorm": nn.LayerNorm(2)})
    groups = parameter_groups(model.named_parameters(), 1e-3, 0.01)
    decayed = [p for g in groups if g["weight_decay"] for p in g["params"]]
    assert len(decayed) == 1 and decayed[0] is model["dense"].weight
    assert sum(len(g["params"]) for g in groups) == 4


def test_depth_scales_learning_rates():
    model = nn.ModuleDict({"0": nn.Linear(2, 2, bias=False), "1": nn.Linear(2, 2, bias=False)})
    groups = parameter_groups(model.named_parameters(), 1.0, 0.0, lambda n: int(n[0]) + 1, 1, 0.5, "paper")
    assert sorted(g["lr"] for g in groups) == [0.5, 1.0]


def test_adamw_is_fused_and_corrected():
    optimizer = build_optimizer("adamw", [{"params": [nn.Parameter(torch.ones(1))]}], 1e-3, 1e-6)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"] and optimizer.defaults["eps"] == 1e-6
