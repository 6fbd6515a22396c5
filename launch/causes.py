"""What ends a run from outside of it, found in the error that came of it: a disk that is full, a worker that died."""

import errno
import re
from pathlib import Path
from typing import TypeVar

from launch.config.errors import ConfigError

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE)
WORKER = re.compile(r"DataLoader worker.*? (?:exited unexpectedly|is killed by signal)", re.DOTALL)
IN_WORKER = re.compile(r"Caught \w+ in DataLoader worker.*\n(?:[\w.]+\.)?(\w+): (.*)", re.DOTALL)
OF_THE_SYSTEM = re.compile(r"\[Errno \d+\] .*", re.DOTALL)
REFUSED = (errno.EAGAIN, errno.ENOMEM)  # a process, or memory
E = TypeVar("E", bound=Exception)
FEW_FILES = re.compile(r"Too many open files|received 0 items of ancdata")


def as_said(error: E) -> E:
    """Give back an error as a loader's worker raised it: on its way torch puts the worker's traceback into the text."""
    found = IN_WORKER.match(str(error))
    return type(error)(found[2].strip()) if found and found[1] == type(error).__name__ else error


def known_cause(error: BaseException, run: Path) -> ConfigError | None:
    """Tell in one line what lies behind an error of a run in a folder; None where it is one of the program.

    Libraries raise errors of their own while they handle that of the system, as TensorBoard's writer does for a full
    disk, so the whole chain is looked through.
    """
    chain = chain_of(error)
    for one in chain:
        if isinstance(one, OSError) and one.errno in OF_THE_DISK:
            place = one.filename or "a file of the run"
            return ConfigError(
                f"{place}: could not be written or read: {one.strerror}; make room, and start again to go on"
            )
    for one in chain:
        if isinstance(one, OSError) and isinstance(one.filename, str) and Path(one.filename).is_relative_to(run):
            return ConfigError(f"{one.filename}: {one.strerror}; it is a file of the run; let it be written and read")
        if isinstance(one, OSError) and one.errno in REFUSED and one.filename is None:
            return ConfigError(
                f"data.num_workers: a process could not be started: {one.strerror}; take fewer, or raise ulimit -u"
            )
    for one in chain:
        if FEW_FILES.search(str(one)):
            return ConfigError(
                "data.num_workers: too few files may be open for its processes (ulimit -n); raise the limit, or take 0"
            )
    for one in chain:
        if (found := IN_WORKER.match(str(one))) and OF_THE_SYSTEM.match(found[2]):
            return ConfigError(f"data: a worker of data.num_workers could not go on: {found[2].strip()}")
        if isinstance(one, RuntimeError) and WORKER.search(str(one)):
            reason = " ".join(str(one).split())
            return ConfigError(f"data.num_workers: {reason}; what it said stands above; start again to go on")
    return None


def chain_of(error: BaseException) -> list[BaseException]:
    """List an error and those during or from which it was raised, the newest first."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            waiting += [one.__context__, one.__cause__]
    return found
