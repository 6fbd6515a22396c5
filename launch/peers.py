"""The other ranks of a run: whether they came, whether they see the same folder, and which of them is gone.

The errors of gloo and NCCL name no rank. So every rank holds a listening socket that it never serves, and tells the
others its address as soon as the process group is up. After a failed collective each rank tries to connect to all
others: the kernel answers for a process that lives.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import subprocess_script
from torch.distributed import distributed_c10d
from torch.distributed.constants import default_pg_timeout

from launch.nodes import DEFAULT_ROUTE, is_loopback, loopback_complaint, own_address
from launch.run_folder import RunFolder
from lightning_modules.core.checkpoint.verify import complete_steps

PROBE_SECONDS = 2.0
FOLDER_SECONDS = 10.0  # until a network file system shows what another host has written
QUIET_SECONDS = 15.0  # of waiting for other ranks, until that is said
CHILD_SECONDS = 30.0  # for the ranks of a host to end by themselves after one of them
NAMED = 5  # ranks in one message
FROM_COLLECTIVES = re.compile("gloo|nccl|c10d|process ?group|socket", re.IGNORECASE)
AGAIN = "start the same command again"


class Unreachable(Exception):
    """Ranks that did not come, went away, or do not see the run's folder; one line."""


@dataclass(frozen=True)
class Peer:
    """Where a rank can be asked whether it is alive."""

    rank: int
    host: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, {self.address}:{self.port})"

    def silence(self) -> str | None:
        """Return why there is no connection to it, None if there is one."""
        try:
            socket.create_connection((self.address, self.port), PROBE_SECONDS).close()
        except ConnectionRefusedError:
            return "has ended"
        except TimeoutError:
            return f"no answer within {PROBE_SECONDS:.0f} s"
        except OSError as error:
            return error.strerror or str(error)
        return None


@contextmanager
def watched(trainer: Trainer, folder: RunFolder, locked: bool = False) -> Iterator[None]:
    """Run a command of a trainer with an eye on the other ranks.

    Args:
        trainer: one that has not started yet.
        folder: that of the run.
        locked: rank 0 has written its name into the folder, which the other ranks must be able to read.

    Raises:
        Unreachable: a collective failed because of a rank that cannot be reached, or the ranks could not meet.
    """
    if trainer.world_size == 1:
        yield
        return
    peers = Peers(trainer, folder, locked)
    subprocess_script._launch_process_observer = mind_children
    try:
        yield
    except RuntimeError as error:
        if (reason := peers.reason(error)) is None:
            raise
        raise Unreachable(reason) from error


