"""Real runs whose numbers go wrong: exit code 3, and batches that are kept, with which the step can be made again."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from datamodules.core.wordpiece import load
from launch.config.resolved import resolve
from launch.export import build
from lightning_modules.core.base import TRAIN
from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.checkpoint.verify import complete_steps, newest_complete, step_folder
from lightning_modules.core.divergence import read_dump
from lightning_modules.core.keyed import mix, seed_generators
from lightning_modules.core.warm_start import load_weights
from tests.runs import launch, metrics

long = partial(pytest.param, marks=pytest.mark.matrix)
EACH_STEP = ["--callbacks.checkpoint.every_n_steps=1", "--callbacks.checkpoint.keep_last=4"]


def words(run: Path, strategy: str, ranks: int, *more: str) -> list[str]:
    files = ["configs/electra/debug.yaml", f"configs/strategy/{strategy}.yaml"]
    given = [word for file in files for word in ("--config", file)]
    options = [f"--trainer.devices={ranks}", "--trainer.max_steps=60", "--callbacks.validation=null"]
    return ["fit", *given, *options, f"--run.dir={run}", *more]


def outcome(run: Path) -> tuple[int, int, str]:
    found = json.loads((run / "outcome.json").read_text())
    return found["code"], found["step"], found["reason"]


def kept(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run / "diverged")) for path in (run / "diverged").rglob("*.pt"))


def again(run: Path, step: int) -> tuple[float, float]:
    """Make a step again from what the run left: its loss, and the norm of its gradient."""
    resolved = resolve(["--config", str(run / "config.yaml")])
    method, seed = build(resolved, run, load(run / "tokenizer", {}), {}), resolved.get("seed")
    load_weights(method, read_weights(step_folder(run / "checkpoints", step - 1)), "the step before")
    files = sorted((run / "diverged" / f"step_{step:08d}").iterdir())
    batches = [batch for file in files for batch in read_dump(file)]
    found = [method.target_counts(batch) for batch in batches]
    counts = {name: float(max(1, sum(each[name] for each in found))) for name in found[0]}
    loss = 0.0
    for batch in batches:
        seed_generators(seed, TRAIN, batch["position"])
        share = method.objective(batch, mix(seed, TRAIN), False).total(counts)
        share.backward()
        loss += share.item()
    return loss, nn.utils.clip_grad_norm_(method.parameters(), math.inf).item()


def test_a_gradient_of_the_second_rank_that_is_no_number_ends_both_with_3(tmp_path: Path) -> None:
    """It is found in the save of that very step, which is therefore not made."""
    run, own = tmp_path / "run", tmp_path / "own.yaml"
    own.write_text("callbacks:\n  poison: {class: tests.cli.toy.Poison, step: 6}\n")
    told = launch(*words(run, "ddp", 2, "--config", str(own)), code=3)
    for start, samples in (("error:", [40, 41, 42, 43]), ("rank 1: error:", [44, 45, 46, 47])):
        assert f"\n{start} step 6: the gradient is not finite; samples {samples} on rank" in told
    assert "Traceback" not in told
    code, step, reason = outcome(run)
    assert (code, step) == (3, 6) and reason.startswith("diverged: step 6: the gradient is not finite; samples [40, 41")
    assert kept(run) == ["step_00000006/rank_00000.pt", "step_00000006/rank_00001.pt"]
    assert newest_complete(run / "checkpoints").name == "step_00000003"
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.matrix
def test_the_batches_that_were_kept_make_the_gradient_again(tmp_path: Path) -> None:
    """A learning rate that throws the weights out of their range; the checkpoint before the step holds them."""
    launch(*words(tmp_path, "zero3", 2, *EACH_STEP, "--model.learning_rate=1e18"), code=3)
    code, step, reason = outcome(tmp_path)
    assert code == 3 and reason.startswith(f"diverged: step {step}: the gradient is not finite")
    assert complete_steps(tmp_path / "checkpoints")[-1] == step - 1
    assert kept(tmp_path) == [f"step_{step:08d}/rank_{rank:05d}.pt" for rank in range(2)]
    assert not math.isfinite(again(tmp_path, step)[1])


@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), long("fsdp", 2)])
def test_the_batches_that_were_kept_make_the_loss_again(strategy: str, ranks: int, tmp_path: Path) -> None:
    """A limit that an ordinary loss passes. Other weights, other masks of dropout or other texts would show in it."""
    limit = ["--model.learning_rate=2e-6", "--callbacks.divergence.spike_factor=0.6"]
    told = launch(*words(tmp_path, strategy, ranks, *EACH_STEP, *limit), code=3)
    (dump,) = (tmp_path / "diverged").iterdir()
    step = int(dump.name.removeprefix("step_"))
    assert f"error: step {step}: the loss jumped to" in told and outcome(tmp_path)[0] == 3
    line = next(line for line in metrics(tmp_path) if line["step"] == step)
    loss, norm = again(tmp_path, step)
    assert loss == pytest.approx(line["train/loss"], rel=1e-6)
    assert norm == pytest.approx(line["opt/grad_norm"], rel=1e-6)
