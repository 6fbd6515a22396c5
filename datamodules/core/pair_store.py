"""Tokenised texts under the cache folder, each of them once, and arrays of numbers that refer to them.

A store is a corpus whose rows are texts, with NumPy files beside it: for training the texts of each example, its label
and the key of each text; for evaluation the sets. It is complete when its manifest is there; its bytes are the same
whoever makes it, so two runs at once do no harm. Only one rank makes it, the others map the files.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer

from datamodules.core.account import NO_TOKEN, Account
from datamodules.core.corpus import MANIFEST, Corpus, check_shard, manifest_of, tokenizer_digest
from datamodules.core.errors import DataError
from datamodules.core.packing import Rows
from datamodules.core.processes import no_cycles
from datamodules.core.publishing import alone, beside, put, sha256_of, sweep, sync, write_atomically
from datamodules.core.tokenization import RowWriter, for_text, shard_path
from datamodules.core.unknown import Unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_CHARACTERS = 1 << 16  # of a longer text only its beginning is tokenised, unless that gives too few tokens
MOST_KNOWN = 1 << 20  # texts that are remembered while a store is made; so memory is bounded
PROBES = ("a", "1", "the")


class Encoder:
    """Turns texts into ids as their tokenizer would: with its own special tokens, cut on its own side.

    What a text contains is text: "[SEP]" in it is ordinary characters.

    Raises:
        DataError: the tokenizer puts special tokens into the middle of a text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.core = for_text(tokenizer.backend_tokenizer.to_str())
        self.unknown = Unknown(self.core)
        self.before, self.after = template(self.core)
        self.keeps_end = tokenizer.truncation_side == "left"
        self.typecode = "H" if len(tokenizer) <= 1 << 16 else "i"
        self.digest = [tokenizer_digest(self.core.to_str()), self.keeps_end]

    def __call__(
        self, texts: list[str], limits: list[int], account: Account | None = None
    ) -> Iterator[tuple[list[int], bool]]:
        """Yield the ids of each text, at most so many as its limit, and whether it was cut; `account` counts them.

        Raises:
            DataError: a text has no token at all.
        """
        account = Account() if account is None else account
        shown = [self.part(text, MOST_CHARACTERS) for text in texts]
        encodings = self.core.encode_batch_fast(shown, add_special_tokens=False)
        self.unknown.count_special(texts, account)
        self.unknown.count(shown, [encoding.ids for encoding in encodings], account)
        for text, limit, encoding in zip(texts, limits, encodings, strict=True):
            ids, room = encoding.ids, limit - len(self.before) - len(self.after)
            if room < 1:
                raise DataError(f"data.sequence_length: of {limit} tokens all are special; allow more")
            partly = len(text) > MOST_CHARACTERS
            if partly and len(ids) < 2 * room:
                ids, partly = self.core.encode(text, add_special_tokens=False).ids, False
            if not ids and not self.before and not self.after:
                raise DataError(
                    f"{text[:40]!r}: has no token in this tokenizer; leave it out, or take another tokenizer"
                )
            account.texts += 1
            account.note(NO_TOKEN, not ids)
            account.tokens += len(ids)
            account.tokens_cut += max(0, len(ids) - room)
            account.characters_cut += len(text) - MOST_CHARACTERS if partly else 0
            account.texts_cut += (cut := partly or len(ids) > room)
            yield [*self.before, *self.part(ids, room), *self.after], cut

    def check_prompt(self, prompt: str, limit: int, key: str) -> None:
        """Refuse a prompt beside which no token of a text has room.

        Raises:
            DataError: naming the key.
        """
        size = len(self.core.encode(prompt, add_special_tokens=False).ids)
        if prompt and size + len(self.before) + len(self.after) >= limit:
            raise DataError(
                f"data.{key}.prompts: {prompt[:40]!r} has {size} tokens, and texts have room for {limit} with it; "
                "shorten it, or allow longer texts"
            )

    def part(self, whole: Any, size: int) -> Any:
        """Cut a text or ids on the tokenizer's side."""
        return whole[-size:] if self.keeps_end else whole[:size]


