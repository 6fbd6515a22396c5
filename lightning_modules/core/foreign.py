"""A run's folder is data, also one from elsewhere: no code is taken from inside it. Imports what Python has at hand."""

import os
import sys

PAPERS = ("run.json", "outcome.json", "ledger.jsonl")
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PACKAGES = ("launch", "lightning_modules", "datamodules", "callbacks", "benchmarks", "tests")
# Of this project, which may be the copy that a job keeps in its run's folder, and what was installed.
OURS = [os.path.join(PROJECT, name) for name in PACKAGES]
INSTALLED = [os.path.dirname(os.__file__), os.path.join(sys.prefix, "lib"), os.path.join(sys.prefix, "lib64")]


def run_above(place: str | os.PathLike, *runs: str | os.PathLike) -> str | None:
    """Return the folder of a run that a file or folder lies in; None if it lies in none, or is this project's own.

    Args:
        place: the file or folder, which need not be there.
        runs: folders that become runs, though they hold no papers yet.
    """
    named = {os.path.realpath(run) for run in runs if "\0" not in os.fspath(run)}
    for path in (os.path.abspath(place), os.path.realpath(place)):
        if any(path == root or path.startswith(root + os.sep) for root in (*OURS, *INSTALLED)):
            continue
        while True:
            if os.path.realpath(path) in named or is_run(path):
                return path
            if path == os.path.dirname(path):
                break
            path = os.path.dirname(path)
    return None


def is_run(path: str) -> bool:
    """Say whether a folder is that of a run: by its papers, or by a checkpoint beside a configuration."""
    if any(os.path.isfile(os.path.join(path, name)) for name in PAPERS):
        return True
    checkpoints = os.path.join(path, "checkpoints")
    if not os.path.isfile(os.path.join(path, "config.yaml")) or not (
        os.path.isdir(checkpoints) and os.access(checkpoints, os.R_OK)
    ):
        return False
    return any(os.path.isfile(os.path.join(checkpoints, name, "manifest.json")) for name in os.listdir(checkpoints))


def without_runs(places: list[str]) -> list[str]:
    """Return those entries of a search path for modules that do not lie in a run's folder."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted, so that nothing can be found there either
        return [place for place in places if os.path.isabs(place)]
    full = [os.path.abspath(os.path.join(here, place)) for place in places]
    return [place for place, path in zip(places, full, strict=True) if path == PROJECT or not run_above(path)]
