"""A real SLURM of two nodes on this machine, and what tests ask it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.runs import PROJECT, environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv", "unshare")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def missing() -> str | None:
    """Return why there can be no cluster here, None if there can be one."""
    if sys.platform != "linux":
        return "needs Linux"
    if lacking := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"{', '.join(lacking)} not installed: `make test-slurm` installs slurm-wlm and munge where it may"
    if subprocess.run(["unshare", "--fork", "--pid", "--mount-proc", "true"], capture_output=True).returncode:
        return "a pid namespace cannot be made: needs root"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Cluster:
    """Two idle nodes, n1 and n2; all of it ends with `close`, or with the tests."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm_", dir="/tmp"))
        self.folder.chmod(0o755)
        supervisor = [sys.executable, str(Path(__file__).with_name("supervisor.py")), str(self.folder)]
        namespace = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--fork",
            "--pid",
            "--mount-proc",
            "--kill-child=KILL",
        ]
        self.process = subprocess.Popen(
            [*namespace, *supervisor], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment(), "PATH": _path()},
        )  # fmt: skip
        if self.process.stdout.readline() != "ready\n":
            logs = "\n".join(f"{log.name}: {log.read_text()[-600:]}" for log in sorted(self.folder.glob("*.out")))
            self.close()
            pytest.fail(f"the cluster did not start:\n{logs}")

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which SLURM's commands find this cluster."""
        return {**environment(), "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def close(self) -> None:
        """End everything in the namespace and delete the folder."""
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *words: str, code: int = 0) -> str:
        """Run a command of a user and return what it printed."""
        done = subprocess.run(words, cwd=PROJECT, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def launch(self, *words: str, code: int = 0) -> str:
        """Run `python -m launch`."""
        return self.command(sys.executable, "-m", "launch", *words, code=code)

    def submit(self, script: Path) -> str:
        """Submit a script and return the number of the job."""
        return self.command("sbatch", "--parsable", str(script)).strip()

    def facts(self, job: str) -> dict[str, str]:
        """Return what SLURM knows of a job, or of one task of an array, `17_0`."""
        line = self.command("scontrol", "show", "job", "-o", job).splitlines()[0]
        return dict(re.findall(r"(\w+)=(\S*)", line))

    def wait(self, job: str, *states: str, seconds: float = 150) -> dict[str, str]:
        """Wait until a job is in one of the states, by default until it is over."""
        return self.until(lambda: facts if (facts := self.facts(job))["JobState"] in (states or OVER) else None,
                          seconds, lambda: f"job {job} is {self.facts(job)}")  # fmt: skip

    def until(self, look: Callable[[], object], seconds: float = 90, told: Callable[[], str] = str) -> object:
        """Wait until `look` returns something, and return that."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.1)
        raise AssertionError(f"did not come within {seconds} s: {told()}")

    def release(self, job: str) -> None:
        """Let a requeued job start now; SLURM holds it back for two minutes where nothing is configured."""
        self.command("scontrol", "update", f"JobId={job}", "StartTime=now")

    def pids(self, job: str, rank: int) -> list[int]:
        """Return the Python processes of a rank, as this machine numbers them."""
        wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0"}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted <= set((folder / "environ").read_text(errors="replace").split("\0")):
                    name = (folder / "cmdline").read_text().split("\0")[0]
                    if "python" in name and f"SLURM_CONF={self.folder}" in (folder / "environ").read_text():
                        found.append(int(folder.name))
        return found

    def signal_node(self, node: str, number: signal.Signals) -> None:
        """Send a signal to the daemon of a node."""
        wanted = ["slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf")]
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (folder / "cmdline").read_text().split("\0")[:-1] == wanted:
                    os.kill(int(folder.name), number)
                    return
        raise AssertionError(f"there is no daemon of {node}")

    def kill(self, job: str, rank: int, number: signal.Signals) -> None:
        """Send a signal to the processes of a rank."""
        pids = self.pids(job, rank)
        assert pids, f"rank {rank} of job {job} is not there"
        for pid in pids:
            os.kill(pid, number)


def ledger(run: Path) -> list[dict]:
    """Return all lines of a run's ledger."""
    file = run / "ledger.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def events(run: Path) -> list[str]:
    """Return the events of a run's ledger."""
    return [line["event"] for line in ledger(run)]


def log(run: Path) -> str:
    """Return what the jobs of a run have printed."""
    return "\n".join(file.read_text(errors="replace") for file in sorted(run.glob("slurm-*.out")))
