"""Reading tables: comma- and tab-separated values, Parquet, Arrow. A fault names the file, the row and a fix."""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import compute, parquet

from datamodules.core.errors import DataError
from datamodules.core.lines import NOT_UTF8_FIX, Records, not_utf8, raw_lines
from datamodules.core.opening import BARE_CR_FIX, MAX_LINE_BYTES, POINTER, kind_of, lines_from, look, told_damage

TOO_LONG = f"more than {MAX_LINE_BYTES >> 20} MiB; break them into several records"
MAX_FIELD = MAX_LINE_BYTES >> 2  # characters, which take four bytes each while a field is read
ROWS_AT_ONCE, BYTES_AT_ONCE = 1024, 64 << 20
QUOTES_STAY = "lines of a .tsv have fields that begin with a quote, which joins nothing there and stays in the text"
QUOTED = re.compile(rb'"(?:[^"]|"")*"')
KINDS = {".parquet": "a Parquet", ".arrow": "an Arrow"}


def read_table(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Read the text column of comma- or tab-separated values with a header line."""
    rows = table_rows(path, records)
    header = next(rows)
    if records.text_field not in header:
        raise no_column(path, header, records)
    column = header.index(records.text_field)
    yield from (row[column] for row in rows)


def table_rows(path: Path, records: Records) -> Iterator[list[str]]:
    """Yield the header and then the rows of comma- or tab-separated values, each as long as the header.

    In .csv a field in quotes may hold commas, line breaks and doubled quotes (RFC 4180). In .tsv a row is a line, but
    where `records.quotes_join`: quotes are taken off if every quote of the file is closed in its own field, and else
    they are characters.

    Raises:
        DataError: the header is no good, a quote is not closed, or a row has another number of columns.
    """
    csv.field_size_limit(MAX_FIELD)
    is_tsv = kind_of(path) == ".tsv"
    form: dict[str, Any] = {"delimiter": "\t" if is_tsv else ",", "strict": True}
    if is_tsv and not records.quotes_join:
        form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    unquote = is_tsv and not records.quotes_join and quotes_are_closed(path)
    wrong: list[str] = []
    rows = csv.reader(table_lines(path, records, wrong), **form)
    begin, header = 1, None
    try:
        for row in rows:
            row = [unquoted(field) for field in row] if unquote else row
            if header is None and row:
                if wrong:
                    raise DataError(f"{path}:{begin}: {wrong[0]}; {NOT_UTF8_FIX}")
                header = checked_header(row, path, is_tsv)
                yield header
            elif row:
                records.account.see(header)
                if is_tsv and not (unquote or records.quotes_join) and any(field.startswith('"') for field in row):
                    records.account.note(QUOTES_STAY, 1)
                if records.line > begin:
                    records.account.note("records of several lines", 1)
                if wrong:
                    records.bad(f"{path}:{begin}", wrong[0], NOT_UTF8_FIX)
                elif len(row) == len(header):
                    yield row
                else:
                    records.bad(f"{path}:{begin}", *wrong_width(row, header, is_tsv))
            begin = records.line + 1
            wrong.clear()
    except csv.Error as error:
        if "new-line" in str(error):
            raise DataError(
                f"{path}:{begin}: a field holds a bare CR; {BARE_CR_FIX}, or put the field in quotes"
            ) from None
        raise DataError(f"{path}:{begin}: not CSV ({error}); close the quotes and double those inside") from None
    if header is None:
        raise DataError(f"{path}: is empty; write a header line, and a record a line below it")


def table_lines(path: Path, records: Records, wrong: list[str]) -> Iterator[str]:
    """Yield the lines of a table; `wrong` learns of those that are not UTF-8, for the row that they belong to."""
    for offset, raw in raw_lines(path, 0, records):
        try:
            yield raw.decode() + "\n"
        except UnicodeDecodeError as error:
            wrong.append(not_utf8(raw, offset, error))
            yield raw.decode(errors="replace") + "\n"


def checked_header(header: list[str], path: Path, is_tsv: bool) -> list[str]:
    """Refuse a header that is one column by mistake, or names a column twice.

    Raises:
        DataError: saying what to write.
    """
    other = ",;" if is_tsv else ";\t"
    if len(header) == 1 and any(mark in header[0] for mark in other):
        raise DataError(
            f"{path}:1: its header is one column, {header[0]!r:.60}; write commas between columns, or tabs in a .tsv"
        )
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise DataError(f"{path}:1: its header names {twice!r} twice; rename one of them")
    return header


def wrong_width(row: list[str], header: list[str], is_tsv: bool) -> tuple[str, str]:
    """Say what is wrong with a row of another length than the header's, and what to do."""
    problem = f"has {len(row)} columns, the header has {len(header)}"
    if is_tsv and any('"' in field for field in row):
        return (
            f"{problem}, and a quote joins no lines or tabs in a .tsv",
            "set data.quotes_join to true if they do here",
        )
    return problem, "quote fields that hold the delimiter or a line break" if not is_tsv else "write a tab a column"


def quotes_are_closed(path: Path) -> bool:
    """Say whether every quote of a .tsv begins a field and is closed in the same one."""
    with told_damage(path, 0):
        lines = (line for _, line in lines_from(path, 0) if b'"' in line)
        fields = (field for line in lines for field in line.split(b"\t") if b'"' in field)
        return all(QUOTED.fullmatch(field) for field in fields)


def unquoted(field: str) -> str:
    """Take the quotes off a field that stands in them."""
    return field[1:-1].replace('""', '"') if field.startswith('"') else field


def no_column(path: Path, columns: list[str], records: Records) -> DataError:
    """Make the error of a table without the text column."""
    known = ", ".join(map(repr, columns)) or "none"
    return DataError(f"{path}: no column {records.text_field!r}, only {known}; set data.text_field to one of them")


def text_column(path: Path, schema: pa.Schema, records: Records) -> None:
    """Refuse a schema whose text column, if one is wanted, is absent or holds no strings."""
    if records.text_field is None:
        return
    if records.text_field not in schema.names:
        raise no_column(path, schema.names, records)
    kind = schema.field(records.text_field).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)):
        raise DataError(
            f"{path}: column {records.text_field!r} holds {kind}, not strings; set data.text_field to another"
        )


