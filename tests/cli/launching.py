"""Starting `python -m launch` as a user does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOY = "tests/cli/toy.yaml"
IMPORTING = "importing torch, lightning and transformers ...\n"
HEAVY = ("torch", "lightning", "transformers", "datasets", "numpy", "deepspeed", "tokenizers", "jsonargparse")
WITHOUT_HEAVY = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # an import of it fails by name
from launch.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which the packages of the project are found from every folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TOKAMAK_"))}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **kept,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


def launch(*words: str, cwd: Path = ROOT, seconds: float = 240, **more: str) -> subprocess.CompletedProcess:
    """Run a command line to its end."""
    command = [sys.executable, "-m", "launch", *words]
    done = subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=seconds)
    done.stdout = done.stdout.replace(IMPORTING, "")  # a slow machine says it, a fast one does not
    return done


def light(*words: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess:
    """Run a command line that must not need any heavy package."""
    command = [sys.executable, "-c", WITHOUT_HEAVY, *words]
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=60)


def errors(done: subprocess.CompletedProcess) -> list[str]:
    """Return the lines of a refusal, after checking that it is one: exit code 1, one line each, nothing else."""
    lines = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert lines, done.stdout
    assert all(line.startswith("error: ") for line in lines), done.stderr
    return [line.removeprefix("error: ") for line in lines]


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def hear_hangups() -> None:
    """Start a process that hears SIGHUP, also where nohup has started the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Live:
    """A command line that goes on while the test looks at it."""

    def __init__(self, *words: str, **more: str) -> None:
        command = [sys.executable, "-m", "launch", *words]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_hangups,
        )
        self.seen: list[str] = []

    def wait_for(self, words: str) -> None:
        """Read its output until a line begins with the words."""
        for line in self.process.stdout:
            self.seen.append(line.rstrip("\n"))
            if line.startswith(words):
                return
        raise AssertionError(f"it ended without {words!r}: {self.seen} {self.process.stderr.read()}")

    def end(self) -> tuple[int, str, str]:
        """Wait for its end and return the exit code and both outputs."""
        rest, stderr = self.process.communicate(timeout=120)
        return self.process.returncode, "\n".join([*self.seen, rest]), stderr
