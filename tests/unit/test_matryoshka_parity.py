"""Against sentence-transformers' own losses, and the functions of angle-emb: losses and every parameter's gradient."""

import ast
import importlib.metadata
import importlib.util
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from datamodules.core.batches import flat_layout
from lightning_modules.core import pair_losses
from lightning_modules.core.base_loss import LossOptions
from lightning_modules.core.pair_losses import Pairs
from lightning_modules.core.pooling import pool
from lightning_modules.matryoshka2d.modes import ANGLE_AS_RELEASED, Settings, settings
from lightning_modules.matryoshka2d.objective import Draw, draw, layers_needed, objective, total
from tests.text import word_tokenizer

sentence_transformers = pytest.importorskip("sentence_transformers", reason="the parity of losses needs its peer")
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer import losses as peer
from sentence_transformers.sentence_transformer.modules import Pooling

N, D, B = 4, 32, 6
OWN = slice(0, B)
LABELS = torch.tensor([0.1, 0.9, 0.9, 0.4, 0.0, 1.0])
LENS = [[9, 4, 7, 3, 9, 5], [3, 8, 8, 6, 2, 7], [5, 5, 4, 6, 8, 3]]
Stack = dict[int, Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> "sentence_transformers.SentenceTransformer":
    """Build a small BERT without dropout, with random weights large enough for vectors that differ."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": D, "num_hidden_layers": N, "num_attention_heads": 4, "intermediate_size": 64}
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=100, max_position_embeddings=16, initializer_range=0.2, **sizes, **drops)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(folder)), Pooling(D, "mean")], device="cpu"
    )


def features(columns: int) -> list[dict[str, Tensor]]:
    made = []
    for column in range(columns):
        lens, longest = LENS[column], max(LENS[column])
        keep = (torch.arange(longest) < torch.tensor(lens)[:, None]).long()
        generator = torch.Generator().manual_seed(column)
        ids = torch.randint(5, 100, keep.shape, generator=generator) * keep
        made.append({"input_ids": ids, "attention_mask": keep, "token_type_ids": torch.zeros_like(ids)})
    return made


def stack_of(model: "sentence_transformers.SentenceTransformer", columns: int) -> Stack:
    """Encode the same texts and pool every layer, as our poolers do."""
    encoder, tables = model[0].auto_model, {n: [] for n in range(N + 1)}
    for column, inputs in enumerate(features(columns)):
        order = sorted(range(B), key=lambda row: -LENS[column][row])
        lens = [LENS[column][row] for row in order]
        states = encoder(**inputs, output_hidden_states=True).hidden_states
        for layer, hidden in enumerate(states):
            flat = torch.cat([hidden[row, : LENS[column][row]] for row in order])
            tables[layer].append(pool(flat, flat_layout(lens), "mean")[torch.tensor(order).argsort()])
    return {layer: torch.stack(found) for layer, found in tables.items()}


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in model[0].auto_model.named_parameters()
    }


def check(model: torch.nn.Module, ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-6)
    found, expected = gradients(model, ours), gradients(model, theirs)
    assert max(slope.abs().max() for slope in expected.values()) > 1e-3
    for name, slope in expected.items():
        torch.testing.assert_close(found[name], slope, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: name + text)


# Base losses

BASES: dict[str, tuple[int, Callable, Callable]] = {  # columns, theirs from a model, ours
    "info_nce": (3, peer.MultipleNegativesRankingLoss, pair_losses.info_nce),
    "info_nce_pairs": (
        2,
        partial(peer.MultipleNegativesRankingLoss, scale=7.0),
        partial(pair_losses.info_nce, scale=7.0),
    ),
    "info_nce_symmetric": (
        3,
        partial(
            peer.MultipleNegativesRankingLoss,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        ),
        partial(pair_losses.info_nce, symmetric=True),
    ),
    "symmetric_pairs": (2, peer.MultipleNegativesSymmetricRankingLoss, partial(pair_losses.info_nce, symmetric=True)),
    "cosent": (2, peer.CoSENTLoss, pair_losses.cosent),
    "angle": (2, peer.AnglELoss, pair_losses.angle_loss),
    "angle_triplets": (3, peer.AnglELoss, pair_losses.angle_loss),
    "cosine_regression": (2, peer.CosineSimilarityLoss, pair_losses.cosine_regression),
    "triplet": (3, partial(peer.TripletLoss, triplet_margin=0.5), partial(pair_losses.triplet, margin=0.5)),
    "triplet_cosine": (
        3,
        partial(peer.TripletLoss, triplet_margin=0.1, distance_metric=peer.TripletDistanceMetric.COSINE),
        partial(pair_losses.triplet, margin=0.1, distance="cosine"),
    ),
    "triplet_manhattan": (
        3,
        partial(peer.TripletLoss, distance_metric=peer.TripletDistanceMetric.MANHATTAN),
        partial(pair_losses.triplet, distance="manhattan"),
    ),
}


@pytest.mark.filterwarnings("ignore:The MultipleNegativesSymmetricRankingLoss is deprecated")
@pytest.mark.parametrize("name", BASES)
def test_base_losses_are_those_of_sentence_transformers(model, name):
    columns, theirs, ours = BASES[name]
    check(model, ours(stack_of(model, columns)[N], Pairs(OWN, LABELS)), theirs(model)(features(columns), LABELS))


# Losses over widths and layers: what the library drew is read, and given to ours


class Drawn:
    """Notes what the library samples."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.samples: list[list[int]] = []
        original = random.sample

        def sample(population: range, k: int) -> list[int]:
            self.samples.append(original(population, k))
            return self.samples[-1]

        monkeypatch.setattr(random, "sample", sample)

    def as_draw(self, dims: list[int], layers: int, widths: int) -> Draw:
        """Read the samples in the order in which the library makes them; what takes everything is not sampled."""
        left = iter(self.samples)

        def some_widths() -> tuple[int, ...]:
            return tuple(dims[i] for i in next(left)) if 0 < widths < len(dims) else tuple(dims)

        last = some_widths()
        chosen = next(left) if 0 < layers < N else range(N)
        found = Draw(last, tuple((layer, some_widths()) for layer in chosen))
        assert next(left, None) is None
        return found


def ours_of(model: torch.nn.Module, columns: int, base: Callable, drawn: Draw, chosen: Settings) -> Tensor:
    stack = stack_of(model, columns)
    needed = {layer: stack[layer] for layer in layers_needed(drawn, N)}
    return total(objective(needed, drawn, lambda table: base(table, Pairs(OWN, LABELS)), OWN, chosen))


DIMS = [32, 16, 8]


@pytest.mark.parametrize("layers", [1, 2, -1])
@pytest.mark.parametrize("weighting", ["uniform", "log", "linear"])
@pytest.mark.parametrize("temperature", [0.3, 0.0])
def test_two_dimensions_are_those_of_sentence_transformers(model, monkeypatch, layers, weighting, temperature):
    for seed, name in enumerate(("info_nce", "triplet", "cosent")):
        columns, theirs, base = BASES[name]
        options = {"kl_temperature": temperature, "last_layer_weight": 0.7, "kl_div_weight": 1.3}
        loss = peer.Matryoshka2dLoss(
            model,
            theirs(model),
            DIMS,
            n_layers_per_step=layers,
            prior_layers_weight=0.4,
            layer_weighting=weighting,
            **options,
        )
        random.seed(seed)
        with monkeypatch.context() as patch:
            sampled = Drawn(patch)
            expected = loss(features(columns), LABELS)
        drawn = sampled.as_draw(DIMS, layers, 1)
        chosen = settings(
            "sentence_transformers",
            weighting=weighting,
            kl_temperature=temperature,
            last_weight=0.7,
            student_weight=0.4,
            kl_weight=1.3 if temperature else None,  # refused where nothing would be weighed
        )
        check(model, ours_of(model, columns, base, drawn, chosen), expected)


def test_all_widths_with_weights_at_two_layers(model, monkeypatch):
    weights, (columns, theirs, base) = [0.5, 2.0, 1.0], BASES["info_nce"]
    loss = peer.Matryoshka2dLoss(model, theirs(model), DIMS, weights, n_layers_per_step=2, n_dims_per_step=-1)
    random.seed(5)
    with monkeypatch.context() as patch:
        sampled = Drawn(patch)
        expected = loss(features(columns), LABELS)
    chosen = settings("sentence_transformers", widths=DIMS, width_weights=weights)
    check(model, ours_of(model, columns, base, sampled.as_draw(DIMS, 2, -1), chosen), expected)


@pytest.mark.parametrize("layers", [1, 2, -1])
@pytest.mark.parametrize(
    ("name", "weighting", "temperature"),
    [
        ("info_nce_symmetric", "log", 0.3),
        ("angle", "uniform", 0.0),
        ("triplet", "linear", 0.3),
        ("triplet", "log", 0.0),
    ],
)
def test_layers_alone_are_those_of_sentence_transformers(model, monkeypatch, name, layers, weighting, temperature):
    columns, theirs, base = BASES[name]
    given = {"layer_weighting": weighting, "kl_temperature": temperature}
    loss = peer.AdaptiveLayerLoss(model, theirs(model), n_layers_per_step=layers, **given)
    random.seed(1)
    with monkeypatch.context() as patch:
        sampled = Drawn(patch)
        expected = loss(features(columns), LABELS)
    chosen = settings("sentence_transformers", weighting=weighting, kl_temperature=temperature, normalise=False)
    check(model, ours_of(model, columns, base, sampled.as_draw([D], layers, -1), chosen), expected)


@pytest.mark.parametrize("name", ["info_nce", "cosent", "angle", "triplet", "cosine_regression"])
def test_widths_alone_are_those_of_sentence_transformers(model, name):
    columns, theirs, base = BASES[name]
    weights = [1.0, 0.5, 2.0]
    expected = peer.MatryoshkaLoss(model, theirs(model), DIMS, weights)(features(columns), LABELS)
    chosen = settings("matryoshka_1d", widths=DIMS, width_weights=weights)
    check(model, ours_of(model, columns, base, draw(chosen, N, D, 0, 0), chosen), expected)


def test_our_draws_have_the_populations_of_the_library(model, monkeypatch):
    """Its candidates are the output of the embeddings and the layers below the last; ours are the same."""
    seen = set()
    loss = peer.Matryoshka2dLoss(model, peer.MultipleNegativesRankingLoss(model), DIMS)
    original = random.sample
    monkeypatch.setattr(random, "sample", lambda population, k: seen.add(len(population)) or original(population, k))
    loss(features(2), LABELS)
    chosen = settings("sentence_transformers", widths=DIMS)
    draws = [draw(chosen, N, D, 0, step) for step in range(200)]
    assert seen == {len({d.students[0][0] for d in draws}), len({d.widths for d in draws})} == {N, len(DIMS)}
    assert {d.students[0][0] for d in draws} == set(range(N))


# The teacher


def untouched(slopes: dict[str, Tensor]) -> set[str]:
    """Return the layers whose gradient is exactly zero in every parameter; `embeddings` is one."""
    parts = {name.removeprefix("encoder.layer.").split(".")[0] for name in slopes if not name.startswith("pooler")}
    touched = {name.removeprefix("encoder.layer.").split(".")[0] for name in slopes if (slopes[name] != 0).any()}
    assert parts == {"embeddings", *map(str, range(N))}
    return parts - touched


def test_the_divergence_alone_moves_the_last_layer_only_in_the_old_mode(model):
    last = {str(N - 1)}
    loss = peer.AdaptiveLayerLoss(
        model, peer.MultipleNegativesRankingLoss(model), -1, last_layer_weight=0.0, prior_layers_weight=0.0
    )
    assert untouched(gradients(model, loss(features(2), LABELS))) == last
    for mode, expected in (("sentence_transformers", last), ("sentence_transformers_old", set())):
        chosen = settings(mode, last_weight=0.0, student_weight=0.0)
        ours = ours_of(model, 2, pair_losses.info_nce, Draw((D,), ((N - 1, (D,)),)), chosen)
        assert untouched(gradients(model, ours)) == expected


# angle-emb: its package does not import beside our transformers, its file of losses needs torch alone


@pytest.fixture(scope="module")
def angle_emb() -> ModuleType:
    try:
        path = importlib.metadata.distribution("angle-emb").locate_file("angle_emb/loss.py")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("angle-emb is not installed: pip install --no-deps angle-emb==0.6.1")
    spec = importlib.util.spec_from_file_location("angle_emb_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def espresso_trainer(angle_emb) -> type:
    """Take what computes Espresso's loss out of the trainer's file, whose other imports fail here.

    Poolers are left out: the outputs of its layers are pooled already.
    """
    tree = ast.parse(Path(angle_emb.__file__).with_name("angle.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    wanted = {
        "AngleTrainer": ("compute_distillation_loss",),
        "AngleESETrainer": ("pca_compress", "compute_student_loss", "compute_loss"),
    }
    for name, methods in wanted.items():
        classes[name].body = [node for node in classes[name].body if getattr(node, "name", None) in methods]
    classes["AngleTrainer"].bases = []
    names = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "math": math, "Dict": dict}
    names |= {"get_pooling": lambda outputs, *_: outputs}
    exec(compile(ast.Module([classes[name] for name in wanted], []), "angle.py", "exec"), names)
    return names["AngleESETrainer"]


def sorted_svd(matrix: Tensor, q: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the q largest of an exact decomposition; the authors' has other noise at every call."""
    u, s, v = torch.linalg.svd(matrix)
    return u[:, :q], s[:q], v[:q].T


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_espresso_as_released_is_the_loss_of_its_trainer(angle_emb, espresso_trainer, monkeypatch, temperature):
    monkeypatch.setattr(torch, "svd_lowrank", sorted_svd)
    layers, k, tau = 5, 6, 20.0
    labels, draws = torch.tensor([0, 1, 1, 0, 1]), torch.Generator().manual_seed(0)
    ours = [torch.randn(2, 5, 16, generator=draws).requires_grad_() for _ in range(layers + 1)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]

    def compared(twice: Tensor, x: Tensor) -> Tensor:
        in_batch = angle_emb.in_batch_negative_loss(twice, x)
        return in_batch + 0.02 * angle_emb.angle_loss(twice, x, tau) + 0.5 * angle_emb.cosine_loss(twice, x)

    trainer = espresso_trainer()
    trainer.n_layers, trainer.ese_compression_size, trainer.apply_ese_pca = layers, k, True
    trainer.ese_kl_temperature, trainer.loss_fct, trainer.teacher_name_or_path = temperature, compared, None
    trainer.pooler = pooled([zigzag(x) for x in theirs])
    expected = trainer.compute_loss(None, {"labels": labels.repeat_interleave(2)[:, None]})

    loss = LossOptions("angle", cosine_weight=0.5)
    chosen = settings("espresso", True, widths=[k], alignment_temperature=temperature)
    base = loss.bound(Pairs(slice(0, 5), labels), None, ANGLE_AS_RELEASED["espresso"])
    found = total(objective(dict(enumerate(ours)), draw(chosen, layers, 16, 0, 0), base, slice(0, 5), chosen))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.backward()
    expected.backward()
    for layer, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        assert (own.grad is None) == (other.grad is None) == (layer == layers - 1)
        if own.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-5)


def pooled(outputs: list[Tensor]) -> Callable:
    """Return what stands in the trainer for an encoder and its pooler: the pooled outputs of all layers."""

    def pooler(*_: object, **__: object) -> list[Tensor]:
        return outputs

    pooler.pooling_strategy = pooler.padding_side = None
    return pooler


def zigzag(x: Tensor) -> Tensor:
    """Lay columns out as AnglE does: the texts of an example are neighbours."""
    return x.transpose(0, 1).reshape(-1, x.shape[-1])


def same(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor) -> None:
    a, b = (x.clone().requires_grad_() for _ in range(2))
    found, expected = ours(a), theirs(b)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.backward()
    expected.backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labels", [[0, 1, 1, 0, 1], [0.1, 0.9, 0.4, 0.9, 1.0], [2, 1, 0, 3, 1]], ids=str)
def test_losses_of_labelled_pairs_are_those_of_angle_emb(angle_emb, labels, seed):
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))
    pairs, twice = Pairs(slice(0, 5), torch.tensor(labels)), torch.tensor(labels).repeat_interleave(2)[:, None]
    same(lambda t: pair_losses.cosent(t, pairs), lambda t: angle_emb.cosine_loss(twice, zigzag(t)), x)
    for tau in (1.0, 20.0):
        same(
            lambda t, tau=tau: pair_losses.angle_loss(t, pairs, tau),
            lambda t, tau=tau: angle_emb.angle_loss(twice, zigzag(t), tau),
            x,
        )
    same(
        lambda t: pair_losses.in_batch_nce(t, pairs, integer_labels=True),
        lambda t: angle_emb.in_batch_negative_loss(twice, zigzag(t)),
        x,
    )
    same(
        lambda t: pair_losses.angle(t, pairs, 0.3, 30.0, 0.7, angle_tau=1.0, integer_labels=True),
        lambda t: (
            0.3 * angle_emb.cosine_loss(twice, zigzag(t))
            + 30 * angle_emb.in_batch_negative_loss(twice, zigzag(t))
            + 0.7 * angle_emb.angle_loss(twice, zigzag(t), 1.0)
        ),
        x,
    )


