"""What strategies send, and how long it takes, on numbers that can be checked by hand."""

import pytest

from launch.planning.traffic import CALLS, GATHER, REDUCE, SCATTER, Call, Network, Step, Weight, estimate

WEIGHTS = [Weight(1000, 10, 0, 0), Weight(30, 3, 1, 0), Weight(7, 7, 1, 1), Weight(50, 5, 2, None)]
FAST = Network(8, 1e9, 1e8, 0.0, 0.0)


def sent(strategy: str, ranks: int, passes: int) -> dict[str, float]:
    found = {}
    for call in CALLS[strategy](Step(WEIGHTS, ranks, passes, persistent=30)):
        found[call.operation] = found.get(call.operation, 0) + call.sent(ranks)
    return found


def test_frozen_weights_have_no_gradients():
    assert sent("ddp", 4, 8) == {REDUCE: 4 * 1037 * 2 * 3 / 4}
    assert sent("ddp", 1, 8) == {REDUCE: 0}


def test_zero_pads_groups_and_gathers_them_once():
    assert sent("zero2", 4, 8) == {REDUCE: 4 * 1037 * 2 * 3 / 4, GATHER: 4 * (1032 + 8) * 3 / 4}


def test_zero3_gathers_what_is_large_in_every_pass_and_what_is_small_once():
    assert sent("zero3", 4, 2) == {GATHER: 4 * (2 * (1000 + 52) + 32 + 8) * 3 / 4, SCATTER: 4 * 1040 * 3 / 4}


def test_fsdp_pads_rows_and_gathers_twice_a_pass():
    whole = 4 * (1200 + 40 + 8)
    assert sent("fsdp", 4, 2) == {GATHER: 4 * (whole + 4 * 80) * 3 / 4, SCATTER: whole * 3 / 4}


def test_weights_beyond_the_reuse_distance_are_gathered_for_the_backward_pass_again():
    large = [Weight(600_000_000, 1, 0, 0)]
    gather, *_ = CALLS["zero3"](Step(large, 2, 3))
    assert gather.bytes == 4 * 3 * 700_000_000


def test_the_slower_way_sets_the_pace():
    call = Call(REDUCE, 1_000_000, 1, "")
    assert FAST.seconds(call, 8) == pytest.approx(1_000_000 * 2 * 7 / 8 / 1e9)
    assert FAST.seconds(call, 16) == pytest.approx(1_000_000 * 2 * 15 / 16 / 1e8)


def test_latencies_are_those_of_trees_and_rings():
    network = Network(4, 1e99, 1e99, 1.0, 10.0)
    assert network.seconds(Call(REDUCE, 8, 3, ""), 16) == pytest.approx(3 * 2 * (2 * 1 + 2 * 10))
    assert network.seconds(Call(GATHER, 8, 3, ""), 16) == pytest.approx(3 * (11 * 1 + 4 * 10))


def test_what_hides_behind_the_passes_hides_once():
    calls = [Call(SCATTER, 1_600_000_000, 10, "last"), Call(GATHER, 1_600_000_000, 10, "")]
    found = estimate(calls, 8, 2, 3.0, FAST)
    assert found.sent == 2_800_000_000 and found.seconds == pytest.approx(2.8)
    assert found.exposed == pytest.approx(1.4 + 0.14) and found.efficiency == pytest.approx(6 / 7.54)
    slow = estimate(calls, 8, 2, 0.3, FAST)
    assert slow.exposed == pytest.approx(1.4 + 1.4 - 0.2)
    both = [Call(GATHER, 1_600_000_000, 1000, "passes"), Call(SCATTER, 1_600_000_000, 1000, "last")]
    assert estimate(both, 8, 1, 1.5, FAST).exposed == pytest.approx(2.8 - 1.5)
    assert estimate(calls, 1, 2, 3.0, FAST).efficiency == 1.0
