"""Every strategy: the mathematics of one process, also when numbers go wrong; `test_matrix` stops and moves them."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch

from lightning_modules.core.checkpoint.verify import read_manifest
from lightning_modules.core.divergence import read_dump
from tests.multiproc.checkpoint_toy import Run, output, resume, start
from tests.multiproc.strategies_toy import STRATEGIES, assert_same, logged, saved, weights

long = partial(pytest.param, marks=pytest.mark.matrix)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Undisturbed runs by strategy, number of ranks and other options, each made once."""
    made, folder = {}, tmp_path_factory.mktemp("straight")

    def get(strategy: str, ranks: int, **options) -> Run:
        key = (strategy, ranks, *sorted(options.items()))
        if key not in made:
            made[key] = finished(Run(folder / str(len(made)), ranks, strategy=strategy, width=24, **options))
        return made[key]

    return get


def finished(run: Run) -> Run:
    assert start(run) == [0] * run.world_size, output(run)
    return run


def killed(run: Run, point: str, after: int, rank: int) -> Run:
    """Kill one rank, and with it the run; return how it goes on."""
    kill = (point, after)
    codes = start(dataclasses.replace(run, kill=kill, kill_rank=rank))
    assert codes[rank] == -9, output(run)
    return dataclasses.replace(run, resume=resume(run))


