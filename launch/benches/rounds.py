"""Systems that take turns: each in a process of its own, one of them at work at a time.

A system is a loop, be it ours or a Trainer's. Once in each pass it calls `gate.step(...)`, and there it waits for its
turn. A turn is timed from one call to the call some passes later, so whatever the loop does around a step is inside,
and no system pays for being measured. Every process is as its user would start it: own allocator, own threads.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 3
LAST_LINES = 15


class SystemFailed(RuntimeError):
    """A system ended where it should have taken its turn."""


@dataclass(frozen=True)
class Turn:
    """What one system did in one turn: how long it took, and what was counted, such as `tokens` and `cpu_seconds`."""

    seconds: float
    counts: dict[str, float]
    profile: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Real tokens a second."""
        return self.per_second("tokens")

    def per_second(self, unit: str) -> float:
        """How many of what was counted a second."""
        return self.counts[unit] / self.seconds


class Gate:
    """The place in a system's loop at which it waits."""

    def __init__(self, turns: Connection, device: str) -> None:
        self.turns, self.device = turns, device
        self.left, self.timed, self.dtype, self.profiler = 0, 0, None, None
        self.counts: Counter[str] | None = None

    def step(self, **counts: float) -> None:
        """Begin a step that will handle so many `tokens` and so on; wait first, if the turn is over."""
        if self.left == 0:
            if self.counts is not None:
                self.report()
            self.wait()
        if self.left == self.timed:
            self.begin()
        self.left -= 1
        self.counts.update(counts)

    def wait(self) -> None:
        """Wait for the next turn; without one the process ends."""
        try:
            lead_in, self.timed, self.dtype = self.turns.recv()
        except EOFError:
            raise SystemExit from None
        self.left, self.counts = lead_in + self.timed, Counter()

    def begin(self) -> None:
        """Start the clock, after the lead-in."""
        self.counts = Counter()
        if self.dtype is not None:
            from launch.benches.profile import profiler

            self.profiler = profiler(self.device)
            self.profiler.start()
        self.synchronize()
        self.began, self.cpu_began = time.perf_counter(), time.process_time()

    def report(self) -> None:
        """Tell what the turn took."""
        self.synchronize()
        seconds, profile = time.perf_counter() - self.began, {}
        self.counts["cpu_seconds"] = time.process_time() - self.cpu_began
        if self.profiler is not None:
            from launch.benches.profile import summary

            self.profiler.stop()
            profile, self.profiler = summary(self.profiler, self.dtype, self.device), None
        self.turns.send(Turn(seconds, {name: float(count) for name, count in self.counts.items()}, profile))

    def synchronize(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


Start = Callable[[Gate, dict[str, Any]], None]


@dataclass(frozen=True)
class Spec:
    """A system that is to be started.

    `start` is a function at the top of a module; a turn is `pace` times as many steps as the other systems'. Before
    each turn come `lead_in` steps that are not timed: a process that has waited finds its caches cold.
    """

    name: str
    start: Start
    options: dict[str, Any]
    pace: int = 1
    lead_in: int = 1


class System:
    """A running system, seen from the process that measures."""

    def __init__(self, spec: Spec, threads: int, device: str, folder: Path) -> None:
        self.spec, self.name, self.log = spec, spec.name, folder / f"{spec.name}.log"
        self.turns, theirs = get_context("spawn").Pipe()
        words = (theirs, spec.start, spec.options, threads, device, self.log)
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the libraries when the process loads them
        try:
            self.process = get_context("spawn").Process(target=serve, args=words, name=spec.name)
            self.process.start()
        finally:
            os.environ.pop("OMP_NUM_THREADS")
            os.environ.update({"OMP_NUM_THREADS": before} if before is not None else {})
        theirs.close()

    def take_turn(self, steps: int, profiled_as: str | None = None) -> Turn:
        """Let the system run so many steps; with the name of its matrix multiplications' dtype, under a profiler.

        Raises:
            SystemFailed: with the last lines that the system wrote.
        """
        try:
            self.turns.send((self.spec.lead_in, steps * self.spec.pace, profiled_as))
            return self.turns.recv()
        except (EOFError, ConnectionError) as error:
            lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:] if self.log.exists() else []
            raise SystemFailed(
                "\n".join([f"{self.name} ended before its turn did; its last lines:", *lines])
            ) from error

    def end(self) -> None:
        """Let the process go."""
        self.turns.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def serve(turns: Connection, start: Start, options: dict[str, Any], threads: int, device: str, log: Path) -> None:
    """Run a system in a process of its own; what it prints goes to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    torch.set_num_threads(threads)
    start(Gate(turns, device), options)


@contextmanager
def running(specs: list[Spec], threads: int, device: str, folder: Path) -> Iterator[list[System]]:
    """Start systems, all at once, and end them afterwards."""
    systems: list[System] = []
    try:
        for spec in specs:
            systems.append(System(spec, threads, device, folder))
        yield systems
    finally:
        for system in systems:
            system.end()


def speeds_of(rounds: list[dict[str, Turn]], unit: str = "tokens") -> dict[str, list[float]]:
    """Return tokens, or what else was counted, a second of every round, by system."""
    return {name: [turns[name].per_second(unit) for turns in rounds] for name in rounds[0]}


def records_of(rounds: list[dict[str, Turn]]) -> list[dict[str, dict[str, float]]]:
    """Return rounds as plain values: seconds and counts of every system."""
    return [{name: {"seconds": turn.seconds, **turn.counts} for name, turn in turns.items()} for turns in rounds]


def alternate(
    systems: list[System],
    rounds: int,
    steps: int,
    tell: Callable[[str], None],
    warm_up: int = WARM_UP_STEPS,
    unit: str = "tokens",
) -> list[dict[str, Turn]]:
    """Let every system take a turn in each round, in an order that is reversed from round to round."""
    for system in systems:
        system.take_turn(warm_up)
    found = []
    for number in range(rounds):
        order = systems if number % 2 == 0 else systems[::-1]
        found.append({system.name: system.take_turn(steps) for system in order})
        speeds = ", ".join(f"{system.name} {found[-1][system.name].per_second(unit):,.0f}" for system in systems)
        tell(f"round {number + 1}/{rounds}: {unit}/s {speeds}")
    return found
