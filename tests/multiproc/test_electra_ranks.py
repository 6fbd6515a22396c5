"""ELECTRA on one and two processes, through the command line: the same losses, and a kill leaves no trace."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.forked import train
from tests.runs import kill_at_step, launch, metrics, optimizer_state, start, weights

STEPS = 20
BASE = ["fit", "--config", "configs/electra/debug.yaml", f"--trainer.max_steps={STEPS}"]
TWO = ["--config", "configs/strategy/ddp.yaml", "--trainer.devices=2"]
NO_DROPOUT = ["--model.dropout=0", "--model.attention_dropout=0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Undisturbed runs by name, each made once."""
    made = {}
    folder = tmp_path_factory.mktemp("runs")

    def get(name: str):
        if name not in made:
            made[name], ranks = folder / name, 2 if "two" in name else 1
            train(made[name], ranks, *BASE[1:], *TWO[: 3 * (ranks - 1)], *(NO_DROPOUT if "plain" in name else []))
        return made[name]

    return get


@pytest.mark.parametrize("kind", ["dropout", pytest.param("plain", marks=pytest.mark.matrix)])
def test_two_processes_have_the_losses_of_one(runs, kind):
    one, two = metrics(runs(f"one-{kind}")), metrics(runs(f"two-{kind}"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, STEPS + 1))
    for ours, theirs in zip(one, two, strict=True):
        for name in ("train/loss", "train/generator_loss", "train/discriminator_loss", "opt/grad_norm", "opt/lr"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5), (name, ours["step"])
        for name in ("train/sampled_accuracy", "train/replaced_fraction"):  # the drawn tokens are the same ones
            assert theirs[name] == ours[name], (name, ours["step"])


def test_dropout_is_on_in_one_of_them(runs):
    losses = [[line["train/loss"] for line in metrics(runs(name))] for name in ("one-dropout", "one-plain")]
    assert losses[0] != losses[1]


def test_validation_leaves_the_training_as_it_is(runs, tmp_path):
    launch(*BASE, "--callbacks.validation=null", f"--run.dir={tmp_path / 'run'}")
    validated, silent = weights(runs("one-dropout")), weights(tmp_path / "run")
    assert all(torch.equal(validated[name], silent[name]) for name in validated)


@pytest.mark.parametrize("ranks", [pytest.param("one", marks=pytest.mark.matrix), "two"])
def test_a_killed_run_goes_on_bit_for_bit(runs, ranks, tmp_path):
    words = [*BASE, *(TWO if ranks == "two" else []), f"--run.dir={tmp_path / 'run'}"]
    kill_at_step(start(*words), tmp_path / "run", 8, saved=6)
    output = launch(*words)
    assert "going on after step 6" in output
    straight = runs(f"{ranks}-dropout")
    assert metrics(tmp_path / "run") == metrics(straight)
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, STEPS + 1)), "no step twice"
    assert [event.step for event in board.Scalars("val/auc")] == [4, 8, 12, 16, 20]
    ours, theirs = optimizer_state(tmp_path / "run"), optimizer_state(straight)
    assert ours.keys() == theirs.keys() and len(ours) > 100
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
