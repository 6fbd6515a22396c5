"""Turns pieces of a source into shards of token ids: Arrow files, one per piece, each published by a rename.

A shard holds rows `ids` (list of uint16, or int32 for a large vocabulary) and `second` (where segment B begins, the
length of the row when there is none). Beside it stands a small JSON file with its counts; a shard is there when that
file is. Every process uses one thread of the `tokenizers` library, so processes scale; `datasets.Dataset.from_file`
opens a shard.
"""

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from datamodules.core.account import NO_TOKEN, Account
from datamodules.core.order import Draws
from datamodules.core.publishing import beside, put, sha256_of, write_atomically
from datamodules.core.segments import Sentences, pieces, sentences_of, two_segments
from datamodules.core.sources import Document, Piece, Source
from datamodules.core.unknown import Unknown

Examples = Literal["segments", "packed", "documents"]
DOCUMENTS_PER_BATCH = 64
TOKENS_PER_CHUNK = 1 << 22


@dataclass(frozen=True)
class Recipe:
    """How documents become rows; together with the text it decides every id.

    segments and documents: a row is an example with its special tokens. packed: a row is a document and its [SEP].
    """

    examples: Examples
    sentences: Sentences
    sequence_length: int
    seed: int
    vocab_size: int
    cls_id: int
    sep_id: int

    @property
    def typecode(self) -> str:
        """The array type of ids: 16 bits where they suffice."""
        return "H" if self.vocab_size <= 1 << 16 else "i"


@dataclass(frozen=True)
class Job:
    """All that a process needs to make any shard of a corpus."""

    source: Source
    recipe: Recipe
    tokenizer_json: str
    folder: Path


def shard_path(folder: Path, number: int) -> Path:
    """Name a shard's Arrow file."""
    return folder / f"shard_{number:05d}.arrow"


def keys_path(folder: Path, number: int) -> Path:
    """Name the file with the keys of a shard's documents, 64 bits each."""
    return folder / f"shard_{number:05d}.keys"


def is_there(folder: Path, number: int) -> bool:
    """Say whether a shard has been published."""
    return counts_of(folder, number) is not None


