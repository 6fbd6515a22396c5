"""Where text comes from: the embedded corpus, local files, or a dataset of the hub; all of them end as local files.

A source is an ordered list of files. It is cut into pieces, each read by one process into one shard; the pieces
depend on the files alone, so any number of processes and machines makes the same shards.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.core.addresses import address_problem
from datamodules.core.errors import DataError
from datamodules.core.folders import Located, files_of_folder, files_of_pattern, readable
from datamodules.core.formats import format_of
from datamodules.core.lines import Bounds, Records
from datamodules.core.opening import kind_of, open_bytes, told_damage
from datamodules.core.parts import WANTED
from datamodules.core.publishing import sha256_of, write_atomically

SAMPLES = Path(__file__).parent.parent / "samples"
EMBEDDED = "embedded"
PIECES = 256
MIN_PIECE_BYTES, MAX_PIECE_BYTES = 1 << 18, 1 << 28
HASHED_ALWAYS = 1 << 20  # bytes; larger files have a note of their hash
SAMPLED_BLOCKS = 64
HUB_NAME = re.compile(r"(?P<path>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(:(?P<split>[\w.-]+))?")


class Stretch(NamedTuple):
    """The part [start, stop) of a file, in the unit of its format."""

    path: str
    start: int
    stop: int


Piece = tuple[Stretch, ...]


class Document(NamedTuple):
    """A document and its key: a hash of its text, so that neither files nor pieces matter to what is drawn for it."""

    key: int
    text: str


@dataclass(frozen=True)
class Source:
    """Files with text, and how their records are read.

    `share` keeps the documents whose key, as a fraction of all keys, lies in [low, high).
    """

    files: tuple[Path, ...]
    text_field: str = "text"
    bounds: Bounds = "blank_line"
    skip_bad: bool = False
    can_skip: bool = True
    quotes_join: bool = False
    share: tuple[float, float] = (0.0, 1.0)

    def records(self) -> Records:
        """Make a reader's settings, with a count of bad records of its own."""
        return Records(self.text_field, self.bounds, self.skip_bad, self.can_skip, self.quotes_join)

    def pieces(self) -> list[Piece]:
        """Cut the files into pieces of about equal size, a pure function of the files."""
        sizes = [path.stat().st_size for path in self.files]
        target = min(max(sum(sizes) // PIECES, MIN_PIECE_BYTES), MAX_PIECE_BYTES)
        out: list[Piece] = []
        piece: list[Stretch] = []
        held = 0.0
        for path, size in zip(self.files, sizes, strict=True):
            extent = format_of(path).extent(path, self.records())
            count = max(1, min(extent, -(-size // target)))
            for part in range(count):
                piece.append(Stretch(str(path), extent * part // count, extent * (part + 1) // count))
                held += size / count
                if held >= target:
                    out.append(tuple(piece))
                    piece, held = [], 0.0
        return [*out, tuple(piece)] if piece else out

    def read(self, piece: Piece, records: Records) -> Iterator[Document]:
        """Yield the documents of a piece that belong to this source's share."""
        low, high = (int(bound * 2.0**64) for bound in self.share)
        account = records.account
        for path, start, stop in piece:
            account.files += start == 0
            for text in format_of(Path(path)).read(Path(path), start, stop, records):
                key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
                if text.isspace() or not text:
                    account.leave_out("empty")
                elif low <= key < high:
                    account.used += 1
                    yield Document(key, text)
                else:
                    account.leave_out("in another part")

    def texts(self, records: Records | None = None) -> Iterator[str]:
        """Yield every text, for what needs one pass in this process; bad records are counted in `records`."""
        records = records or self.records()
        for piece in self.pieces():
            yield from (document.text for document in self.read(piece, records))


def locate(name: str, split: str) -> tuple[Path, ...]:
    """Find the files behind a source name, in a fixed order, as `find` does."""
    return find(name, split).files


def find(name: str, split: str) -> Located:
    """Find the files behind a source name, in a fixed order; `split` (train, val, test, predict) picks the part.

    Raises:
        DataError: nothing is there, or a file is of a kind that no reader is for.
    """
    if name == EMBEDDED:
        return Located((SAMPLES / f"wiki_{'test' if split == 'predict' else split}.jsonl.xz",))
    if name.startswith(f"{EMBEDDED}:"):
        raise DataError(f"{name}: text has one embedded corpus; write {EMBEDDED}, or the path of a file")
    path = local(name)
    if path.is_dir():
        return files_of_folder(path, split)
    if path.exists():
        return Located((readable(path),))
    if glob.has_magic(name):
        matches = [Path(match) for match in glob.iglob(str(path), recursive=True) if os.path.isfile(match)]
        if not matches:
            raise DataError(f"{name}: no file matches this pattern (seen from {Path.cwd()}); correct it or its folder")
        return files_of_pattern(str(path), matches)
    if not is_hub_name(name):
        raise DataError(f"{name}: no such file (seen from {Path.cwd()}); correct the path")
    return Located(hub_files(name, **HUB_NAME.fullmatch(name).groupdict()))


def has_part(name: str, split: str, find: Callable[[str, str], Located] = find) -> bool:
    """Say whether a source is a folder that has a part for a split of its own."""
    return name != EMBEDDED and local(name).is_dir() and WANTED[split] in find(name, "train").parts


def local(name: str) -> Path:
    """Read a path that may begin with ~ or ~user.

    Raises:
        DataError: there is no such user, or it is the address of another store.
    """
    if problem := address_problem(name):
        raise DataError(f"{name}: {problem}")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise DataError(f"{name}: there is no such user; write the path in full") from None


def is_hub_name(name: str) -> bool:
    """Say whether a source is neither embedded nor local, and is written like a dataset of the hub."""
    path = local(name)
    is_local = name == EMBEDDED or path.exists() or glob.has_magic(name) or format_of(path) is not None
    return not is_local and not name.startswith(".") and HUB_NAME.fullmatch(name) is not None  # ./texts is a path


@lru_cache  # asked for several times, and each time goes to the network
def hub_files(name: str, path: str, config: str | None, split: str | None) -> tuple[Path, ...]:
    """Download one split of a dataset through `datasets`, which leaves Arrow files in its cache."""
    from datasets import load_dataset

    try:
        dataset = load_dataset(path, config, split=split or "train", keep_in_memory=False)  # else it has no files
    except Exception as error:  # the library raises a dozen kinds, from its own to those of the network
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise DataError(
            f"{name}: neither a local file or folder nor a dataset of the hub, written NAME:CONFIG:SPLIT ({reason}); "
            "correct the name, or download it where there is a network"
        ) from error
    if not dataset.cache_files:
        raise DataError(f"{name}: `datasets` holds it in memory alone; unset HF_DATASETS_IN_MEMORY_MAX_SIZE")
    return tuple(Path(file["filename"]) for file in dataset.cache_files)


def described(path: Path, cache: Path) -> list[str]:
    """Describe a file for a fingerprint: its kind and its content."""
    known = facts_of(path, cache)
    rule = ["quotes of a tsv join no rows"] if known.get("quotes") else []
    return ["".join(path.suffixes[-2:]), known["sha256"], *rule]


def facts_of(path: Path, cache: Path) -> dict[str, Any]:
    """Give a file's hash, and whether a .tsv holds quotes; of a large file once, and again where it has changed.

    Date and size alone would not tell: copies and some editors keep them (huggingface/datasets#2956).
    """
    stat = path.stat()
    if stat.st_size <= HASHED_ALWAYS:
        return looked_at(path)
    absolute = path.resolve()
    note = cache / "content" / f"{hashlib.sha256(str(absolute).encode()).hexdigest()[:32]}.json"
    seen = [str(absolute), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, sample_of(path, stat.st_size)]
    try:
        known = json.loads(note.read_text())
        if known["file"] == seen and "sha256" in known and ("quotes" in known) == (kind_of(path) == ".tsv"):
            return known
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = looked_at(path)
    write_atomically(note, json.dumps({"file": seen, **found}))
    return found


def looked_at(path: Path) -> dict[str, Any]:
    """Hash a file, and look whether a .tsv holds quotes."""
    found: dict[str, Any] = {"sha256": sha256_of(path)}
    return found | {"quotes": holds(path, b'"')} if kind_of(path) == ".tsv" else found


def holds(path: Path, byte: bytes) -> bool:
    """Say whether a byte stands in a file."""
    with told_damage(path, 0), open_bytes(path) as stream:
        return any(byte in some for some in iter(lambda: stream.read(1 << 20), b""))


def sample_of(path: Path, size: int) -> str:
    """Hash some blocks of a file."""
    sample = hashlib.sha256()
    with path.open("rb") as stream:
        for number in range(SAMPLED_BLOCKS):
            stream.seek(size * number // SAMPLED_BLOCKS)
            sample.update(stream.read(4096))
    return sample.hexdigest()
