"""Which checkpoint of a run's folder is meant."""

import os
from pathlib import Path

from launch.config.errors import short
from launch.config.numbers import is_whole
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.verify import complete_steps, has_steps, newest_complete, step_folder, verify

MAX_DIGITS = 20


def choose(checkpoints: Path, wanted: str | int | None, reads: bool = True) -> Path | None:
    """Return the folder of a checkpoint: the newest, `best`, a step, or a path; None if there is none yet.

    What files hold is checked if `reads`, else their sizes alone.

    Raises:
        CheckpointError: there is no such checkpoint, or all that there are are damaged.
    """
    if wanted is None:
        newest = newest_complete(checkpoints, reads=reads)
        if newest is None and has_steps(checkpoints):
            raise CheckpointError(f"{checkpoints}: every checkpoint is damaged; delete the folder to start at step 0")
        return newest
    if isinstance(wanted, int) or (is_whole(wanted) and len(wanted) < MAX_DIGITS):
        folder = step_folder(checkpoints, int(wanted))
    else:
        folder = checkpoints / "best" if wanted == "best" else Path(wanted)
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        steps = ", ".join(map(str, complete_steps(checkpoints))) or "none"
        raise CheckpointError(
            f"run.checkpoint = {short(wanted)}: there is no {short(folder)}; steps of this run: {steps}"
        )
    folder = folder.resolve() if folder.is_symlink() else folder
    verify(folder, reads=reads)
    return folder


def step_of(checkpoint: Path | None) -> int:
    """Return the step of a checkpoint by its folder's name."""
    words = checkpoint.name.rpartition("_")[2] if checkpoint else ""
    return int(words) if is_whole(words) else 0