def counts_of(folder: Path, number: int) -> dict[str, Any] | None:
    """Read what is known of a published shard; None when its file is absent, cut off, or holds no hash."""
    try:
        counts = json.loads(shard_path(folder, number).with_suffix(".json").read_text())
        return counts if "sha256" in counts else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def for_text(tokenizer_json: str) -> Tokenizer:
    """Open a tokenizer for plain text: "[MASK]" in it is characters, not the token; nothing is cut or padded."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def inside_words(tokenizer: Tokenizer) -> list[bool]:
    """Mark the ids that go on with a word: those of WordPiece with its prefix; other tokenizers are cut anywhere."""
    prefix = json.loads(tokenizer.to_str())["model"].get("continuing_subword_prefix")
    marked = [False] * tokenizer.get_vocab_size()
    for word, number in tokenizer.get_vocab().items() if prefix else ():
        marked[number] = word.startswith(prefix) and len(word) > len(prefix)
    return marked


class Worker:
    """Makes shards of one corpus; `read` counts the documents of all workers."""

    def __init__(self, job: Job, read: Synchronized) -> None:
        self.job, self.num_read = job, read
        self.tokenizer = for_text(job.tokenizer_json)
        self.is_inside = inside_words(self.tokenizer) if job.recipe.sentences == "unicode" else None
        self.account, self.unknown = Account(), Unknown(self.tokenizer)

    def make(self, number: int, piece: Piece) -> None:
        """Write one shard and its counts."""
        records = self.job.source.records()
        path = shard_path(self.job.folder, number)
        writer = RowWriter(beside(path), self.job.recipe.typecode)
        self.account, keys = records.account, array("Q")
        with writer:
            for batch in batched(self.job.source.read(piece, records), DOCUMENTS_PER_BATCH):
                keys.extend(document.key for document in batch)
                with self.num_read.get_lock():
                    self.num_read.value += len(batch)
                for ids, second in self.rows(batch):
                    writer.add(ids, second)
        if is_there(self.job.folder, number):  # another process was faster with the same bytes
            writer.path.unlink(missing_ok=True)
            return
        put(writer.path, path)
        write_atomically(keys_path(self.job.folder, number), keys.tobytes())
        self.account.texts, self.account.examples = len(keys), writer.rows
        counts = {"rows": writer.rows, "tokens": writer.tokens, "bytes": path.stat().st_size, "documents": len(keys)}
        counts |= {"sha256": sha256_of(path), "account": self.account.as_dict()}
        write_atomically(path.with_suffix(".json"), json.dumps(counts))

    def rows(self, batch: list[Document]) -> Iterator[tuple[list[int], int]]:
        """Yield the rows of some documents, each with the place where its segment B begins."""
        recipe = self.job.recipe
        self.unknown.count_special([document.text for document in batch], self.account)
        if recipe.examples == "segments":
            yield from self.segment_rows(batch)
            return
        for ids in self.encode([document.text for document in batch]):
            self.account.note(NO_TOKEN, not ids)
            if recipe.examples == "packed":
                yield [*ids, recipe.sep_id], len(ids) + 1
                continue
            for piece in pieces(ids, recipe.sequence_length - 2):
                yield [recipe.cls_id, *piece, recipe.sep_id], len(piece) + 2

    def segment_rows(self, batch: list[Document]) -> Iterator[tuple[list[int], int]]:
        """Yield [CLS] A [SEP] and, where there is a second segment, B [SEP]."""
        recipe = self.job.recipe
        texts = [sentences_of(document.text, recipe.sentences) for document in batch]
        encoded = iter(self.encode(list(chain.from_iterable(texts))))
        for document, sentences in zip(batch, texts, strict=True):
            draws, pieces = Draws(recipe.seed, document.key), list(islice(encoded, len(sentences)))
            lost = sum(map(len, pieces))
            self.account.note(NO_TOKEN, not lost)
            for first, second in two_segments(pieces, recipe.sequence_length, draws, self.is_inside):
                lost -= len(first) + len(second)
                row = [recipe.cls_id, *first, recipe.sep_id]
                begin = len(row)
                if second:
                    row += second
                    row.append(recipe.sep_id)
                yield row, begin
            self.account.texts_cut += lost > 0
            self.account.tokens_cut += lost

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Turn texts into ids without special tokens, and count them."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        found = [encoding.ids for encoding in encodings]
        self.account.tokens += sum(map(len, found))
        self.unknown.count(texts, found, self.account)
        return found


def batched(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    """Group documents, the last group being smaller."""
    while batch := list(islice(documents, size)):
        yield batch


class RowWriter:
    """Writes rows into an Arrow stream, in chunks that bound the memory."""

    def __init__(self, path: Path, typecode: str) -> None:
        self.path, self.typecode = path, typecode
        self.rows = self.tokens = 0
        value = pa.uint16() if typecode == "H" else pa.int32()
        self.schema = pa.schema([("ids", pa.list_(value)), ("second", pa.int32())])
        self.start_chunk()

    def __enter__(self) -> "RowWriter":
        self.stream = self.path.open("wb")
        self.writer = pa.ipc.new_stream(self.stream, self.schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.write_chunk()
            self.writer.close()
            self.stream.flush()
            os.fsync(self.stream.fileno())
        self.stream.close()
        if kind is not None:
            self.path.unlink()

    def start_chunk(self) -> None:
        """Begin an empty chunk."""
        self.ids, self.offsets, self.seconds = array(self.typecode), array("i", [0]), array("i")

    def add(self, ids: list[int], second: int) -> None:
        """Append a row."""
        self.ids.fromlist(ids)
        self.offsets.append(len(self.ids))
        self.seconds.append(second)
        if len(self.ids) >= TOKENS_PER_CHUNK:
            self.write_chunk()

    def write_chunk(self) -> None:
        """Write what is held as one record batch."""
        ids, offsets, seconds = (pa.array(np.asarray(part)) for part in (self.ids, self.offsets, self.seconds))
        rows = pa.ListArray.from_arrays(offsets, ids)
        if len(rows):
            self.writer.write_batch(pa.record_batch([rows, seconds], schema=self.schema))
        self.rows, self.tokens = self.rows + len(rows), self.tokens + len(ids)
        self.start_chunk()
