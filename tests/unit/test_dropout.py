import pytest
import torch
from scipy.stats import chi2
from torch import nn

from lightning_modules.core.attention import attend
from lightning_modules.core.dropout import LEVELS, Dropout, cheap_dropout, dropout, keep_mask
from tests.text import text_batch


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p_in_every_lane(p):
    torch.manual_seed(0)
    mask = keep_mask(torch.Size([400_000]), p, torch.ones(1, dtype=torch.float64))
    share = round(p * LEVELS) / LEVELS
    assert abs(share - p) < 1e-5 and set(mask.unique().tolist()) == {0.0, 1 / (1 - share)}
    per_lane = (mask.view(-1, 4) == 0).double().mean(0)
    assert (per_lane - p).abs().max() < 4 * (p * (1 - p) / 100_000) ** 0.5
    assert abs(mask.mean() - 1) < 0.02


def test_decisions_of_one_number_are_independent():
    torch.manual_seed(1)
    dropped = (keep_mask(torch.Size([800_000]), 0.5, torch.ones(1)) == 0).long().view(-1, 4)
    patterns = torch.bincount((dropped * torch.tensor([1, 2, 4, 8])).sum(1), minlength=16).double()
    expected = 200_000 / 16
    assert ((patterns - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 15)


def test_seeded_masks_repeat_and_odd_sizes_fit():
    for shape in ((5,), (3, 7), (2, 3, 11)):
        torch.manual_seed(3)
        first = keep_mask(torch.Size(shape), 0.3, torch.ones(1))
        torch.manual_seed(3)
        assert torch.equal(first, keep_mask(torch.Size(shape), 0.3, torch.ones(1))) and first.shape == shape


def test_gradients_are_those_of_the_mask():
    x = torch.randn(50, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x, 0.4)
    y.sum().backward()
    torch.manual_seed(0)
    assert torch.equal(x.grad, keep_mask(x.shape, 0.4, x)) and torch.equal(y, x * x.grad)


def test_evaluation_and_the_ends_of_the_range_are_as_in_torch():
    x = torch.randn(8)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x) and torch.equal(Dropout(1.0).train()(x), torch.zeros(8))


def test_every_dropout_of_a_network_is_replaced():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.3), nn.GELU()))
    cheap_dropout(network)
    found = [m for m in network.modules() if isinstance(m, nn.Dropout)]
    assert [type(m) for m in found] == [Dropout, Dropout] and [m.p for m in found] == [0.2, 0.3]


def test_attention_that_is_written_out_equals_the_kernel():
    """A share too small for any place to be dropped: the written form without its dropout, gradients included."""
    torch.manual_seed(0)
    layout = text_batch([23, 20, 20, 17, 9, 9, 9, 9, 9, 9, 9, 9, 5, 1])["layout"]
    q, k, v = (torch.randn(int(layout.cu_seqlens[-1]), 2, 8, requires_grad=True) for _ in range(3))
    kernel, written = attend(q, k, v, layout, 0.0, 0.2), attend(q, k, v, layout, 1e-9, 0.2)
    torch.testing.assert_close(written, kernel, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(kernel)
    for ours, theirs in zip(
        torch.autograd.grad(written, (q, k, v), weights), torch.autograd.grad(kernel, (q, k, v), weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
