"""Progress of long work: a bar on a terminal, elsewhere a line every few seconds."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm.auto import tqdm

FIRST_SECONDS, EVERY_SECONDS = 2.0, 5.0

T = TypeVar("T")
Advance = Callable[[int], object]


@contextmanager
def progress(label: str, total: int | None, unit: str, count: Callable[[], int] | None = None) -> Iterator[Advance]:
    """Show how far some work is; give a function that counts units that are done.

    Args:
        label: what is done.
        total: how many units there are, if that is known.
        unit: what is counted, in the plural; "" where nothing can be.
        count: tells how many documents have been read by all processes, for work whose units take long.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=label, unit=f" {unit}", leave=False) as bar:
            yield bar.update
        return
    done, ended, start = [0], threading.Event(), time.monotonic()

    def advance(units: int = 1) -> None:
        done[0] += units

    def tell() -> None:
        wait = min(FIRST_SECONDS, EVERY_SECONDS)
        while not ended.wait(wait):
            wait = EVERY_SECONDS
            print(line(label, done[0], total, unit, count, time.monotonic() - start), file=sys.stderr, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield advance
    finally:
        ended.set()


def shown(items: Iterable[T], label: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield items and show how many have been."""
    with progress(label, total, unit) as advance:
        for item in items:
            yield item
            advance(1)


def line(label: str, done: int, total: int | None, unit: str, count: Callable[[], int] | None, seconds: float) -> str:
    """Write one line of progress."""
    of = "" if total is None else f" of {total:,}"
    counted = f"{done:,}{of} {unit}, " if unit else ""
    read = f"{count():,} documents, " if count else ""
    return f"{label}: {counted}{read}{seconds:.0f} s"
