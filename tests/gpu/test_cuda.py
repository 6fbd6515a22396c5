"""What only a GPU can show. Runs with any Python that has torch >= 2.11; what it lacks is skipped with the reason.

The way of a batch through varlen, SDPA and the optimizer is run on fake CUDA tensors by tests/unit/test_gpu_path.py,
which also binds every call of this folder to its signature. Here is what that cannot run: values of the kernels, nested
(jagged) attention, backward passes on CUDA, autocast, and whether a step waits for the device.
"""

from functools import partial

import pytest

from tests.gpu.needed import torch  # skips this file where something is lacking

# isort: split

from lightning.fabric.utilities.apply_func import move_data_to_device

from lightning_modules.core import attention
from lightning_modules.core.attention import EVERYTHING, Reach
from lightning_modules.core.encoders import FLAT, Encoder
from lightning_modules.core.keyed import keyed_uniform, mix
from lightning_modules.core.masking import draw_slots, slot_counts
from lightning_modules.core.optim import build_optimizer, set_rates
from lightning_modules.electra.module import Electra
from tests.families import config_of
from tests.text import text_batch, word_tokenizer

pytestmark = pytest.mark.gpu
LENS = [128, 120, 97, 64, 64, 64, 64, 64, 40, 33, 20, 9, 5, 3]
moved = partial(move_data_to_device, device=torch.device("cuda"))  # as the trainer does


def electra(**options) -> Electra:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "embedding_size": 64, "max_positions": 128}
    method = Electra(**{**sizes, "generator_width": 0.5, **options})
    method.build(word_tokenizer(), 128)
    return method


@pytest.mark.parametrize(
    ("kernel", "reach"),
    [("jagged", EVERYTHING)]
    + [("varlen", reach) for reach in (EVERYTHING, Reach(True), Reach(False, 17), Reach(True, 17))],
)
def test_flash_kernels_equal_grouped_attention_in_float32(kernel, reach):
    torch.manual_seed(0)
    layout = moved(text_batch(LENS))["layout"]
    q, k, v = (torch.randn(sum(LENS), 4, 64, device="cuda", requires_grad=True) for _ in range(3))
    exact = attention.attend(q, k, v, layout, reach=reach)
    halves = [x.detach().to(torch.bfloat16).requires_grad_() for x in (q, k, v)]
    rough = attention.KERNELS[kernel](halves[0], halves[1], halves[2], layout, 0.0, None, reach)
    torch.testing.assert_close(rough.float(), exact, atol=2e-2, rtol=2e-2)
    weights = torch.randn_like(exact)
    for ours, theirs in zip(
        torch.autograd.grad(rough, halves, weights.to(torch.bfloat16)),
        torch.autograd.grad(exact, (q, k, v), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours.float(), theirs, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_heads_of_any_size_are_taken(dropout_p):
    layout = moved(text_batch(LENS))["layout"]
    q = torch.randn(sum(LENS), 2, 20, device="cuda", dtype=torch.bfloat16)
    out = attention.attend(q, q, q, layout, dropout_p)
    assert out.shape == q.shape and out.isfinite().all()


def test_dropout_takes_the_jagged_kernel_and_keeps_the_mean():
    layout = moved(text_batch(LENS))["layout"]
    q = torch.zeros(sum(LENS), 2, 64, device="cuda", dtype=torch.bfloat16)
    v = torch.ones_like(q)
    outs = torch.stack([attention.attend(q, q, v, layout, dropout_p=0.5).float() for _ in range(50)])
    assert outs.std() > 0.01 and abs(outs.mean() - 1) < 0.02


def test_draws_are_the_cpu_ones():
    batch = text_batch(LENS)
    counts = slot_counts(batch, 0.15, 19, False)
    here, there = draw_slots(batch, counts, 7, False), draw_slots(moved(batch), counts, 7, False)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
    places = torch.arange(1000)
    assert torch.equal(keyed_uniform(mix(1, 2), places), keyed_uniform(mix(1, 2), places.cuda()).cpu())


def test_losses_and_gradients_in_float32_equal_the_cpu_ones():
    batch = text_batch(LENS)
    found = []
    for device in ("cpu", "cuda"):
        method = electra(dropout=0.0, attention_dropout=0.0)
        method.to(device)
        terms = method.objective(batch if device == "cpu" else moved(batch), 3, measures=True)
        counts = {name: float(count) for name, count in method.target_counts(batch).items()}
        terms.total(counts).backward()
        gradients = {n: p.grad.cpu() for n, p in method.named_parameters() if "key.bias" not in n}
        found.append(({n: t.sum.item() for n, t in terms.terms.items()}, gradients))
    (losses, gradients), (other_losses, other_gradients) = found
    for name in losses:
        assert other_losses[name] == pytest.approx(losses[name], rel=1e-4)
    for name in gradients:
        torch.testing.assert_close(other_gradients[name], gradients[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
def test_bf16_steps_on_flat_kernels_learn(attention_dropout):
    method, batch = electra(attention_dropout=attention_dropout), moved(text_batch(LENS))
    method.cuda()
    optimizer = build_optimizer("adamw", method.decay_groups(), 1e-3, 1e-6)
    losses = []
    for _ in range(60):
        set_rates(optimizer, 1.0)
        with torch.autocast("cuda", torch.bfloat16):
            terms = method.objective(batch, 3, measures=False)
        counts = {name: float(count) for name, count in method.target_counts(batch).items()}
        loss = terms.total(counts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] and all(torch.isfinite(torch.tensor(losses)))


def test_a_step_waits_for_nothing():
    """No hidden synchronisation in forward and backward: CUDA would warn, and here the warning is an error."""
    method, batch = electra(), moved(text_batch(LENS))
    method.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        method.objective(batch, 3, measures=False).total(dict.fromkeys(method.target_counts(batch), 1.0)).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            terms = method.objective(batch, 4, measures=False)
            terms.total(dict.fromkeys(method.target_counts(batch), 1.0)).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("family", FLAT)
def test_an_encoder_waits_for_nothing(family):
    encoder, batch = Encoder(config_of(family)), moved(text_batch([60, 40, 9]))
    encoder.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        encoder(batch, [0, 3])[1].sum().backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            encoder(batch, [0, 3])[1].sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