def template(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Find the special tokens that a tokenizer's post-processor puts before and behind a text.

    Raises:
        DataError: they stand elsewhere.
    """
    for probe in PROBES:
        bare = tokenizer.encode(probe, add_special_tokens=False).ids
        full = tokenizer.encode(probe).ids
        start = next((at for at in range(len(full)) if full[at : at + len(bare)] == bare), None)
        if bare and start is not None:
            return full[:start], full[start + len(bare) :]
    raise DataError("data.tokenizer: its special tokens do not stand around a text; take another tokenizer")


def key_of(text: str) -> int:
    """Hash a text into 63 bits and a sign."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


class Texts:
    """The growing table of a store: texts are added, their numbers come back; equal ones share a row."""

    def __init__(self, encoder: Encoder, writer: RowWriter) -> None:
        self.encoder, self.writer = encoder, writer
        self.keys = array("q")
        self.known: dict[tuple[int, int], int] = {}
        self.account = Account()

    def add(self, texts: Iterable[str], limits: Iterable[int]) -> list[int]:
        """Add texts, each with the most tokens that it may have, and return their numbers."""
        texts, limits = list(texts), list(limits)
        if len(self.known) > MOST_KNOWN:
            self.known.clear()
        places = [(key_of(text), limit) for text, limit in zip(texts, limits, strict=True)]
        new = {place: text for place, text in zip(places, texts, strict=True) if place not in self.known}
        rows = self.encoder([*new.values()], [limit for _, limit in new], self.account)
        for place, (ids, _) in zip(new, rows, strict=True):
            self.known[place] = len(self.keys)
            self.keys.append(place[0])
            self.writer.add(ids, len(ids))
        return [self.known[place] for place in places]


Build = Callable[
    [Texts], tuple[dict[str, ArrayLike], dict[str, Any]]
]  # fills the table; arrays, and what is told of it


@dataclass(frozen=True)
class Plan:
    """A store that is to be made, or has been; `label` is how messages call it."""

    label: str
    folder: Path

    def make(self, encoder: Encoder, build: Build) -> None:
        """Make the store unless it is there; of one that is, compare every byte with its hash.

        Raises:
            DataError: a record is no good, or a file is damaged.
        """
        if self.manifest() is None:
            with alone(self.folder, f"the {self.label} texts in {self.folder}"):
                if self.manifest() is None:
                    self.write(encoder, build)
                    return
        manifest = self.manifest()
        check_shard(shard_path(self.folder, 0), manifest["shards"][0])
        for name, counts in manifest["arrays"].items():
            check_shard(self.folder / name, counts)

    def manifest(self) -> dict[str, Any] | None:
        """Read the manifest; None where there is none, or something lacks in it."""
        found = manifest_of(self.folder) or {}
        return found if "arrays" in found and ("examples" in found or "sets" in found) else None

    def write(self, encoder: Encoder, build: Build) -> None:
        """Write the table, the arrays, and last the manifest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = shard_path(self.folder, 0)
        writer = RowWriter(beside(path), encoder.typecode)
        texts = Texts(encoder, writer)
        with no_cycles(), writer:
            arrays, told = build(texts)
        put(writer.path, path)
        arrays["key"] = texts.keys
        files = {f"{name}.npy": save(self.folder / f"{name}.npy", np.asarray(it)) for name, it in arrays.items()}
        counts = {"texts": writer.rows, "tokens": writer.tokens, "cut": texts.account.texts_cut, **told}
        counts["account"] = texts.account.as_dict()
        manifest = counts | {"shards": [published(path)], "arrays": files}
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        sweep(self.folder)


def published(path: Path) -> dict[str, Any]:
    """Note size and hash of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def save(path: Path, array: NDArray[Any]) -> dict[str, Any]:
    """Publish an array; return what is noted of it."""
    with beside(path).open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    sync(beside(path))
    put(beside(path), path)
    return published(path)


class Store(Rows):
    """A published store: the rows are the ids of its texts, the arrays views of mapped files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Corpus(folder))
        self.told: dict[str, Any] = self.corpus.manifest
        self.arrays = {Path(name).stem: mapped(folder / name) for name in self.told["arrays"]}

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return Store, (self.corpus.folder,)


def mapped(path: Path) -> NDArray[Any]:
    """Map an array of a store.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: missing or damaged ({error}); delete {path.parent}") from None
