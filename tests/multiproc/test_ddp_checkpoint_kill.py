"""Runs that are killed anywhere end as if they had not been."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tests.multiproc.checkpoint_toy import KeepBest, Run, output, result, resume, start, step_folder

SINGLE = ["begun", "write", "shard", "trainer", "manifest", "synced", "renamed", "published", "end", "step"]
RANK_1 = ["write", "shard", "marker", "step"]
VISIBLE = ("renamed", "published", "end")  # the step exists from here on


def go_on(run: Run, **changes: object) -> Run:
    return dataclasses.replace(run, resume=resume(run), kill=None, **changes)


def finish(run: Run) -> dict[str, object]:
    assert start(run) == [0] * run.world_size, output(run)
    return result(run)


def only_whole(run: Run) -> None:
    assert all(path.name.startswith("step_") for path in run.checkpoints.iterdir()), list(run.checkpoints.iterdir())


@pytest.mark.parametrize(
    ("world_size", "points"),
    [
        (1, [(0, point) for point in SINGLE]),
        (2, [(0, point) for point in SINGLE] + [(1, point) for point in RANK_1]),
        (4, [(3, "shard"), (0, "manifest"), (2, "step")]),
    ],
)
def test_killed_everywhere_in_turn(tmp_path: Path, world_size: int, points: list[tuple[int, str]]) -> None:
    every, width = (4, 6) if world_size < 4 else (2, 24)
    max_steps = every * (2 * len(points) + 2)  # an attempt adds one or two saves
    options = {"world_size": world_size, "max_steps": max_steps, "every_n_steps": every, "width": width}
    undisturbed = finish(Run(tmp_path / "undisturbed", **options))
    run, saved = Run(tmp_path / "killed", **options), 0
    for rank, point in points:
        # in the second save of each attempt, or in the step after the next
        kill = (point, 1) if point != "step" else (point, saved + 2 * every + 1)
        codes = start(dataclasses.replace(go_on(run), kill=kill, kill_rank=rank))
        assert codes[rank] == -9, (rank, point, saved, codes)
        expected = {saved + 2 * every} if point in VISIBLE else {saved + every}
        if point in ("marker", "step"):  # the thread, or the other ranks, may be faster or slower than the death
            expected = {saved + every, saved + 2 * every}
        folder = resume(run)
        assert folder is not None and int(folder.name[5:]) in expected, (rank, point, folder)
        saved = int(folder.name[5:])
    assert finish(go_on(run)) == undisturbed
    only_whole(run)


def test_four_ranks_need_the_bucket_order(tmp_path: Path) -> None:
    """Two ranks cannot show it: a sum of two numbers has one order."""
    ends = []
    for fixed in (True, False):
        options = {"world_size": 4, "max_steps": 6, "every_n_steps": 3, "width": 24, "fixed_buckets": fixed}
        undisturbed = finish(Run(tmp_path / f"undisturbed_{fixed}", **options))
        run = Run(tmp_path / f"killed_{fixed}", kill=("end", 0), **options)
        assert start(run)[0] == -9 and resume(run) == step_folder(run.checkpoints, 3)
        ends.append(finish(go_on(run)) == undisturbed)
    assert ends == [True, False]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 1)])
def test_another_number_of_ranks(tmp_path: Path, before: int, after: int) -> None:
    undisturbed = finish(Run(tmp_path / "undisturbed", world_size=before))
    run = Run(tmp_path / "moved", world_size=before, kill=("step", 9))
    assert -9 in start(run)
    moved = finish(go_on(run, world_size=after))
    assert moved["final"]["buffer seen"] == undisturbed["final"]["buffer seen"]
    assert moved["final"]["frozen.weight"] == undisturbed["final"]["frozen.weight"]
    assert moved["final"]["group 0"] == undisturbed["final"]["group 0"]
    for step, loss in undisturbed["losses"].items():
        assert float.fromhex(moved["losses"][step]) == pytest.approx(float.fromhex(loss), rel=1e-5)


def test_stop_grow_and_end_of_data(tmp_path: Path) -> None:
    undisturbed = finish(Run(tmp_path / "undisturbed"))
    stopped = Run(tmp_path / "stopped", stop_at=6)
    assert start(stopped) == [0]
    assert resume(stopped) == step_folder(stopped.checkpoints, 6)
    assert finish(go_on(stopped, stop_at=None)) == undisturbed
    short = Run(tmp_path / "short", max_steps=7)
    assert start(short) == [0]
    assert resume(short) == step_folder(short.checkpoints, 7)
    assert finish(go_on(short, max_steps=12)) == undisturbed
    starved = Run(tmp_path / "starved", batches=7)
    assert start(starved) == [0]
    assert resume(starved) == step_folder(starved.checkpoints, 7)


@pytest.mark.parametrize("world_size", [1, 2])
def test_best_and_retention_survive(tmp_path: Path, world_size: int) -> None:
    options = {"keep_last": 1, "keep_every_n_steps": 12, "keep_best": KeepBest("val/score")}
    run = Run(tmp_path / "run", world_size, max_steps=24, every_n_steps=2, checkpoint=options)
    best = run.checkpoints / "best"
    assert (
        start(dataclasses.replace(run, kill=("published", 3)))[0] == -9
    )  # step 8 exists, `best` still leads to step 4
    assert os.readlink(best) == "step_00000004" and resume(run) == step_folder(run.checkpoints, 8)
    assert start(dataclasses.replace(go_on(run), kill=("removing", 1)))[0] == -9  # in the middle of a deletion
    assert start(dataclasses.replace(go_on(run), kill=("end", 1)))[0] == -9
    assert start(go_on(run)) == [0] * world_size, output(run)
    assert os.readlink(best) == "step_00000008"
    kept = {"best", "step_00000008", "step_00000012", "step_00000024"}
    assert {path.name for path in run.checkpoints.iterdir()} == kept
    validated = dataclasses.replace(run, resume=best, task="validate")
    assert start(validated) == [0] * world_size, output(run)
    lines = [json.loads(line) for line in (run.folder / "lines.jsonl").read_text().splitlines()]
    assert any(values.get("perf/save_blocked_seconds", 0.0) > 0 for _, values in lines)
