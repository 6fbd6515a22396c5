"""Layers that are run twice or compiled: found once each, the same results, less kept."""

import pytest
import torch
from torch import nn

from launch.config.errors import ConfigError
from launch.trainer import Trainer
from lightning_modules.core.blocks import BlockOptions, blocks, prepare_blocks
from lightning_modules.core.keyed import mix, seed_generators
from tests.text import text_batch, word_tokenizer
from tests.unit.test_step import LENS, small


def built(recompute: bool = False, **options):
    method = small(num_layers=3, **options)
    method.build(word_tokenizer(), 32)
    prepare_blocks(method.model, BlockOptions(recompute))
    return method


def gradients(method) -> tuple[dict, int]:
    """Return the gradients of one micro-batch, and how many elements were kept for the backward pass."""
    batch, kept = text_batch(LENS), {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        seed_generators(0, 0, batch["position"])
        loss = method.objective(batch, mix(0, 0), measures=False).total(method.target_counts(batch))
    loss.backward()
    return {name: p.grad for name, p in method.named_parameters()}, sum(kept.values())


def test_layers_are_found_once():
    method = built()
    found = list(blocks(method.model))
    networks = (method.model.discriminator.network, method.model.generator.network)
    assert found == [layer for network in networks for layer in network.electra.encoder.layer]
    shared = built(tying="all", generator_width=1.0)
    assert list(blocks(shared.model)) == list(shared.model.discriminator.network.electra.encoder.layer)
    nested = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)])])
    assert list(blocks(nn.Sequential(nested))) == [nested[0]], "the outermost list counts"


def test_layers_that_run_twice_give_the_same_gradients_and_keep_less():
    plain, twice = built(), built(recompute=True)
    twice.load_state_dict(plain.state_dict())
    (expected, much), (found, little) = gradients(plain), gradients(twice)
    assert found.keys() == expected.keys(), "names stay"
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items()), "dropout included"
    assert little < much / 2


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no nn\.ModuleList"):
        prepare_blocks(nn.Linear(2, 2), BlockOptions(recompute=True))
    prepare_blocks(nn.Linear(2, 2), BlockOptions())


def test_compilation_needs_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"trainer\.compile_layers = true: .* install g\+\+, or name one"):
        Trainer(accelerator="cpu", compile_layers=True, logger=False)
    assert Trainer(accelerator="cpu", activation_checkpointing=True, logger=False).block_options == BlockOptions(True)
