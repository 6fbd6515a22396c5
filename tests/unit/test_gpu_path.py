"""The way that a batch takes on a GPU, without one: which kernel, which operations, and the calls of tests/gpu.

What a CPU build cannot follow is left to tests/gpu, which names it.
"""

from types import SimpleNamespace

import pytest
import torch

from lightning_modules.core import attention
from lightning_modules.core.attention import EVERYTHING, Reach, attend, kernel_of
from lightning_modules.core.dropout import dropout
from lightning_modules.core.encoders import FLAT, Encoder
from lightning_modules.core.masking import draw_slots, slot_counts
from lightning_modules.core.optim import build_optimizer, set_rates
from lightning_modules.core.step import update
from lightning_modules.electra.module import Electra
from lightning_modules.finetune.modeling import UntrainedEncoder
from lightning_modules.finetune.module import Finetune
from lightning_modules.matryoshka2d.module import Matryoshka2d
from lightning_modules.matryoshka2d.options import UntrainedBert
from tests.devices import called, fake_cuda, like
from tests.families import config_of
from tests.text import text_batch, word_tokenizer
from tests.unit.test_matryoshka_module import examples_of, pair_batch

LENS = [14, 10, 9, 9, 3]
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
NEAR, CAUSAL, BOTH = Reach(False, 4), Reach(True), Reach(True, 4)


@pytest.mark.parametrize(
    ("device", "dtypes", "dropout_p", "reaches", "kernel"),
    [
        ("cuda", (BF16, F16), 0.0, (EVERYTHING, NEAR, CAUSAL, BOTH), "varlen"),
        ("cuda", (BF16, F16), 0.1, (EVERYTHING,), "jagged"),
        ("cuda", (BF16, F16), 0.1, (NEAR, CAUSAL, BOTH), "grouped"),  # jagged attention knows no reach
        ("cuda", (F32, F64), 0.0, (EVERYTHING, NEAR, CAUSAL, BOTH), "grouped"),
        ("cuda", (F32, F64), 0.1, (EVERYTHING, NEAR, CAUSAL, BOTH), "grouped"),
        ("cpu", (BF16, F16, F32, F64), 0.0, (EVERYTHING, NEAR, CAUSAL, BOTH), "grouped"),
        ("cpu", (BF16, F16, F32, F64), 0.1, (EVERYTHING, NEAR, CAUSAL, BOTH), "grouped"),
        ("meta", (BF16, F32), 0.0, (EVERYTHING, BOTH), "grouped"),
    ],
)
def test_the_kernel_follows_from_device_type_dropout_and_reach(device, dtypes, dropout_p, reaches, kernel):
    for dtype in dtypes:
        for reach in reaches:
            assert kernel_of(device, dtype, dropout_p, reach) == kernel


@pytest.mark.parametrize(
    ("dtype", "dropout_p", "reaches"),
    [
        (BF16, 0.0, (EVERYTHING, NEAR, CAUSAL, BOTH)),
        (F32, 0.0, (EVERYTHING, NEAR, CAUSAL, BOTH)),
        (F32, 0.1, (EVERYTHING, NEAR, CAUSAL, BOTH)),
        (BF16, 0.1, (NEAR, CAUSAL, BOTH)),  # of everything it is nested attention, which is left to tests/gpu
    ],
)
def test_attention_runs_on_fake_cuda(dtype, dropout_p, reaches):
    kernels = {"_varlen_attn", "scaled_dot_product_attention"}
    expected, layout = {"_varlen_attn"} if (dtype, dropout_p) == (BF16, 0.0) else {}, text_batch(LENS)["layout"]
    for reach in reaches:
        with fake_cuda() as names:
            q, k = (torch.empty(sum(LENS), heads, 64, device="cuda", dtype=dtype) for heads in (4, 2))
            out = attend(q, k, k, like(layout, "cuda"), dropout_p, 0.3, reach)
        assert out.is_cuda and out.shape == q.shape and out.dtype == dtype
        assert names & kernels == (expected or {"scaled_dot_product_attention"})


def test_the_window_of_varlen_is_what_grouped_attention_sees(monkeypatch):
    """A query sees `window - 1` keys before it, and as many after it unless it is causal; -1 is no limit."""
    seen = []
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda q, *_, **options: seen.append(options) or q)
    q, layout = torch.zeros(sum(LENS), 2, 8), text_batch(LENS)["layout"]
    for reach in (EVERYTHING, NEAR, CAUSAL, BOTH):
        attention.KERNELS["varlen"](q, q, q, layout, 0.0, 0.3, reach)
    assert [options["window_size"] for options in seen] == [(-1, -1), (3, 3), (-1, 0), (3, 0)]
    assert {options["scale"] for options in seen} == {0.3}


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("size", [8, 20, 33])
def test_heads_that_varlen_does_not_take_are_filled_with_zeros(size, scale, monkeypatch):
    layout, generator = text_batch(LENS)["layout"], torch.manual_seed(0)
    q, k, v = (torch.randn(sum(LENS), 2, size, generator=generator, dtype=F64) for _ in range(3))

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, **_: object) -> torch.Tensor:
        assert q.shape[-1] % 8 == 0 == k.shape[-1] % 8 == v.shape[-1] % 8
        return attention.KERNELS["grouped"](q, k, v, layout, 0.0, scale, EVERYTHING)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash)
    ours = attention.KERNELS["varlen"](q, k, v, layout, 0.0, scale, EVERYTHING)
    torch.testing.assert_close(ours, attention.KERNELS["grouped"](q, k, v, layout, 0.0, scale, EVERYTHING))


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_an_update_runs_on_fake_cuda_by_the_fused_kernel_and_reads_nothing(limit):
    module = SimpleNamespace(trainer=SimpleNamespace(strategy=None))
    with fake_cuda() as names:
        weights = [torch.nn.Parameter(torch.empty(size, 8, device="cuda")) for size in (8, 3)]
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        fused = build_optimizer("adamw", [{"params": weights, "peak_lr": 1e-3}], 1e-3, 1e-6)
        set_rates(fused, 0.5)
        wrapped = {name: getattr(fused, name) for name in ("param_groups", "step", "zero_grad")}
        norm = update(module, SimpleNamespace(optimizer=fused, **wrapped), limit)
    assert norm.is_cuda and fused.found_inf.is_cuda and fused.state[weights[0]]["exp_avg"].is_cuda
    assert "_fused_adamw_" in names and not names & {"_local_scalar_dense", "item"} and weights[0].grad is None