class Peers:
    """The ranks of one run, once they have met."""

    def __init__(self, trainer: Trainer, folder: RunFolder, locked: bool) -> None:
        self.strategy, self.nodes, self.folder, self.locked = trainer.strategy, trainer.num_nodes, folder, locked
        self.seconds = getattr(self.strategy, "_timeout", default_pg_timeout).total_seconds()
        self.table: list[Peer] = []
        self._start_group: Callable[[], None] = self.strategy.setup_environment
        self.strategy.setup_environment = self.meet

    def meet(self) -> None:
        """Start the process group, and learn where everybody is.

        Raises:
            Unreachable: a rank did not come, or other nodes could not reach this one.
        """
        first = self.strategy.cluster_environment.main_address
        backend = getattr(self.strategy, "_process_group_backend", None)
        gloo = self.strategy.root_device.type == "cpu" or backend == "gloo"
        if self.nodes > 1 and gloo and (complaint := loopback_complaint(first)):
            raise Unreachable(complaint)
        # DeepSpeed and device meshes make groups of their own, for which torch takes half an hour
        distributed_c10d._get_default_timeout = lambda _: timedelta(seconds=self.seconds)
        notice = threading.Timer(QUIET_SECONDS, self._say_that_it_waits)
        notice.daemon = True
        notice.start()
        try:
            self._wait_for_rank_0()
            self._start_group()
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise
            raise Unreachable(self._did_not_meet(str(error))) from error
        finally:
            notice.cancel()
        self.listener, address = _listen(first, self.nodes, self.strategy.world_size)
        mine = Peer(self.strategy.global_rank, socket.gethostname(), address, self.listener.getsockname()[1])
        self.table = _gathered(mine)
        if self.nodes > 1 and self.locked:
            self._check_folder()

    def reason(self, error: RuntimeError) -> str | None:
        """Return what a failed collective comes from, None if the error is of another kind."""
        if not self.table or not (isinstance(error, dist.DistError) or FROM_COLLECTIVES.search(str(error))):
            return None
        others = [peer for peer in self.table if peer.rank != self.strategy.global_rank]
        with ThreadPoolExecutor(min(len(others), 256)) as pool:
            found = list(zip(others, pool.map(Peer.silence, others), strict=True))
        gone = [f"{peer}: {self._ending(peer) or silence}" for peer, silence in found if silence]
        more = f", and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        told = "; ".join(gone[:NAMED]) + more or (
            f"{_first_line(str(error))}; all other ranks can be reached: one was silent for longer than "
            f"strategy.timeout_seconds, or it failed and says why itself"
        )
        steps = complete_steps(self.folder.checkpoints)
        stands = f"checkpoints up to step {steps[-1]} stand" if steps else "there is no checkpoint yet"
        return f"{told}; {stands}, {AGAIN}"

    def _ending(self, peer: Peer) -> str | None:
        """Return how a rank ended that this process has started, None for all others."""
        first = self.strategy.node_rank * self.strategy.num_processes
        started = getattr(self.strategy.launcher, "procs", [])
        place = peer.rank - first - 1
        return ending(started[place]) if 0 <= place < len(started) else None

    @property
    def _place(self) -> str:
        environment = self.strategy.cluster_environment
        return f"{environment.main_address}:{environment.main_port}"

    def _say_that_it_waits(self) -> None:
        host, ranks = socket.gethostname(), self.nodes * self.strategy.num_processes
        print(f"{host}: waiting for {ranks} ranks at {self._place}, for up to {self.seconds:.0f} s", flush=True)

    def _wait_for_rank_0(self) -> None:
        """Wait until rank 0's store answers; torch would wait for twice the time."""
        strategy, until = self.strategy, time.monotonic() + self.seconds
        if strategy.node_rank * strategy.num_processes + strategy.local_rank == 0:
            return
        address, port = strategy.cluster_environment.main_address, strategy.cluster_environment.main_port
        while True:
            try:
                socket.create_connection((address, port), PROBE_SECONDS).close()
                return
            except OSError as error:
                if time.monotonic() > until:
                    reason = error.strerror or f"no answer within {PROBE_SECONDS:.0f} s"
                    nobody = (
                        f"{socket.gethostname()}: rank 0 does not answer at {self._place} after {self.seconds:.0f} s"
                    )
                    raise Unreachable(f"{nobody}: {reason}; {self._advice()}") from None
            time.sleep(0.1)

    def _did_not_meet(self, words: str) -> str:
        host, ranks = socket.gethostname(), self.strategy.world_size
        if "EADDRINUSE" in words:
            return f"{host}: port {self._place} is taken; give another MASTER_PORT to every node"
        if "client socket" in words:  # rank 0's own
            return f"{host}: is node 0, but {self._place} does not lead to it; give an address of node 0 as MASTER_ADDR"
        if "Failed to recv" in words:
            return f"{host}: rank 0 has ended while the ranks met at {self._place}, and says why; then {AGAIN}"
        came = re.search(r"(\d+)/\d+ clients joined", words)
        if came or "wait timeout" in words:
            count = f"only {came[1]}" if came else "not all"
            return (
                f"{host}: {count} of {ranks} ranks came to {self._place} within {self.seconds:.0f} s; {self._advice()}"
            )
        return (
            f"{host}: the {ranks} ranks met at {self._place} but cannot connect: {_first_line(words)}; {self._advice()}"
        )

    def _advice(self) -> str:
        if self.nodes == 1 or "NODE_RANK" not in os.environ:  # something else starts the ranks
            return f"one has failed and says why itself, or needs longer: raise strategy.timeout_seconds; then {AGAIN}"
        ranks = f"NODE_RANK 0 to {self.nodes - 1}"
        return f"start the command on every node, {ranks}, MASTER_ADDR an address of node 0 that all can reach"

    def _check_folder(self) -> None:
        """Require that every rank reads the lock that rank 0 has written."""
        lock = self.folder.path / "lock"
        written = _gathered(_text(lock) if self.strategy.global_rank == 0 else "")[0]
        until = time.monotonic() + min(FOLDER_SECONDS, self.seconds / 2)
        while not (sees := _text(lock) == written) and time.monotonic() < until:
            time.sleep(0.2)
        blind = [peer for peer, reads in zip(self.table, _gathered(sees), strict=True) if not reads]
        if blind:
            raise Unreachable(
                f"run.dir = {self.folder.path}: {blind[0]} does not see what {self.table[0]} has written there; "
                "give a folder on a file system that all nodes share"
            )


def mind_children(children: list[subprocess.Popen]) -> None:
    """End this process and its ranks where they wait in vain for one of them that has failed.

    Lightning's own thread does it within five seconds, before anything can be said or written down.
    """
    threading.Thread(target=_mind, args=(children,), daemon=True).start()


def _mind(children: list[subprocess.Popen]) -> None:
    while not any(child.poll() for child in children):
        if all(child.poll() == 0 for child in children):
            return
        time.sleep(0.5)
    time.sleep(CHILD_SECONDS)
    ends = [f"local rank {rank} {end}" for rank, child in enumerate(children, 1) if (end := ending(child))]
    print(f"error: {', '.join(ends)}; the other ranks wait for it in vain and are ended", file=sys.stderr, flush=True)
    for child in children:
        child.kill()
    os._exit(1)


def ending(child: subprocess.Popen) -> str | None:
    """Return how a process ended, None if it has not."""
    code = child.poll()
    if code is None:
        return None
    return f"has ended with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _listen(first: str, nodes: int, ranks: int) -> tuple[socket.socket, str]:
    """Open a socket that other ranks can reach; processes that are forked from this one do not keep it open."""
    address = own_address(first)
    if nodes > 1 and is_loopback(address):  # rank 0's own name for itself
        with suppress(OSError):
            address = own_address(DEFAULT_ROUTE)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family, backlog=ranks)
    os.register_at_fork(after_in_child=listener.close)
    return listener, address


def _gathered(value: Any) -> list[Any]:
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _text(path: Any) -> str:
    with suppress(OSError):
        os.listdir(path.parent)  # lets a network file system look again
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _first_line(words: str) -> str:
    return re.sub(r"^\[\S+\] ", "", words.splitlines()[0]) if words else "no reason given"
