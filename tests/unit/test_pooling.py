import pytest
import torch

from datamodules.core.batches import flat_layout
from lightning_modules.core.pooling import POOLERS, pool

LENS = [9, 7, 7, 4, 2, 1]


def hidden(width: int = 6, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(sum(LENS), width).to(dtype)


def one_by_one(hidden_TD: torch.Tensor, how: str) -> torch.Tensor:
    vectors = []
    for tokens in hidden_TD.split(LENS):
        rank = torch.arange(1, len(tokens) + 1, dtype=tokens.dtype)[:, None]
        vectors.append(
            {
                "cls": tokens[0],
                "last": tokens[-1],
                "mean": tokens.mean(0),
                "weighted_mean": (tokens * rank).sum(0) / rank.sum(),
                "max": tokens.amax(0),
                "mean_sqrt_len": tokens.sum(0) / len(tokens) ** 0.5,
            }[how]
        )
    return torch.stack(vectors)


@pytest.mark.parametrize("how", POOLERS)
def test_every_pooler_and_its_gradient_are_those_of_single_sequences(how):
    ours, naive = (hidden().requires_grad_() for _ in range(2))
    weights = torch.randn(len(LENS), 6, dtype=torch.float64)
    found, expected = pool(ours, flat_layout(LENS), how), one_by_one(naive, how)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, naive.grad, atol=1e-14, rtol=0)


@pytest.mark.parametrize("how", POOLERS)
def test_a_vector_does_not_depend_on_its_neighbours(how):
    tokens = hidden(dtype=torch.float32)
    whole = pool(tokens, flat_layout(LENS), how)
    for row, own in enumerate(tokens.split(LENS)):
        assert torch.equal(whole[row], pool(own, flat_layout([LENS[row]]), how)[0])


def test_weights_of_the_weighted_mean_are_one_two_three():
    tokens = torch.eye(3)
    assert torch.allclose(pool(tokens, flat_layout([3]), "weighted_mean"), torch.tensor([[1.0, 2.0, 3.0]]) / 6)


@pytest.mark.parametrize("how", POOLERS)
def test_half_precision_is_pooled_in_float32(how):
    tokens = hidden(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(tokens, flat_layout(LENS), how)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pool(tokens.float(), flat_layout(LENS), how), atol=0, rtol=0)


def test_an_unknown_pooler_is_refused():
    with pytest.raises(ValueError, match="pooling = middle: must be one of cls, mean"):
        pool(hidden(), flat_layout(LENS), "middle")


def test_several_stand_side_by_side():
    tokens = hidden()
    found = pool(tokens, flat_layout(LENS), ("max", "cls"))
    assert torch.equal(found, torch.cat([pool(tokens, flat_layout(LENS), how) for how in ("max", "cls")], 1))


@pytest.mark.parametrize("how", POOLERS)
def test_tokens_of_a_prompt_are_left_out_and_still_number_the_places(how):
    lens, tokens = [9, 7, 4], hidden()[:20]
    expected = []
    for own in tokens.split(lens):
        rank = torch.arange(1, len(own) + 1, dtype=own.dtype)[3:, None]
        if how == "weighted_mean":
            expected.append((own[3:] * rank).sum(0) / rank.sum())
        else:
            expected.append(pool(own[3:], flat_layout([len(own) - 3]), how)[0])
    found = pool(tokens, flat_layout(lens), how, skip=3)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-14, rtol=0)
    with pytest.raises(ValueError, match="a text has no token beside the 4 of its prompt"):
        pool(tokens, flat_layout(lens), how, skip=4)
