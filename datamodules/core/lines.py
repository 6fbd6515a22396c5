"""Reading files line by line: plain text and JSON lines, also compressed; and what becomes of a bad record.

Every reader yields the documents of a stretch [start, stop) of bytes; stretches that cover a file yield each document
once. A fault names the file, the line, the value and a fix.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datamodules.core.account import Account
from datamodules.core.errors import DataError
from datamodules.core.json_items import DECODER, Doubled, Items
from datamodules.core.opening import (
    HEAD_BYTES,
    is_compressed,
    kind_of,
    lines_before,
    lines_from,
    look,
    open_bytes,
    told_damage,
)

MAX_DOCUMENT_BYTES = 256 << 20
COUNTED_AGAIN = 64 << 20  # bytes before a stretch whose lines are counted to name one that is left out
NOT_UTF8_FIX = "convert the file, as by iconv -t utf-8"
BARE_CR = "lines of text hold a bare CR, which ends no line"
HALF_PAIR = re.compile(r"[\ud800-\udfff]")
Bounds = Literal["blank_line", "line", "file"]


@dataclass
class Records:
    """How records are read: where their text stands (None: whoever asks will see), and what happens to a bad one."""

    text_field: str | None = "text"
    bounds: Bounds = "blank_line"
    skip_bad: bool = False
    can_skip: bool = True  # whether whoever reads has the option to
    quotes_join: bool = False  # whether a quoted field of a .tsv may hold tabs and line breaks
    account: Account = field(default_factory=Account)
    line: int = 0  # how many lines of the stretch were read
    first_offset: int = 0  # where the first of them begins
    item: int = 0  # how many items of an array were read, 0 where there is none

    def place(self, path: Path) -> str:
        """Name the record that was read last, as file:line or by its number in an array."""
        if self.item:
            return f"{path}: record {self.item}"
        if self.skip_bad and self.first_offset > COUNTED_AGAIN:  # every stretch of a large file would read all before
            return f"{path}: line {self.line} from byte {self.first_offset}"
        return f"{path}:{lines_before(path, self.first_offset) * (self.first_offset > 0) + self.line}"

    def bad(self, place: str, problem: str, fix: str) -> None:
        """Count a bad record, or refuses it.

        Raises:
            DataError: bad records are errors.
        """
        message = f"{place}: {problem}; {fix}"
        if not self.skip_bad:
            raise DataError(f"{message}{', or set data.on_bad_record to skip' * self.can_skip}")
        self.account.refuse(message)


def skipped(account: Account) -> str:
    """Say in brackets how many bad records were skipped, nothing when there were none."""
    count = account.left_out["refused"]
    return f" ({count} bad records were skipped, the first: {account.messages[0]})" if count else ""


def half_pair(text: str) -> str:
    """Say what is wrong with a text that UTF-8 cannot hold; JSON can write one by an escape. Empty when nothing is."""
    found = HALF_PAIR.search(text)
    return f"{found[0]!r} is half of a surrogate pair, not a character" if found else ""


def raw_lines(path: Path, start: int, records: Records) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) from a place on, and let `records` know which line it is."""
    records.line, records.item, records.first_offset = 0, 0, start
    for offset, raw in lines_from(path, start):
        records.first_offset = records.first_offset if records.line else offset
        records.line += 1
        yield offset, raw


def decoded(path: Path, offset: int, line: bytes, records: Records) -> str | None:
    """Decode a line, None when it is not UTF-8 and bad records are skipped."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        records.account.see()
        records.bad(records.place(path), not_utf8(line, offset, error), NOT_UTF8_FIX)
        return None


def not_utf8(line: bytes, offset: int, error: UnicodeDecodeError) -> str:
    """Say which byte of a line is not UTF-8."""
    return f"not UTF-8 (byte 0x{line[error.start]:02x} at offset {offset + error.start})"


def text_extent(path: Path, records: Records) -> int:
    """Count bytes, or 1 for a file that must be read from its beginning."""
    whole = is_compressed(path) or (records.bounds == "file" and kind_of(path) == ".txt") or is_array(path)
    return 1 if whole else path.stat().st_size


def is_array(path: Path) -> bool:
    """Say whether a .json file holds one array, and not one object a line."""
    if kind_of(path) != ".json":
        return False
    head = head_of(path)
    look(path, head)
    return head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def is_one_object(path: Path) -> bool:
    """Say whether a .json file holds one object over several lines, as what describes something does."""
    if kind_of(path) != ".json":
        return False
    try:
        lines = head_of(path).removeprefix(codecs.BOM_UTF8).lstrip().splitlines()
    except DataError:
        return False  # whoever reads it will tell
    return len(lines) > 1 and (
        lines[0].rstrip() == b"{" or re.fullmatch(rb'\{\s*"[^"]*":.*[,{\[]\s*', lines[0]) is not None
    )


def head_of(path: Path) -> bytes:
    """Read the beginning of a file."""
    with told_damage(path, 0), open_bytes(path) as stream:
        return stream.read(HEAD_BYTES)


def read_txt(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Read plain text; a document belongs to the stretch in which the line before its first one begins."""
    stop = float("inf") if text_extent(path, records) == 1 else stop
    if records.bounds == "line":
        yield from seen((line for _, line in text_lines(path, start, stop, records) if line.strip()), records)
        return
    if records.bounds == "file":
        yield from seen(joined(whole_text(path, records)), records)
        return
    held_bytes = 0
    document: list[str] | None = [] if start == 0 < stop else None  # None: inside a document of the stretch before
    for offset, raw in raw_lines(path, start, records):
        if raw.strip():
            if document is None:
                if offset >= stop:
                    return
            elif (line := decoded(path, offset, raw, records)) is not None:
                document.append(line)
                if "\r" in line:
                    records.account.note(BARE_CR, 1)
                held_bytes += len(raw)
                refuse_endless(path, held_bytes)
            continue
        yield from seen(joined(document), records)
        if offset >= stop:
            return
        document, held_bytes = [], 0
    yield from seen(joined(document), records)