def test_draws_and_dropout_run_on_fake_cuda_by_the_device_alone():
    batch = text_batch(LENS)
    counts = slot_counts(batch, 0.15, 19, False)
    with fake_cuda():
        there = like(batch, "cuda")
        for replacement in (False, True):
            slots = draw_slots(there, counts, 7, replacement)
            assert all(x.is_cuda and x.shape == (sum(counts),) for x in slots)
        assert dropout(torch.empty(5, device="cuda"), 0.5).is_cuda
    assert dropout(torch.empty(5, device="meta", dtype=BF16), 0.5).is_meta


# Networks


ELECTRAS = [
    {},
    {"attention_dropout": 0.0},
    {"task": "mlm"},
    {"task": "electra_masked_only", "masking": "with_replacement"},
    {"generator": "unigram"},
    {"generator": "uniform", "disallow_correct": True},
    {"sampler": "gumbel", "disallow_correct": True, "tying": "none"},
]


def electra(**options) -> Electra:
    method = Electra(hidden_size=128, num_layers=2, num_heads=2, embedding_size=64, max_positions=64, **options)
    with torch.device("meta"):
        method.build(word_tokenizer(), 64)
    return method


def finetune(**options) -> Finetune:
    method = Finetune(untrained=UntrainedEncoder(hidden_size=128, num_layers=2), **options)
    method.assume()
    with torch.device("meta"):
        method.build(word_tokenizer(), 64)
    return method


def without_gradient(method: torch.nn.Module) -> list[str]:
    return [name for name, weight in method.named_parameters() if weight.grad is None]


@pytest.mark.parametrize("options", ELECTRAS, ids=str)
def test_electra_runs_on_fake_cuda(options):
    method, batch = electra(**{"attention_dropout": 0.0, **options}), text_batch(LENS)
    with fake_cuda() as names:
        terms = called(method, "cuda", BF16, method.objective, like(batch, "cuda"), 3, True).terms
    assert terms.keys() == method.target_counts(batch).keys() and all(term.sum.is_cuda for term in terms.values())
    assert "_varlen_attn" in names


@pytest.mark.parametrize("options", ELECTRAS, ids=str)
def test_electra_runs_forward_and_backward_on_meta(options):
    method, batch = electra(**options), text_batch(LENS)
    counts = {name: float(count) for name, count in method.target_counts(batch).items()}
    method.objective(like(batch, "meta"), 3, measures=True).total(counts).backward()
    assert not without_gradient(method)


@pytest.mark.parametrize("options", [{}, {"head": "hugging_face"}, {"task": "regression"}], ids=str)
def test_finetuning_runs_forward_and_backward_on_meta_and_forward_on_fake_cuda(options):
    method, batch = finetune(**options), text_batch(LENS)
    batch["label_B"] = torch.ones(len(LENS), dtype=F32 if options.get("task") else torch.int64)
    method.objective(like(batch, "meta"), 3, measures=True).total({f"{method.task}_loss": 5.0}).backward()
    assert not without_gradient(method)
    method.eval()  # dropout of its encoder would ask for nested attention
    with fake_cuda() as names:
        out = called(method, "cuda", BF16, method.model, like(batch, "cuda"))
    assert out.is_cuda and len(out) == len(LENS) and "_varlen_attn" in names


@pytest.mark.parametrize("mode", ["paper", "improved", "espresso", "starbucks", "sentence_transformers", "plain"])
def test_matryoshka_runs_forward_and_backward_on_meta(mode):
    method = Matryoshka2d(mode=mode, untrained=UntrainedBert(hidden_size=32, num_layers=3, num_heads=2))
    with torch.device("meta"):
        method.build(word_tokenizer(), 64)
    method._trainer = SimpleNamespace(global_step=3)
    batch = like(pair_batch(0, examples_of(6, 3)), "meta")
    vectors_BX = method.embed(batch).vectors_PX
    terms = method.compare(vectors_BX, method.known(batch), slice(0, 6), None)
    terms.total(dict.fromkeys(terms.terms, 6.0)).backward()
    assert vectors_BX.is_meta and not without_gradient(method)


@pytest.mark.parametrize("family", FLAT)  # the others pad by places that are true, which are values
def test_a_flat_encoder_reads_no_value_forward_and_backward(family):
    """On meta there is none to read: on a GPU nothing waits for the device."""
    with torch.device("meta"):
        encoder = Encoder(config_of(family))
    batch = text_batch(LENS)
    sum(hidden.sum() for hidden in encoder(like(batch, "meta"), range(4))).backward()
    assert not without_gradient(encoder)
    encoder.eval()
    with fake_cuda() as names:
        hidden = called(encoder, "cuda", BF16, like(batch, "cuda"), [3])[0]
    assert hidden.is_cuda and hidden.shape == (sum(LENS), 32) and "_varlen_attn" in names
