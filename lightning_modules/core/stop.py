"""The request to stop: a signal sets a number, the training step reads it. Imports nothing heavy.

A handler does no work: an interrupt may come in the middle of a backward pass, and ranks get it at different steps. The
step asks `requested()`, the ranks agree by vote, and the run saves and ends by the normal path.
"""

import os
import signal
import time
from contextlib import suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
REPEAT_SECONDS = 3.0  # a batch system sends the same signal twice within a moment; a person does it later
RESUMABLE = 75

_signal = 0
_since = 0.0


def requested() -> int:
    """Return the number of the signal that asked for a stop, 0 if none came."""
    return _signal


def name() -> str:
    """Return the name of the signal that asked for a stop, empty if none came."""
    return signal.Signals(_signal).name if _signal else ""


def install() -> None:
    """Catch TERM, INT, USR1 and USR2 from now on; a signal that came before is kept."""
    for number in SIGNALS:
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    global _signal, _since
    now = time.monotonic()
    if not _signal:
        _signal, _since = number, now
        _say(f"{signal.Signals(number).name}: stopping after this step; a second one ends at once")
    elif now - _since > REPEAT_SECONDS:
        _say("ended at once; the newest checkpoint stands")
        os._exit(RESUMABLE)


def _say(line: str) -> None:
    with suppress(OSError):  # Ctrl-C ends the reader of a pipe too
        os.write(2, f"\n{line}\n".encode())  # print() may be in the middle of a line of its own