def values(path: Path, column: pa.Array, row: int, records: Records, names: list[str]) -> Iterator[str]:
    """Yield the strings of a column whose first value stands in the given row; `names` are those of all columns."""
    column = column.cast(pa.large_binary())
    if (compute.max(compute.binary_length(column)).as_py() or 0) > MAX_LINE_BYTES:
        raise DataError(f"{path}: among the rows from {row} on is one of {TOO_LONG}")
    for number, value in enumerate(column.to_pylist(), row):
        records.account.see(names)
        problem = f"{records.text_field!r} is null"
        try:
            if value is not None:
                yield value.decode()
                continue
        except UnicodeDecodeError as error:
            problem = f"{records.text_field!r} is not UTF-8 (byte 0x{value[error.start]:02x} at {error.start})"
        records.bad(f"{path}: row {number}", problem, "correct the row, or leave it out")


def open_parquet(path: Path, records: Records) -> parquet.ParquetFile:
    """Open a Parquet file and check its text column."""
    with whole(path):
        file = parquet.ParquetFile(path)
    text_column(path, file.schema_arrow, records)
    return file


def read_parquet(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Read the text column of row groups start to stop."""
    file, row = open_parquet(path, records), 0
    names = file.schema_arrow.names
    for group in range(stop):
        if group >= start:
            first = row
            with whole(path):
                for batch in batches_of(path, file, group, [records.text_field]):
                    yield from values(path, batch.column(0), first, records, names)
                    first += batch.num_rows
        row += file.metadata.row_group(group).num_rows


def batches_of(
    path: Path, file: parquet.ParquetFile, group: int, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group, fewer at once where they are long.

    Raises:
        DataError: they are longer than MAX_LINE_BYTES on average.
    """
    known = file.metadata.row_group(group)
    if known.total_byte_size > MAX_LINE_BYTES * max(1, known.num_rows):
        raise DataError(f"{path}: row group {group} has records of {TOO_LONG}")
    fitting = BYTES_AT_ONCE * known.num_rows // max(1, known.total_byte_size)
    return file.iter_batches(min(max(1, fitting), ROWS_AT_ONCE), row_groups=[group], columns=columns)


def arrow_batches(path: Path, records: Records) -> Iterator[pa.RecordBatch]:
    """Map an Arrow file or stream, as `datasets` writes it, and yield its record batches."""
    with whole(path), pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            text_column(path, reader.schema, records)
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            text_column(path, reader.schema, records)
            yield from reader


def read_arrow(path: Path, start: int, stop: int, records: Records) -> Iterator[str]:
    """Read the text column of rows start to stop."""
    row = 0
    for batch in arrow_batches(path, records):
        low, high = max(start - row, 0), min(stop - row, batch.num_rows)
        if low < high:
            column = batch.column(records.text_field)
            for first in range(low, high, ROWS_AT_ONCE):
                some = column[first : min(first + ROWS_AT_ONCE, high)]
                yield from values(path, some, row + first, records, batch.schema.names)
        row += batch.num_rows
        if row >= stop:
            return


def count_row_groups(path: Path, records: Records) -> int:
    """Count the row groups of a Parquet file."""
    return open_parquet(path, records).num_row_groups


def count_rows(path: Path, records: Records) -> int:
    """Count the rows of an Arrow file."""
    return sum(batch.num_rows for batch in arrow_batches(path, records))


def rows_of(path: Path, records: Records) -> Iterator[dict[str, Any]]:
    """Yield the whole rows of a Parquet or Arrow file."""
    with whole(path):
        is_parquet = kind_of(path) == ".parquet"
        if is_parquet:
            file = open_parquet(path, records)
            batches = (batch for group in range(file.num_row_groups) for batch in batches_of(path, file, group))
        else:
            batches = arrow_batches(path, records)
        for batch in batches:
            for first in range(0, batch.num_rows, ROWS_AT_ONCE):
                for row in batch.slice(first, ROWS_AT_ONCE).to_pylist():
                    records.account.see(row)
                    yield row


def schema_of(path: Path, records: Records) -> pa.Schema:
    """Read the schema of a Parquet or Arrow file, with the metadata in it."""
    if kind_of(path) == ".parquet":
        return open_parquet(path, records).schema_arrow
    with whole(path), pa.memory_map(str(path)) as source:
        kind = pa.ipc.open_file if source.read(6) == b"ARROW1" else pa.ipc.open_stream
        source.seek(0)
        return kind(source).schema


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Tell in one line that a file cannot be read.

    Raises:
        DataError: naming the file and the reason.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, PermissionError):
            raise DataError(f"{path}: cannot be read: {error.strerror}; let it be read") from None
        with suppress(OSError), path.open("rb") as stream:
            if (head := stream.read(len(POINTER))) == POINTER:
                look(path, head)
        kind, reason = KINDS[kind_of(path)], str(error).partition("\n")[0]
        raise DataError(f"{path}: not {kind} file or damaged ({reason}); write it again") from None
