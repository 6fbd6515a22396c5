"""What a step holds is a function of (seed, step): not of ranks, workers or where reading began."""

import itertools

import numpy as np
import pytest
import torch

from datamodules.core.batches import TextBatch, flat_layout
from datamodules.core.errors import DataError
from datamodules.core.loader import Batching, Evaluation, FromStep, Steps, collate, loader

CLS, SEP, MASK = 2, 3, 4
IS_SPECIAL = np.isin(np.arange(100), [0, CLS, SEP, MASK])


class Sentences:
    """Examples of known lengths: [CLS] A [SEP], every third one with B [SEP]."""

    def __init__(self, count: int, longest: int = 24, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.rows, self.seconds = [], []
        for number in range(count):
            first = random.integers(5, 100, random.integers(1, longest)).tolist()
            second = random.integers(5, 100, random.integers(1, longest)).tolist() if number % 3 == 0 else []
            self.rows.append([CLS, *first, SEP, *second, *([SEP] if second else [])])
            self.seconds.append(len(first) + 2)

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, samples: np.ndarray) -> np.ndarray:
        return np.array([len(self.rows[sample]) for sample in samples])

    def gather(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([self.rows[s] for s in samples]), np.array([self.seconds[s] for s in samples])


def same(a: TextBatch, b: TextBatch) -> bool:
    """Compare two micro-batches value by value."""
    values = [(a[key], b[key]) for key in a if key != "layout"] + list(zip(a["layout"], b["layout"], strict=True))
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in values)


def positions(step: list[TextBatch]) -> list[list[int]]:
    return [sorted(batch["sample_B"].tolist()) for batch in step]


def test_collation_equals_a_slow_reading() -> None:
    examples, samples, places = Sentences(30), np.array([4, 0, 9, 2, 3]), np.array([50, 51, 52, 53, 54])
    batch = collate(examples, samples, places, IS_SPECIAL)
    rows = sorted(zip(samples, places, strict=True), key=lambda pair: (-len(examples.rows[pair[0]]), pair[1]))
    expected: dict[str, list] = {key: [] for key in ("ids_T", "position_T", "type_T", "special_T", "sequence_T")}
    for number, (sample, _) in enumerate(rows):
        for place, token in enumerate(examples.rows[sample]):
            expected["ids_T"].append(token)
            expected["position_T"].append(place)
            expected["type_T"].append(int(place >= examples.seconds[sample]))
            expected["special_T"].append(token in (CLS, SEP))
            expected["sequence_T"].append(number)
    assert {key: batch[key].tolist() for key in expected} == expected
    assert batch["ids_T"].dtype == batch["type_T"].dtype == torch.int64 and batch["special_T"].dtype == torch.bool
    assert batch["sample_B"].tolist() == [place for _, place in rows] and batch["position"] == 50
    assert batch["lens"] == [len(examples.rows[sample]) for sample, _ in rows]
    assert batch["maskable"] == [sum(t not in (CLS, SEP) for t in examples.rows[sample]) for sample, _ in rows]
    layout = flat_layout(batch["lens"])
    assert all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(batch["layout"], layout, strict=True)
    )


@pytest.mark.parametrize("grouped_steps", [0, 4])
def test_ranks_share_a_step_and_do_not_change_it(grouped_steps: int) -> None:
    examples = Sentences(101)
    whole = Steps(examples, Batching(16, 4), 3, IS_SPECIAL, grouped_steps)
    for step, world in itertools.product([0, 1, 5, 6, 13, 1000], [1, 2, 4]):
        shares = [
            Steps(examples, Batching(16, 4, rank, world), 3, IS_SPECIAL, grouped_steps)[step] for rank in range(world)
        ]
        joined = list(itertools.chain.from_iterable(shares))
        assert len(joined) == 4 and all(same(a, b) for a, b in zip(joined, whole[step], strict=True))


def test_a_step_holds_its_positions_in_order() -> None:
    steps = Steps(Sentences(50), Batching(8, 4), 0, IS_SPECIAL)
    assert positions(steps[0]) == [[0, 1, 2, 3], [4, 5, 6, 7]] and positions(steps[9]) == [
        [*range(72, 76)],
        [*range(76, 80)],
    ]
    assert steps[9][1]["position"] == 76


def test_workers_and_starting_points_do_not_matter() -> None:
    steps = Steps(Sentences(77), Batching(8, 4), 1, IS_SPECIAL, grouped_steps=3)
    taken = [list(itertools.islice(loader(steps, workers, FromStep(lambda: 0)), 12)) for workers in (0, 2)]
    later = list(itertools.islice(loader(steps, 2, FromStep(lambda: 5)), 7))
    for one, other in [*zip(*taken, strict=True), *zip(taken[0][5:], later, strict=True)]:
        assert len(one) == len(other) == 2 and all(same(a, b) for a, b in zip(one, other, strict=True))


def test_grouping_stays_in_its_window_loses_nothing_and_saves_padding() -> None:
    examples, window, batch = Sentences(400, longest=60), 8, 16
    grouped, plain = (Steps(examples, Batching(batch, 4), 2, IS_SPECIAL, steps) for steps in (window, 0))
    for start in (0, 8, 24):
        inside = [p for step in range(start, start + window) for rows in positions(grouped[step]) for p in rows]
        assert sorted(inside) == list(range(start * batch, (start + window) * batch))
    spread = [
        np.mean([b["lens"][0] - np.mean(b["lens"]) for step in range(16) for b in steps[step]])
        for steps in (grouped, plain)
    ]
    assert spread[0] < 0.2 * spread[1]
    means = [np.mean([np.mean(batch["lens"]) for batch in grouped[step]]) for step in range(window)]
    assert means != sorted(means) and means != sorted(means, reverse=True)  # micro-batches come mixed, not by length
    again = Steps(examples, Batching(batch, 4), 2, IS_SPECIAL, window)
    assert all(same(a, b) for a, b in zip(again[20], grouped[20], strict=True))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 5, 16, 33, 47])
def test_evaluation_sees_every_example_once(world: int, count: int) -> None:
    data = [Evaluation(Sentences(count), Batching(16, 4, rank, world), IS_SPECIAL) for rank in range(world)]
    assert len({len(part) for part in data}) == 1
    loaded = [batch for part in data for step in loader(part, 0) for batch in step if not batch.get("filler")]
    seen = [p for batch in loaded for p in batch["sample_B"].tolist()]
    assert sorted(seen) == list(range(count))
    alone = [batch for step in Evaluation(Sentences(count), Batching(16, 4), IS_SPECIAL) for batch in step]
    assert not any(batch.get("filler") for batch in alone)
    steps = [step for item in zip(*data, strict=True) for step in item]
    parts = [batch for step in steps for batch in step if not batch.get("filler")]
    for item in zip(*data, strict=True):
        assert len({len(step) for step in item}) == 1, "every rank makes as many passes"
    assert len(alone) == len(parts) and all(same(a, b) for a, b in zip(alone, parts, strict=True))


def test_batches_that_do_not_divide_are_refused_with_a_near_number() -> None:
    with pytest.raises(DataError, match=r"data.global_batch_size = 24: must be a multiple .* 8 x 2; take 32|take 16"):
        Batching(24, 8, 0, 2)
    with pytest.raises(DataError, match="micro_batch_size"):
        Batching(8, 0)


def test_more_examples_in_a_batch_than_there_are() -> None:
    steps = Steps(Sentences(3), Batching(8, 8), 0, IS_SPECIAL)
    assert positions(steps[0]) == [list(range(8))]
    assert len(steps[0][0]["lens"]) == 8
