"""A tokenised corpus under the cache folder: made once under a fingerprint, then read without copying.

The fingerprint covers the text (a hash of each file's content), the tokenizer and the recipe. The folder is complete
when `manifest.json` is there; it is written last, so a killed preparation is taken up where it stopped. Shards and
manifest are the same bytes whoever makes them, so two preparations at once cost time but do no harm.
"""

import hashlib
import json
from bisect import bisect_right
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamodules.core.account import Account, total
from datamodules.core.errors import DataError
from datamodules.core.lines import skipped
from datamodules.core.processes import make_shards
from datamodules.core.progress import shown
from datamodules.core.publishing import alone, sha256_of, sweep, write_atomically
from datamodules.core.sources import Source, described
from datamodules.core.tokenization import Job, Recipe, counts_of, is_there, keys_path, shard_path

VERSION = 1  # of the rules by which text becomes rows: raise it when they change
MANIFEST = "manifest.json"


def digest(description: Any) -> str:
    """Hash a description made of plain values."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_digest(tokenizer_json: str) -> str:
    """Hash a tokenizer, without what does not touch the ids."""
    tokenizer = json.loads(tokenizer_json)
    for name in ("version", "truncation", "padding"):
        tokenizer.pop(name, None)
    return digest(tokenizer)


def text_description(source: Source, cache: Path) -> list[Any]:
    """Describe the text of a source: content and kind of each file in order, and how records are read."""
    files = [described(path, cache) for path in source.files]
    quotes = ["quotes join"] if source.quotes_join else []
    return [VERSION, files, source.text_field, source.bounds, source.skip_bad, list(source.share), *quotes]


@dataclass(frozen=True)
class Plan:
    """A corpus that is to be made, or has been."""

    label: str
    source: Source
    recipe: Recipe
    tokenizer_json: str
    cache: Path

    @cached_property
    def fingerprint(self) -> str:
        """The hash of everything that decides the ids."""
        recipe = asdict(self.recipe)
        unused = {
            "segments": (),
            "documents": ("sentences", "seed"),
            "packed": ("sentences", "seed", "sequence_length"),
        }
        for name in unused[self.recipe.examples]:
            del recipe[name]
        text = text_description(self.source, self.cache)
        return digest([VERSION, text, tokenizer_digest(self.tokenizer_json), recipe])

    @property
    def folder(self) -> Path:
        """Where the corpus lies."""
        return self.cache / "corpora" / self.fingerprint

    def is_complete(self) -> bool:
        """Say whether the corpus has been published."""
        return manifest_of(self.folder) is not None

    def make(self, num_processes: int) -> None:
        """Make what is missing and publish the corpus; of one that is there, compare every byte with its hash."""
        if self.is_complete():
            self.check(num_processes)
            return
        with alone(self.folder, f"the {self.label} corpus in {self.folder}"):
            if not self.is_complete():
                self.make_part(num_processes, 1, 1)

    def check(self, num_processes: int) -> None:
        """Compare the shards with what was published.

        Raises:
            DataError: naming the one that is damaged.
        """
        shards = manifest_of(self.folder)["shards"]
        paths = [shard_path(self.folder, number) for number in range(len(shards))]
        with ThreadPoolExecutor(num_processes) as pool:  # hashing does not hold the lock of the interpreter
            checks = pool.map(check_shard, paths, shards)
            deque(shown(checks, f"checking {self.label}", "shards", len(paths)), maxlen=0)

    def make_part(self, num_processes: int, part: int, num_parts: int) -> tuple[int, int]:
        """Make every num_parts-th shard, from the part-th; publish when all are there; return (there, all)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        all_pieces = list(enumerate(self.source.pieces()))
        missing = [task for task in all_pieces[part - 1 :: num_parts] if not is_there(self.folder, task[0])]
        job = Job(self.source, self.recipe, self.tokenizer_json, self.folder)
        make_shards(job, missing, num_processes, f"tokenising {self.label}")
        there = sum(is_there(self.folder, number) for number, _ in all_pieces)
        if there == len(all_pieces):
            self.publish(there)
        return there, len(all_pieces)

    def publish(self, num_shards: int) -> None:
        """Write the manifest.

        Raises:
            DataError: there is no example in the corpus.
        """
        shards = [counts_of(self.folder, number) for number in range(num_shards)]
        account = total(account_of(shard) for shard in shards)
        account.duplicated = self.num_duplicated(num_shards)
        totals = {name: sum(shard[name] for shard in shards) for name in ("rows", "tokens", "documents")}
        if not totals["rows"]:
            bad = skipped(account)
            fix = "give a source that holds documents"
            if self.source.share != (0.0, 1.0):
                fix = f"of {account.records:,} documents none fell to it; "
                fix += "raise data.validation_fraction, set it to 0 for no validation, name data.validation_source"
                by_line = self.source.bounds == "blank_line" and self.source.files[0].suffix.lower() == ".txt"
                fix += ", or set data.documents to line where each line is a document" if by_line else ""
            raise DataError(f"{self.source.files[0]}: no text for {self.label}{bad}; {fix}")
        account.read(*[self.source.text_field] if account.columns else [])
        shards = [
            {name: shard[name] for name in ("rows", "tokens", "bytes", "documents", "sha256")} for shard in shards
        ]
        manifest = {"recipe": asdict(self.recipe), **totals, "account": account.as_dict(), "shards": shards}
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        sweep(self.folder)

    def num_duplicated(self, num_shards: int) -> int:
        """Count documents whose text stood before them."""
        paths = [keys_path(self.folder, number) for number in range(num_shards)]
        keys = [np.fromfile(path, np.uint64) for path in paths if path.exists()]
        return sum(map(len, keys)) - len(np.unique(np.concatenate(keys))) if keys else 0


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """Read a corpus' manifest; None when it is absent, cut off, or older than the hashes of shards."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        shards = manifest["shards"]
        return manifest if shards and all("sha256" in shard for shard in shards) else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def account_of(manifest: dict[str, Any]) -> Account:
    """Read the account of a manifest or a shard; those made before accounts were kept know bad records alone."""
    if "account" in manifest:
        return Account.of(manifest["account"])
    refused = manifest.get("skipped", 0)
    return Account(left_out=Counter(refused=refused), messages=manifest.get("messages", []))


def check_shard(path: Path, counts: dict[str, Any]) -> None:
    """Compare a shard with what was published.

    Raises:
        DataError: it is not the same bytes.
    """
    if not path.exists() or path.stat().st_size != counts["bytes"] or sha256_of(path) != counts["sha256"]:
        raise DataError(f"{path}: missing, or not the bytes that were published; delete {path.parent}")


class Corpus:
    """The rows of a published corpus as views of mapped files; a copy in another process maps them again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        self.ids: list[NDArray[np.integer]] = []
        self.offsets: list[NDArray[np.int32]] = []
        self.seconds: list[NDArray[np.int32]] = []
        for number, counts in enumerate(self.manifest["shards"]):
            for batch in self.batches(shard_path(folder, number), counts["bytes"]):
                rows = batch.column("ids")
                self.ids.append(rows.values.to_numpy())
                self.offsets.append(rows.offsets.to_numpy())
                self.seconds.append(batch.column("second").to_numpy())
        self.first_row = np.cumsum([0, *map(len, self.seconds)])
        self.first_token = np.cumsum([0, *map(len, self.ids)])

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return Corpus, (self.folder,)

    @staticmethod
    def batches(path: Path, size: int) -> list[pa.RecordBatch]:
        """Map the record batches of a shard.

        Raises:
            DataError: the file is missing or has another size than when it was published.
        """
        if not path.exists() or path.stat().st_size != size:
            raise DataError(f"{path}: missing or not {size} bytes long, as it was published; delete {path.parent}")
        with pa.memory_map(str(path)) as source:
            return list(pa.ipc.open_stream(source))

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.first_row[-1])

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all rows."""
        return int(self.first_token[-1])

    def token_counts(self, vocab_size: int) -> NDArray[np.int64]:
        """Count how often each id occurs."""
        return sum((np.bincount(ids, minlength=vocab_size) for ids in self.ids), np.zeros(vocab_size, np.int64))

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up the number of tokens of each row."""
        out = np.empty(len(rows), np.int64)
        chunks = np.searchsorted(self.first_row, rows, "right") - 1
        for chunk in np.unique(chunks):
            here = chunks == chunk
            inside, offsets = rows[here] - self.first_row[chunk], self.offsets[chunk]
            out[here] = offsets[inside + 1] - offsets[inside]
        return out

    def row(self, number: int) -> tuple[NDArray[np.integer], int]:
        """Give the ids of a row, as a view, and where its segment B begins."""
        chunk = bisect_right(self.first_row, number) - 1
        inside = number - self.first_row[chunk]
        start, stop = self.offsets[chunk][inside : inside + 2]
        return self.ids[chunk][start:stop], int(self.seconds[chunk][inside])

    def tokens(self, start: int, stop: int) -> NDArray[np.integer]:
        """Give the tokens [start, stop) of all rows laid end to end; a view unless a chunk ends inside."""
        chunk = bisect_right(self.first_token, start) - 1
        parts = []
        while start < stop:
            first, end = self.first_token[chunk], min(stop, self.first_token[chunk + 1])
            parts.append(self.ids[chunk][start - first : end - first])
            start, chunk = end, chunk + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
