"""Losses over the whole global batch: one gradient under every strategy, on any number of ranks, cached or not."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.multiproc.checkpoint_toy import Run, output, resume, start
from tests.multiproc.pairs_toy import networks
from tests.multiproc.strategies_toy import STRATEGIES, assert_same, logged, saved, weights

long = partial(pytest.param, marks=pytest.mark.matrix)
FEW = ("ddp", "zero3")
ONE_STEP = {"max_steps": 1, "learning_rate": 1000.0}
ALL = [name if name in FEW else long(name) for name in STRATEGIES]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Finished runs by their options, each made once."""
    made, folder = {}, tmp_path_factory.mktemp("runs")

    def get(strategy: str = "single", ranks: int = 1, **options) -> Run:
        key = (strategy, ranks, *sorted(options.items()))
        if key not in made:
            run = Run(folder / f"{len(made)}", ranks, strategy=strategy, toy="pairs", width=16, **options)
            run = dataclasses.replace(run, max_steps=options.get("max_steps", 4), every_n_steps=1)
            assert start(run) == [0] * ranks, output(run)
            made[key] = run
        return made[key]

    return get


def gradients(run: Run) -> dict[str, Tensor]:
    """Read the gradient of one step off its weights; the bias of keys has none."""
    began, ended = dict(networks(run).named_parameters()), weights(run)
    found = {name: (p.detach() - ended[f"model.{name}"]) / run.learning_rate for name, p in began.items()}
    return {name: slope for name, slope in found.items() if not name.endswith("key.bias")}


def apart(ours: Run, theirs: Run) -> float:
    """Return the largest difference between two gradients, relative to the largest entry of each parameter's."""
    mine, other = gradients(ours), gradients(theirs)
    return max(((mine[name] - slope).abs().max() / slope.abs().max()).item() for name, slope in other.items())


@pytest.mark.parametrize("cached", [False, True], ids=["kept", "cached"])
@pytest.mark.parametrize("strategy", ALL)
def test_two_ranks_are_one_process(done, strategy, cached):
    """With dropout: its masks are those of the micro-batches, in both passes and on any number of ranks."""
    assert apart(done(strategy, 2, cached=cached, **ONE_STEP), done(**ONE_STEP)) < 1e-5
    assert_same(done(strategy, 2, cached=cached), done())


def test_cached_gradients_are_those_of_kept_graphs(done):
    assert apart(done(cached=True, **ONE_STEP), done(**ONE_STEP)) < 1e-5


def test_without_dropout_they_are_those_of_one_large_batch(done):
    large = done(dropout=0.0, micro_batch_size=16, **ONE_STEP)
    for cached in (False, True):
        assert apart(done(dropout=0.0, cached=cached, micro_batch_size=2, **ONE_STEP), large) < 1e-5
    assert apart(done("ddp", 2, dropout=0.0, cached=True, micro_batch_size=2, **ONE_STEP), large) < 1e-5


def test_own_rows_put_into_a_plain_gather_have_the_right_loss_and_the_wrong_gradient(done):
    wrong, right = done("ddp", 2, wrong_gather=True, **ONE_STEP), done("ddp", 2, **ONE_STEP)
    assert logged(wrong)[1]["train/pairs"] == logged(right)[1]["train/pairs"]
    assert apart(wrong, right) > 0.01


def test_masks_differ_between_micro_batches_and_are_there(done):
    assert apart(done(**ONE_STEP), done(dropout=0.0, **ONE_STEP)) > 0.01
    assert apart(done(**ONE_STEP), done(micro_batch_size=2, **ONE_STEP)) > 0.01


@pytest.mark.parametrize("cached", [False, long(True)], ids=["kept", "cached"])
@pytest.mark.parametrize("strategy", [long("ddp"), "zero2", long("zero3"), long("fsdp")])
def test_killed_and_gone_on_bit_identical(done, strategy, cached, tmp_path: Path):
    straight = done(strategy, 2, cached=cached, max_steps=6)
    run = dataclasses.replace(straight, folder=tmp_path / "run")
    assert -9 in start(dataclasses.replace(run, kill=("step", 3), kill_rank=1))
    run = dataclasses.replace(run, resume=resume(run))
    assert start(run) == [0, 0], output(run)
    assert logged(run) == logged(straight) and saved(run) == saved(straight)


@pytest.mark.parametrize(
    ("local_loss", "with_gradient", "share"), [(1, 1, 1.0), (0, 1, 1.0), (0, 0, 0.5), (1, 0, None)]
)
def test_what_two_ranks_average_by_the_way_they_gather(local_loss, with_gradient, share):
    """The four ways of open_clip, by hand: only with the gradient of the gather is it that of one process."""
    torch.manual_seed(0)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)

    def loss(rows: Tensor, everyone: Tensor, first: int) -> Tensor:
        return F.cross_entropy(rows[:, 0] @ everyone[:, 1].T, torch.arange(first, first + len(rows)))

    whole = torch.autograd.grad(loss(x, x, 0), x)[0]
    slopes = {}
    for own in (slice(0, 3), slice(3, 6)):
        leaf = x.detach().clone().requires_grad_()
        halves = [
            leaf[rows] if rows == own or with_gradient else x[rows].detach() for rows in (slice(0, 3), slice(3, 6))
        ]
        everyone = torch.cat(halves)
        value = loss(leaf[own], everyone, own.start) if local_loss else loss(everyone, everyone, 0)
        slopes[own.start] = torch.autograd.grad(value, leaf)[0]
    if with_gradient:  # the backward pass of the gather adds up over the ranks
        averaged = sum(slopes.values()) / 2
    else:
        averaged = torch.cat([slopes[start][start : start + 3] for start in (0, 3)]) / 2
    if share is None:
        assert F.cosine_similarity(averaged.flatten(), whole.flatten(), dim=0) < 0.98
    else:
        torch.testing.assert_close(averaged, share * whole)
