"""The peers compute the same thing: one loss from the same draws, one path of weights from the same batches."""

import pytest
import torch
from torch import Tensor
from transformers import ElectraConfig

from benchmarks.peers import bare_loop
from benchmarks.peers.electra_padded import PaddedPair, collator, gumbel, trainer
from lightning_modules.core.keyed import mix
from lightning_modules.electra.module import Electra
from tests.text import pad, text_batch, word_tokenizer
from tests.unit.test_step import Steps, small, train

LENS = [64, 41, 33, 33, 12, 7, 5, 4]
KEY = 7


def ours() -> Electra:
    torch.manual_seed(0)
    method = small(dropout=0.0, attention_dropout=0.0, max_positions=64, generator_width=0.5)
    method.build(word_tokenizer(), 64)
    return method


def plain(config: ElectraConfig) -> ElectraConfig:
    return ElectraConfig(**config.to_dict())  # without the choice of an attention


def peer(method: Electra, careful: bool, sample=gumbel) -> PaddedPair:
    pair = method.model
    configs = (plain(network.config) for network in (pair.discriminator.network, pair.generator.network))
    built = PaddedPair(*configs, careful, sample)
    built.discriminator.load_state_dict(pair.discriminator.network.state_dict())
    built.generator.load_state_dict(pair.generator.network.state_dict())
    return built


@pytest.mark.parametrize("careful", [False, True])
def test_padded_peers_have_our_loss_and_gradients(careful):
    method, batch = ours(), text_batch(LENS)
    loss = method.objective(batch, KEY, measures=False).total(method.target_counts(batch))
    loss.backward()
    found = method.corrupt(batch, KEY)
    slots, masked_T = method.draw(batch, KEY)
    labels_T = torch.full_like(masked_T, -100).index_copy(0, slots.place_M, batch["ids_T"][slots.place_M])
    seen: list[Tensor] = []

    def sample(logits: Tensor) -> Tensor:  # the slots lie in the same order: by row, then by position
        seen.append(logits)
        return found.sampled_M

    theirs = peer(method, careful, sample)
    attention_mask = pad(batch, torch.ones_like(masked_T))
    value = theirs(pad(batch, masked_T), attention_mask, pad(batch, batch["type_T"]), pad(batch, labels_T, -100))
    value.backward()
    torch.testing.assert_close(seen[0], found.logits_MV.detach(), atol=1e-5, rtol=0)
    assert value.item() == pytest.approx(loss.item(), rel=1e-5)
    networks = (
        (method.model.discriminator.network, theirs.discriminator),
        (method.model.generator.network, theirs.generator),
    )
    for mine, other in networks:
        gradients = {name: p.grad for name, p in other.named_parameters()}
        for name, p in mine.named_parameters():
            torch.testing.assert_close(gradients[name], p.grad, atol=2e-5, rtol=1e-3)


def test_bare_loop_goes_the_way_of_fit(tmp_path):
    options = {"dropout": 0.0, "attention_dropout": 0.0, "warmup_steps": 2}
    fitted, data = small(**options), Steps([4, 4], 4)
    train(fitted, [4, 4], steps=4, folder=str(tmp_path))
    torch.manual_seed(0)
    bare = small(**options)
    bare.build(data.tokenizer, data.sequence_length)
    bare.seed = mix(fitted.seed, 0)  # the loop draws with the key that `fit` mixes from seed and stream
    seen: list[int] = []
    bare_loop.train(bare, data.train_dataloader(), 4, tick=lambda tokens: seen.append(tokens))
    assert seen == [131] * 4
    for (name, mine), other in zip(fitted.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_gumbel_draws_from_the_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    counts = torch.bincount(gumbel(logits.expand(40_000, 4)), minlength=4)
    torch.testing.assert_close(counts / 40_000, logits.softmax(-1)[0], atol=0.01, rtol=0)


def test_collator_masks_as_electra_does():
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    row = {"input_ids": [2, *range(5, 95), 3], "token_type_ids": [0] * 92, "special_tokens_mask": [1, *[0] * 90, 1]}
    short = {name: values[:10] for name, values in row.items()}
    batch = collator(tokenizer)([row] * 50 + [short])
    assert batch["input_ids"].shape == (51, 92)
    assert batch["attention_mask"].sum() == 50 * 92 + 10
    drawn = batch["labels"] != -100
    original = torch.tensor(row["input_ids"])
    assert torch.equal(batch["labels"][:50][drawn[:50]], original.expand(50, -1)[drawn[:50]])
    assert not drawn[:, 0].any() and not drawn[50, 10:].any()
    assert drawn[:50, 1:-1].float().mean() == pytest.approx(0.15, abs=0.02)
    masked = batch["input_ids"][drawn] == tokenizer.mask_token_id
    assert masked.float().mean() == pytest.approx(0.85, abs=0.05)
    assert torch.equal(batch["input_ids"][:50][~drawn[:50]], original.expand(50, -1)[~drawn[:50]])


def test_trainer_takes_the_examples_in_their_order(tmp_path):
    tokenizer, method = word_tokenizer(), ours()
    lens = [9, 12, 5, 20, 7, 30]
    examples = [
        {"input_ids": [2, *[10] * (n - 2), 3], "token_type_ids": [0] * n, "special_tokens_mask": [1, *[0] * (n - 2), 1]}
        for n in lens
    ]
    built = trainer(
        peer(method, careful=True),
        examples,
        tokenizer,
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        use_cpu=True,
    )
    seen: list[int] = []
    built.tick = lambda tokens: seen.append(int(tokens))
    before = [p.detach().clone() for p in built.model.parameters()]
    built.train()
    assert seen == [21, 25, 37]
    assert built.args.optim == "adamw_torch_fused"
    assert built.state.log_history[-1]["train_loss"] > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, built.model.parameters(), strict=True))
