"""Real runs of ELECTRA through the command line: stopped, killed and timed out, they say so and go on bit for bit."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.corpora import texts, txt
from tests.forked import train
from tests.runs import kill, launch, metrics, optimizer_state, start, weights

STEPS = 20
BASE = ["fit", "--config", "configs/electra/debug.yaml", f"--trainer.max_steps={STEPS}"]
long = partial(pytest.param, marks=pytest.mark.matrix)


def words(strategy: str, ranks: int, run: Path, *more: str) -> list[str]:
    return [
        *BASE,
        "--config",
        f"configs/strategy/{strategy}.yaml",
        f"--trainer.devices={ranks}",
        f"--run.dir={run}",
        *more,
    ]


def interrupt(moment: str, step: int, rank: int, name: str) -> list[str]:
    options = {
        "class": "tests.multiproc.interrupt.Interrupt",
        "moment": moment,
        "step": step,
        "rank": rank,
        "name": name,
    }
    return [f"--callbacks.interrupt.{key}={value}" for key, value in options.items()]


def outcome(run: Path) -> tuple[int, str]:
    found = json.loads((run / "outcome.json").read_text())
    return found["code"], found["reason"]


def wait_for_step(process, run: Path, step: int) -> None:
    while not ((run / "metrics.jsonl").exists() and any(line["step"] >= step for line in metrics(run))):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pids: list[int]) -> None:
    """A process that nobody has waited for yet counts as gone."""
    for pid in pids:
        while (
            Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        ):
            time.sleep(0.05)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Undisturbed runs, each made once."""
    made, folder = {}, tmp_path_factory.mktemp("straight")

    def get(strategy: str, ranks: int, *more: str) -> Path:
        key = (strategy, ranks, *more)
        if key not in made:
            made[key] = folder / str(len(made))
            train(made[key], ranks, *words(strategy, ranks, made[key], *more)[1:])
        return made[key]

    return get


def assert_identical(run: Path, other: Path) -> None:
    """Compare what was logged, weights and moments; no step stands twice in metrics.jsonl or TensorBoard."""
    assert [line["step"] for line in metrics(run)] == sorted({line["step"] for line in metrics(other)})
    assert metrics(run) == metrics(other)
    boards = [EventAccumulator(str(folder)).Reload() for folder in (run, other)]
    for tag in ("train/loss", "val/auc"):
        ours, theirs = [[(event.step, event.value) for event in board.Scalars(tag)] for board in boards]
        assert ours == theirs, tag
    ours, theirs = optimizer_state(run), optimizer_state(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = weights(run), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("strategy", "ranks", "interruptions"),
    [
        ("single", 1, [("synced", 6, 0, "SIGKILL"), ("validation", 8, 0, "SIGUSR1")]),
        ("ddp", 2, [("backward", 0, 1, "SIGTERM"), ("write", 6, 0, "SIGKILL")]),
        ("zero1", 2, [("validation", 4, 1, "SIGTERM"), ("backward", 8, 1, "SIGKILL")]),
        ("zero2", 2, [("shard", 6, 1, "SIGKILL"), ("step", 9, 1, "SIGINT")]),
        ("zero3", 2, [("renamed", 6, 0, "SIGKILL"), ("validation", 8, 1, "SIGTERM")]),
        ("zero3_offload", 2, [("step", 5, 1, "SIGKILL"), ("write", 9, 1, "SIGTERM")]),
        ("fsdp", 2, [("validation", 8, 1, "SIGKILL"), ("end", 9, 0, "SIGTERM")]),
    ],
)
def test_interrupted_twice_and_bit_identical(straight, strategy, ranks, interruptions, tmp_path):
    command = words(strategy, ranks, tmp_path, "--data.num_workers=2")
    for moment, step, rank, name in interruptions:
        process = start(*command, *interrupt(moment, step, rank, name))
        told = process.communicate(timeout=240)[0]
        if name != "SIGKILL":
            assert process.returncode == 75, told
            assert outcome(tmp_path) == (75, name if rank == 0 else "a signal to another rank")
        else:
            assert process.returncode == (1 if rank else -signal.SIGKILL), told
            assert not rank or outcome(tmp_path)[0] == 1
        kill(process)
    assert "going on after step" in launch(*command)
    assert_identical(tmp_path, straight(strategy, ranks))


