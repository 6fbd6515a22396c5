"""ELECTRA on two nodes, through `launch slurm` and a real SLURM."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.runs import PROJECT, launch, metrics, optimizer_state
from tests.slurm.cluster import Cluster, ledger, log
from tests.slurm.supervisor import KILL_WAIT_SECONDS

pytestmark = pytest.mark.slurm
DEBUG = ["--config", "configs/electra/debug.yaml"]
DDP = ["--config", "configs/strategy/ddp.yaml"]
SLOW = ["--callbacks.slow.class=tests.network.slow.Slow", "--callbacks.slow.seconds=0.2"]
STEPS = 180


def job(cluster: Cluster, run: Path, *words: str) -> str:
    """Write and submit a job of two nodes with one task each, and return its number."""
    size = ["--nodes", "2", "--tasks-per-node", "1", "--time", "5"]
    told = cluster.launch("slurm", *DEBUG, *size, "--run.dir", str(run), "--submit", *words)
    return told.split("submitted as job ")[1].split(";")[0]


def steps(run: Path) -> int:
    """Return the last step that a run has logged."""
    return metrics(run)[-1]["step"] if (run / "metrics.jsonl").exists() and metrics(run) else 0


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_electra_on_two_nodes(strategy: str, cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    number = job(cluster, run, "--config", f"configs/strategy/{strategy}.yaml")
    facts = cluster.wait(number)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), log(run)
    alone = tmp_path / "alone"
    launch("fit", *DEBUG, "--run.dir", str(alone))
    for ours, theirs in zip(metrics(run), metrics(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5), ours["step"]


def test_at_its_time_limit_a_job_saves_and_goes_on_as_if_it_had_not_ended(cluster: Cluster, tmp_path: Path) -> None:
    """SLURM's own warning, not a signal of the test's; bit for bit what two processes train that nobody stops."""
    run = tmp_path / "run"
    number = job(cluster, run, *DDP, *SLOW, "--trainer.max_steps", str(STEPS), "--lead", "31")
    cluster.until(lambda: steps(run) >= 3, told=lambda: log(run))
    cluster.command("scontrol", "update", f"JobId={number}", "EndTime=now+65")
    cluster.wait(number, "PENDING")
    cluster.command("scontrol", "update", f"JobId={number}", "TimeLimit=10")  # the end has made it shorter
    facts = cluster.wait(number, "COMPLETED", seconds=400)
    assert int(facts["Restarts"]) == 1, log(run)
    stopped = next(line for line in ledger(run) if line["event"] == "job_end")
    assert (stopped["asked"], stopped["code"], stopped["then"]) == ("USR1", 75, "requeue")
    assert 0 < stopped["step"] < STEPS
    alone = tmp_path / "alone"
    launch("fit", *DEBUG, *DDP, "--trainer.devices", "2", "--trainer.max_steps", str(STEPS), "--run.dir", str(alone))
    assert metrics(run) == metrics(alone)
    ours, theirs = optimizer_state(run), optimizer_state(alone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_killed_rank_ends_the_job_and_fewer_nodes_go_on(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    number = job(cluster, run, *DDP, *SLOW, "--trainer.max_steps", str(STEPS), "--wait", "15")
    cluster.until(lambda: steps(run) >= 12, told=lambda: log(run))
    cluster.kill(number, 1, signal.SIGKILL)
    facts = cluster.wait(number, seconds=60)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0")
    assert "n2: task 1: Killed" in log(run)
    reached = ledger(run)[-1]["step"]
    assert reached >= 9, "a checkpoint every three steps"
    size = ["--nodes", "1", "--tasks-per-node", "1", "--time", "5"]
    goes_on = ["--trainer.max_steps", str(reached + 4), "--callbacks.slow", "null", "--strategy", "single"]
    told = cluster.launch("slurm", "--run.dir", str(run), *goes_on, *size, "--submit")
    facts = cluster.wait(told.split("submitted as job ")[1].split(";")[0])
    assert facts["JobState"] == "COMPLETED", log(run)
    assert f"going on after step {reached}" in log(run)
    assert steps(run) == reached + 4


def test_a_rank_that_hangs_ends_the_job_in_a_stated_time(cluster: Cluster, tmp_path: Path) -> None:
    """The time-out of collectives, --wait, and the time between SLURM's TERM and KILL, one after the other."""
    run, timeout, wait = tmp_path / "run", 30, 5
    limits = ["--strategy.timeout_seconds", str(timeout), "--wait", str(wait)]
    number = job(cluster, run, *DDP, *SLOW, "--trainer.max_steps", "100000", *limits)
    cluster.until(lambda: steps(run) >= 3, told=lambda: log(run))
    cluster.kill(number, 1, signal.SIGSTOP)
    facts = cluster.wait(number, seconds=timeout + wait + KILL_WAIT_SECONDS + 45)  # 45: a busy machine, and the script
    assert facts["JobState"] == "FAILED", log(run)
    assert "n2: task 1: Killed" in log(run)
    assert ledger(run)[-1]["then"] == "over"


