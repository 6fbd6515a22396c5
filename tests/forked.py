"""Real runs on one or more ranks, forked from a server that has imported everything: a start takes no time.

The command line itself is started as a user does in tests/runs.py; here it is the training that is looked at.
"""

import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import torch

from launch.__main__ import main
from launch.leaving import leave
from tests.runs import PROJECT, environment

PRELOAD = [
    *("tests.multiproc.checkpoint_toy", "tests.multiproc.strategies_toy", "tests.multiproc.pairs_toy"),
    *("launch.fit", "datamodules.text", "datamodules.pairs", "lightning_modules.electra.module"),
    *("lightning_modules.matryoshka2d.module", "callbacks.grid", "callbacks.throughput", "callbacks.progress"),
    *("torch.distributed.fsdp", "tests.frozen"),
]


def server() -> multiprocessing.context.ForkServerContext:
    """Return the server, which looks for GPUs once, when it is started with the first process."""
    os.environ["PYTHONPATH"] = str(PROJECT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def begin(processes: list[BaseProcess]) -> None:
    """Start processes of the server."""
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        for process in processes:
            process.start()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(run: Path, ranks: int, *words: str, seconds: float = 240, command: str = "fit", code: int = 0) -> str:
    """Run `launch fit` to its end in the folder of a run, as so many processes that are started as by srun.

    Returns what the first one has written in all its runs.
    """
    run.mkdir(parents=True, exist_ok=True)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    context, deadline = server(), time.monotonic() + seconds
    logs = [run.parent / f"{run.name}_out_{rank}.txt" for rank in range(ranks)]
    processes = [
        context.Process(
            target=_rank,
            args=(environment() | ({**place, "LOCAL_RANK": str(rank)} if ranks > 1 else {}), logs[rank]),
            kwargs={"words": [command, *words, f"--run.dir={run}"]},
        )
        for rank in range(ranks)
    ]
    begin(processes)
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode not in (None, 0) for process in processes):
            deadline = min(deadline, time.monotonic() + 10)  # the others find it out by themselves, or never
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    assert codes == [code] * ranks, "\n".join([f"{codes}:", *(log.read_text() for log in logs)])
    return logs[0].read_text()


def _rank(variables: dict[str, str], log: Path, words: list[str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(PROJECT)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a run
    sys.argv[1:] = words
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    leave(main(words))
