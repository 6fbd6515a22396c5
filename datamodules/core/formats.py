"""Readers of text files, one per format: each yields the documents of a stretch of one file.

A stretch [start, stop) is counted in the format's own unit (bytes, rows, row groups), so that several processes share
one large file; files that cannot be entered in the middle (compressed, csv) have an extent of 1. Stretches that cover
a file yield each of its documents exactly once. Every fault names the file, the line, the value and a fix.
"""

import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from datamodules.core.errors import DataError

BOM = b"\xef\xbb\xbf"
KEPT_MESSAGES = 5
MAX_DOCUMENT_BYTES = 256 << 20
Bounds = Literal["blank_line", "line", "file"]


@dataclass
class Records:
    """How records are read: where their text stands, and what happens to a bad one."""

    text_field: str = "text"
    bounds: Bounds = "blank_line"
    skip_bad: bool = False
    skipped: int = 0
    messages: list[str] = field(default_factory=list)

    def bad(self, place: str, problem: str, fix: str) -> None:
        """Counts a bad record, or refuses it.

        Raises:
            DataError: bad records are errors.
        """
        message = f"{place}: {problem}; {fix}"
        if not self.skip_bad:
            raise DataError(f"{message}, or set data.on_bad_record to skip")
        self.skipped += 1
        if len(self.messages) < KEPT_MESSAGES:
            self.messages.append(message)


class Format(NamedTuple):
    """A file format: how long a file is in the format's unit, and the documents of a stretch of it."""

    extent: Callable[[Path, Records], int]
    read: Callable[[Path, int, int, Records], Iterator[str]]


def open_bytes(path: Path) -> BinaryIO:
    """Opens a file for reading what stands in it, decompressed."""
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")


