"""What the batch script does about signals, failures and attempts, with ranks that take no time to start."""

import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from launch.config.tasks import Tasks
from launch.jobs.script import Job, text
from launch.jobs.sweep import Member, write_members
from tests.runs import PROJECT
from tests.slurm.cluster import Cluster, events, ledger, log

pytestmark = pytest.mark.slurm
LONG = 100_000


def script(run: Path, behaviour: str, steps: int = LONG, **more: object) -> Path:
    """Write a real batch script whose ranks are tiny ones."""
    runs = max(1, len(more.get("members", [])))
    given = {
        **{"run": run, "name": "tiny", "tasks": Tasks(2, 1), "time": "5", "lead": 31, "config": run / "none.yaml"},
        **{"launch": [sys.executable, "-m", "launch"], "python_path": str(PROJECT), "cwd": PROJECT},
        **{"steps": [steps] * runs, "attempts": 3, "wait": 5},
    }
    job = Job(**(given | more))
    tiny = shlex.join([sys.executable, str(Path(__file__).with_name("tiny.py"))])
    words = text(job)
    assert words.count('"${launch[@]}" fit') == 1
    run.mkdir(exist_ok=True)
    (run / "job.sbatch").write_text(words.replace('"${launch[@]}" fit', f'{tiny} "$steps" {behaviour}'))
    return run / "job.sbatch"


def warn(cluster: Cluster, job: str, run: Path, begun: int = 1) -> None:
    """Do what SLURM does when the time is nearly up, once both ranks have begun their attempt."""
    cluster.until(lambda: log(run).count("begins at step") == 2 * begun, told=lambda: log(run))
    cluster.command("scancel", "--batch", "--signal=USR1", job)


def test_a_warned_job_saves_is_requeued_and_ends(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = cluster.submit(script(run, "trains", steps=40))
    warn(cluster, job, run)
    facts = cluster.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), log(run)
    assert events(run) == ["job_start", "end", "job_end", "job_start", "end", "job_end"]
    first, _, stopped, second, _, done = ledger(run)
    assert (stopped["code"], stopped["asked"], stopped["then"]) == (75, "USR1", "requeue")
    assert 0 < stopped["step"] == second["step"] < 40
    assert (first["restarts"], second["restarts"], done["code"], done["step"]) == (0, 1, 0, 40)
    ports = {line.rpartition(":")[2] for line in log(run).splitlines() if "begins at step" in line}
    assert len(ports) == 2, "another attempt meets elsewhere"
    job = cluster.submit(run / "job.sbatch")
    assert cluster.wait(job)["JobState"] == "COMPLETED"
    assert len(ledger(run)) == 6, "a finished run is left alone"
    assert "finished at step 40" in log(run)


