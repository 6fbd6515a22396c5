"""The request to stop: a signal or the clock makes it, the training step reads it. Imports nothing heavy.

A handler does no work: an interrupt may come in the middle of a backward pass, and ranks get it at different steps. The
step asks `requested()`, the ranks agree by vote, and the run saves and ends by the normal path.

A thread sees every signal as it comes, also while the main thread waits in a collective for a rank that hangs: Python
runs handlers in the main thread alone, so without it a second signal could not end such a run.
"""

import math
import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
MOST_STEPS = 3  # the one that runs, and two in which the ranks agree
REPEAT_SECONDS = 3.0  # a batch system sends the same signal twice within a moment; a person does it later
RESUMABLE = 75
WALL_TIME = "run.max_wall_time"

standing = ""  # which checkpoint there is to go on from, in words; whoever saves says it
_began = time.monotonic()
_deadline = math.inf
_name = ""
_writer = -1
_terminals: list[int] = []


def requested() -> bool:
    """Tell whether this process was asked to stop."""
    if not _name and time.monotonic() >= _deadline:
        _note(WALL_TIME)
        _say(f"{WALL_TIME} is over: {announcement()}")
    return bool(_name)


def name() -> str:
    """Return the name of the signal, or of the option, that asked for a stop; empty if none did."""
    return _name


def announcement() -> str:
    """Say what a request to stop brings about."""
    return (
        f"stopping after at most {MOST_STEPS} more steps, then it saves; a second signal after {REPEAT_SECONDS:g} s "
        f"ends it at once; {standing or 'no checkpoint stands so far'}"
    )


def after(seconds: float) -> None:
    """Ask for a stop when this process has run for so long, counted from the import of this module."""
    global _deadline
    _deadline = _began + seconds


def install() -> None:
    """Catch TERM, INT, USR1, USR2 and HUP from now on; a signal that came before is kept.

    HUP stays ignored where it is, as nohup starts a process.
    """
    global _writer, _terminals
    _terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
    for number in caught():
        signal.signal(number, _handle)
    if _writer < 0:
        reader, _writer = os.pipe()
        os.set_blocking(_writer, False)
        threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
        os.register_at_fork(after_in_child=_let_go)
    signal.set_wakeup_fd(_writer, warn_on_full_buffer=False)


def caught() -> list[signal.Signals]:
    """List the signals that ask for a stop."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def _handle(number: int, frame: FrameType | None) -> None:
    _leave_terminal(number)
    _note(signal.Signals(number).name)


def _note(what: str) -> None:
    global _name
    _name = _name or what


def _watch(reader: int) -> None:
    """Read the number of each signal as it comes: the first asks for a stop, a late repeat ends the process."""
    since = None
    while numbers := os.read(reader, 64):
        now = time.monotonic()
        for number in numbers:
            if number not in SIGNALS:
                continue
            if since is None:
                since = now
                _leave_terminal(number)
                _note(signal.Signals(number).name)
                _say(f"{signal.Signals(number).name}: {announcement()}")
            elif now - since > REPEAT_SECONDS:
                _say(f"ended at once; {standing or 'no checkpoint stands'}")
                os._exit(RESUMABLE)


def _leave_terminal(number: int) -> None:
    """After HUP, write to nowhere what would go to a terminal: a line for one that is gone would end the run."""
    if number != signal.SIGHUP:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _terminals:  # one that is gone no longer says that it was one
        os.dup2(nowhere, descriptor)


def _let_go() -> None:
    """In a forked process: what comes there is not for this one, and TERM ends it as its starter expects."""
    global _writer
    if _writer >= 0:
        _writer = -1
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def _say(line: str) -> None:
    with suppress(OSError):  # Ctrl-C ends the reader of a pipe too
        os.write(2, f"\n{line}\n".encode())  # print() may be in the middle of a line of its own