@pytest.mark.matrix
def test_a_signal_in_the_last_save_changes_nothing(straight, tmp_path):
    launch(*words("zero2", 2, tmp_path), *interrupt("write", STEPS, 0, "SIGTERM"))
    assert outcome(tmp_path) == (0, "done")
    assert_identical(tmp_path, straight("zero2", 2))


def test_a_signal_to_the_whole_group_leaves_the_loaders_to_the_training(tmp_path):
    process = start(*words("single", 1, tmp_path, "--data.num_workers=2", "--trainer.max_steps=100000"))
    wait_for_step(process, tmp_path, 4)
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    told = process.communicate(timeout=120)[0]
    assert process.returncode == 75 and outcome(tmp_path) == (75, "SIGTERM"), told
    assert len(workers) >= 2
    wait_until_gone(workers)


@pytest.mark.matrix
def test_a_signal_to_the_whole_group_while_the_data_are_prepared(tmp_path):
    """The processes that prepare end by it; that is no mistake in the data."""
    source = txt(tmp_path / "a.txt", texts(60000))
    options = [f"--data.source={source}", f"--data.cache_dir={tmp_path / 'cache'}", "--data.num_prepare_processes=2"]
    process = start(*words("single", 1, tmp_path / "run", *options))
    while not any((tmp_path / "cache").rglob("*.arrow*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    told = process.communicate(timeout=120)[0]
    assert process.returncode == 75, told
    assert outcome(tmp_path / "run") == (75, "SIGTERM before the first step") and "memory" not in told


@pytest.mark.parametrize("strategy", [long("ddp"), long("zero3")])
def test_ranks_end_with_the_first(strategy, tmp_path):
    """Killed, it can tell nobody; asked twice while a rank hangs, it ends at once."""
    for signals in ([signal.SIGKILL], [signal.SIGTERM, signal.SIGTERM]):
        process = start(*words(strategy, 2, tmp_path / str(len(signals)), "--trainer.max_steps=100000"))
        wait_for_step(process, tmp_path / str(len(signals)), 4)
        others = children(process.pid)
        assert others
        for number in signals:
            if number == signal.SIGTERM:
                os.kill(others[0], signal.SIGSTOP)
            os.kill(process.pid, number)
            time.sleep(4 if number == signal.SIGTERM else 0)  # over REPEAT_SECONDS
        assert process.wait(30) == (75 if signal.SIGTERM in signals else -signal.SIGKILL)
        wait_until_gone(others)


@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), long("fsdp", 2)])
def test_time_is_up(strategy, ranks, tmp_path):
    """However slow the machine: without a step in the time, there is none; then the run goes on without a limit."""
    command = words(strategy, ranks, tmp_path, "--callbacks.validation=null", "--callbacks.electra_panel=null")
    told = launch(*command, "--trainer.max_steps=100000", "--run.max_wall_time=0:00:08", code=75)
    assert "run.max_wall_time is over: stopping after at most 3 more steps" in told
    code, reason = outcome(tmp_path)
    assert code == 75 and reason.startswith("run.max_wall_time")
    step = json.loads((tmp_path / "outcome.json").read_text())["step"]
    launch(*command, f"--trainer.max_steps={step + 2}")
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, step + 3))


@pytest.mark.matrix
@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), ("zero2", 2)])
def test_rolled_back_and_killed_without_a_doubled_step(straight, strategy, ranks, tmp_path):
    """A limit that an ordinary loss passes now and then: weights go back, the steps' numbers do not."""
    more = [
        "--trainer.max_steps=40",
        "--model.learning_rate=2e-6",  # losses stay where they are
        "--callbacks.divergence.policy=rollback",
        "--callbacks.divergence.spike_factor=0.6",
    ]
    undisturbed = straight(strategy, ranks, *more)
    skipped = manifest(undisturbed)["skipped_steps"]
    assert skipped, "nothing was rolled back; lower the factor"
    command = words(strategy, ranks, tmp_path, *more)
    process = start(*command, *interrupt("step", min(skipped[-1] + 2, 38), ranks - 1, "SIGKILL"))
    process.communicate(timeout=240)
    kill(process)
    launch(*command)
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 41))
    assert manifest(tmp_path)["skipped_steps"] == skipped
    assert_identical(tmp_path, undisturbed)


def manifest(run: Path) -> dict:
    return json.loads((run / "checkpoints" / "step_00000040" / "manifest.json").read_text())