def test_a_warning_that_comes_before_python_has_a_handler(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = cluster.submit(script(run, "late", steps=40))
    cluster.until(lambda: log(run).count("deaf") == 2, told=lambda: log(run))
    cluster.command("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job)["JobState"] == "COMPLETED"
    assert [line["step"] for line in ledger(run) if line["event"] == "job_end"] == [1, 40], log(run)


def test_a_cancelled_job_saves_and_is_not_restarted(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = cluster.submit(script(run, "trains"))
    cluster.until(lambda: log(run).count("begins at step") == 2, told=lambda: log(run))
    cluster.command("scancel", job)
    facts = cluster.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")
    last = cluster.until(lambda: ledger(run)[-1] if events(run)[-1] == "job_end" else None)
    assert (last["asked"], last["code"], last["then"]) == ("TERM", 75, "over")
    assert last["step"] > 0


def test_a_stop_that_outlasts_the_time_limit_is_measured_from_its_warning(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = cluster.submit(script(run, "slow"))
    warn(cluster, job, run)
    time.sleep(3)
    cluster.command("scancel", "--batch", "--signal=TERM", job)
    cluster.wait(job)
    last = cluster.until(lambda: ledger(run)[-1] if events(run)[-1] == "job_end" else None)
    assert (last["asked"], last["code"], last["then"]) == ("TERM", 75, "over")
    assert last["stop_seconds"] >= 5


def test_a_job_that_is_requeued_from_outside_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = cluster.submit(script(run, "trains", steps=40))
    cluster.until(lambda: log(run).count("begins at step") == 2, told=lambda: log(run))
    cluster.command("scontrol", "requeue", job)
    facts = cluster.until(lambda: facts if (facts := cluster.facts(job))["JobState"] == "COMPLETED" else None)
    assert facts["Restarts"] == "1"
    begun = [line["step"] for line in ledger(run) if line["event"] == "job_start"]
    assert begun[0] == 0 < begun[1] < 40


def test_attempts_without_progress_have_an_end(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = cluster.submit(script(run, "stands", attempts=2))
    warn(cluster, job, run)
    cluster.wait(job, "PENDING")
    warn(cluster, job, run, begun=2)
    facts = cluster.wait(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "75:0", "1")
    assert [line["then"] for line in ledger(run) if line["event"] == "job_end"] == ["requeue", "capped"]
    assert "2 attempts of this job have not come beyond step 0" in log(run)
    cluster.command("scontrol", "requeue", job)
    facts = cluster.until(lambda: facts if (facts := cluster.facts(job))["Restarts"] == "2" else None)
    assert cluster.wait(job)["ExitCode"] == "1:0", "nor does it start when somebody else requeues it"
    assert log(run).count("begins at step") == 4
    job = cluster.submit(run / "job.sbatch")
    cluster.until(lambda: log(run).count("begins at step") == 6, told=lambda: log(run))
    cluster.command("scancel", job)


def test_a_failure_is_not_requeued_in_whatever_folder(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / 'it\'s a "run" $(touch hit) at 100%'
    facts = cluster.wait(cluster.submit(script(run, "fails")))
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "0")
    assert ledger(run)[-1]["then"] == "over"
    assert "rank 0 begins at step 0" in log(run)
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_what_rank_0_wrote_goes_before_the_number_of_srun(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = cluster.submit(script(run, "loses"))
    warn(cluster, job, run)
    cluster.wait(job, "PENDING")
    (line,) = [line for line in ledger(run) if line["event"] == "job_end"]
    assert (line["srun"], line["code"], line["then"]) == (137, 75, "requeue")
    assert "task 1: Killed" in log(run)
    cluster.command("scancel", job)


def test_a_hung_rank_does_not_hold_the_job(cluster: Cluster, tmp_path: Path) -> None:
    """Ranks that outlive the first one for longer than --wait are killed."""
    run = tmp_path / "run"
    job = cluster.submit(script(run, "trains"))
    cluster.until(lambda: log(run).count("begins at step") == 2, told=lambda: log(run))
    cluster.kill(job, 1, signal.SIGSTOP)
    cluster.kill(job, 0, signal.SIGKILL)
    facts = cluster.wait(job, seconds=40)
    assert facts["JobState"] == "FAILED"
    assert "n1: task 0: Killed" in log(run)


def test_a_lost_node_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    """SLURM gives the node up after SlurmdTimeout and requeues the job by itself; here the node comes back."""
    run = tmp_path / "run"
    job = cluster.submit(script(run, "trains", steps=40_000))
    cluster.until(lambda: log(run).count("begins at step") == 2, told=lambda: log(run))
    cluster.signal_node("n2", signal.SIGSTOP)
    try:
        cluster.wait(job, "PENDING", "COMPLETING", seconds=60)
    finally:
        cluster.signal_node("n2", signal.SIGCONT)
    cluster.until(lambda: events(run).count("job_start") == 2, told=lambda: log(run))
    assert cluster.facts(job)["Restarts"] == "1"
    cluster.until(lambda: log(run).count("begins at step") == 4, told=lambda: log(run))
    cluster.command("scancel", job)
    cluster.wait(job)


def test_a_task_of_an_array_is_requeued_alone(cluster: Cluster, tmp_path: Path) -> None:
    """The last task's job has the number of the whole array: requeueing that would restart every task."""
    run = tmp_path / "run"
    members = [Member(f"seed={seed}", {"seed": str(seed)}) for seed in (1, 2, 3)]
    run.mkdir()
    write_members(run, members)
    array = cluster.submit(script(run, "trains", steps=70, members=members, tasks=Tasks(1, 1)))
    cluster.until(lambda: log(run).count("begins at step") == 3, told=lambda: log(run))
    assert cluster.facts(f"{array}_2")["JobId"] == array
    cluster.command("scancel", "--batch", "--signal=USR1", f"{array}_2")
    facts = [cluster.wait(f"{array}_{task}") for task in (0, 1, 2)]
    assert [(one["JobState"], one["Restarts"]) for one in facts] == [
        ("COMPLETED", "0"), ("COMPLETED", "0"), ("COMPLETED", "1"),
    ]  # fmt: skip
    assert [events(run / member.name).count("job_start") for member in members] == [1, 1, 2]
    rows = (run / "sweep.md").read_text().splitlines()
    assert rows[0] == "| seed | step | train/loss | outcome |"
    assert rows[2:] == [f"| {seed} | 70 |  | done |" for seed in (1, 2, 3)]
