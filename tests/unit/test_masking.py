import pytest
import torch

from lightning_modules.core.masking import draw_slots, slot_counts
from tests.text import text_batch


def many(length: int, count: int) -> dict:
    return text_batch([length] * count, seed=1)


def test_counts_round_half_to_even_and_are_clamped():
    batch = text_batch([110, 70, 30, 29, 4, 3])
    # .15 n = 16.5, 10.5, 4.5, 4.35, .6, .45
    assert slot_counts(batch, 0.15, 19, replacement=True) == [16, 10, 4, 4, 1, 1]
    assert slot_counts(batch, 0.15, 12, replacement=True) == [12, 10, 4, 4, 1, 1]
    assert slot_counts(text_batch([6, 3]), 1.0, 100, replacement=False) == [4, 1]
    assert slot_counts(text_batch([3, 2]), 0.15, 19, replacement=True) == [1, 0]  # [CLS] [SEP] has nothing to draw


@pytest.mark.parametrize("replacement", [False, True])
def test_no_special_token_is_drawn_and_counts_hold(replacement):
    batch = text_batch([128, 90, 64, 33, 12, 7, 4, 3])
    counts = slot_counts(batch, 0.15, 19, replacement)
    for key in range(50):
        slots = draw_slots(batch, counts, key, replacement)
        assert not batch["special_T"][slots.place_M].any()
        drawn = torch.bincount(batch["sequence_T"][slots.place_M], minlength=8)
        assert drawn.tolist() == counts
        assert (slots.place_M.diff() >= 0).all()
        assert slots.place_M.unique().numel() == slots.place_M.numel() or replacement
        assert torch.equal(slots.sample_M, batch["sample_B"][batch["sequence_T"][slots.place_M]])
        assert slots.rank_M[0] == 0 and slots.rank_M.max() == max(counts) - 1


def test_every_token_is_drawn_alike():
    batch, draws = many(42, 1), 4000
    counts = torch.zeros(42)
    for key in range(draws):
        counts[draw_slots(batch, [6], key, replacement=False).place_M] += 1
    free = ~batch["special_T"]
    expected = draws * 6 / int(free.sum())
    chi_square = ((counts[free] - expected) ** 2 / expected).sum()
    assert counts[~free].sum() == 0 and chi_square < 75  # 38 degrees of freedom


def test_effective_rates_with_replacement_match_the_released_code():
    # measured on the released code: 13.8 % distinct at L=128, 14.0 % at 512, 22.1 % at p=.25; 7.1 % hit twice or more
    for length, fraction, rate in ((128, 0.15, 0.138), (512, 0.15, 0.140), (512, 0.25, 0.221)):
        batch = many(length, 200)
        counts = slot_counts(batch, fraction, int((fraction + 0.005) * length), replacement=True)
        places = draw_slots(batch, counts, 5, replacement=True).place_M
        assert abs(places.unique().numel() / (200 * length) - rate) < 0.0015
    batch = many(128, 500)
    places = draw_slots(batch, [19] * 500, 1, replacement=True).place_M
    hits = torch.bincount(places)
    assert abs((hits > 1).sum() / (hits > 0).sum() - 0.071) < 0.01


def test_a_sequence_draws_the_same_in_any_company():
    lens = [40, 30, 20]
    together = text_batch(lens)
    slots = draw_slots(together, slot_counts(together, 0.15, 19, False), 9, False)
    start = 0
    for index, length in enumerate(lens):
        alone = text_batch([length], first_sample=index)
        alone["special_T"] = together["special_T"][start : start + length]
        single = draw_slots(alone, slot_counts(alone, 0.15, 19, False), 9, False)
        ours = slots.place_M[together["sequence_T"][slots.place_M] == index] - start
        assert torch.equal(single.place_M, ours)
        start += length
