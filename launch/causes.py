"""What ends a run from outside of it, found in the error that came of it: a disk that is full, a worker that died."""

import errno
import re

from launch.config.errors import ConfigError

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE)
WORKER = re.compile(r"DataLoader worker.*? (?:exited unexpectedly|is killed by signal)", re.DOTALL)
FEW_FILES = re.compile(r"Too many open files|received 0 items of ancdata")


def known_cause(error: BaseException) -> ConfigError | None:
    """Tell in one line what lies behind an error; None where it is one of the program.

    Libraries raise errors of their own while they handle that of the system, as TensorBoard's writer does for a full
    disk, so the whole chain is looked through.
    """
    chain = list(chain_of(error))
    for one in chain:
        if isinstance(one, OSError) and one.errno in OF_THE_DISK:
            place = one.filename or "a file of the run"
            return ConfigError(
                f"{place}: could not be written or read: {one.strerror}; make room, and start again to go on"
            )
    for one in chain:
        if FEW_FILES.search(str(one)):
            return ConfigError(
                "data.num_workers: too few files may be open for its processes (ulimit -n); raise the limit, or take 0"
            )
    for one in chain:
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
