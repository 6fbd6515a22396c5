"""The interval of a median, verdicts, and the card that shows them."""

import json
import math
import sys

import numpy as np
import pytest

from launch.benches.ratios import Goal, compared, interval
from launch.benches.report import cpu_name, machine, write
from launch.surroundings import version_of


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (20, 6), (25, 8), (100, 40)])
def test_interval_is_the_tabled_pair_of_order_statistics(count, rank):
    values = list(range(1, count + 1))
    assert interval(values[::-1]) == (rank, count + 1 - rank)
    covered = 1 - 2 * sum(math.comb(count, k) for k in range(rank)) / 2**count
    narrower = 1 - 2 * sum(math.comb(count, k) for k in range(rank + 1)) / 2**count
    assert covered >= 0.95 > narrower


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_rounds_give_their_whole_range(count):
    assert interval([float(n) for n in range(count)]) == (0.0, count - 1.0)


def test_interval_holds_the_median_as_often_as_it_says():
    draws = np.random.default_rng(0).exponential(size=(4000, 20))
    held = [low <= math.log(2) <= high for low, high in map(interval, draws.tolist())]
    assert np.mean(held) == pytest.approx(0.9586, abs=0.01)


def test_ratios_are_of_one_round_and_a_goal_is_met_where_the_interval_reaches_it():
    slow = [100.0 * 1.1**n for n in range(20)]  # the machine gets faster: only the pairs are alike
    speeds = {"ours": [speed * (2.0 + n / 100) for n, speed in enumerate(slow)], "theirs": slow}
    found = compared(Goal("ours", "theirs", 2.14), speeds, "here")
    assert found["median"] == pytest.approx(2.095)
    assert found["interval"] == pytest.approx([2.05, 2.14])
    assert compared(Goal("ours", "theirs", 2.13), speeds, "here")["met"] is True
    assert compared(Goal("ours", "theirs", 2.15), speeds, "here")["met"] is False
    assert compared(Goal("ours", "theirs"), speeds, "here")["met"] is None
    few = {name: values[:19] for name, values in speeds.items()}
    assert compared(Goal("ours", "theirs", 1.0), few, "here")["met"] is None


def test_card_holds_every_comparison(tmp_path):
    speeds = {"ours": [300.0] * 20, "theirs": [100.0] * 20}
    goals = [Goal("ours", "theirs", least) for least in (2.0, 4.0, None)]
    there = {"versions": {"torch": "2"}, "changed_files": ["a"], "commit": "c" * 40, "load": 3.0, "cpu": cpu_name()}
    turn = {"seconds": 2.0, "cpu_seconds": 3.0}
    results = {
        "bench": "toy",
        "command": "bench toy",
        "minutes": 1.0,
        "machine": {**there, "cores": 2, "time": "now", "python": "3"},
        "about": ["words"],
        "settings": [{"name": "here", "tokens_per_s": {"ours": 300.0, "theirs": 100.0}, "rounds": [{"ours": turn}]}],
        "comparisons": [compared(goal, speeds, "here") for goal in goals],
    }
    write(tmp_path, results)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    text = (tmp_path / "report.md").read_text()
    assert "| here | ours / theirs | 2 | 3 | 3 to 3 | 20 | yes |" in text
    assert "| here | ours / theirs | 4 | 3 | 3 to 3 | 20 | **no** |" in text
    assert "| here | ours / theirs | - | 3 | 3 to 3 | 20 | - |" in text
    assert "| here | - | 1.50 | 300 | 100 |" in text
    assert "commit cccccccccccc with 1 changed files" in text
    assert "Others were using it: load 3.0" in text
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_a_machine_tells_the_versions_of_the_peers_and_no_data_root(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch", "bench", "matryoshka2d", "--data.root", "/own/sets"])
    facts = machine("cpu")
    assert "/own/sets" not in json.dumps(facts)
    for name in ("sentence-transformers", "accelerate"):
        assert facts["versions"][name] == version_of(name)
