"""What a run has started ends with it, and not before: ranks with rank 0, loader workers with the training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from datamodules.core.loader import loader

ROOT = Path(__file__).parents[2]
PARENT = """
import os, subprocess, sys
os.environ["TOKAMAK_PARENT"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
child.stdout.readline()
print(child.pid, flush=True)
os._exit(0)
"""
CHILD = """
import time
from launch.orphans import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(1000)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_rank_ends_with_rank_0() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], cwd=ROOT, capture_output=True, text=True, timeout=60)
    while is_running(int(done.stdout)):
        time.sleep(0.01)


def test_a_process_that_nobody_adopted_outlives_its_parent() -> None:
    child = CHILD.replace("import time\n", 'import os, time\nos.environ.pop("TOKAMAK_PARENT")\n', 1)
    done = subprocess.run([sys.executable, "-c", PARENT, child], cwd=ROOT, capture_output=True, text=True, timeout=60)
    time.sleep(0.2)
    assert is_running(int(done.stdout))
    os.kill(int(done.stdout), signal.SIGKILL)


def test_a_worker_outlives_signals_of_others_and_ends_by_its_own_process() -> None:
    batches = iter(loader(TensorDataset(torch.arange(1000)), num_workers=1))
    assert next(batches)[0] == 0
    (worker,) = batches._workers
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    assert [int(next(batches)[0]) for _ in range(20)] == list(range(1, 21))
    worker.terminate()
    worker.join()
    assert worker.exitcode == 0
