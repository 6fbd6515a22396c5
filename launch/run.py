"""`fit`, `validate`, `test` and `predict`: what happens before and after torch is imported."""

import os
from pathlib import Path

from launch.config.errors import ConfigError, short
from launch.config.resolved import CONFIG, Resolved, look_for_sources, resolve
from launch.config.wall_time import seconds_of
from launch.importing import importing
from launch.jobs.rendezvous import settle_place
from launch.nodes import check_nodes
from launch.orphans import end_with_parent
from launch.ranks import check_devices, check_environment, process_rank, tasks_of_job
from launch.run_folder import RunFolder, described, unsettled
from lightning_modules.core import stop

DONE, ERROR, DIVERGED, STOPPED = 0, 1, 3, stop.RESUMABLE


def main(command: str, words: list[str]) -> int:
    """Run one of the four commands and return its exit code.

    Raises:
        ConfigError: the words, the files or the run's folder do not allow it.
    """
    end_with_parent()
    tasks = tasks_of_job()
    resolved = resolve(words, command, tasks)
    check_environment(resolved.get("strategy.class"))
    if tasks:
        check_devices(tasks, resolved.get("trainer.accelerator", "auto"))
        settle_place()
    else:
        check_nodes(resolved)
    folder = RunFolder(resolved.run_dir)
    if command != "fit":
        if not os.path.isdir(folder.path):
            raise ConfigError(f"run.dir = {short(folder.path)}: no such folder; run `fit` first, or give --run.dir")
        print("".join(f"{line}\n" for line in folder.keep_defaults(resolved)), end="")
        with importing():
            from launch.evaluate import evaluate

        return evaluate(command, resolved, folder)
    if (limit := resolved.get(stop.WALL_TIME)) is not None:
        stop.after(seconds_of(limit))
    if process_rank() > 0:
        folder.keep_defaults(resolved)
        with importing():
            from launch.fit import fit
        return fit(resolved, folder)
    return _fit_in_folder(resolved, folder)


def _fit_in_folder(resolved: Resolved, folder: RunFolder) -> int:
    print(*resolved.notes, sep="\n", end="\n" if resolved.notes else "")
    if folder.finished_at() < resolved.get("trainer.max_steps"):
        look_for_sources(resolved)
    folder.enter(fresh=bool(resolved.get("run.fresh")))
    try:
        print("".join(f"{line}\n" for line in folder.keep_defaults(resolved)), end="")
        differences = folder.differences(resolved)
        has_steps = any(folder.checkpoints.glob("step_*")) or folder.finished_at()
        if has_steps and (problems := unsettled(differences, folder.path)):
            raise ConfigError(*problems)
        if folder.is_changed():
            print(
                f"{folder.path / CONFIG}: is not as the run left it; what it says now is what is compared and trained"
            )
        if differences:
            print(f"{folder.path} was started with other values:", *described(differences), sep="\n", flush=True)
        steps = resolved.get("trainer.max_steps")
        done = folder.finished_at()
        if done >= steps and resolved.get("run.checkpoint") is None:
            if folder.holds(done) or not resolved.get("callbacks.checkpoint.save_last"):
                print(finished(folder.path, done, steps))
                return DONE
            print(f"{folder.checkpoints}: step {done}, at which the run ended, is gone; going on from what there is")
        with importing():  # torch, after everything that can be known without it
            from launch.fit import fit
        return fit(resolved, folder)
    finally:
        folder.leave()


def finished(path: Path, step: int, steps: int) -> str:
    """Return the line for a run that has nothing left to do."""
    return f"{path}: finished at step {step}, trainer.max_steps is {steps}; raise it to go on"
