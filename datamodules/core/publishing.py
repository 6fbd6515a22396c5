"""Files that appear at once: written beside their place and renamed; what a killed process left is swept away."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def beside(path: Path) -> Path:
    """Name a place next to a path that no other process writes to."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path).open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    put(beside(path), path)


def put(half: Path, path: Path) -> None:
    """Move a file that is on the disk to its place, and see that its name is on the disk too."""
    try:
        os.replace(half, path)
        sync(path.parent)
    except FileNotFoundError:  # swept by another process, which has made the same
        if not path.exists():
            raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder that is complete."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold a lock on a path, so that work is not done twice; it falls with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"data: waiting for another process that makes {what}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
