"""Processes that make shards: each with one thread of the `tokenizers` library, so that they scale.

They are spawned, because a fork would inherit the threads and locks of whatever this process has imported, and they end
with the process that started them, however it ends.
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized

from datamodules.core.errors import DataError
from datamodules.core.progress import progress
from datamodules.core.sources import Piece
from datamodules.core.tokenization import Job, Worker

Task = tuple[int, Piece]


def make_shards(job: Job, tasks: list[Task], num_processes: int, label: str) -> None:
    """Make the given shards and show how far they are; with one process, in this one.

    Raises:
        DataError: the first bad record, in the order of the source; or a process was killed.
    """
    num_processes = min(num_processes, len(tasks))
    read = multiprocessing.get_context("spawn").Value("q", 0)
    done = make_here(job, tasks, read) if num_processes <= 1 else make_in_pool(job, tasks, num_processes, read)
    with one_thread(), no_cycles(), progress(label, len(tasks), "shards", lambda: read.value) as advance:
        for _ in done:
            advance(1)


def make_here(job: Job, tasks: list[Task], read: Synchronized) -> Iterator[None]:
    """Make shards one after the other."""
    worker = Worker(job, read)
    yield from (worker.make(*task) for task in tasks)


def make_in_pool(job: Job, tasks: list[Task], num_processes: int, read: Synchronized) -> Iterator[None]:
    """Make shards in several processes, which are stopped at once when one fails or this one is interrupted."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, start_worker, (job, read)) as pool, without_main():
        try:
            futures = [pool.submit(make_in_worker, task) for task in tasks]
            yield from (future.result() for future in futures)
        except BaseException as error:  # no future is cancelled: the pool breaks on those when its processes end
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                fix = "probably memory ran out: lower data.num_prepare_processes, then start again to go on"
                raise DataError(f"data.num_prepare_processes = {num_processes}: one was killed; {fix}") from error
            raise


def start_worker(job: Job, read: Synchronized) -> None:
    """Prepare a process of the pool."""
    global WORKER
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the starter decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    gc.disable()
    WORKER = Worker(job, read)


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, killed ones included."""
    multiprocessing.parent_process().join()
    os._exit(1)


def make_in_worker(task: Task) -> None:
    """Make one shard in a process of the pool."""
    WORKER.make(*task)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the tokenizers library on one thread, here and in processes started meanwhile."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


@contextmanager
def no_cycles() -> Iterator[None]:
    """Switch the search for reference cycles off: lists of ids hold none, and it costs a tenth of the rate."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module, which spawned processes would run again: so they start fast and scripts need no guard."""
    names = vars(sys.modules["__main__"])
    hidden = {name: names.pop(name) for name in ("__file__", "__spec__") if name in names}
    names["__spec__"] = None
    try:
        yield
    finally:
        names.update(hidden)
