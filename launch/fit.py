"""`fit` once torch is needed: find the checkpoint, build everything, run, and say how it ended."""

import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

from datamodules.core.errors import DataError
from launch.causes import as_said, known_cause
from launch.checkpoints import choose, step_of
from launch.cli import Cli
from launch.config.errors import ConfigError, one_line
from launch.config.resolved import NEXT_CONFIG, Resolved
from launch.leaving import leave
from launch.peers import PROBE_SECONDS, Unreachable, watched
from launch.ranks import adopt_children, is_child, process_rank
from launch.run import DIVERGED, DONE, ERROR, STOPPED, finished
from launch.run_folder import RunFolder, identity
from lightning_modules.core import stop
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.verify import read_manifest
from lightning_modules.core.divergence import Diverged

GRACE_SECONDS = 30.0
KNOWN = (ConfigError, DataError, CheckpointError, Unreachable)  # told in one line, without a traceback


class Outcome(NamedTuple):
    """How an attempt ended."""

    code: int
    reason: str


def fit(resolved: Resolved, folder: RunFolder) -> int:
    """Train in this process, and return the exit code. Rank 0 keeps the folder's records.

    Raises:
        ConfigError: found with the real classes, before the run began.
    """
    is_first = process_rank() == 0
    try:
        checkpoint = _chosen(resolved, folder)
        step, steps = step_of(checkpoint), resolved.get("trainer.max_steps")
        if step >= steps:
            print(finished(folder.path, step, steps) if is_first else "", end="\n" if is_first else "")
            return DONE
        cli = Cli("fit", resolved, str(checkpoint) if checkpoint else None, folder)
    except KNOWN as error:
        return _told(error)
    if is_first:
        folder.start(resolved, f"resumed after step {step}" if checkpoint else "new")
        # Lightning starts the other processes with these words, so that files edited meanwhile cannot split the ranks.
        stored = ["--config", str(folder.path / NEXT_CONFIG)]
        sys.argv[1:] = ["fit", *stored, *(["--run.checkpoint", str(checkpoint)] if checkpoint else [])]
    outcome = Outcome(ERROR, "it was ended from within")
    try:
        outcome = _run(cli, folder)
    finally:
        if is_first:
            folder.end(outcome.code, max(step, cli.trainer.global_step), outcome.reason)
        _end_children(cli, GRACE_SECONDS if outcome.code in (DONE, STOPPED) else PROBE_SECONDS + 1.0)
    if outcome.code == ERROR and cli.trainer.world_size > 1:
        leave(ERROR)
    return DONE if is_child() and outcome.code != ERROR else outcome.code


def _chosen(resolved: Resolved, folder: RunFolder) -> Path | None:
    """Choose where to go on from. Rank 0 reads it all, the others their shares when they load it: what rank 0 chose."""
    wanted = resolved.get("run.checkpoint")
    reads = process_rank() == 0 or (wanted is not None and not is_child())
    checkpoint = choose(folder.checkpoints, wanted, reads)
    if checkpoint is not None and process_rank() == 0:
        _require_own(checkpoint, resolved)
    if reads or step_of(checkpoint) < resolved.get("trainer.max_steps"):
        return checkpoint
    return choose(folder.checkpoints, wanted)  # who leaves because all is done must be as sure of it as rank 0


def _require_own(checkpoint: Path, resolved: Resolved) -> None:
    """Refuse another run's checkpoint: what may not change in a run stands in the manifest."""
    of_run, mine = read_manifest(checkpoint).get("run"), identity(resolved)
    if not of_run:
        print(f"{checkpoint}: does not say of which run it is, as checkpoints of before; taken as this run's")
    elif other := next((name for name in mine if of_run.get(name, mine[name]) != mine[name]), None):
        raise CheckpointError(
            f"{checkpoint}: is of another run: its {other} is {of_run[other]!r:.40}, not {mine[other]!r:.40}; "
            "take it away, or begin with its weights by model.init_from"
        )


def _run(cli: Cli, folder: RunFolder) -> Outcome:
    if stop.requested() and cli.trainer.world_size == 1:  # several ranks must agree, which they do in the first step
        return Outcome(STOPPED, f"{stop.name()} before the first step")
    adopt_children()
    try:
        with watched(cli.trainer, folder, locked=True):
            cli.run()
    except Diverged as error:
        _told(error)
        return Outcome(DIVERGED, f"diverged: {error}")
    except KNOWN as error:
        if stop.requested() and not cli.record.began:  # a signal to the whole group ends what prepares the data
            return Outcome(STOPPED, f"{stop.name()} before the first step")
        _told(error := as_said(error))
        return Outcome(ERROR, f"error: {error}")
    except Exception as error:
        if (known := known_cause(error, folder.path)) is not None:
            _told(known)
            return Outcome(ERROR, f"error: {known}")
        traceback.print_exc()
        return Outcome(ERROR, f"{type(error).__name__}: {error}")
    if cli.record.stopped:
        return Outcome(STOPPED, f"{stop.name() or 'a signal to another rank'}")
    return Outcome(DONE, "done")


def _told(error: Exception) -> int:
    rank = process_rank()
    if rank == 0 or not isinstance(error, ConfigError):  # all ranks make the same mistake in a configuration
        problems = error.problems if isinstance(error, ConfigError) else [error]
        lines = [f"rank {rank}: error: {one_line(it)}" if rank else f"error: {one_line(it)}" for it in problems]
        print(*lines, sep="\n", file=sys.stderr, flush=True)
    return ERROR


def _end_children(cli: Cli, seconds: float) -> None:
    """Wait for the processes that Lightning started; one that hangs in a collective never ends by itself."""
    for process in getattr(cli.trainer.strategy.launcher, "procs", []):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
