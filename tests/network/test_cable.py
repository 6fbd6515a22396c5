"""Training over a cable that is pulled: a short cut is waited out, a long one ends the run, which then goes on."""

import json
import re
import time
from pathlib import Path

import pytest
import torch

from tests.forked import train
from tests.network.hosts import Hosts, wait_for_step
from tests.runs import metrics, optimizer_state

SLOW = ["--callbacks.slow.class=tests.network.slow.Slow", "--callbacks.slow.seconds=0.1"]
TOY = ["fit", "--config", "tests/cli/toy.yaml", "--data.micro_batch_size=2", *SLOW]
TWO = ["--trainer.num_nodes=2", "--trainer.devices=1"]
STEPS = 60
ELECTRA = ["fit", "--config", "configs/electra/debug.yaml", f"--trainer.max_steps={STEPS}", *SLOW]


def assert_ended_well(ranks) -> None:
    for rank in ranks:
        code, text = rank.end(180)
        assert code == 0, text


def assert_names_the_other(ranks, run: Path, seconds: float) -> None:
    """Both sides say, in one line, who cannot be reached and what to do, within so many seconds."""
    until = time.monotonic() + seconds
    for index, rank in enumerate(ranks):
        code, text = rank.end(until - time.monotonic())
        assert code == 1, text
        lines = [line for line in text.splitlines() if "error:" in line]
        other, address = 1 - index, f"10.77.0.{2 - index}"
        newest = max(int(folder.name[5:]) for folder in (run / "checkpoints").glob("step_*"))
        assert len(lines) == 1 and "Traceback" not in text, text
        assert re.search(
            rf"error: rank {other} \(h{other + 1}, {address}:\d+\): (No route to host|no answer within 2 s|"
            rf"Network is unreachable); checkpoints up to step {newest} stand, start the same command again$",
            lines[0],
        ), lines


@pytest.mark.slow
def test_a_cable_that_stays_out_ends_a_run_that_then_goes_on(hosts: Hosts, tmp_path: Path):
    run = tmp_path / "run"
    options = ["--config", "configs/strategy/ddp.yaml", *TWO, "--strategy.timeout_seconds=10", f"--run.dir={run}"]
    words = [*TOY, "--trainer.max_steps=16", *options]
    ranks = hosts.both(*words)
    wait_for_step(ranks, run, 6)
    hosts.cable("down")
    assert_names_the_other(ranks, run, 10 + 15)
    assert "rank 1 (h2, " in json.loads((run / "outcome.json").read_text())["reason"]
    hosts.cable("up")
    assert_ended_well(hosts.both(*words))
    assert [line["step"] for line in metrics(run)] == list(range(1, 17))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_two_hosts_train_as_one_process_whatever_happens_to_the_cable(strategy, tmp_path_factory, hosts: Hosts):
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "one", 1, *ELECTRA[1:])
    options = [*ELECTRA, "--config", f"configs/strategy/{strategy}.yaml", *TWO, "--strategy.timeout_seconds=20"]
    assert_ended_well(hosts.both(*options, f"--run.dir={folder / 'two'}"))
    for ours, theirs in zip(metrics(folder / "one"), metrics(folder / "two"), strict=True):
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-5, abs=1e-12), (name, ours["step"])

    ranks = hosts.both(*options, f"--run.dir={folder / 'short'}")
    wait_for_step(ranks, folder / "short", 8)
    hosts.cable("down")
    time.sleep(5)
    held = len(metrics(folder / "short"))
    hosts.cable("up")
    assert_ended_well(ranks)
    assert held < STEPS, "it waited"

    command = [*options, f"--run.dir={folder / 'long'}"]
    ranks = hosts.both(*command)
    wait_for_step(ranks, folder / "long", 8)
    hosts.cable("down")
    assert_names_the_other(ranks, folder / "long", 20 + 15)
    hosts.cable("up")
    ranks = hosts.both(*command)
    assert_ended_well(ranks)
    assert "going on after step" in ranks[0].text()

    state = optimizer_state(folder / "two")
    for name in ("short", "long"):
        assert metrics(folder / name) == metrics(folder / "two"), name
        ours = optimizer_state(folder / name)
        assert ours.keys() == state.keys() and all(torch.equal(ours[key], state[key]) for key in state), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1", "zero3", "fsdp"])
def test_groups_that_a_strategy_makes_for_itself_have_the_same_timeout(strategy, hosts: Hosts, tmp_path: Path):
    options = ["--config", f"configs/strategy/{strategy}.yaml", *TWO, "--strategy.timeout_seconds=20"]
    ranks = hosts.both(*ELECTRA, *options, f"--run.dir={tmp_path / 'run'}")
    wait_for_step(ranks, tmp_path / "run", 8)
    hosts.cable("down")
    assert_names_the_other(ranks, tmp_path / "run", 20 + 15)
