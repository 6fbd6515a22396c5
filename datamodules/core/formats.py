"""The file formats by their endings.

A format counts a file in a unit of its own (bytes, rows, row groups) and reads a stretch [start, stop) of it, so that
several processes share one large file; what cannot be entered in the middle (compressed, csv) has an extent of 1.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from datamodules.core import tables
from datamodules.core.lines import Records, read_json, read_txt, text_extent
from datamodules.core.opening import COMPRESSED, is_compressed, kind_of


class Format(NamedTuple):
    """How long a file is in the format's unit, and the documents of a stretch of it."""

    extent: Callable[[Path, Records], int]
    read: Callable[[Path, int, int, Records], Iterator[str]]


WHOLE_TABLE = Format(lambda path, records: 1, tables.read_table)
FORMATS = {
    ".txt": Format(text_extent, read_txt),
    ".jsonl": Format(text_extent, read_json),
    ".json": Format(text_extent, read_json),
    ".csv": WHOLE_TABLE,
    ".tsv": WHOLE_TABLE,
    ".parquet": Format(tables.count_row_groups, tables.read_parquet),
    ".arrow": Format(tables.count_rows, tables.read_arrow),
}
COMPRESSIBLE = (".txt", ".jsonl", ".json", ".csv", ".tsv")


def format_of(path: Path) -> Format | None:
    """Find the format by the file's ending, in small or capital letters; None when it is not supported."""
    kind = kind_of(path)
    return FORMATS.get(kind) if not is_compressed(path) or kind in COMPRESSIBLE else None


def endings() -> str:
    """Name the supported endings."""
    return f"{', '.join(FORMATS)}, or {', '.join(COMPRESSIBLE)} with {', '.join(COMPRESSED)} behind"