@pytest.mark.parametrize("ranks", [long(1), 2, long(4)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_one_process(straight, strategy, ranks):
    assert_same(straight(strategy, ranks), straight("single", 1))


@pytest.mark.parametrize("strategy", ["fsdp", *map(long, [name for name in STRATEGIES if name != "fsdp"])])
def test_as_one_process_without_dropout(straight, strategy):
    plain = {"dropout": 0.0, "max_steps": 20}
    # after 20 steps at a learning rate of .5 rounding has grown to some 1e-6
    assert_same(straight(strategy, 2, **plain), straight("single", 1, **plain), losses=1e-5)
    one, other = (logged(straight("single", 1, **options))[1]["train/loss"] for options in (plain, {}))
    assert one != other, "dropout is on in the other runs"


@pytest.mark.parametrize("layers", [(True, False), (False, True), (True, True)], ids=["twice", "compiled", "both"])
@pytest.mark.parametrize("strategy", [*map(long, STRATEGIES)])
def test_layers_run_twice_or_compiled(straight, strategy, layers, tmp_path: Path):
    run = finished(Run(tmp_path / "run", 2, strategy=strategy, width=24, layers=layers))
    assert_same(run, straight("single", 1))
    if layers == (True, False):  # the very same operations
        assert saved(run) == saved(straight(strategy, 2))


EVERYWHERE, LAST_OF_EACH, SECOND_RANK = (0, 1, 2, 3), (1, 3), (2, 3)  # micro-batches; each of two ranks has two


@pytest.mark.parametrize(
    ("strategy", "left_out", "failing"),
    [
        ("zero3", EVERYWHERE, [0, 1]),
        *(long(name, EVERYWHERE, [0, 1]) for name in STRATEGIES if name != "zero3"),
        ("ddp", LAST_OF_EACH, [0, 1]),
        long("ddp", (3,), [1]),
        *(long(name, SECOND_RANK, [1]) for name in ("ddp", "zero1", "zero2")),
    ],
)
def test_a_parameter_without_gradient_is_named(strategy, left_out, failing, tmp_path: Path):
    """At the first such step, which nothing is saved of, and on the ranks where it happens."""
    run = Run(tmp_path / "run", 2, strategy=strategy, width=24, without_branch=(8, left_out))
    assert start(run) == [1, 1]
    last = " in the last micro-batch" if left_out in (LAST_OF_EACH, (3,)) else ""
    message = f"RuntimeError: 2 trainable parameters got no gradient{last}: model.branch.weight, model.branch.bias; "
    told = [message in (run.folder / f"out_{rank}.txt").read_text() for rank in (0, 1)]
    assert told == [rank in failing for rank in (0, 1)], output(run)
    assert resume(run).name == "step_00000004"


def manifest(run: Run) -> dict:
    return read_manifest(resume(run))


@pytest.mark.parametrize("strategy", ["zero3", *map(long, [name for name in STRATEGIES if name != "zero3"])])
@pytest.mark.parametrize(("policy", "left_out"), [("skip", [7]), ("rollback", [5, 6, 7])])
def test_a_gradient_that_is_not_finite_on_one_rank(strategy, policy, left_out, tmp_path: Path):
    options = {"width": 24, "poison": (7, float("nan")), "divergence": {"policy": policy}}
    alone = finished(Run(tmp_path / "alone", strategy="single", **options))
    run = Run(tmp_path / "run", 2, strategy=strategy, **options)
    stopped = killed(run, "step", 7 if policy == "rollback" else 9, 1)
    finished(stopped)
    assert manifest(alone)["skipped_steps"] == manifest(run)["skipped_steps"] == left_out
    at_end, expected = weights(run), weights(alone)
    for name, weight in expected.items():
        torch.testing.assert_close(at_end[name], weight, rtol=1e-5, atol=1e-5)
    straight = finished(Run(tmp_path / "straight", 2, strategy=strategy, **options))
    assert logged(straight) == logged(run) and saved(straight) == saved(run)


@pytest.mark.parametrize("strategy", ["zero2", *map(long, [name for name in STRATEGIES if name != "zero2"])])
def test_a_gradient_that_is_not_finite_ends_the_run_on_all_ranks(strategy, tmp_path: Path):
    run = Run(tmp_path / "run", 2, strategy=strategy, width=24, poison=(7, float("nan")))
    assert start(run) == [1, 1]
    assert output(run).count("Diverged: step 7: the gradient is not finite") == 2
    kept = sorted(path.name for path in (run.folder / "diverged" / "step_00000007").iterdir())
    assert kept == ["rank_00000.pt", "rank_00001.pt"] and resume(run).name == "step_00000004"


@pytest.mark.parametrize("strategy", ["fsdp", *map(long, ["single", *(name for name in STRATEGIES if name != "fsdp")])])
def test_a_loss_that_jumps_is_rolled_back(strategy, tmp_path: Path):
    options = {"width": 24, "max_steps": 32, "poison": (26, 1e4)}
    divergence = {"policy": "rollback", "spike_factor": 10.0}
    run = Run(tmp_path / "run", 1 if strategy == "single" else 2, strategy=strategy, divergence=divergence, **options)
    finished(run)
    assert "step 26: the loss jumped to" in output(run)
    assert manifest(run)["skipped_steps"] == [25, 26, 27], "back to step 24, found after step 27"


def jumping(folder: Path, policy: str, every_n_steps: int) -> Run:
    divergence = {"policy": policy, "spike_factor": 10.0}
    options = {"width": 24, "max_steps": 32, "poison": (26, 1e4), "every_n_steps": every_n_steps}
    return Run(folder / "run", 2, strategy="ddp", divergence=divergence, **options)


def test_a_loss_that_jumps_is_taken_back_by_skip_too(tmp_path: Path):
    """Its update has been made when it is found, so that it cannot be skipped as a gradient is."""
    run = finished(jumping(tmp_path, "skip", 4))
    assert "step 26: the loss jumped to" in output(run) and "the weights of step_00000024" in output(run)
    assert manifest(run)["skipped_steps"] == [25, 26, 27]


def test_a_loss_that_jumps_ends_the_run(tmp_path: Path):
    """Again from what was saved before it was found: a run that goes on knows the loss, but not what it was of."""
    run = jumping(tmp_path, "stop", 1)
    for times in (1, 2):
        assert start(run) == [1, 1] and resume(run).name == "step_00000027"
        assert output(run).count("Diverged: step 26: the loss jumped to") == 2 * times
        for rank in range(2):
            kept = read_dump(run.folder / "diverged" / "step_00000026" / f"rank_{rank:05d}.pt")
            assert [batch["number"] for batch in kept] == [2 * rank, 2 * rank + 1]
        run = dataclasses.replace(run, resume=resume(run))
