"""ELECTRA under every strategy on two processes, through the command line: the mathematics of one process.

All of it takes long: `strategies_toy` tries the strategies in seconds, `test_stop_ranks` kills these runs.
"""

import json

import pytest
import torch

from tests.forked import train
from tests.runs import kill_at_step, launch, metrics, start, weights

matrix, slow = pytest.mark.matrix, pytest.mark.slow
STEPS = 20
STRATEGIES = ["ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp"]
BASE = ["fit", "--config", "configs/electra/debug.yaml", f"--trainer.max_steps={STEPS}"]
CROSSINGS = [
    ("zero3", 2, "ddp", 2),
    ("ddp", 2, "zero3", 2),
    ("zero1", 2, "fsdp", 2),
    ("single", 1, "zero3", 2),
    ("fsdp", 2, "zero2", 1),
]


def words(strategy: str, ranks: int) -> list[str]:
    return [*BASE, "--config", f"configs/strategy/{strategy}.yaml", f"--trainer.devices={ranks}"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Undisturbed runs by strategy, number of ranks and other words, each made once."""
    made, folder = {}, tmp_path_factory.mktemp("runs")

    def get(strategy: str, ranks: int, *more: str):
        key = (strategy, ranks, *more)
        if key not in made:
            made[key] = folder / str(len(made))
            train(made[key], ranks, *words(strategy, ranks)[1:], *more)
        return made[key]

    return get


def assert_same_training(ours, theirs, tolerance: float) -> None:
    """Compare every logged loss and norm, the drawn tokens, and the weights at the end.

    The bias of attention's keys is left out: its true gradient is zero, so what it gets is rounding alone.
    """
    mine, other = metrics(ours), metrics(theirs)
    assert [line["step"] for line in mine] == [line["step"] for line in other] == list(range(1, STEPS + 1))
    for line, expected in zip(mine, other, strict=True):
        for name, value in expected.items():
            assert line[name] == pytest.approx(value, rel=tolerance, abs=1e-12), (name, line["step"])
    at_end, expected = weights(ours), weights(theirs)
    assert at_end.keys() == expected.keys()
    for name, weight in expected.items():
        if "key.bias" not in name:
            torch.testing.assert_close(at_end[name], weight, rtol=tolerance, atol=tolerance)


@matrix
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_as_one(runs, strategy):
    assert_same_training(runs(strategy, 2), runs("single", 1), 1e-5)
    facts = json.loads((runs(strategy, 2) / "run.json").read_text())
    stage = facts.get("deepspeed", {}).get("zero_optimization", {}).get("stage")
    assert stage == (int(strategy[4]) if strategy.startswith("zero") else None)


@matrix
def test_two_processes_train_as_one_without_dropout(runs):
    plain = ("--model.dropout=0", "--model.attention_dropout=0", "--callbacks.validation=null")
    ours, theirs = runs("fsdp", 2, *plain), runs("single", 1, *plain)
    assert_same_training(ours, theirs, 1e-5)
    assert metrics(theirs)[0]["train/loss"] != metrics(runs("single", 1))[0]["train/loss"]


LAYERS = ["--trainer.activation_checkpointing", "--trainer.compile_layers"]


@slow
@pytest.mark.parametrize("strategy", ["single", "zero3", "fsdp"])
def test_layers_that_run_twice_and_are_compiled(runs, strategy, tmp_path):
    ranks = 1 if strategy == "single" else 2
    straight, run = tmp_path / "straight", tmp_path / "run"
    launch(*words(strategy, ranks), *LAYERS, f"--run.dir={straight}")
    assert_same_training(straight, runs("single", 1), 1e-5)
    kill_at_step(start(*words(strategy, ranks), *LAYERS, f"--run.dir={run}"), run, 8)
    launch(*words(strategy, ranks), *LAYERS, f"--run.dir={run}")
    assert metrics(run) == metrics(straight)
    assert all(torch.equal(weight, weights(straight)[name]) for name, weight in weights(run).items())


@matrix
@pytest.mark.parametrize(("first", "ranks", "second", "other"), CROSSINGS)
def test_a_run_goes_on_under_another_strategy(runs, first, ranks, second, other, tmp_path):
    run = f"--run.dir={tmp_path / 'run'}"
    kill_at_step(start(*words(first, ranks), run), tmp_path / "run", 8, saved=6)
    assert "going on after step 6" in launch(*words(second, other), run)
    assert_same_training(tmp_path / "run", runs("single", 1), 1e-5)


@matrix
@pytest.mark.parametrize("strategy", ["zero3", "fsdp"])
def test_pretrained_weights_are_cut_into_pieces(strategy, tmp_path):
    """A Hugging Face folder, and a run, as the start of a model that no rank holds whole."""
    launch(*words("single", 1), "--trainer.max_steps=2", f"--run.dir={tmp_path / 'source'}")
    launch("export", str(tmp_path / "source"), "--out", str(tmp_path / "hf"))
    for source in ("hf", "source"):
        found = []
        for name, ranks in (("single", 1), (strategy, 2)):
            run = tmp_path / f"{source}-{name}"
            options = ["--trainer.max_steps=2", "--callbacks.validation=null", f"--model.init_from={tmp_path / source}"]
            launch(*words(name, ranks), *options, "--seed=7", f"--run.dir={run}")
            found.append(weights(run))
        for name, weight in found[0].items():
            torch.testing.assert_close(found[1][name], weight, rtol=1e-5, atol=1e-5)
    fresh, started = weights(tmp_path / "source"), found[0]
    assert all((fresh[name] - started[name]).abs().max() < 0.01 for name in fresh), "two small steps from the source"
