"""The end of a process, also of one that holds torch's process groups. Imports nothing heavy."""

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def run_and_exit(main: Callable[[list[str]], int]) -> NoReturn:
    """Run the words of this process' command line, and end it with the exit code.

    With a process group Python is not taken down: a thread of gloo that lets go of a tensor at that moment aborts the
    process after everything went well (pytorch#190489). What was registered to be called at the end is called.
    """
    code: int | None = None

    def last() -> None:
        distributed = sys.modules.get("torch.distributed")
        if code is not None and distributed is not None and distributed.is_initialized():
            leave(code)

    atexit.register(last)  # the first to be registered is the last to be called
    code = main(sys.argv[1:])
    sys.exit(code)


def leave(code: int) -> NoReturn:
    """End this process at once, and do not take the process group apart.

    That can wait without end for a rank that is gone, after everything is said and written down.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
