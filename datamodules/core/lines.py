"""Reading files line by line: plain text and JSON lines, also compressed; and what becomes of a bad record.

Every reader yields the documents of a stretch [start, stop) of bytes; stretches that cover a file yield each document
once. A fault names the file, the line, the value and a fix.
"""

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from datamodules.core.account import Account
from datamodules.core.errors import DataError

BOM = b"\xef\xbb\xbf"
MAX_DOCUMENT_BYTES = 256 << 20
COMPRESSED = {".gz": gzip.open, ".xz": lzma.open}
HALF_PAIR = re.compile(r"[\ud800-\udfff]")
Bounds = Literal["blank_line", "line", "file"]


@dataclass
class Records:
    """How records are read: where their text stands (None: whoever asks will see), and what happens to a bad one."""

    text_field: str | None = "text"
    bounds: Bounds = "blank_line"
    skip_bad: bool = False
    account: Account = field(default_factory=Account)

    def bad(self, place: str, problem: str, fix: str) -> None:
        """Count a bad record, or refuses it.

        Raises:
            DataError: bad records are errors.
        """
        message = f"{place}: {problem}; {fix}"
        if not self.skip_bad:
            raise DataError(f"{message}, or set data.on_bad_record to skip")
        self.account.refuse(message)


def skipped(account: Account) -> str:
    """Say in brackets how many bad records were skipped, nothing when there were none."""
    count = account.left_out["refused"]
    return f" ({count} bad records were skipped, the first: {account.messages[0]})" if count else ""


def half_pair(text: str) -> str:
    """Say what is wrong with a text that UTF-8 cannot hold; JSON can write one by an escape. Empty when nothing is."""
    found = HALF_PAIR.search(text)
    return f"{found[0]!r} is half of a surrogate pair, not a character" if found else ""


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading what stands in it, decompressed."""
    return COMPRESSED.get(path.suffix, open)(path, "rb")


def lines_from(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line without its end) for the lines whose first byte stands at `start` or later.

    Raises:
        DataError: the compressed file ends too early or is damaged.
    """
    offset = start
    try:
        with open_bytes(path) as stream:
            if start:
                stream.seek(start - 1)
                offset += len(stream.readline()) - 1
            for line in stream:
                yield offset, line.removeprefix(BOM).rstrip(b"\r\n") if offset == 0 else line.rstrip(b"\r\n")
                offset += len(line)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path}: truncated or damaged after {offset} bytes of text ({error}); copy or compress it again"
        ) from None


def place(path: Path, offset: int) -> str:
    """Name the line that begins at an offset, as file:line."""
    with open_bytes(path) as stream:
        return f"{path}:{stream.read(offset).count(10) + 1}"


def decoded(path: Path, offset: int, line: bytes, records: Records) -> str | None:
    """Decode a line, None when it is not UTF-8 and bad records are skipped."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        records.account.see()
        byte = f"byte 0x{line[error.start]:02x} at offset {offset + error.start}"
        records.bad(place(path, offset), f"not UTF-8 ({byte})", "convert the file, as by iconv -t utf-8")
        return None


def text_extent(path: Path, records: Records) -> int:
    """Count bytes, or 1 for a file that must be read from its beginning."""
    whole = path.suffix in COMPRESSED or (records.bounds == "file" and ".jsonl" not in path.suffixes)
    return 1 if whole else path.stat().st_size


def read_txt(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Read plain text; a document belongs to the stretch in which the line before its first one begins."""
    stop = float("inf") if text_extent(path, records) == 1 else stop
    if records.bounds == "line":
        yield from seen((line for _, line in text_lines(path, start, stop, records) if line.strip()), records)
        return
    if records.bounds == "file":
        yield from seen(joined([line for _, line in text_lines(path, start, stop, records)]), records)
        return
    held_bytes = 0
    document: list[str] | None = [] if start == 0 < stop else None  # None: inside a document of the stretch before
    for offset, raw in lines_from(path, start):
        if raw.strip():
            if document is None:
                if offset >= stop:
                    return
            elif (line := decoded(path, offset, raw, records)) is not None:
                document.append(line)
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
    for offset, raw in lines_from(path, start):
        if offset >= stop:
            return
        line = decoded(path, offset, raw, records)
        if line is not None:
            yield offset, line


def read_jsonl(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Read the text field of one JSON object a line."""
    stop = float("inf") if text_extent(path, records) == 1 else stop
    for offset, line in text_lines(path, start, stop, records):
        if not line.strip():
            continue
        problem, fix = "", f"give every line the string {records.text_field!r}, or name another data.text_field"
        try:
            row = json.loads(line)
            records.account.see(row if isinstance(row, dict) else ())
        except (ValueError, RecursionError) as error:
            records.account.see()
            problem, fix = f"not JSON ({error}): {line[:60]!r}", "write one JSON object a line"
        else:
            if not isinstance(row, dict):
                problem, fix = f"not a JSON object: {line[:60]!r}", "write one JSON object a line"
            elif records.text_field not in row:
                problem = f"has no field {records.text_field!r}, only {', '.join(map(repr, row)) or 'nothing'}"
            elif not isinstance(row[records.text_field], str):
                problem = f"field {records.text_field!r} = {row[records.text_field]!r:.60} is not a string"
            elif "\\u" in line and (problem := half_pair(row[records.text_field])):
                fix = "write the text as UTF-8 without escapes"
        if problem:
            records.bad(place(path, offset), problem, fix)
        else:
            yield row[records.text_field]
