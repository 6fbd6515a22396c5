"""Against transformers' own ELECTRA: logits, losses, every gradient, sizes, round trip."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoTokenizer, ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from lightning_modules.core.keyed import mix
from lightning_modules.electra.modeling import ElectraPair, generator_config, step_flops
from lightning_modules.electra.module import Electra
from tests.text import pad, text_batch, word_tokenizer

LENS = [64, 41, 33, 33, 12, 7, 3, 1]


def module(**options) -> Electra:
    torch.manual_seed(0)
    settings = {"hidden_size": 64, "num_layers": 2, "embedding_size": 32, "max_positions": 64, "num_heads": 2}
    built = Electra(**{**settings, "generator_width": 0.5, **options})
    built.build(word_tokenizer(), 64)
    return built


def peers(ours: Electra) -> tuple[ElectraForPreTraining, ElectraForMaskedLM]:
    """Build transformers' two models with our weights, tied as transformers ties them, in padded form."""
    pair = ours.model
    discriminator = ElectraForPreTraining(ElectraConfig(**pair.discriminator.network.config.to_dict()))
    generator = ElectraForMaskedLM(ElectraConfig(**pair.generator.network.config.to_dict()))
    assert discriminator.config._attn_implementation == "sdpa"
    discriminator.load_state_dict(pair.discriminator.network.state_dict())
    generator.load_state_dict(pair.generator.network.state_dict())
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.tie_weights()
    return discriminator.eval(), generator.eval()


def padded(batch: dict, ids_T: torch.Tensor) -> dict:
    return {
        "input_ids": pad(batch, ids_T),
        "token_type_ids": pad(batch, batch["type_T"]),
        "attention_mask": pad(batch, torch.ones_like(ids_T)),
    }


@pytest.mark.parametrize("embedding_size", [32, 64])
def test_logits_equal_transformers(embedding_size):
    ours, batch = module(embedding_size=embedding_size).eval(), text_batch(LENS)
    assert hasattr(ours.model.discriminator.network.electra, "embeddings_project") == (embedding_size != 64)
    discriminator, generator = peers(ours)
    place = torch.nonzero(~batch["special_T"])[:, 0]
    inputs = padded(batch, batch["ids_T"])
    where = (batch["sequence_T"], batch["position_T"])
    with torch.no_grad():
        scores = ours.model.discriminator(batch["ids_T"], batch)
        logits = ours.model.generator(batch["ids_T"], batch, place)
        torch.testing.assert_close(scores, discriminator(**inputs).logits[where], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits, generator(**inputs).logits[where][place], atol=1e-5, rtol=0)


def test_losses_and_every_gradient_equal_transformers():
    ours, batch = module(dropout=0.0, attention_dropout=0.0), text_batch(LENS[:-1])
    discriminator, generator = peers(ours)
    key = mix(0, 0)
    counts = ours.target_counts(batch)
    terms = ours.objective(batch, key, measures=False)
    total = terms.total({name: float(count) for name, count in counts.items()})
    total.backward()

    slots, masked = ours.draw(batch, key)
    found = ours.corrupt(batch, key)
    labels = torch.full_like(batch["ids_T"], -100)
    labels[slots.place_M] = batch["ids_T"][slots.place_M]
    mlm = generator(**padded(batch, masked), labels=pad(batch, labels, -100)).loss
    rtd = discriminator(**padded(batch, found.ids_T), labels=pad(batch, found.replaced_T.long())).loss
    torch.testing.assert_close(terms.terms["generator_loss"].sum / counts["generator_loss"], mlm)
    torch.testing.assert_close(terms.terms["discriminator_loss"].sum / counts["discriminator_loss"], rtd)
    (mlm + 50.0 * rtd).backward()
    for mine, theirs in (
        (ours.model.discriminator.network, discriminator),
        (ours.model.generator.network, generator),
    ):
        for (name, p), (_, q) in zip(mine.named_parameters(), theirs.named_parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_of_both_terms_meet_in_the_embeddings_alone():
    batch = text_batch([40, 30, 12])

    def gradients(*names: str) -> dict[str, torch.Tensor]:
        ours = module(dropout=0.0, attention_dropout=0.0)
        terms = ours.objective(batch, 5, measures=False)
        kept = {name: term for name, term in terms.terms.items() if name in names}
        terms._replace(terms=kept).total(dict.fromkeys(kept, 10.0)).backward()
        return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in ours.model.named_parameters()}

    both = gradients("generator_loss", "discriminator_loss")
    one, other = gradients("generator_loss"), gradients("discriminator_loss")
    shared = [name for name in both if ".embeddings." in name]
    assert len(shared) == 5 and all(one[n].abs().sum() > 0 and other[n].abs().sum() > 0 for n in shared)
    for name, gradient in both.items():
        if name in shared:
            torch.testing.assert_close(gradient, one[name] + other[name])
        else:
            source = one if name.startswith("generator") else other
            assert torch.equal(gradient, source[name])


