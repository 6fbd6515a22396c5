"""A process that rank 0 started on its machine ends with rank 0, also when that is killed. Imports nothing heavy."""

import ctypes
import os
import signal
import sys
from contextlib import suppress

from launch.ranks import is_child

SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends; elsewhere than on Linux, collectives notice it later.

    Without it a rank that waits in NCCL, or for a rendezvous that nobody answers, goes on for half an hour, and a new
    attempt in the same folder meets it.
    """
    if not is_child() or not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    if not is_child():  # it ended before the kernel knew
        os._exit(1)
