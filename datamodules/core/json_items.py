"""JSON as it is read everywhere: objects that name no field twice, and arrays item by item."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.core.errors import DataError
from datamodules.core.opening import HEAD_BYTES, MAX_LINE_BYTES

SPACE = re.compile(r"[ \t\r\n]*")


class Doubled(dict[str, Any]):
    """A JSON object that names a field twice, of which a reader would take the last silently."""

    name: str


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its fields."""
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    names = [name for name, _ in pairs]
    doubled = Doubled(made)
    doubled.name = next(name for name in names if names.count(name) > 1)
    return doubled


DECODER = json.JSONDecoder(object_pairs_hook=object_of)


class Items:
    """The items of a JSON array, read from a stream; of its text there is in memory what one item needs.

    By the reader of JSON lines itself, so that an item is the same in both forms. ijson makes "?" of half a surrogate
    pair and refuses NaN and long whole numbers.
    """

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.stream, self.path, self.text, self.at = stream, path, "", 0
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode

    def __iter__(self) -> Iterator[Any]:
        self.expect("[")
        if self.next_mark() == "]":
            self.at += 1
        else:
            yield self.value()
            while self.expect(",]") == ",":
                yield self.value()
        if self.next_mark():
            raise ValueError("there is more behind the end of the array")

    def grow(self) -> bool:
        """Read on, twice as far as before while one item takes it; say whether there was more."""
        held = len(self.text) - self.at
        if held > MAX_LINE_BYTES:
            raise DataError(
                f"{self.path}: a record has more than {MAX_LINE_BYTES >> 20} MiB; break it into several records"
            )
        some = self.stream.read(max(HEAD_BYTES, min(held, MAX_LINE_BYTES - held)))
        rest, self.text, self.at = self.text[self.at :], "", 0  # of a long text there are no more copies than it takes
        self.text = rest + self.decode(some, not some)
        return bool(some)

    def next_mark(self) -> str:
        """Find the next character that is no space; nothing at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or not self.grow():
                return self.text[self.at : self.at + 1]

    def expect(self, marks: str) -> str:
        """Take one of some characters."""
        mark = self.next_mark()
        if not mark or mark not in marks:
            raise ValueError(f"expected {' or '.join(marks)}, not {mark!r}" if mark else "it is cut off")
        self.at += 1
        return mark

    def value(self) -> Any:
        """Take a value; one that ends where the text does may go on."""
        self.next_mark()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except ValueError:
                if not self.grow():
                    raise
                continue
            length = end - self.at
            is_whole = end < len(self.text) and self.text[end] not in ".eE"  # which go on with a number
            if is_whole or not self.grow():
                self.at += length
                return value