def test_sizes_equal_the_published_ones():
    config = ElectraConfig()  # transformers' default is the small discriminator
    pair = ElectraPair(config, generator_config(config, 0.25, 1.0), "embeddings")
    discriminator, generator = pair.discriminator.network, pair.generator.network
    assert sum(p.numel() for p in discriminator.parameters()) == 13_549_057
    assert sum(p.numel() for p in generator.parameters()) == 4_620_026
    shared = sum(p.numel() for p in discriminator.electra.embeddings.parameters())
    assert sum(p.numel() for p in pair.parameters()) == 13_549_057 + 4_620_026 - shared


@pytest.mark.parametrize(
    ("hidden", "heads", "layers", "fraction", "expected"),
    [(256, 4, 12, 0.25, (64, 1, 256)), (768, 12, 12, 1 / 3, (256, 4, 1024)), (1024, 16, 24, 0.25, (256, 4, 1024))],
)
def test_generator_fractions_of_the_paper(hidden, heads, layers, fraction, expected):
    config = ElectraConfig(
        hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=4 * hidden
    )
    small = generator_config(config, fraction, 1.0)
    assert (small.hidden_size, small.num_attention_heads, small.intermediate_size) == expected
    assert small.num_hidden_layers == layers and small.embedding_size == config.embedding_size


def test_everything_that_is_shared_is_one_object_also_after_a_resize():
    pair = module().model
    for size in (None, 130, 90):
        if size:
            pair.resize_vocabulary(size)
        ours, theirs = pair.generator.network, pair.discriminator.network
        assert ours.electra.embeddings is theirs.electra.embeddings
        assert ours.generator_lm_head.weight is theirs.electra.embeddings.word_embeddings.weight
        assert ours.generator_lm_head.bias.shape == (size or 100,) and ours.config.vocab_size == (size or 100)
        batch = text_batch([9, 6], vocab_size=80)
        assert pair.generator(batch["ids_T"], batch, torch.tensor([1, 2])).shape == (2, size or 100)


def test_tying_all_and_none():
    whole = module(tying="all", generator_width=1.0).model
    assert whole.generator.network.electra is whole.discriminator.network.electra
    apart = module(tying="none").model
    ours, theirs = apart.generator.network.electra.embeddings, apart.discriminator.network.electra.embeddings
    assert not {id(p) for p in ours.parameters()} & {id(p) for p in theirs.parameters()}
    assert ours.word_embeddings.weight.shape == (100, 32) and apart.generator.network.config.hidden_size == 32
    head = apart.generator.network.generator_lm_head.weight
    assert head is ours.word_embeddings.weight


def test_every_weight_is_initialised_as_released():
    pair = module(hidden_size=256, embedding_size=128, num_heads=4).model
    for network in (pair.discriminator.network, pair.generator.network):
        for name, p in network.named_parameters():
            if name.endswith("bias"):
                assert (p == 0).all(), name
            elif "LayerNorm" in name:
                assert (p == 1).all(), name
            elif "embeddings_project" in name or "dense_prediction" in name:
                bound = (6 / sum(p.shape)) ** 0.5
                assert 0.9 * bound < p.abs().max() <= bound and abs(p.std() / (bound / 3**0.5) - 1) < 0.1, name
            else:
                assert p.abs().max() <= 0.04 and abs(p.std() - 0.0176) < 1e-3, name
    assert all(m.eps == 1e-12 for m in pair.modules() if isinstance(m, torch.nn.LayerNorm))


