"""`fit`, `validate`, `test` and `predict`: what happens before and after torch is imported."""

from pathlib import Path

from launch.config.errors import ConfigError
from launch.config.resolved import Resolved, resolve
from launch.ranks import process_rank
from launch.run_folder import RunFolder, described, unsettled
from lightning_modules.core import stop

DONE, ERROR, DIVERGED, STOPPED = 0, 1, 3, stop.RESUMABLE


def main(command: str, words: list[str]) -> int:
    """Run one of the four commands and return its exit code.

    Raises:
        ConfigError: the words, the files or the run's folder do not allow it.
    """
    resolved = resolve(words, command)
    folder = RunFolder(resolved.run_dir)
    if command != "fit":
        from launch.evaluate import evaluate

        return evaluate(command, resolved, folder)
    if process_rank() > 0:
        from launch.fit import fit

        return fit(resolved, folder)
    return _fit_in_folder(resolved, folder)


def _fit_in_folder(resolved: Resolved, folder: RunFolder) -> int:
    print(*resolved.notes, sep="\n", end="\n" if resolved.notes else "")
    folder.enter(fresh=bool(resolved.get("run.fresh")))
    try:
        differences = folder.differences(resolved)
        has_steps = any(folder.checkpoints.glob("step_*")) or folder.finished_at()
        if has_steps and (problems := unsettled(differences, folder.path)):
            raise ConfigError(*problems)
        if differences:
            print(f"{folder.path} was started with other values:", *described(differences), sep="\n", flush=True)
        steps = resolved.get("trainer.max_steps")
        if folder.finished_at() >= steps and resolved.get("run.checkpoint") is None:
            print(finished(folder.path, folder.finished_at(), steps))
            return DONE
        from launch.fit import fit  # torch, after everything that can be known without it

        return fit(resolved, folder)
    finally:
        folder.leave()


def finished(path: Path, step: int, steps: int) -> str:
    """Return the line for a run that has nothing left to do."""
    return f"{path}: finished at step {step}, trainer.max_steps is {steps}; raise it to go on"
