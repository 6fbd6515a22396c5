"""Systems take turns in their own processes, in an order that is reversed from round to round."""

import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.benches.profile import group_of, profiler, seconds_of, summary
from launch.benches.rounds import Gate, Spec, SystemFailed, alternate, running


def count_steps(gate: Gate, options: dict[str, Any]) -> None:
    for number in itertools.count():
        gate.step(tokens=number, process=os.getpid(), threads=torch.get_num_threads())
        with Path(options["journal"]).open("a") as journal:
            journal.write(f"{options['name']}{number} ")
        time.sleep(0.001)


def stop_early(gate: Gate, options: dict[str, Any]) -> None:
    gate.step(tokens=1)
    print("a last word")
    raise ValueError("the tokens ran out")


def test_turns_alternate_and_count_what_ran_in_them(tmp_path):
    journal = str(tmp_path / "journal")
    options = [{"name": name, "journal": journal} for name in "ab"]
    specs = [Spec("a", count_steps, options[0]), Spec("b", count_steps, options[1], pace=2, lead_in=0)]
    told: list[str] = []
    with running(specs, 1, "cpu", tmp_path) as systems:
        rounds = alternate(systems, rounds=3, steps=2, tell=told.append, warm_up=1)
        processes = [system.process for system in systems]
    assert Path(journal).read_text().split() == [
        *["a0", "a1", "b0", "b1"],  # warm-up: a has one step of lead-in, b a turn of twice as many steps
        *["a2", "a3", "a4", "b2", "b3", "b4", "b5"],
        *["b6", "b7", "b8", "b9", "a5", "a6", "a7"],
        *["a8", "a9", "a10", "b10", "b11", "b12", "b13"],
    ]
    assert [turns["a"].counts["tokens"] for turns in rounds] == [3 + 4, 6 + 7, 9 + 10]  # without the lead-in
    assert [turns["b"].counts["tokens"] for turns in rounds] == [14, 30, 46]
    for turn in (turn for turns in rounds for turn in turns.values()):
        assert turn.tokens_per_s == turn.counts["tokens"] / turn.seconds
        assert turn.seconds >= 0.002
    assert rounds[0]["a"].counts["threads"] == 2.0  # one in each of two steps
    assert len({rounds[0][name].counts["process"] for name in "ab"} | {os.getpid()}) == 3
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(told) == 3


def test_a_system_that_ends_is_named_with_its_last_lines(tmp_path):
    with pytest.raises(SystemFailed) as caught, running([Spec("short", stop_early, {})], 1, "cpu", tmp_path) as systems:
        alternate(systems, rounds=1, steps=1, tell=lambda _: None)
    assert "short ended before its turn did" in str(caught.value)
    assert "a last word" in str(caught.value)
    assert "ValueError: the tokens ran out" in str(caught.value)


def test_profile_finds_the_matrix_multiplications():
    layer, rows = torch.nn.Linear(300, 200), torch.rand(100, 300)
    with profiler("cpu") as found:
        torch.nn.functional.dropout(layer(rows), 0.5).softmax(-1).sum().backward()
    profile = summary(found, "float32", "cpu")
    assert sum(profile["shares"].values()) == pytest.approx(1.0)
    assert {"matrix multiplications", "random numbers", "softmax and losses"} <= set(profile["shares"])
    assert profile["matmul_seconds"] > 0
    assert group_of("aten::_fused_adamw_") == "optimizer"
    assert group_of("aten::native_layer_norm_backward") == "GELU and LayerNorm"
    assert group_of("aten::copy_") == "the rest"
    assert seconds_of((8, 16, 32), (8, 32, 4), torch.bfloat16, "cpu") > 0
