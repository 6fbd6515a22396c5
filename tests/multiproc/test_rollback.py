"""A jump of the loss is found two steps later: what was saved in between is no way back, and a kill changes nothing."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest

from lightning_modules.core.checkpoint.verify import complete_steps, read_manifest
from tests.multiproc.checkpoint_toy import KeepBest, Run, output, resume, start
from tests.multiproc.strategies_toy import logged, saved

JUMP = {"max_steps": 32, "width": 24, "poison": (24, 1e4), "divergence": {"policy": "rollback", "spike_factor": 10.0}}
long = partial(pytest.param, marks=pytest.mark.matrix)


@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [("single", 1), *(long(name, 2) for name in ("ddp", "zero2", "zero3", "fsdp")), long("ddp", 4)],
)
def test_back_to_before_the_jump_and_killed_around_it(strategy: str, ranks: int, tmp_path: Path) -> None:
    straight = Run(tmp_path / "straight", ranks, strategy=strategy, **JUMP)
    assert start(straight) == [0] * ranks, output(straight)
    assert "step 24: the loss jumped to" in output(straight) and "the weights of step_00000020" in output(straight)
    assert read_manifest(resume(straight))["skipped_steps"] == [21, 22, 23, 24, 25]
    assert complete_steps(straight.checkpoints) == [4, 8, 12, 16, 20, 28, 32], "that of step 24 holds the jump"
    for step in (25, 27):  # saved and not yet found; rolled back and not yet saved
        run = Run(tmp_path / str(step), ranks, strategy=strategy, **JUMP)
        assert start(dataclasses.replace(run, kill=("step", step), kill_rank=ranks - 1))[-1] == -9, output(run)
        run = dataclasses.replace(run, resume=resume(run))
        assert start(run) == [0] * ranks, output(run)
        assert logged(run) == logged(straight) and saved(run) == saved(straight)


def test_a_best_step_that_was_set_aside_is_best_no_longer(tmp_path: Path) -> None:
    checkpoint = {"keep_last": 3, "keep_best": KeepBest("val/score")}
    run = Run(tmp_path / "run", strategy="single", checkpoint=checkpoint, best_at=24.0, **JUMP)
    assert start(run) == [0], output(run)
    assert "the weights of step_00000020" in output(run)
    assert (run.checkpoints / "best").resolve().name == "step_00000028"
