"""The order is a keyed permutation per epoch: every sample once, another arrangement each time, no state."""

import numpy as np
import pytest

from datamodules.core.order import Draws, keyed_hash, permute, sample_at


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4096, 4097])
def test_permutation_is_a_bijection(n: int) -> None:
    assert sorted(permute(np.arange(n), n, 5, 0).tolist()) == list(range(n))


def test_each_epoch_holds_every_sample_once_in_another_arrangement() -> None:
    n = 997
    epochs = sample_at(np.arange(3 * n), n, seed=4).reshape(3, n)
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)
    assert not any((epochs[a] == epochs[b]).mean() > 0.02 for a, b in [(0, 1), (0, 2), (1, 2)])
    assert (sample_at(np.arange(n), n, seed=5) == epochs[0]).mean() < 0.02


def test_order_is_a_function_of_the_position_alone() -> None:
    n, positions = 333, np.array([0, 5, 332, 333, 700, 10_000, 12_345_678])
    alone = [sample_at(positions[i : i + 1], n, 9)[0] for i in range(len(positions))]
    assert sample_at(positions, n, 9).tolist() == alone
    assert sample_at(positions[::-1], n, 9)[::-1].tolist() == alone


def test_every_sample_stands_everywhere_about_equally_often() -> None:
    n, keys = 10, 3000
    places = np.stack([permute(np.arange(n), n, key) for key in range(keys)])
    counts = np.stack([(places == sample).sum(0) for sample in range(n)])
    chi_square = ((counts - keys / n) ** 2 / (keys / n)).sum()
    assert chi_square < 81 + 5 * np.sqrt(2 * 81)  # 81 degrees of freedom, five sigma
    followers = (places[:, 1:] - places[:, :-1] == 1).mean()
    assert abs(followers - 1 / n) < 0.01  # a sample follows its neighbour no more often than by chance


def test_hash_depends_on_every_part_and_its_place() -> None:
    assert len({int(keyed_hash(*parts)) for parts in [(1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2), (-1, 2)]}) == 6
    both = keyed_hash(3, np.arange(4))
    assert both.tolist() == [int(keyed_hash(3, i)) for i in range(4)]


def test_draws_are_uniform_and_repeat_by_key() -> None:
    draws = Draws(1, 2)
    values = np.array([draws.uniform() for _ in range(20_000)])
    again = Draws(1, 2)
    assert values[:5].tolist() == [again.uniform() for _ in range(5)]
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.011 and abs((values < 0.05).mean() - 0.05) < 0.008