def seen(documents: Iterator[str], records: Records) -> Iterator[str]:
    """Count documents that have no columns."""
    for document in documents:
        records.account.see()
        yield document


def whole_text(path: Path, records: Records) -> list[str]:
    """Read all lines of a file that is one document."""
    lines, held_bytes = [], 0
    for _, line in text_lines(path, 0, float("inf"), records):
        lines.append(line)
        held_bytes += len(line)
        refuse_endless(path, held_bytes)
    return lines


def joined(lines: list[str] | None) -> Iterator[str]:
    """Yield the lines as one document, nothing when there are none."""
    if lines:
        yield "\n".join(lines)


def refuse_endless(path: Path, size: int) -> None:
    """Refuse a document that would not fit in memory, as that of a file without blank lines."""
    if size > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{path}: a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB without a blank line; "
            "separate documents by blank lines or set data.documents to line"
        )


def text_lines(path: Path, start: int, stop: float, records: Records) -> Iterator[tuple[int, str]]:
    """Yield the decoded lines whose first byte lies in the stretch."""
    is_text = kind_of(path) == ".txt"  # a bare CR cannot stand in JSON, and is refused in tables
    for offset, raw in raw_lines(path, start, records):
        if offset >= stop:
            return
        line = decoded(path, offset, raw, records)
        if line is not None:
            if is_text and "\r" in line:
                records.account.note(BARE_CR, 1)
            yield offset, line


def read_json(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Read the text field of one JSON object a line, or of the objects of an array."""
    name = records.text_field
    for value in json_values(path, start, stop, records):
        problem, fix = "", f"give every record the string {name!r}, or name another data.text_field"
        if not isinstance(value, dict):
            problem = f"not a JSON object: {str(value)[:60]!r}"
        elif name not in value:
            problem = f"has no field {name!r}, only {', '.join(map(repr, value)) or 'nothing'}"
        elif not isinstance(value[name], str):
            problem = f"field {name!r} = {value[name]!r:.60} is not a string"
        elif problem := half_pair(value[name]):
            fix = "write the text as UTF-8 without escapes"
        if problem:
            records.bad(records.place(path), problem, fix)
        else:
            yield value[name]


def json_values(path: Path, start: int, stop: float, records: Records) -> Iterator[Any]:
    """Yield the JSON values of a stretch, one a line or the items of an array, and count them."""
    values = array_items(path, records) if is_array(path) else line_values(path, start, stop, records)
    for value in values:
        records.account.see(value if isinstance(value, dict) else ())
        if isinstance(value, Doubled):
            records.bad(records.place(path), f"names {value.name!r} twice", "give each field once")
        else:
            yield value


def line_values(path: Path, start: int, stop: float, records: Records) -> Iterator[Any]:
    """Yield the JSON values of the lines of a stretch."""
    stop = float("inf") if is_compressed(path) else stop
    for _, line in text_lines(path, start, stop, records):
        if not line.strip():
            continue
        try:
            yield DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            records.account.see()
            problem = f"not JSON ({error}): {line[:60]!r}"
            problem += ", as lines that end in a bare CR are one" if "\r" in line else ""
            records.bad(
                records.place(path), problem, "write one JSON object a line, or in a .json file an array of them"
            )


def array_items(path: Path, records: Records) -> Iterator[Any]:
    """Yield the items of a JSON array one by one, so that the array need not fit in memory.

    Raises:
        DataError: it is damaged, or an item is longer than a line may be.
    """
    records.item = 0
    with told_damage(path, 0), open_bytes(path) as stream:
        items = Items(stream, path)
        try:
            for item in items:
                records.item += 1
                yield item
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
            raise DataError(f"{path}: after record {records.item}: {reason}; convert the file") from None
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise DataError(f"{path}: record {records.item + 1}: not JSON ({reason}); write the file again") from None
