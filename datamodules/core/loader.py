"""Loaders whose position is the step: nothing of them needs saving.

Global batch s holds the positions [s * B, (s + 1) * B) of the order, cut into micro-batches; a rank takes a
contiguous run of these. With length grouping the positions of a window of steps are sorted by length first, and the
micro-batches permuted. The micro-batches of a step are a function of (seed, step) alone: neither ranks nor workers
matter.
"""

import itertools
import multiprocessing.queues
import multiprocessing.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.core.batches import TextBatch, flat_layout
from datamodules.core.errors import DataError
from datamodules.core.order import MICRO_BATCHES, permute, sample_at
from datamodules.core.packing import ExampleSource

POSITIONS_AT_ONCE = 4096
WANTED_FILES = 4096  # open at once, as tensors are handed over by descriptors
LONGEST_FOLDER = 70  # characters of the folder of sockets, whose paths may have 107 in all
SHORT_FOLDERS = ("/tmp", "/dev/shm", "/var/tmp")


def collate(
    examples: ExampleSource, samples: NDArray[np.int64], positions: NDArray[np.int64], is_special: NDArray[np.bool_]
) -> TextBatch:
    """Lay examples out as one micro-batch, longest first.

    Args:
        examples: where their tokens are.
        samples: which examples.
        positions: their places in the global order, the keys of their randomness.
        is_special: for every id of the vocabulary, whether no corruption may touch it.
    """
    lens = examples.lengths(samples)
    by_length = np.lexsort((positions, -lens))
    lens, positions = lens[by_length], positions[by_length]
    ids, seconds = examples.gather(samples[by_length])
    return lay_out(ids, seconds, lens, positions, is_special)


def lay_out(
    ids: NDArray[np.int64],
    seconds: NDArray[np.int64],
    lens: NDArray[np.int64],
    positions: NDArray[np.int64],
    is_special: NDArray[np.bool_],
) -> TextBatch:
    """Make the micro-batch of sequences that lie end to end, longest first."""
    starts = np.cumsum(lens) - lens
    place = np.arange(len(ids)) - np.repeat(starts, lens)
    special = is_special[ids]
    return {
        "ids_T": torch.from_numpy(ids),
        "position_T": torch.from_numpy(place),
        "type_T": torch.from_numpy((place >= np.repeat(seconds, lens)).astype(np.int64)),
        "special_T": torch.from_numpy(special),
        "sequence_T": torch.from_numpy(np.repeat(np.arange(len(lens)), lens)),
        "sample_B": torch.from_numpy(positions.astype(np.int64)),
        "layout": flat_layout(lens.tolist()),
        "lens": lens.tolist(),
        "maskable": np.add.reduceat(~special, starts, dtype=np.int64).tolist(),
        "position": int(positions.min()),
    }