def test_a_sweep_from_one_command(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "sweep"
    rates = "model.learning_rate=1e-3,3e-3,1e-2"
    size = ["--tasks-per-node", "1", "--time", "5", "--array", rates, "--array-limit", "2"]
    told = cluster.launch("slurm", *DEBUG, *size, "--run.dir", str(run), "--submit")
    array = told.split("submitted as job ")[1].split(";")[0]
    for task in range(3):
        assert cluster.wait(f"{array}_{task}")["JobState"] == "COMPLETED", log(run)
    table = (run / "sweep.md").read_text()
    assert cluster.launch("slurm", "table", str(run)) == table
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert head == ["model.learning_rate", "step", "train/loss", "val/loss", "best val/loss", "outcome"]
    for rate, row in zip(("1e-3", "3e-3", "1e-2"), rows, strict=True):
        lines = metrics(run / f"model.learning_rate={rate}")
        trained = [line["train/loss"] for line in lines if "train/loss" in line][-1]
        validated = [line["val/loss"] for line in lines if "val/loss" in line]
        shown = [f"{number:.6g}" for number in (trained, validated[-1], min(validated))]
        assert row == [rate, "8", *shown, "done"]


def test_edits_do_not_reach_a_job_with_a_snapshot(cluster: Cluster, tmp_path: Path) -> None:
    """The project is a copy here, which is broken between the command and the job."""
    project, run = tmp_path / "project", tmp_path / "run"
    cluster.command("git", "clone", "--quiet", str(PROJECT), str(project))
    command = [sys.executable, "-m", "launch", "slurm", *DEBUG, "--tasks-per-node", "1", "--time", "5", "--snapshot"]
    done = subprocess.run([*command, "--run.dir", str(run)], cwd=project, capture_output=True, text=True,
                          env={**cluster.environment, "PYTHONPATH": str(project)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    commit = cluster.command("git", "-C", str(project), "rev-parse", "HEAD").strip()
    assert f"commit {commit}" in (run / "job.sbatch").read_text()
    (project / "launch" / "run.py").write_text("raise SystemExit('edited')\n")
    (project / "configs" / "electra" / "debug.yaml").write_text("seed: broken\n")
    facts = cluster.wait(cluster.submit(run / "job.sbatch"))
    assert facts["JobState"] == "COMPLETED", log(run)
    found = json.loads((run / "run.json").read_text())
    assert (found["commit"], found["changed_files"]) == (commit, [])
    assert ledger(run)[0]["commit"] == commit


def test_a_script_of_one_s_own(cluster: Cluster, tmp_path: Path) -> None:
    """By hand: no --ntasks-per-node, a job name that Lightning takes for a shell, nodes whose names do not resolve."""
    run, out = tmp_path / "run", tmp_path / "out.txt"
    fit = [
        sys.executable,
        "-m",
        "launch",
        "fit",
        "--config",
        "tests/cli/toy.yaml",
        *DDP,
        "--data.micro_batch_size",
        "2",
    ]
    command = shlex.join([*fit, "--run.dir", str(run)])
    script = tmp_path / "own.sbatch"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks=2 --job-name=bash --output={out}\n"
        f"{command} && exit 5\n"
        f"srun {command} --trainer.devices 3 && exit 6\n"
        f"MASTER_ADDR=nowhere.invalid srun --label {command} && exit 7\n"
        f"srun {command}\n"
    )
    facts = cluster.wait(cluster.submit(script))
    text = out.read_text()
    assert facts["JobState"] == "COMPLETED", text
    assert "error: SLURM_NTASKS = 2 (environment): the job has 2 tasks and this process is none of them" in text
    assert text.count("error: trainer.devices = 3 (--trainer.devices): the SLURM job has 1 task on each node") == 1
    for rank in (0, 1):
        assert f"{rank}: error: MASTER_ADDR = 'nowhere.invalid' (environment): " in text
    assert "batch: 8 = 2 ranks x 2 micro-batches of 2" in text
    assert steps(run) == 6
