"""The runs of a claim: how long each is at equal compute, and `launch fit` in a process for each."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from launch.claims.plan import Claim, Size
from launch.config.errors import ConfigError
from launch.config.overlay import PROJECT, find_file
from launch.config.resolved import RUN_FILE, Resolved, resolve
from launch.ranks import environment_for_children
from launch.run import DIVERGED, DONE, STOPPED
from launch.run_folder import read_json, write_whole

COUNTED_STEPS = 32  # real global batches over which the operations of a step are averaged
LOGGED_STEPS, VALIDATIONS = 100, 10  # points of a run's curves


class Stopped(Exception):
    """A run was asked to stop; the same command goes on."""


class Cost(NamedTuple):
    """What one optimizer step of an arm costs, on average over real batches."""

    operations: float
    tokens: float


@dataclass(frozen=True)
class Run:
    """One training run of an arm."""

    arm: str
    seed: int
    learning_rate: float
    steps: int
    folder: Path
    words: tuple[str, ...]  # the command line of `fit`

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.arm}, seed {self.seed}, learning rate {self.learning_rate:g}, {self.steps:,} steps"


def steps_for(budget: float, operations_per_step: float) -> int:
    """Return how many steps a budget of operations pays for: the whole number below budget / operations, at least 1."""
    return max(1, int(budget // operations_per_step))


def merged(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Lay nested options over others."""
    both = dict(lower)
    for key, value in upper.items():
        both[key] = merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