def test_corruption_of_a_sequence_depends_neither_on_its_company_nor_on_the_process():
    ours = module().eval()
    together = text_batch([40, 20, 9], first_sample=100)
    found = ours.corrupt(together, 11)
    start = 0
    for index, length in enumerate([40, 20, 9]):
        alone = text_batch([length], first_sample=100 + index)
        for name in ("ids_T", "type_T", "special_T"):
            alone[name] = together[name][start : start + length]
        alone["maskable"] = [together["maskable"][index]]
        torch.manual_seed(index)
        assert torch.equal(ours.corrupt(alone, 11).ids_T, found.ids_T[start : start + length])
        start += length


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({}, {"generator_loss": 14, "discriminator_loss": 92}),
        ({"task": "electra_masked_only"}, {"generator_loss": 14, "discriminator_loss": 14}),
        ({"generator": "uniform"}, {"discriminator_loss": 92}),
        ({"task": "mlm"}, {"mlm_loss": 14}),
        ({"masking": "with_replacement", "sampler": "gumbel"}, {"generator_loss": 14, "discriminator_loss": 92}),
    ],
)
def test_counts_known_before_the_forward_pass_are_those_of_the_terms(options, terms):
    ours, batch = module(**options), text_batch([50, 30, 12])
    assert ours.target_counts(batch) == terms
    found = ours.objective(batch, 3, measures=True)
    assert {name: term.count for name, term in found.terms.items()} == terms
    metrics = ours.summarise(found.statistics)
    assert all(0 <= value <= 1 for value in metrics.values())
    found.total(dict.fromkeys(terms, 1.0)).backward()
    assert all(p.grad is not None for p in ours.parameters())


@pytest.mark.parametrize("options", [{}, {"sampler": "gumbel", "masking": "with_replacement"}])
def test_an_evaluation_draws_the_same_whatever_happened_before(options):
    ours, batch = module(**options).eval(), text_batch([50, 30])
    first = ours.corrupt(batch, 4)
    torch.manual_seed(9)
    again = ours.corrupt(batch, 4)
    assert torch.equal(first.ids_T, again.ids_T) and torch.equal(first.sampled_M, again.sampled_M)


def test_uniform_generator_draws_every_token_alike():
    ours = module(generator="uniform")
    drawn = torch.cat([ours.corrupt(text_batch([60] * 50), key).sampled_M for key in range(40)])
    counts = torch.bincount(drawn, minlength=100).double()
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 149  # 99 degrees of freedom, p = .001


def test_bf16_losses_are_close_and_in_float32():
    ours, batch = module(dropout=0.0, attention_dropout=0.0).eval(), text_batch([50, 30])
    exact = ours.objective(batch, 1, measures=False).terms
    with torch.autocast("cpu", torch.bfloat16):
        rough = ours.objective(batch, 1, measures=False).terms
    for name, term in rough.items():
        assert term.sum.dtype == torch.float32
        assert abs(term.sum / exact[name].sum - 1) < 0.05


def test_flops_count_what_the_profiler_counts():
    ours, batch = module(dropout=0.0, attention_dropout=0.0), text_batch([32] * 8)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        ours.objective(batch, 1, measures=False).total({"generator_loss": 1.0, "discriminator_loss": 1.0}).backward()
    assert ours.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert ours.flops(batch) == step_flops(ours.model, batch["lens"], sum(ours.slot_counts(batch)))


def test_export_reads_back_with_transformers_and_can_be_fine_tuned(tmp_path):
    ours, tokenizer, batch = module().eval(), word_tokenizer(), text_batch([20, 20])
    ours.export(tmp_path, tokenizer)
    encoder = AutoModel.from_pretrained(tmp_path / "discriminator")
    assert AutoTokenizer.from_pretrained(tmp_path / "discriminator").mask_token_id == 4
    inputs = padded(batch, batch["ids_T"])
    with torch.no_grad():
        scores = ours.model.discriminator(batch["ids_T"], batch)
        again = ElectraForPreTraining.from_pretrained(tmp_path / "discriminator")(**inputs).logits.flatten()
        torch.testing.assert_close(scores, again, atol=1e-5, rtol=0)
        logits = ours.model.generator(batch["ids_T"], batch, torch.arange(40))
        generator = ElectraForMaskedLM.from_pretrained(tmp_path / "generator")
        torch.testing.assert_close(logits, generator(**inputs).logits.flatten(0, 1), atol=1e-5, rtol=0)
    head, labels = torch.nn.Linear(64, 2), torch.tensor([0, 1])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(head(encoder(**inputs).last_hidden_state[:, 0]), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] and torch.isfinite(parameters_to_vector(encoder.parameters())).all()
