"""Every option of ELECTRA reaches what it names; what to expect is worked out by hand."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from datamodules.core.batches import TextBatch
from lightning_modules.core.keyed import keyed_uniform, mix
from lightning_modules.electra.module import Corrupted, Electra
from tests.text import text_batch, word_tokenizer
from tests.unit.test_step import Steps, small, train

SURE = 40.0  # a token this many nats below another is never drawn
STILL = {"dropout": 0.0, "attention_dropout": 0.0}


def tiny(sequence_length: int = 64, **options) -> Electra:
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "embedding_size": 16, "max_positions": 64}
    built = Electra(**{**settings, "generator_width": 0.5, **STILL, **options})
    built.build(word_tokenizer(), sequence_length)
    return built


def says(method: Electra, shares: dict[int, float]) -> Electra:
    """Let a generator give these probabilities, whatever it reads: nothing but its output bias is left."""
    logits_V = torch.full((100,), -SURE)
    for token, share in shares.items():
        logits_V[token] = math.log(share)
    if method.generator == "unigram":
        method.frequencies_V = logits_V
    elif method.generator == "trained":
        network = method.model.network if method.task == "mlm" else method.model.generator.network
        for p in network.generator_predictions.LayerNorm.parameters():
            torch.nn.init.zeros_(p)
        network.generator_lm_head.bias.data.copy_(logits_V)
    return method


def sevens(lens: list[int]) -> TextBatch:
    """Build a batch in which every other ordinary token is 7."""
    batch = text_batch(lens)
    batch["ids_T"][torch.nonzero(~batch["special_T"])[::2, 0]] = 7
    return batch


@torch.no_grad()
def corrupted(method: Electra, batch: TextBatch) -> list[Corrupted]:
    return [method.corrupt(batch, key) for key in range(10)]


# What is drawn and masked


@pytest.mark.parametrize(
    ("sequence_length", "fraction", "slots"),
    # N = floor((p + .005) L); p L = 9.6, 5.55, 5.85, 16 and .6: rounding alone would draw 10, 6, 6, 16 and 1
    [(64, 0.15, 9), (37, 0.15, 5), (39, 0.15, 6), (64, 0.25, 16), (4, 0.15, 1)],
)
@pytest.mark.parametrize("task", ["electra", "mlm"])
def test_mask_fraction_and_the_bound_of_the_slots(task, sequence_length, fraction, slots):
    ours, batch = tiny(sequence_length, task=task, mask_fraction=fraction), text_batch([sequence_length])
    assert len(ours.draw(batch, 0)[0].place_M) == slots
    assert ours.target_counts(batch)["mlm_loss" if task == "mlm" else "generator_loss"] == slots


def test_masking_draws_places_anew_or_once():
    batch = text_batch([64] * 40)
    for masking, repeats in (("with_replacement", True), ("without_replacement", False)):
        ours = tiny(masking=masking)
        hits = torch.bincount(ours.draw(batch, 0)[0].place_M)
        assert hits.sum() == 360 and (hits.max() > 1) == repeats
        found = says(ours, {10: 0.5, 20: 0.5}).corrupt(batch, 0)
        means = {10, 15, 20} if repeats else {10, 20}  # 15 is the mean of a place that was drawn 10 and 20
        assert set(found.ids_T[found.slots.place_M].tolist()) == means
    few = text_batch([10])  # [CLS] and two [SEP] leave 7
    assert sum(tiny(mask_fraction=0.9, masking="without_replacement").slot_counts(few)) == 7
    assert sum(tiny(mask_fraction=0.9, masking="with_replacement").slot_counts(few)) == 9


@pytest.mark.parametrize("share", [0.5, 0.85, 1.0])
def test_mask_share_of_the_drawn_tokens_is_masked_and_the_rest_stays(share):
    ours, batch = tiny(mask_share=share), text_batch([64] * 40)
    masked = 0
    for key in range(10):
        slots, ids_T = ours.draw(batch, key)
        is_mask_T = ids_T == 4
        assert torch.equal(ids_T[~is_mask_T], batch["ids_T"][~is_mask_T])
        assert is_mask_T[slots.place_M].sum() == is_mask_T.sum()
        masked += is_mask_T.sum().item()
    assert masked / 3600 == pytest.approx(share, abs=0.025 if share < 1 else 0.0)


# What is sampled


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("generator", ["trained", "unigram"])
@pytest.mark.parametrize("sampler", ["inverse_cdf", "gumbel"])
def test_samples_have_the_temperature(sampler, generator, temperature):
    ours = says(tiny(sampler=sampler, generator=generator, temperature=temperature), {10: 0.6, 20: 0.3, 30: 0.1})
    sampled = torch.cat([found.sampled_M for found in corrupted(ours, text_batch([64] * 40))])
    flat = np.array([0.6, 0.3, 0.1]) ** (1 / temperature)
    shares = torch.bincount(sampled, minlength=100)[[10, 20, 30]] / 3600
    assert shares.sum() == 1
    np.testing.assert_allclose(shares, flat / flat.sum(), atol=0.035)


@pytest.mark.parametrize("sampler", ["inverse_cdf", "gumbel"])
def test_sampler_spends_its_own_uniforms(sampler):
    shares = {10: 0.6, 20: 0.3, 30: 0.1}
    found = says(tiny(sampler=sampler), shares).corrupt(text_batch([64] * 40), 5)
    sample_M, rank_M, stream = found.slots.sample_M, found.slots.rank_M, mix(5, 2)
    if sampler == "inverse_cdf":
        uniform_M = keyed_uniform(stream, sample_M, rank_M).numpy()
        expected = np.select([uniform_M < 0.6, uniform_M < 0.9], [10, 20], 30)
    else:
        tokens = torch.tensor(list(shares))
        uniform = keyed_uniform(stream, sample_M[:, None], rank_M[:, None], tokens).numpy().astype(np.float64)
        noisy = np.log(list(shares.values())) - np.log(-np.log(uniform + 1e-9) + 1e-9)
        expected = tokens.numpy()[noisy.argmax(1)]
    assert found.sampled_M.tolist() == expected.tolist()


@pytest.mark.parametrize("generator", ["trained", "unigram", "uniform"])
@pytest.mark.parametrize("sampler", ["inverse_cdf", "gumbel"])
def test_disallow_correct_reaches_every_generator(sampler, generator):
    batch = sevens([64] * 40)
    for disallow in (False, True):
        ours = tiny(sampler=sampler, generator=generator, disallow_correct=disallow)
        for found in corrupted(says(ours, {7: 0.99, 8: 0.01}), batch):
            right_M = found.sampled_M == batch["ids_T"][found.slots.place_M]
            assert right_M.any() != disallow
            assert generator == "uniform" or set(found.sampled_M.tolist()) == {7, 8}


# What is learned


def cross_entropy(scores: np.ndarray, labels: np.ndarray) -> float:
    return np.logaddexp(0.0, np.where(labels, -scores, scores)).mean()


@pytest.mark.parametrize("weights", [(1.0, 50.0), (3.0, 0.5), (0.25, 0.0)])
@pytest.mark.parametrize("task", ["electra", "electra_masked_only"])
def test_labels_losses_and_weights(task, weights):
    ours = tiny(task=task, mask_fraction=0.5, generator_weight=weights[0], discriminator_weight=weights[1])
    ours, batch = says(ours, {7: 1.0}), sevens([40, 30, 20])
    found = ours.corrupt(batch, 3)
    drawn_T = np.isin(np.arange(90), found.slots.place_M)
    changed_T = drawn_T & (batch["ids_T"].numpy() != 7)  # where a 7 was drawn, the sample is the original
    assert found.ids_T.tolist() == np.where(drawn_T, 7, batch["ids_T"]).tolist()
    assert found.replaced_T.tolist() == changed_T.tolist()
    assert 0 < changed_T.sum() < drawn_T.sum() < 90

    scores_T = ours.model.discriminator(found.ids_T, batch).detach().double().numpy()
    where_T = drawn_T if task == "electra_masked_only" else np.ones(90, bool)
    detection = cross_entropy(scores_T[where_T], changed_T[where_T])
    prediction = SURE * changed_T.sum() / drawn_T.sum()  # a 7 costs nothing, anything else -log of e^-40
    terms = ours.objective(batch, 3, measures=False)
    total = terms.total(ours.target_counts(batch)).item()
    assert total == pytest.approx(weights[0] * prediction + weights[1] * detection, rel=1e-5)
    assert terms.terms["discriminator_loss"].sum.item() / where_T.sum() == pytest.approx(detection, rel=1e-5)


def test_masked_language_model_learns_the_drawn_tokens():
    ours, batch = says(tiny(task="mlm", mask_fraction=0.5), {7: 1.0}), sevens([40, 30, 20])
    slots, _ = ours.draw(batch, 3)
    others = (batch["ids_T"][slots.place_M] != 7).sum().item()
    terms = ours.objective(batch, 3, measures=True)
    assert terms.total(ours.target_counts(batch)).item() == pytest.approx(SURE * others / len(slots.place_M))
    assert ours.summarise(terms.statistics) == {"mlm_accuracy": pytest.approx(1 - others / len(slots.place_M))}


# How it is optimized


def updated(name: str, w: np.ndarray, g: np.ndarray, norm: float, options: dict) -> np.ndarray:
    """Make the first update of Adam by hand."""
    if options["clip_norm"]:
        g = g * min(1.0, options["clip_norm"] / norm)
    m, v = 0.1 * g, 0.001 * g**2
    if options["optimizer"] == "adamw":
        m, v = m / (1 - 0.9), v / (1 - 0.999)
    decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else options["weight_decay"]
    return w - options["learning_rate"] * (m / (np.sqrt(v) + options["adam_epsilon"]) + decay * w)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"weight_decay": 0.0},
        {"weight_decay": 0.3},
        {"adam_epsilon": 1e-6},
        {"clip_norm": 0.0},
        {"clip_norm": 0.1},
        {"learning_rate": 3e-3},
    ],
    ids=lambda changed: "_".join(changed) or "as_given",
)
@pytest.mark.parametrize("optimizer", ["adamw", "as_released"])
def test_options_of_the_optimizer(tmp_path, optimizer, changed):
    """An epsilon of .01 lets the size of a gradient matter; Adam would hide most of the clipping."""
    options = {"learning_rate": 1e-3, "weight_decay": 0.01, "adam_epsilon": 1e-2, "clip_norm": 1.0}
    options |= {"optimizer": optimizer, **changed}
    method = small(**STILL, **options)
    torch.manual_seed(0)
    method.build(word_tokenizer(), 32)
    twin = copy.deepcopy(method).double()
    batch = Steps([8], 1).batches[0][0]
    twin.objective(batch, mix(0, 0), measures=False).total(twin.target_counts(batch)).backward()
    gradients = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert norm > 1.5, "a gradient that the clipping reaches"

    train(method, [8], steps=1, folder=str(tmp_path), precision="64-true")
    before = {name: p.detach().numpy() for name, p in twin.named_parameters()}
    for name, p in method.named_parameters():
        expected = updated(name, before[name], gradients[name], norm, options)
        np.testing.assert_allclose(p.detach(), expected, rtol=0, atol=1e-5 * options["learning_rate"], err_msg=name)


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("linear", 2, [0, 1 / 2, 1, 2 / 3, 1 / 3]),
        ("multiplied", 2, [0, 4 / 5 * 1 / 2, 3 / 5, 2 / 5, 1 / 5]),
        ("cosine", 2, [0, 1 / 2, 1, 3 / 4, 1 / 4]),
        ("constant", 2, [0, 1 / 2, 1, 1, 1]),
        ("constant", 4, [0, 1 / 4, 1 / 2, 3 / 4, 1]),
    ],
)
def test_schedule_and_warm_up(tmp_path, schedule, warmup, rates):
    method = small(**STILL, schedule=schedule, warmup_steps=warmup, learning_rate=2e-3)
    train(method, [8], steps=5, folder=str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["opt/lr"] for line in lines] == pytest.approx([2e-3 * rate for rate in rates])


def test_evaluations_draw_otherwise_than_training(tmp_path):
    method = small(**STILL, warmup_steps=1, initializer_range=0.2)  # the first rate is 0: the weights stay
    method.seed = 5
    torch.manual_seed(0)
    method.build(word_tokenizer(), 32)
    twin, batch = copy.deepcopy(method), Steps([8], 1).batches[0][0]
    train(method, [8], steps=1, folder=str(tmp_path))
    assert all(torch.equal(p, q) for p, q in zip(method.parameters(), twin.parameters(), strict=True))
    method.start_evaluation()
    with torch.no_grad():
        method.evaluation_step([batch])
        training, evaluation = (
            twin.objective(batch, mix(5, stream), measures=False).total(twin.target_counts(batch)).item()
            for stream in (0, 1)
        )
    assert method.logged["train/loss"] == pytest.approx(training, rel=1e-5)
    assert method.end_evaluation("val")["val/loss"] == pytest.approx(evaluation, rel=1e-5)
    assert training != pytest.approx(evaluation, rel=1e-4)


# What is built


def test_sizes_dropouts_and_the_scale_of_new_weights():
    sizes = {"hidden_size": 48, "num_layers": 4, "num_heads": 3, "intermediate_size": 80, "embedding_size": 24}
    shares = {"dropout": 0.2, "attention_dropout": 0.3, "generator_width": 1 / 3, "generator_depth": 0.5}
    ours = tiny(**sizes, **shares, max_positions=70, initializer_range=0.05)
    for network, (width, layers, heads, inner) in (
        (ours.model.discriminator.network.electra, (48, 4, 3, 80)),
        (ours.model.generator.network.electra, (16, 2, 1, 27)),
    ):
        layer = network.encoder.layer[0]
        assert len(network.encoder.layer) == layers and layer.attention.self.num_attention_heads == heads
        assert layer.intermediate.dense.weight.shape == (inner, width)
        assert network.embeddings.position_embeddings.weight.shape == (70, 24)
        assert network.embeddings.dropout.p == 0.2 == layer.output.dropout.p
        assert layer.attention.self.dropout.p == 0.3
        assert layer.intermediate.dense.weight.std().item() == pytest.approx(0.05 * 0.88, rel=0.1)
    assert (Electra(hidden_size=128).num_heads, Electra(hidden_size=128).intermediate_size) == (2, 512)


@pytest.mark.parametrize("option", ["dropout", "attention_dropout"])
def test_dropouts_act_on_both_networks(option):
    batch, place_M = text_batch([40, 30]), torch.arange(5)
    for share in (0.0, 0.5):
        ours = tiny(initializer_range=0.2, **{option: share}).train()
        scores = [ours.model.discriminator(batch["ids_T"], batch) for _ in range(2)]
        logits = [ours.model.generator(batch["ids_T"], batch, place_M) for _ in range(2)]
        assert torch.equal(*scores) == torch.equal(*logits) == (share == 0.0)
