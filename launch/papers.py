"""What the loggers of a run are told about it."""

import shlex
import sys
from typing import Any

from callbacks.papers import Papers, Value
from launch.config.resolved import Resolved
from launch.surroundings import changed_files, commit


def papers_of(resolved: Resolved) -> Papers:
    """Return name, command, commit and configuration of the run that this process is about to start."""
    found, changed = commit() or "none, the code is in no repository", len(changed_files())
    values = {".".join(key): _plain(entry.value) for key, entry in resolved.of_the_run().items()}
    return Papers(
        name=resolved.run_dir.resolve().name,
        command=shlex.join(["python", "-m", "launch", *sys.argv[1:]]),
        commit=found + (f", {changed} files differ" if changed else ""),
        config=resolved.run_text(),
        values=values,
    )


def _plain(value: Any) -> Value:
    """Return what can stand in a table: numbers and words as they are, the rest as it is written."""
    return value if isinstance(value, bool | int | float | str) else str(value)
