"""bf16 under every strategy: near the losses of float32, masters in float32, and exact when started again."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.multiproc.checkpoint_toy import Run, output, resume, start
from tests.multiproc.strategies_toy import STRATEGIES, logged, saved, weights

long = partial(pytest.param, marks=pytest.mark.matrix)
CASES = [
    *(long(name, "bf16-mixed") for name in STRATEGIES if name != "zero2"),
    long("zero2", "bf16-mixed"),
    long("zero1", "bf16-true"),
    ("zero3", "bf16-true"),
    long("zero2", "bf16-true"),
    long("zero3_offload", "bf16-true"),
]


def finished(run: Run) -> Run:
    assert start(run) == [0] * run.world_size, output(run)
    return run


def losses(run: Run) -> list[float]:
    return [float.fromhex(values["train/loss"]) for _, values in sorted(logged(run).items())]


@pytest.mark.parametrize(("strategy", "precision"), CASES)
def test_half_precision(strategy, precision, tmp_path: Path):
    wide = finished(Run(tmp_path / "wide", strategy="single", width=24))
    straight = finished(Run(tmp_path / "straight", 2, strategy=strategy, width=24, precision=precision))
    assert losses(straight) == pytest.approx(losses(wide), rel=0.02)
    assert losses(straight) != pytest.approx(losses(wide), rel=1e-4), "the precision was in force"

    run = Run(tmp_path / "run", 2, strategy=strategy, width=24, precision=precision)
    assert start(dataclasses.replace(run, kill=("step", 9), kill_rank=1))[1] == -9, output(run)
    run = finished(dataclasses.replace(run, resume=resume(run)))
    assert run.resume is not None and logged(run) == logged(straight) and saved(run) == saved(straight)

    trained = {name: weight for name, weight in weights(run).items() if "frozen" not in name and weight.dim()}
    finer = [name for name, weight in trained.items() if not torch.equal(weight, weight.bfloat16().to(weight.dtype))]
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert {name for name in finer if name.endswith("weight")} >= {"model.embed.weight", "model.layers.0.weight"}


@pytest.mark.matrix
@pytest.mark.parametrize(("first", "second"), [("zero3", "ddp"), ("ddp", "zero2")])
def test_a_run_moves_between_half_and_single_precision(first, second, tmp_path: Path):
    precision = {name: "bf16-true" if name.startswith("zero") else "32-true" for name in (first, second)}
    wide = finished(Run(tmp_path / "wide", strategy="single", width=24))
    run = Run(tmp_path / "run", 2, strategy=first, width=24, precision=precision[first])
    assert start(dataclasses.replace(run, kill=("step", 9)))[0] == -9, output(run)
    found = resume(run)
    assert found is not None
    finished(dataclasses.replace(run, resume=found, strategy=second, precision=precision[second]))
    assert losses(run) == pytest.approx(losses(wide), rel=0.02)
