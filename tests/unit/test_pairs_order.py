"""The order of pairs: exact shares of a mixture, no text twice in a batch, and every example of a window once."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.core.pair_order import Mixture, Turns, quotas, separated


def repeats(keys_EC: NDArray[np.int64], num_batches: int) -> int:
    """Count examples that repeat a text of an earlier one in their batch."""
    found = 0
    for batch in np.split(keys_EC, num_batches):
        seen: set[int] = set()
        for row in batch.tolist():
            found += not seen.isdisjoint(row)
            seen.update(row)
    return found


def keys_of(num_examples: int, each: int, num_columns: int = 2, seed: int = 0) -> NDArray[np.int64]:
    """Make keys of which every one stands in so many examples."""
    draw = np.random.default_rng(seed)
    return np.stack([draw.permutation(num_examples) // each + (c << 40) for c in range(num_columns)], axis=1)


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ([2, 1, 1], [2, 1, 1]),
        ([0.7, 0.3], [7, 3]),
        ([0.125, 0.875], [1, 7]),
        ([5.0], [1]),
        ([1 / 3, 2 / 3], [1, 2]),
        ([231.4, 768.6], [231, 769]),
        ([1e9, 1, 1], [998, 1, 1]),
        ([0.0005, 0.4, 0.5995], [1, 400, 599]),
    ],
)
def test_a_block_gives_every_source_its_share(weights: list[float], turns: list[int]) -> None:
    assert quotas(weights).tolist() == turns


def test_more_sources_than_the_longest_block() -> None:
    assert quotas([1.0] * 1500).tolist() == [1] * 1500
    assert quotas([3.0] + [1.0] * 1999).sum() == 2000


def test_a_mixture_honours_its_weights_in_every_block_and_numbers_turns() -> None:
    mixture = Mixture([0.5, 0.3, 0.2], seed=3)
    found = [mixture.at(step) for step in range(200)]
    for block in range(20):
        assert Counter(source for source, _ in found[block * 10 : block * 10 + 10]) == {0: 5, 1: 3, 2: 2}
    for source in range(3):
        turns = [turn for number, turn in found if number == source]
        assert turns == list(range(len(turns)))
    assert [source for source, _ in found[:10]] != [source for source, _ in found[10:20]]
    again = Mixture([0.5, 0.3, 0.2], seed=3)
    assert [again.at(step) for step in (199, 3, 77)] == [found[199], found[3], found[77]], "any step, in any order"
    assert [Mixture([0.5, 0.3, 0.2], seed=4).at(step) for step in range(200)] != found


@pytest.mark.parametrize(
    ("num_batches", "size", "each", "num_columns"), [(8, 16, 5, 2), (8, 16, 3, 4), (64, 32, 30, 2), (64, 64, 3, 3)]
)
def test_texts_that_can_be_kept_apart_are(num_batches: int, size: int, each: int, num_columns: int) -> None:
    for seed in range(3):
        keys = keys_of(num_batches * size, each, num_columns, seed)
        order = separated(keys, num_batches)
        assert sorted(order.tolist()) == list(range(len(keys)))
        assert repeats(keys, num_batches) > 10 and repeats(keys[order], num_batches) == 0


def test_what_cannot_be_kept_apart_stays_and_is_as_little_as_possible() -> None:
    keys = keys_of(8 * 16, 40)
    order = separated(keys, 8)
    assert sorted(order.tolist()) == list(range(len(keys)))
    one_column = keys_of(8 * 16, 16, 1)
    least = 8 * 16 - 8 * 8  # eight texts, of which a batch can hold each once
    assert repeats(one_column[separated(one_column, 8)], 8) == least
    assert repeats(keys[order], 8) <= repeats(keys, 8)


def test_nothing_moves_without_need() -> None:
    keys = np.arange(64).reshape(32, 2)
    assert separated(keys, 4).tolist() == list(range(32))
    keys[:, 1] = keys[:, 0]  # a pair of equal texts is no repetition
    assert separated(keys, 4).tolist() == list(range(32))
    keys[1] = keys[0]
    moved = separated(keys, 4)
    assert (moved != np.arange(32)).sum() == 2 and repeats(keys[moved], 4) == 0


def test_turns_use_every_example_of_a_window_once_and_any_turn_can_be_asked_for() -> None:
    keys = keys_of(1000, 4)
    plain = Turns(1000, 10, 5, 0, None)
    apart = Turns(1000, 10, 5, 0, lambda samples: keys[samples])
    assert plain.num_turns == 64
    for window in (0, 1, 7):
        turns = range(window * 64, window * 64 + 64)
        both = [np.concatenate([source.batch(turn) for turn in turns]) for source in (plain, apart)]
        assert sorted(both[0].tolist()) == sorted(both[1].tolist())
        assert repeats(keys[both[0]], 64) > 0 and repeats(keys[both[1]], 64) == 0
    again = Turns(1000, 10, 5, 0, lambda samples: keys[samples])
    for turn in (300, 2, 301, 63, 64):
        assert again.batch(turn).tolist() == apart.batch(turn).tolist()
    first_epoch = np.concatenate([plain.batch(turn) for turn in range(100)])
    assert sorted(first_epoch.tolist()) == list(range(1000))


def test_sources_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(Turns(500, 50, seed, number, None).batch(0).tolist()) for seed in (0, 1) for number in (0, 1)}
    assert len(orders) == 4


def test_the_memory_of_a_window_is_bounded() -> None:
    assert [Turns(10, size, 0, 0, None).num_turns for size in (16, 4096, 1 << 20)] == [64, 32, 8]