class Arms:
    """The arms of a claim at one size; `root` is the data root and `folder` is where the runs live."""

    def __init__(self, claim: Claim, size: Size, root: Path | None, folder: Path) -> None:
        self.claim, self.size, self.folder = claim, size, folder.resolve()
        self.base = str(find_file(claim.base).resolve())
        self.corpus = corpus_options(size, root)
        self.costs: dict[str, Cost] = {}

    def settings(self, arm: str, seed: int, learning_rate: float, steps: int) -> dict[str, Any]:
        """Return what is laid over the base configuration: the same for all arms, but for what the arm itself is."""
        schedule = {
            "seed": seed,
            "model": {"learning_rate": learning_rate, "warmup_steps": round(self.size.warmup_fraction * steps)},
            "trainer": {"max_steps": steps, "log_every_n_steps": max(1, steps // LOGGED_STEPS)},
            "callbacks": {
                "validation": {"every_n_steps": max(1, steps // VALIDATIONS)},
                "checkpoint": {"every_n_steps": max(1, steps // 4), "keep_last": 1, "keep_every_n_steps": None},
            },
        }
        options = merged(self.size.settings, {"data": self.corpus} if self.corpus else {})
        return merged(merged(options, schedule), self.claim.arms[arm])

    def run(self, arm: str, seed: int, learning_rate: float, tuning: bool = False) -> Run:
        """Plan a run that spends the budget, or the share of it that tuning gets, and write its overlay.

        Raises:
            ConfigError: its folder holds a run with other settings.
        """
        budget = self.size.budget * (self.size.tuning_fraction if tuning else 1.0)
        steps = steps_for(budget, self.cost(arm).operations)
        name = f"{arm}_tuning_{learning_rate:g}" if tuning else f"{arm}_seed{seed}"
        overlay = self.folder / f"{name}.yaml"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(overlay, yaml.safe_dump(self.settings(arm, seed, learning_rate, steps), sort_keys=False))
        words = ("--config", self.base, "--config", str(overlay))
        run = Run(arm, seed, learning_rate, steps, self.folder / name, words)
        refuse_other(run)
        return run

    def cost(self, arm: str) -> Cost:
        """Measure the operations of one step by the method's own count."""
        if arm not in self.costs:
            overlay = self.folder / f"{arm}.yaml"
            self.folder.mkdir(parents=True, exist_ok=True)
            options = self.settings(arm, self.size.seeds[arm][0], self.size.learning_rates[0], 1)
            write_whole(overlay, yaml.safe_dump(options, sort_keys=False))
            self.costs[arm] = counted(resolve(["--config", self.base, "--config", str(overlay)], "fit"))
        return self.costs[arm]


def corpus_options(size: Size, root: Path | None) -> dict[str, Any] | None:
    """Return the data options of a corpus below the data root; None where it is not there."""
    if size.corpus is None or root is None or not (root / size.corpus["source"]).exists():
        return None
    places = {key: str((root / value).resolve()) for key, value in size.corpus.items() if key.endswith("source")}
    return {**size.corpus, **places}


def counted(resolved: Resolved) -> Cost:
    """Average the operations and tokens of a step over the first global batches of the training data."""
    from launch.classes import imported
    from launch.prepare import instantiate

    data = instantiate(resolved)
    data.setup()
    options = {key: value for key, value in resolved.values["model"].items() if key != "class"}
    method = imported(resolved.parts, ("model",))(**options)
    method.build(data.tokenizer, data.sequence_length)
    steps = list(islice(data.train_dataloader(), COUNTED_STEPS))
    operations = sum(method.flops(batch) for step in steps for batch in step)
    tokens = sum(sum(batch["lens"]) for step in steps for batch in step)
    return Cost(operations / len(steps), tokens / len(steps))


class Runner:
    """Runs `launch fit` in processes, several at once; what is finished is left alone."""

    def __init__(self, processes: int, threads: int | None) -> None:
        self.processes, self.threads = processes, threads
        self.live: set[subprocess.Popen] = set()
        self.stopping = threading.Event()

    def run(self, runs: list[Run]) -> dict[Run, int]:
        """Run what is not finished, and return the exit code of each: 0, or 3 for one that diverged.

        Raises:
            Stopped: a run was stopped.
            ConfigError: a run failed.
        """
        codes = {run.folder: code for run in runs if (code := ended(run)) is not None}
        waiting = [run for run in runs if run.folder not in codes]
        if len(waiting) < len(runs):
            print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already", flush=True)
        pool = ThreadPoolExecutor(self.processes)
        try:
            futures = {pool.submit(self.fit, run): run for run in waiting}
            for number, future in enumerate(as_completed(futures), 1):
                run = futures[future]
                codes[run.folder] = self.checked(run, future.result())
                print(f"[{number}/{len(waiting)}] {run.title}", flush=True)
        finally:
            self.stopping.set()
            for process in list(self.live):
                process.send_signal(signal.SIGTERM)  # it saves, and goes on next time
            pool.shutdown(cancel_futures=True)
            self.stopping.clear()
        return {run: codes[run.folder] for run in runs}

    def fit(self, run: Run) -> int:
        """Run one process, its output in RUN.log, and return its exit code."""
        if self.stopping.is_set():
            return STOPPED
        command = [sys.executable, "-m", "launch", "fit", *run.words, "--run.dir", str(run.folder)]
        paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
        surroundings = {**environment_for_children(), "PYTHONPATH": os.pathsep.join(paths)}
        if self.threads:
            surroundings["OMP_NUM_THREADS"] = str(self.threads)
        with log_of(run).open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=surroundings)
            self.live.add(process)
            try:
                return process.wait()
            finally:
                self.live.discard(process)

    def checked(self, run: Run, code: int) -> int:
        """Take what an exit code means."""
        if code in (DONE, DIVERGED):
            return code
        if code == STOPPED:
            raise Stopped(str(run.folder))
        last = [line for line in log_of(run).read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise ConfigError(f"{run.folder}: fit ended with code {code}: {' '.join(last)} (see {log_of(run)})")


def refuse_other(run: Run) -> None:
    """Refuse to take a run with other settings for this one.

    Raises:
        ConfigError: its folder holds one.
    """
    stored = (read_json(run.folder / RUN_FILE) or {}).get("config_sha256")
    if stored and stored != resolve(list(run.words), "fit").digest():
        raise ConfigError(f"{run.folder}: holds a run with other settings; delete it, or give --runs FOLDER")


def ended(run: Run) -> int | None:
    """Return the exit code of a run that needs no further attempt; None for one that does."""
    outcome = read_json(run.folder / "outcome.json") or {}
    whole = outcome.get("code") == DONE and outcome["step"] >= run.steps
    return outcome["code"] if whole or outcome.get("code") == DIVERGED else None


def log_of(run: Run) -> Path:
    """Return the file that holds what a run printed."""
    return run.folder.with_name(f"{run.folder.name}.log")
