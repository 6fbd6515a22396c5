"""Importing torch, transformers and Lightning."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from launch.ranks import process_rank

SILENT_SECONDS = 2.0


@contextmanager
def importing() -> Iterator[None]:
    """Import without the garbage collector, which takes a fifth of the time and finds nothing.

    What was imported stays, so the collector never looks at it again. What takes longer than two seconds says so.
    """
    gc.disable()
    line = threading.Timer(SILENT_SECONDS, print, ["importing torch, lightning and transformers ..."], {"flush": True})
    line.daemon = True
    if process_rank() == 0:
        line.start()
    try:
        yield
    finally:
        line.cancel()
        gc.freeze()
        gc.enable()