def test_losses_of_triplets_and_pairs_are_those_of_angle_emb(angle_emb):
    x, pairs = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)), Pairs(slice(0, 5))
    nce = partial(angle_emb.contrastive_with_negative_loss, tau=20.0)

    def ordered(t: Tensor) -> Tensor:
        both = torch.cat([zigzag(t[[0, 1]]), zigzag(t[[0, 2]])])
        labels = torch.cat([torch.ones(10, 1), torch.zeros(10, 1)])
        return 0.5 * angle_emb.cosine_loss(labels, both) + 0.02 * angle_emb.angle_loss(labels, both, 20.0)

    weights = {"cosine_w": 0.5, "angle_w": 0.02}
    same(
        lambda t: pair_losses.angle(t, pairs, ibn_w=30.0, **weights),
        lambda t: ordered(t) + 30 * nce(t[0], t[1], t[2]),
        x,
    )
    same(
        lambda t: pair_losses.angle(t, pairs, ibn_w=3.0, cln_w=2.0, **weights),
        lambda t: ordered(t) + (3 * nce(t[0], t[1]) + 2 * nce(t[0], t[1], t[2])) / 2,
        x,
    )
    same(lambda t: pair_losses.angle(t, pairs), lambda t: nce(t[0], t[1]), x[:2])