def lines_from(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """Yields (offset, line without its end) for the lines whose first byte stands at `start` or later.

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
    """Names the line that begins at an offset, as file:line."""
    with open_bytes(path) as stream:
        return f"{path}:{stream.read(offset).count(10) + 1}"


def decoded(path: Path, offset: int, line: bytes, records: Records) -> str | None:
    """Decodes a line, None when it is not UTF-8 and bad records are skipped."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at offset {offset + error.start}"
        records.bad(place(path, offset), f"not UTF-8 ({byte})", "convert the file, as by iconv -t utf-8")
        return None


def text_extent(path: Path, records: Records) -> int:
    """Counts bytes, or 1 for a file that must be read from its beginning."""
    whole = path.suffix in (".gz", ".xz") or (records.bounds == "file" and ".jsonl" not in path.suffixes)
    return 1 if whole else path.stat().st_size


def read_txt(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Reads plain text; a document belongs to the stretch in which the line before its first one begins."""
    stop = float("inf") if text_extent(path, records) == 1 else stop
    if records.bounds == "line":
        yield from (line for _, line in text_lines(path, start, stop, records) if line.strip())
        return
    if records.bounds == "file":
        yield from joined([line for _, line in text_lines(path, start, stop, records)])
        return
    held_bytes = 0
    document: list[str] | None = [] if start == 0 else None  # None: still inside a document of the stretch before
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
        yield from joined(document)
        if offset >= stop:
            return
        document, held_bytes = [], 0
    yield from joined(document)


def joined(lines: list[str] | None) -> Iterator[str]:
    """Yields the lines as one document, nothing when there are none."""
    if lines:
        yield "\n".join(lines)


def refuse_endless(path: Path, size: int) -> None:
    """Refuses a document that would not fit in memory, as that of a file without blank lines."""
    if size > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{path}: a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB without a blank line; "
            "separate documents by blank lines or set data.documents to line"
        )


def text_lines(path: Path, start: int, stop: float, records: Records) -> Iterator[tuple[int, str]]:
    """Yields the decoded lines whose first byte lies in the stretch."""
    for offset, raw in lines_from(path, start):
        if offset >= stop:
            return
        line = decoded(path, offset, raw, records)
        if line is not None:
            yield offset, line


def read_jsonl(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Reads the text field of one JSON object a line."""
    stop = float("inf") if text_extent(path, records) == 1 else stop
    for offset, line in text_lines(path, start, stop, records):
        if not line.strip():
            continue
        problem, fix = "", f"give every line the string {records.text_field!r}, or name another data.text_field"
        try:
            row = json.loads(line)
        except ValueError as error:
            problem, fix = f"not JSON ({error}): {line[:60]!r}", "write one JSON object a line"
        else:
            if not isinstance(row, dict):
                problem, fix = f"not a JSON object: {line[:60]!r}", "write one JSON object a line"
            elif records.text_field not in row:
                problem = f"has no field {records.text_field!r}, only {', '.join(map(repr, row)) or 'nothing'}"
            elif not isinstance(row[records.text_field], str):
                problem = f"field {records.text_field!r} = {row[records.text_field]!r:.60} is not a string"
        if problem:
            records.bad(place(path, offset), problem, fix)
        else:
            yield row[records.text_field]


def read_table(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Reads the text column of comma- or tab-separated values with a header line."""
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    lines = (line + "\n" for _, line in text_lines(path, 0, float("inf"), records))
    rows = csv.reader(lines, delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
    try:
        header = next(rows, [])
        if records.text_field not in header:
            raise no_column(path, header, records)
        column = header.index(records.text_field)
        for row in rows:
            if row and len(row) != len(header):
                problem = f"has {len(row)} columns, the header has {len(header)}"
                records.bad(f"{path}:{rows.line_num}", problem, "quote fields that hold the delimiter or a line break")
            elif row:
                yield row[column]
    except csv.Error as error:
        raise DataError(
            f"{path}:{rows.line_num}: not CSV ({error}); close the quotes and double those inside"
        ) from None


def no_column(path: Path, columns: list[str], records: Records) -> DataError:
    """Makes the error of a table without the text column."""
    known = ", ".join(map(repr, columns)) or "none"
    return DataError(f"{path}: no column {records.text_field!r}, only {known}; set data.text_field to one of them")


def text_column(path: Path, schema: pa.Schema, records: Records) -> None:
    """Refuses a schema whose text column is absent or holds no strings."""
    if records.text_field not in schema.names:
        raise no_column(path, schema.names, records)
    kind = schema.field(records.text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(
            f"{path}: column {records.text_field!r} holds {kind}, not strings; set data.text_field to another"
        )


def values(path: Path, column: pa.Array, row: int, records: Records) -> Iterator[str]:
    """Yields the strings of a column whose first value stands in the given row."""
    for number, value in enumerate(column.to_pylist(), row):
        if value is None:
            records.bad(f"{path}: row {number}", f"{records.text_field!r} is null", "leave the row out")
        else:
            yield value


def open_parquet(path: Path, records: Records) -> parquet.ParquetFile:
    """Opens a Parquet file and checks its text column."""
    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file or damaged ({first_line(error)}); write it again") from None
    text_column(path, file.schema_arrow, records)
    return file


def read_parquet(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Reads the text column of row groups start to stop."""
    file, row = open_parquet(path, records), 0
    for group in range(stop):
        if group >= start:
            first = row
            for batch in file.iter_batches(1024, row_groups=[group], columns=[records.text_field]):
                yield from values(path, batch.column(0), first, records)
                first += batch.num_rows
        row += file.metadata.row_group(group).num_rows


def arrow_batches(path: Path, records: Records) -> Iterator[pa.RecordBatch]:
    """Maps an Arrow file or stream, as `datasets` writes it, and yields its record batches."""
    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(source)
                text_column(path, reader.schema, records)
                yield from map(reader.get_batch, range(reader.num_record_batches))
            else:
                source.seek(0)
                reader = pa.ipc.open_stream(source)
                text_column(path, reader.schema, records)
                yield from reader
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not an Arrow file or damaged ({first_line(error)}); write it again") from None


def read_arrow(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Reads the text column of rows start to stop."""
    row = 0
    for batch in arrow_batches(path, records):
        low, high = max(start - row, 0), min(stop - row, batch.num_rows)
        if low < high:
            column = batch.column(records.text_field)
            for first in range(low, high, 1024):
                yield from values(path, column[first : min(first + 1024, high)], row + first, records)
        row += batch.num_rows
        if row >= stop:
            return


def first_line(error: Exception) -> str:
    """Shortens the message of a library."""
    return str(error).partition("\n")[0]


TABLE = Format(lambda path, records: 1, read_table)
FORMATS = {
    ".txt": Format(text_extent, read_txt),
    ".jsonl": Format(text_extent, read_jsonl),
    ".csv": TABLE,
    ".tsv": TABLE,
    ".parquet": Format(lambda path, records: open_parquet(path, records).num_row_groups, read_parquet),
    ".arrow": Format(lambda path, records: sum(batch.num_rows for batch in arrow_batches(path, records)), read_arrow),
}
COMPRESSIONS = (".gz", ".xz")


def format_of(path: Path) -> Format | None:
    """Finds the format by the file's ending, None when it is not supported."""
    compressed = path.suffix in COMPRESSIONS
    suffix = Path(path.stem).suffix if compressed else path.suffix
    return None if compressed and suffix in (".parquet", ".arrow") else FORMATS.get(suffix)
