import pytest
import torch
from transformers import BertConfig, BertModel

from datamodules.core.batches import flat_layout
from lightning_modules.core.attention import attend
from tests.text import text_batch

LENS = [23, 20, 20, 17, 9, 9, 9, 9, 9, 3, 1]


def encoder(implementation: str) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return BertModel._from_config(config, attn_implementation=implementation, add_pooling_layer=False).eval()


def run(model: BertModel, batch: dict) -> torch.Tensor:
    return model(
        batch["ids_T"][None],
        token_type_ids=batch["type_T"][None],
        position_ids=batch["position_T"][None],
        layout=batch["layout"],
    ).last_hidden_state[0]


def test_layout_lays_sequences_end_to_end_in_groups_of_like_length():
    layout = flat_layout(LENS, tokens_per_group=4 * max(LENS))
    assert layout.cu_seqlens.tolist()[-3:] == [125, 128, 129] and layout.cu_seqlens.dtype == torch.int32
    assert [(g.start, g.stop, g.row, g.rows, g.width, g.ragged) for g in layout.groups] == [
        (0, 80, 0, 4, 23, True),
        (80, 125, 4, 5, 9, False),  # the next is shorter than .7 of its longest
        (125, 128, 9, 1, 3, False),
        (128, 129, 10, 1, 1, False),
    ]
    assert layout.padded_T[23] == 23 and layout.padded_T[43] == 2 * 23 and layout.padded_T[128] == 0
    assert [group.rows for group in flat_layout([9] * 7, tokens_per_group=30).groups] == [3, 3, 1]
    assert [group.rows for group in flat_layout([9] * 2, tokens_per_group=8).groups] == [1, 1], "one at least"


@pytest.mark.parametrize("lens", [[], [3, 4], [2, 0]])
def test_layout_refuses_lengths_out_of_order(lens):
    with pytest.raises(ValueError, match="descending"):
        flat_layout(lens)


def test_attend_equals_softmax_attention_per_sequence():
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(LENS), 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    out = attend(q, k, v, flat_layout(LENS))
    pieces = []
    for a, b, c in zip(q.split(LENS), k.split(LENS), v.split(LENS), strict=True):
        scores = torch.einsum("qhd,khd->hqk", a, b) / 8**0.5
        pieces.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), c))
    reference = torch.cat(pieces)
    torch.testing.assert_close(out, reference)
    weights = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, (q, k, v), weights, retain_graph=True),
        torch.autograd.grad(reference, (q, k, v), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_sequences_in_one_flat_batch_equal_each_alone_with_gradients():
    model, batch = encoder("flat"), text_batch([14, 9])
    together = run(model, batch)
    together.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for start, length in ((0, 14), (14, 9)):
        alone = {name: batch[name][start : start + length] for name in ("ids_T", "type_T", "position_T")}
        out = run(model, {**alone, "layout": flat_layout([length])})
        torch.testing.assert_close(out, together[start : start + length], atol=1e-6, rtol=1e-5)
        out.square().sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients[name], atol=1e-4, rtol=1e-4)


def test_flat_equals_padded_sdpa():
    batch = text_batch(LENS)
    flat = run(encoder("flat"), batch)
    mask = torch.arange(LENS[0]) < torch.tensor(LENS)[:, None]
    ids, types = (torch.zeros(len(LENS), LENS[0], dtype=torch.int64) for _ in range(2))
    ids[mask], types[mask] = batch["ids_T"], batch["type_T"]
    padded = encoder("sdpa")(ids, token_type_ids=types, attention_mask=mask.long()).last_hidden_state[mask]
    torch.testing.assert_close(flat, padded, atol=1e-5, rtol=1e-5)


def test_flat_batch_without_layout_raises():
    batch = text_batch([14, 9])
    with pytest.raises(ValueError, match="needs its layout"):
        encoder("flat")(batch["ids_T"][None], position_ids=batch["position_T"][None])


def test_attention_dropout_drops_and_keeps_the_mean():
    torch.manual_seed(0)
    q = torch.zeros(8, 1, 4)
    v = torch.ones(8, 1, 4)
    outs = torch.stack([attend(q, q, v, flat_layout([8]), dropout_p=0.5) for _ in range(400)])
    assert outs.std() > 0.1 and abs(outs.mean() - 1) < 0.05
