"""The layers of encoders of many families: read in one pass, and what is left when those above are removed."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from datamodules.core.batches import flat_layout
from lightning_modules.core.attention import Reach, attend
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoders import CAUSAL, FLAT, PADDED, Encoder, cut, final_norm
from tests.families import config_of
from tests.text import text_batch

LENS = [13, 9, 9, 4, 1]


def built(family: str) -> tuple[Encoder, dict]:
    torch.manual_seed(0)
    batch = text_batch(LENS)
    return Encoder(config_of(family)).eval(), {**batch, "ids_T": batch["ids_T"].clamp(min=5)}


def as_transformers_has_it(network: torch.nn.Module, batch: dict) -> torch.Tensor:
    config = network.config
    plain = AutoModel.from_config(config, attn_implementation="eager").eval()
    plain.load_state_dict(network.state_dict(), strict=False)
    keep = torch.arange(LENS[0]) < torch.tensor(LENS)[:, None]
    ids, types = torch.full(keep.shape, config.pad_token_id or 0), torch.zeros(keep.shape, dtype=torch.int64)
    ids[keep], types[keep] = batch["ids_T"], batch["type_T"]
    segments = {"token_type_ids": types} if config.model_type in ("bert", "electra", "ernie") else {}
    return plain(ids, attention_mask=keep.long(), **segments).last_hidden_state[keep]


@pytest.mark.parametrize("family", FLAT + PADDED)
@torch.no_grad()
def test_a_layer_is_what_the_model_returns_when_those_above_are_removed(family):
    encoder, batch = built(family)
    if family not in ("bert", "electra", "ernie"):
        batch["type_T"] = torch.zeros_like(batch["type_T"])
    read = encoder(batch, range(4))
    torch.testing.assert_close(read[3], as_transformers_has_it(encoder.network, batch), atol=2e-6, rtol=1e-5)
    assert len({tuple(hidden[0].tolist()) for hidden in read}) == 4, "layers differ"
    for layers in (1, 2, 3):
        shallow = Encoder(encoder.config)
        shallow.network = cut(encoder.network, layers)
        assert shallow.config.num_hidden_layers == layers and encoder.config.num_hidden_layers == 3
        assert torch.equal(shallow(batch, [layers])[0], read[layers])


@pytest.mark.parametrize("family", ["modernbert", "qwen3", "deberta-v2", "bert"])
@torch.no_grad()
def test_a_cut_model_is_saved_and_read_back_by_transformers(family, tmp_path):
    encoder, batch = built(family)
    shallow = cut(encoder.network, 2)
    shallow.save_pretrained(tmp_path)
    again = Encoder(AutoConfig.from_pretrained(tmp_path)).eval()
    found, info = type(again.network).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and all(name.startswith("pooler.") for name in info["missing_keys"])
    again.network.load_state_dict({name: w for name, w in found.state_dict().items() if "pooler" not in name})
    assert torch.equal(again(batch, [2])[0], encoder(batch, [2])[0])


def test_the_final_norm_is_found_only_where_it_is_outside_of_the_layers():
    found = {family: final_norm(built(family)[0].network) for family in FLAT + PADDED}
    norms = {name for name, norm in found.items() if norm}
    assert norms == {"modernbert", *CAUSAL}


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_causal_family_that_is_told_not_to_be_is_refused(family):
    config = config_of(family)
    config.is_causal = False
    with pytest.raises(CheckpointError, match=rf"the family {family} is read as causal, .* is_causal = false"):
        Encoder(config)


def test_a_family_that_cannot_be_cut_is_refused():
    with pytest.raises(CheckpointError, match=r"the family albert cannot be cut at its layers; take one of bert, "):
        Encoder(config_of("albert"))


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_a_layer_that_is_not_there_is_refused(layers):
    with pytest.raises(ValueError, match="the network has layers 1 to 3"):
        cut(built("bert")[0].network, layers)


@pytest.mark.parametrize("reach", [Reach(True), Reach(False, 3), Reach(True, 3), Reach(True, 50), Reach(False, 1)])
@pytest.mark.parametrize("lens", [[12, 12, 12], [12, 7, 7, 2]])
def test_what_is_out_of_reach_is_not_seen(reach, lens):
    torch.manual_seed(0)
    q = torch.randn(sum(lens), 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(sum(lens), 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours = attend(q, k, v, flat_layout(lens), reach=reach)
    pieces = []
    for a, b, c in zip(q.split(lens), k.split(lens), v.split(lens), strict=True):
        b, c = (x.repeat_interleave(2, 1) for x in (b, c))
        scores = torch.einsum("qhd,khd->hqk", a, b) / 8**0.5
        for i in range(len(a)):
            for j in range(len(a)):
                if (reach.causal and j > i) or (reach.window is not None and abs(i - j) >= reach.window):
                    scores[:, i, j] = float("-inf")
        pieces.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), c))
    reference = torch.cat(pieces)
    torch.testing.assert_close(ours, reference)
    weights = torch.randn_like(ours)
    for ours_grad, theirs in zip(
        torch.autograd.grad(ours, (q, k, v), weights), torch.autograd.grad(reference, (q, k, v), weights), strict=True
    ):
        torch.testing.assert_close(ours_grad, theirs)
