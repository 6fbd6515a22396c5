"""Real runs through the command line, for tests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.checkpoint.verify import newest_complete

PROJECT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """Return the environment of a user's shell, one thread a process, without traces of pytest or a batch job."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "SLURM", "MASTER_", "LOCAL_RANK"))}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(*words: str) -> subprocess.Popen:
    """Start `python -m launch` in a process group of its own, its output in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *words],
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(*words: str, code: int = 0, seconds: int = 240) -> str:
    """Run `python -m launch` to its end and return what it printed; the exit code must be `code`."""
    process = start(*words)
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        kill(process)
    assert process.returncode == code, output
    return output


def kill(process: subprocess.Popen) -> None:
    """Kill a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def kill_at_step(process: subprocess.Popen, run: Path, step: int, saved: int = 0, seconds: int = 120) -> None:
    """Kill a run by SIGKILL, all ranks at once, as soon as its metrics show a step and a checkpoint is complete.

    Saves are asynchronous: without `saved` the newest one may be on its way.
    """
    deadline, file = time.monotonic() + seconds, run / "checkpoints" / f"step_{saved:08d}" / "manifest.json"
    while time.monotonic() < deadline and process.poll() is None:
        shown = (run / "metrics.jsonl").exists() and any(line["step"] >= step for line in metrics(run))
        if shown and (not saved or file.exists()):
            break
        time.sleep(0.02)
    assert process.poll() is None, f"ended before step {step}:\n{process.stdout.read()}"
    kill(process)


def metrics(run: Path) -> list[dict]:
    """Return the lines of metrics.jsonl without what two equal runs may differ in; a line being written is left out."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in found]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run's newest checkpoint."""
    return read_weights(newest_complete(run / "checkpoints"))


def optimizer_state(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a run's newest checkpoint, moments included, by shard, parameter and name."""
    shards = sorted(newest_complete(run / "checkpoints").glob("shard_*.pt"))
    loaded = {shard.name: torch.load(shard, weights_only=True) for shard in shards}
    return {
        f"{shard}/{name}/{key}": tensor
        for shard, pieces in loaded.items()
        for name, piece in pieces.items()
        for key, tensor in piece["tensors"].items()
    }
