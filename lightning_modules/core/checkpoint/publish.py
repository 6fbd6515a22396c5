"""Writing a checkpoint so that it either exists whole or not at all.

All ranks write into one temporary folder; each announces its file with its size and hash by a marker; rank 0 collects
the markers, writes the manifest and renames the folder, which is the moment at which the step exists. None of this uses
a collective, so it runs in a thread beside the training.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.verify import (
    FORMAT,
    MANIFEST,
    TRAINER,
    complete_steps,
    seal,
    shard_name,
    step_folder,
    verify,
)

MARKER_PATIENCE_SECONDS = 1800.0
LEAVE_PATIENCE_SECONDS = 60.0
LEAVE_QUIET_SECONDS = 5.0  # of a rank that writes nothing, until one that leaves gives the save up

_log = logging.getLogger(__name__)


def reached(point: str) -> None:
    """Do nothing; called by name after each part of a save, so that tests can end the process exactly there."""


class HashedFile:
    """A file that counts and hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`."""
        try:
            self.file.write(data)
            reached("write")
        except OSError as error:
            self.error = error  # torch.save reports a failed write as its own error, without the reason
            raise
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Send what is buffered to the operating system."""
        self.file.flush()


def write_file(path: Path, payload: Any) -> dict[str, Any]:
    """Write data with `torch.save`, synced to the disk; returns its size in bytes and its SHA-256.

    Raises:
        CheckpointError: the disk is full, the folder is read-only, or the like.
    """
    file = None
    try:
        file = HashedFile(path)
        with file.file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.file.fileno())
    except (OSError, RuntimeError) as error:
        cause = (file.error if file is not None else None) or error
        reason = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]
        raise CheckpointError(f"{path}: could not be written ({reason})") from error
    return {"size": file.size, "sha256": file.digest.hexdigest()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON under a name that appears only when the file is whole."""
    part = path.with_suffix(".part")
    try:
        with part.open("w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error.strerror})") from error


def begin(final: Path) -> Path | None:
    """Make the temporary folder of one attempt to save; None if the step is already saved and whole.

    Raises:
        CheckpointError: the folder cannot be made.
    """
    if final.exists():
        try:
            verify(final)
            return None
        except CheckpointError as error:
            _log.warning("saving again over a damaged checkpoint: %s", error)
    temp = temporary(final)
    try:
        temp.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"{temp}: could not be made ({error.strerror})") from error
    reached("begun")
    return temp


def set_aside(checkpoints: Path, step: int) -> list[int]:
    """Move checkpoints of later steps into `set_aside`: a run that goes on from here makes other ones of its own.

    They are kept, because they may be all that is left of a long run. Returns their steps.
    """
    later = [found for found in complete_steps(checkpoints) if found > step]
    for found in later:
        folder = step_folder(checkpoints, found)
        target = temporary(checkpoints / "set_aside" / folder.name)
        target.parent.mkdir(exist_ok=True)
        folder.rename(target.with_name(target.name.removeprefix(".").removesuffix(".tmp")))
    return later


def temporary(final: Path) -> Path:
    """Name a path beside `final` that no other attempt uses."""
    return final.with_name(f".{final.name}.{os.getpid()}-{time.time_ns()}.tmp")


def discard_leftovers(checkpoints: Path) -> None:
    """Delete what killed attempts left behind; only when no save is in flight."""
    for path in checkpoints.glob(".*.tmp"):
        _delete(path)


def remove(folder: Path) -> None:
    """Delete a checkpoint; being killed on the way leaves no half of one under its name."""
    doomed = temporary(folder)
    folder.rename(doomed)
    reached("removing")
    _delete(doomed)


def _delete(path: Path) -> None:
    """Delete what nobody needs; what cannot be deleted, as on a disk with errors, holds no run up."""
    try:
        if path.is_symlink():
            path.unlink()
        else:
            with suppress(OSError):
                path.chmod(0o700)  # a folder that was closed to its owner
            shutil.rmtree(path)
    except OSError as error:
        _log.warning("%s: cannot be deleted (%s); it takes room and is not used", path, error.strerror)


class Save:
    """One rank's part of one save, in a thread."""

    def __init__(self, final: Path, temp: Path, rank: int, world_size: int) -> None:
        self.final, self.temp, self.rank, self.world_size = final, temp, rank, world_size
        self.shard: dict[str, Any] = {}  # what goes into this rank's shard
        self.whole: dict[str, Any] = {}  # rank 0: what goes into trainer.pt
        self.facts: dict[str, Any] = {}  # rank 0: what goes into the manifest besides the files
        self.on_published: Callable[[Path], None] | None = None  # rank 0: called in the thread
        self.error: str | None = None
        self.abandoned, self.leaving = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"save {final.name}", daemon=True)

    @property
    def finished(self) -> bool:
        """Whether the thread has ended, well or not."""
        return not self.thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether the thread has ended with an error."""
        return self.finished and self.error is not None

    def abandon(self) -> None:
        """Stop waiting for other ranks."""
        self.abandoned.set()

    def leave(self) -> None:
        """Wait only for ranks that are still writing: this one is about to end, and the others may be gone."""
        self.leaving.set()
        self.thread.join(LEAVE_PATIENCE_SECONDS)

    def _run(self) -> None:
        try:
            self._write()
        except CheckpointError as error:
            self.error = str(error)
        except OSError as error:
            self.error = f"{error.filename or self.final}: {error.strerror}"
        except BaseException as error:  # raised again by the main thread, as text, on every rank
            self.error = f"{self.final}: {type(error).__name__}: {error}"

    def _write(self) -> None:
        files = {shard_name(self.rank): write_file(self.temp / shard_name(self.rank), self.shard)}
        reached("shard")
        self.shard = {}
        if self.rank > 0:
            write_json(self._marker(self.rank), files)
            reached("marker")
            return
        files[TRAINER] = write_file(self.temp / TRAINER, self.whole)
        reached("trainer")
        for rank in range(1, self.world_size):
            files |= self._collect(rank)
        self._publish(files)
        if self.on_published is not None:
            self.on_published(self.final)
        reached("end")

    def _marker(self, rank: int) -> Path:
        return self.temp / f"done_{rank:05d}.json"

    def _collect(self, rank: int) -> dict[str, Any]:
        """Wait for the marker of another rank and take it away."""
        marker = self._marker(rank)
        shard, size, now = self.temp / shard_name(rank), -1, time.monotonic()
        deadline, written = now + MARKER_PATIENCE_SECONDS, now
        while not marker.exists():
            now, before = time.monotonic(), size
            size = shard.stat().st_size if shard.exists() else 0
            written = now if size != before else written
            if self.abandoned.is_set():
                raise CheckpointError(f"{self.final}: given up, another rank failed")
            if self.leaving.is_set() and now - written > LEAVE_QUIET_SECONDS:
                raise CheckpointError(f"{self.final}: given up, rank {rank} does not write its part")
            if now > deadline:
                raise CheckpointError(f"{marker}: rank {rank} did not write in {MARKER_PATIENCE_SECONDS:.0f} s")
            time.sleep(0.01)
        files = json.loads(marker.read_bytes())
        marker.unlink()
        return files

    def _publish(self, files: dict[str, Any]) -> None:
        manifest = {"format": FORMAT, **self.facts, "world_size": self.world_size, "files": files}
        write_json(self.temp / MANIFEST, manifest | {"sha256": seal(manifest)})
        reached("manifest")
        sync_folder(self.temp)
        if self.final.exists():  # damaged, else there were no attempt
            self.final.rename(temporary(self.final))
        reached("synced")
        self.temp.rename(self.final)
        reached("renamed")
        sync_folder(self.final.parent)
        reached("published")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