class Batching:
    """How a global batch is shared: over micro-batches, and these over ranks.

    Raises:
        DataError: the global batch cannot be cut evenly.
    """

    def __init__(self, global_batch_size: int, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        unit = micro_batch_size * world_size
        if micro_batch_size < 1 or global_batch_size < 1 or global_batch_size % unit:
            raise DataError(
                f"data.global_batch_size = {global_batch_size}: must be a multiple of micro_batch_size x ranks = "
                f"{micro_batch_size} x {world_size}; take {max(1, round(global_batch_size / max(1, unit))) * unit}"
            )
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.per_step = global_batch_size // micro_batch_size
        own = self.per_step // world_size
        self.mine = slice(rank * own, (rank + 1) * own)


class Steps(Dataset[list[TextBatch]]):
    """Training data: item s is this rank's share of global batch s, for any s.

    Args:
        examples: the examples.
        batching: batch sizes and rank.
        seed: key of the order.
        is_special: for every id of the vocabulary, whether no corruption may touch it.
        grouped_steps: length of the windows within which examples of like length meet; 0 for none.
    """

    def __init__(
        self,
        examples: ExampleSource,
        batching: Batching,
        seed: int,
        is_special: NDArray[np.bool_],
        grouped_steps: int = 0,
    ) -> None:
        self.examples, self.batching, self.seed, self.is_special = examples, batching, seed, is_special
        self.grouped_steps = grouped_steps
        self.block_steps = grouped_steps or max(1, POSITIONS_AT_ONCE // batching.global_batch_size)
        self.block = (-1, np.empty(0), np.empty(0))

    def __getitem__(self, step: int) -> list[TextBatch]:
        block, inside = divmod(step, self.block_steps)
        if self.block[0] != block:
            self.block = (block, *self.micro_batches(block))
        _, positions, samples = self.block
        own = range(self.batching.per_step)[self.batching.mine]
        rows = [inside * self.batching.per_step + micro_batch for micro_batch in own]
        return [collate(self.examples, samples[row], positions[row], self.is_special) for row in rows]

    def micro_batches(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Cut a block of steps into micro-batches: positions and samples, one row for each."""
        size = self.block_steps * self.batching.global_batch_size
        positions = np.arange(block * size, (block + 1) * size)
        samples = sample_at(positions, len(self.examples), self.seed)
        if self.grouped_steps:
            by_length = np.argsort(self.examples.lengths(samples), kind="stable")
            shape = (-1, self.batching.micro_batch_size)
            mixed = permute(np.arange(size // shape[1]), size // shape[1], self.seed, MICRO_BATCHES, block)
            chosen = by_length.reshape(shape)[mixed]
            return positions[chosen], samples[chosen]
        return positions.reshape(-1, self.batching.micro_batch_size), samples.reshape(
            -1, self.batching.micro_batch_size
        )


class FromStep(Sampler[int]):
    """Count steps without end, from the one at which training stands when the loop begins."""

    def __init__(self, first_step: Callable[[], int]) -> None:
        self.first_step = first_step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first_step())


class Evaluation(Dataset[list[TextBatch]]):
    """Evaluation data: every example once over all ranks, in their own order, the same number of items on every rank.

    The last item may be short. A rank for which less is left than for the first gets fillers instead, examples that do
    not count: where the weights are in pieces over the ranks, all have to make the same number of forward passes.
    """

    def __init__(self, examples: ExampleSource, batching: Batching, is_special: NDArray[np.bool_]) -> None:
        self.examples, self.batching, self.is_special = examples, batching, is_special

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batching.global_batch_size)

    def __getitem__(self, item: int) -> list[TextBatch]:
        if not 0 <= item < len(self):
            raise IndexError(item)
        size, first = self.batching.micro_batch_size, item * self.batching.global_batch_size
        starts = range(first, min(first + self.batching.global_batch_size, len(self.examples)), size)
        own = range(first, first + self.batching.global_batch_size, size)[self.batching.mine]
        batches = [self.micro_batch(start) for start in own if start in starts]
        most = min(len(own), len(starts))  # what the first rank has
        return batches + [{**self.micro_batch(first), "filler": True} for _ in range(most - len(batches))]

    def micro_batch(self, start: int) -> TextBatch:
        """Return the examples from one on."""
        samples = np.arange(start, min(start + self.batching.micro_batch_size, len(self.examples)))
        return collate(self.examples, samples, samples, self.is_special)


def loader(dataset: Dataset[list[TextBatch]], num_workers: int, sampler: Sampler[int] | None = None) -> DataLoader:
    """Wrap ready batches in a DataLoader, through pinned memory where there is a GPU."""
    if num_workers:
        make_room()
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=begin_worker,
    )


def make_room() -> None:
    """See that workers can hand over what they make: by open files, through sockets whose paths are short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < WANTED_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(WANTED_FILES, hard) if hard >= 0 else WANTED_FILES, hard))
    if len(multiprocessing.util.get_temp_dir()) > LONGEST_FOLDER:  # batch systems set long TMPDIRs
        folder = tempfile.mkdtemp(
            prefix="pymp-", dir=next((it for it in SHORT_FOLDERS if os.access(it, os.W_OK)), None)
        )
        multiprocessing.util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)
        multiprocessing.current_process()._config["tempdir"] = folder  # where `multiprocessing` looks for it


def begin_worker(worker: int) -> None:
    """Set a worker up: it outlives signals, and ends when what it makes cannot be handed over."""
    outlive_signals(worker)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end_by_error)


def end_by_error(error: Exception, item: object) -> None:
    """End a worker whose batch cannot be sent: else the training would wait for it for ever (pytorch#13246)."""
    print(f"data.num_workers: a batch could not be handed over: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def outlive_signals(worker: int) -> None:
    """Let a worker go on until the training process is done with it, or gone.

    A batch system signals the whole group, and so does Ctrl-C; the steps until the run stops still need batches. TERM
    by the training process itself is how Python ends a worker that was left over.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by_parent, name="signals", daemon=True).start()


def _end_by_parent() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
