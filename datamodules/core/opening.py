"""Opening files: what kind they are by their endings, their bytes decompressed, and their lines, of bounded length."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from os.path import splitext
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from datamodules.core.errors import DataError

BOM = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 128 << 20
HEAD_BYTES = 1 << 16
POINTER = b"version https://git-lfs.github.com/spec/"
BARE_CR_FIX = "convert it, as by tr '\\r' '\\n'"
NOT_DATA = ("__MACOSX/",)  # what macOS adds to archives
MAGIC = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PK\x03\x04": ".zip",
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
}
DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zipfile.BadZipFile, pa.ArrowException)


def open_zip(path: Path) -> BinaryIO:
    """Open the one file that a zip archive holds."""
    return zipfile.ZipFile(path).open(zip_member(path))


def zip_member(path: Path) -> str:
    """Name the one file that a zip archive holds.

    Raises:
        DataError: it holds none or several, or is locked by a password.
    """
    with told_damage(path, 0), zipfile.ZipFile(path) as archive:
        files = [it for it in archive.infolist() if not it.is_dir() and not it.filename.startswith(NOT_DATA)]
        if len(files) != 1:
            raise DataError(f"{path}: holds {len(files)} files, and one is read; unpack it, and give the folder")
        if files[0].flag_bits & 1:
            raise DataError(f"{path}: is locked by a password; unpack it")
        return files[0].filename


def open_zst(path: Path) -> BinaryIO:
    """Open a file that Zstandard has compressed."""
    return pa.input_stream(str(path), compression="zstd")


COMPRESSED: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": open_zst,
    ".zip": open_zip,
}


def kind_of(path: Path) -> str:
    """Give the ending that tells the format, in small letters and without that of the compression."""
    stem, ending = splitext(path.name.lower())  # quicker than those of a path, which matters for many files
    if ending == ".zip" and path.is_file():
        return splitext(zip_member(path).lower())[1]
    return splitext(stem)[1] if ending in COMPRESSED else ending


def stem_of(path: Path) -> str:
    """Give the name of a file without its endings."""
    name = Path(path.name)
    return Path(name.stem).stem if name.suffix.lower() in COMPRESSED else name.stem


def is_compressed(path: Path) -> bool:
    """Say whether a file can be read from its beginning alone."""
    return path.suffix.lower() in COMPRESSED


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading what stands in it, decompressed.

    Raises:
        DataError: it is empty, and of a kind that never is.
    """
    opened = COMPRESSED.get(path.suffix.lower())
    if opened is not None and not path.stat().st_size:
        raise DataError(f"{path}: is empty, as no compressed file is; copy or compress it again")
    return path.open("rb", HEAD_BYTES) if opened is None else io.BufferedReader(opened(path), HEAD_BYTES)


def lines_from(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line without its end) for the lines whose first byte stands at `start` or later.

    Raises:
        DataError: the file is damaged, is not what its ending says, or has a line of more than MAX_LINE_BYTES.
    """
    offset = [start]
    with told_damage(path, offset), open_bytes(path) as stream:
        if start:
            stream.seek(start - 1)
            offset[0] += len(bounded_line(stream, path, start)) - 1
        else:
            look(path, stream.peek(HEAD_BYTES))
        while line := bounded_line(stream, path, offset[0]):
            yield offset[0], line.removeprefix(BOM).rstrip(b"\r\n") if offset[0] == 0 else line.rstrip(b"\r\n")
            offset[0] += len(line)


def bounded_line(stream: BinaryIO, path: Path, offset: int) -> bytes:
    """Read a line with its end.

    Raises:
        DataError: it is longer than MAX_LINE_BYTES.
    """
    line = stream.readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES:
        raise DataError(
            f"{path}: the line that begins at byte {offset} has more than {MAX_LINE_BYTES >> 20} MiB; "
            "break it into several records, or convert it to parquet"
        )
    return line


@contextmanager
def told_damage(path: Path, offset: list[int] | int) -> Iterator[None]:
    """Tell in one line that a file is damaged.

    Raises:
        DataError: naming the file, and how far it could be read.
    """
    try:
        yield
    except DAMAGED as error:
        look_at_packed(path)
        read = offset[0] if isinstance(offset, list) else offset
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: truncated or damaged after {read} bytes of text ({reason}); copy or compress it again"
        ) from None
    except OSError as error:
        if error.errno is None:  # bz2 and Arrow raise a bare one for what is damaged
            look_at_packed(path)
            reason = str(error).partition("\n")[0]
            raise DataError(f"{path}: truncated or damaged ({reason}); copy or compress it again") from None
        raise DataError(f"{path}: cannot be read: {error.strerror}; let it be read") from None


def look_at_packed(path: Path) -> None:
    """Refuse a file with the ending of a compression that is not compressed so, as a git-lfs pointer.

    Raises:
        DataError: saying what it is.
    """
    ending = path.suffix.lower()
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if head.startswith(POINTER):
        look(path, head)
    is_a = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if ending not in COMPRESSED or not head or is_a == ending:
        return
    if is_a is not None:
        raise DataError(f"{path}: is a {is_a} file by its first bytes; give its name that ending")
    if b"\0" not in head and head.isascii():
        raise DataError(f"{path}: is plain text, not compressed; take {ending} off its name")


def look(path: Path, head: bytes) -> None:
    """Refuse a file whose beginning shows that it is not the text that its ending promises.

    Raises:
        DataError: saying what it is.
    """
    problem = ""
    if head.startswith(POINTER):
        problem = "is a git-lfs pointer, not the file itself; fetch it by `git lfs pull`"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        problem = "is UTF-16 or UTF-32; convert it, as by iconv -f UTF-16 -t UTF-8"
    elif kind := next((ending for magic, ending in MAGIC.items() if head.startswith(magic)), None):
        office = " (or one of an office program, to be saved as csv)" if kind == ".zip" else ""
        problem = f"is a {kind} file{office} by its first bytes; give its name that ending"
    elif head.startswith(b"%PDF-"):
        problem = "is a PDF file; save its text as txt, and give that"
    elif len(head) > 40 and head.count(0, 0, 2000) > min(len(head), 2000) // 3:
        problem = "is UTF-16 without a mark, or no text; convert it, as by iconv -f UTF-16LE -t UTF-8"
    elif b"\r" in head.rstrip() and b"\n" not in head:
        problem = f"has lines that end in a bare CR; {BARE_CR_FIX}"
    elif head[:100].lstrip().lower().startswith((b"<!doctype html", b"<html")) and kind_of(path) != ".txt":
        problem = "is a web page; download the file that it shows"
    if problem:
        raise DataError(f"{path}: {problem}")


@lru_cache(maxsize=64)
def lines_before(path: Path, offset: int) -> int:
    """Count the lines that begin before an offset."""
    count = 0
    with open_bytes(path) as stream:
        while offset > 0 and (some := stream.read(min(offset, 1 << 20))):
            count, offset = count + some.count(10), offset - len(some)
    return count
