"""What is printed goes on when its reader is gone, and is readable on every terminal."""

import os
import re
import sys
import threading
from contextlib import suppress
from typing import Any, TextIO

from launch.config.errors import one_line

CODES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # that colour and move; wandb and rich write them on a terminal
MOVES = re.compile(r"(?:\n|\r|\x1b\[A)*")  # what a progress bar writes to go to its line


def install() -> None:
    """Put a Steady stream in the place of both outputs; what an encoding cannot say is escaped."""
    _hold_numbers()
    os.environ.setdefault("TTY_COMPATIBLE", "0")  # rich shall draw no bars that need the codes which are left out
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Steady(stream))


def _hold_numbers() -> None:
    """Open what was closed by `2>&-` or the like: else the next file that is opened would get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  it stays open


class Steady:
    """A text stream that never raises, and shows control characters instead of sending them.

    A run must not end because `| tee` or `| head` did, and names of files and runs may hold codes that colour, move or
    reprogram a terminal.

    A broken pipe becomes /dev/null; after other faults, as of a full disk, the next line is tried again. Lines are sent
    whole, also where Python does not buffer: ranks share the output, and print() writes a line in pieces.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._held, self._lock = stream, "", threading.RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Keep text until its line is whole."""
        with self._lock:
            self._held += visible(text, starts=not self._held)
            if "\n" in text:
                self._send()
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with self._lock:
            self._send()
            try:
                self._stream.flush()
            except OSError as error:
                self._forgive(error)

    def _send(self) -> None:
        text, self._held = self._held, ""
        try:
            if text:
                self._stream.write(text)
        except OSError as error:
            self._forgive(error)

    def _forgive(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            with suppress(OSError):
                self._stream.flush()


def visible(text: str, starts: bool = True) -> str:
    """Return a text without codes for a terminal, and with all other control characters escaped.

    Line breaks, tabs and the moves of a progress bar stay. Messages have been through `one_line`, which shows codes.

    Args:
        text: what is written at once.
        starts: whether it is the first of its line; a bar begins there with a carriage return.
    """
    if text.isprintable() or MOVES.fullmatch(text):
        return text
    text = CODES.sub("", text)
    start = "\r" if starts and text.startswith("\r") else ""
    lines = text[len(start) :].split("\n")
    return start + "\n".join("\t".join(map(one_line, line.split("\t"))) for line in lines)
