"""How a run ends: exit codes, the ledger, signals, and who may be in a folder."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.launching import ROOT, TOY, Live, environment, errors, json_lines, launch, light


def fit(run: Path, *words: str) -> subprocess.CompletedProcess:
    return launch("fit", "--config", TOY, "--run.dir", str(run), *words)


def outcome(run: Path) -> tuple[int, int, str]:
    found = json.loads((run / "outcome.json").read_text())
    return found["code"], found["step"], found["reason"]


@pytest.mark.parametrize(
    ("ends", "code", "reason", "stderr"),
    [
        ("diverged", 3, "diverged: loss nan at step 3", "error: loss nan at step 3\n"),
        ("data", 1, "error: corpus.txt: line 3 is empty; remove it", "error: corpus.txt: line 3 is empty; remove it\n"),
        ("error", 1, "RuntimeError: a fault of the code", None),
    ],
)
def test_failures(ends: str, code: int, reason: str, stderr: str | None, tmp_path: Path) -> None:
    done = fit(tmp_path, "--model.ends", ends)
    assert done.returncode == code
    assert outcome(tmp_path) == (code, 2, reason)
    if stderr is None:
        assert "Traceback" in done.stderr
        assert done.stderr.endswith("RuntimeError: a fault of the code\n")
    else:
        assert done.stderr == stderr
    assert [line["step"] for line in json_lines(tmp_path / "metrics.jsonl")] == [1, 2], "nothing logged is lost"
    assert (tmp_path / "lock").read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_a_run_that_goes_on_later(number: signal.Signals, tmp_path: Path) -> None:
    live = Live("fit", "--config", TOY, "--run.dir", str(tmp_path), "--trainer.max_steps", "1000000",
                "--callbacks.checkpoint.every_n_steps", "100000")  # fmt: skip
    live.wait_for("step 3")
    done = light("fit", "--config", TOY, "--run.dir", str(tmp_path))
    (line,) = errors(done)
    assert f"in use by process {live.process.pid} on {socket.gethostname()} since " in line
    live.process.send_signal(number)
    live.process.send_signal(number)  # a batch system sends it twice
    code, stdout, stderr = live.end()
    assert code == 75, stderr
    assert stderr == (
        f"\n{number.name}: stopping after at most 3 more steps, then it saves; "
        "a second signal after 3 s ends it at once; no checkpoint stands so far\n"
    )
    stopped = int(stdout.split("stopped at step ")[1].split()[0])
    assert outcome(tmp_path) == (75, stopped, number.name)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == [f"step_{stopped:08d}"]
    assert stdout.endswith("and the same command goes on from there\n")
    if number is signal.SIGTERM:
        again = fit(tmp_path, "--trainer.max_steps", str(stopped + 2))
        assert [w for w in again.stdout.splitlines() if re.fullmatch(r"step \d+", w)][:2] == [
            f"step {stopped + 1}", f"step {stopped + 2}",
        ]  # fmt: skip


def test_a_run_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    """As with `2>&1 | tee log`, where Ctrl-C ends tee first."""
    words = ["fit", "--config", TOY, "--run.dir", str(tmp_path), "--trainer.max_steps", "1000000"]
    process = subprocess.Popen([sys.executable, "-m", "launch", *words], cwd=ROOT, env=environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    assert any(line == "step 3\n" for line in process.stdout)
    process.stdout.close()
    steps = len(json_lines(tmp_path / "metrics.jsonl"))
    while len(json_lines(tmp_path / "metrics.jsonl")) < steps + 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    code, step, reason = outcome(tmp_path)
    assert (code, reason) == (75, "SIGINT")
    assert (tmp_path / "checkpoints" / f"step_{step:08d}" / "manifest.json").is_file()


def test_a_signal_during_the_imports_ends_before_the_first_step(tmp_path: Path) -> None:
    live = Live("fit", "--config", TOY, "--run.dir", str(tmp_path))
    while not (tmp_path / "lock").exists():
        time.sleep(0.01)
    live.process.terminate()
    code, stdout, _ = live.end()
    assert code == 75
    assert "step 1" not in stdout
    assert outcome(tmp_path) == (75, 0, "SIGTERM before the first step")


def test_a_killed_run_leaves_a_lock_that_counts_for_nothing(tmp_path: Path) -> None:
    live = Live("fit", "--config", TOY, "--run.dir", str(tmp_path), "--trainer.max_steps", "1000000")
    live.wait_for("step 5")
    live.process.kill()
    live.end()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == live.process.pid
    newest = max(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    step = int(newest.removeprefix("step_"))
    done = fit(tmp_path, "--trainer.max_steps", str(step + 1), "--run.checkpoint", str(step))
    assert done.returncode == 0, done.stderr
    ledger = [(line["attempt"], line["event"], line["reason"]) for line in json_lines(tmp_path / "ledger.jsonl")]
    assert ledger == [
        (1, "start", "new"),
        (1, "end", "killed: it could not say how it ended"),
        (2, "start", f"resumed after step {step}"),
        (2, "end", "done"),
    ]
    assert [line["step"] for line in json_lines(tmp_path / "metrics.jsonl")] == list(range(1, step + 2))


def finish(run: Path, step: int = 6) -> None:
    """Leave what a run leaves that ended well."""
    (run / "outcome.json").write_text(json.dumps({"code": 0, "step": step}))
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def held(run: Path, **facts: object) -> None:
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "born": "", "job": "", "time": "noon"} | facts
    (run / "lock").write_text(json.dumps(holder))


def test_whose_lock_counts(tmp_path: Path) -> None:
    """A fit that gets past the lock finds the run finished, so nothing heavy is needed to see it."""
    words = ["fit", "--config", TOY, "--run.dir", str(tmp_path)]
    finish(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held(tmp_path)
    assert "in use by process" in errors(light(*words))[0]
    held(tmp_path, host="node7", pid=gone.pid)
    (line,) = errors(light(*words))
    assert line.endswith(f"if that process is gone, delete {tmp_path}/lock")
    held(tmp_path, host="node7", job="123")
    assert light(*words, SLURM_JOB_ID="123").returncode == 1, "two nodes of one job"
    assert light(*words, SLURM_JOB_ID="124", SLURM_RESTART_COUNT="1").returncode == 1
    assert light(*words, SLURM_JOB_ID="123", SLURM_RESTART_COUNT="1").returncode == 0, "requeued on another node"
    held(tmp_path, host="node7", job="123", restarts="1")
    assert light(*words, SLURM_JOB_ID="123", SLURM_RESTART_COUNT="1").returncode == 1
    held(tmp_path, job="123")
    assert light(*words, SLURM_JOB_ID="123").returncode == 1, "a live process of the same job"
    held(tmp_path, pid=gone.pid)
    assert light(*words).returncode == 0, "the process is gone"
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    held(tmp_path, pid=zombie.pid)
    assert light(*words).returncode == 0, "it has ended, and nobody has waited for it"
    zombie.wait()
    held(tmp_path, born="17")
    assert light(*words).returncode == 0, "its number belongs to another process now"
    for damage in (b"{half a li", b"\xff\x00", b'{"pid": 1}', b'{"host": "node7", "pid": "x"}'):
        (tmp_path / "lock").write_bytes(damage)
        assert light(*words).returncode == 0, damage
