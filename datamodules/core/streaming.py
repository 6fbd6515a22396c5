"""Text that is read and tokenised while training: the weaker promise.

Documents come in the order of the source, shared over the ranks by `datasets`, and are laid end to end into full
windows [CLS] ... [SEP] as in the packed examples. Where a rank stands cannot be computed from the step, so it is kept
as state, which goes on exactly on the same number of ranks and is refused on another.
"""

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch.distributed as dist
from datasets import IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node
from numpy.typing import NDArray
from torch.utils.data import IterableDataset as TorchIterable

from datamodules.core.account import Account
from datamodules.core.batches import TextBatch
from datamodules.core.errors import DataError
from datamodules.core.loader import Batching, lay_out
from datamodules.core.processes import one_thread
from datamodules.core.sources import HUB_NAME, Piece, Source
from datamodules.core.tokenization import Recipe, for_text
from datamodules.core.unknown import Unknown

LEFT_OUT = ("refused", "empty")  # why a record is no document
STATES_KEPT = 8  # more than any loop prefetches


def from_files(source: Source) -> IterableDataset:
    """Stream the documents of local files."""
    return IterableDataset.from_generator(partial(documents, source), gen_kwargs={"pieces": source.pieces()})


def documents(source: Source, pieces: list[Piece]) -> Iterator[dict[str, str]]:
    """Yield the documents of some pieces as rows, each with the numbers of records since the one before."""
    for piece in pieces:
        records, before = source.records(), Account()
        for document in source.read(piece, records):
            counts = [records.account.left_out[reason] - before.left_out[reason] for reason in LEFT_OUT]
            before.left_out.update(dict(zip(LEFT_OUT, counts, strict=True)))
            yield {"text": document.text, **dict(zip(LEFT_OUT, counts, strict=True))}


def from_hub(name: str, text_field: str) -> IterableDataset:
    """Stream one split NAME:CONFIG:SPLIT of a dataset of the hub.

    Raises:
        DataError: it cannot be opened, or has no such column.
    """
    path, config, split = HUB_NAME.fullmatch(name).group("path", "config", "split")
    try:
        dataset = load_dataset(path, config, split=split or "train", streaming=True)
        columns = list(next(iter(dataset)))
    except Exception as error:  # the library raises a dozen kinds, from its own to those of the network
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise DataError(
            f"{name}: cannot be streamed ({reason}); correct the name, or try it where there is a network"
        ) from error
    if text_field not in columns:
        raise DataError(
            f"{name}: no column {text_field!r}, only {', '.join(columns)}; set data.text_field to one of them"
        )
    return dataset.select_columns([text_field]).rename_column(text_field, "text") if text_field != "text" else dataset


class Stream(TorchIterable[list[TextBatch]]):
    """This rank's share of one step after another, without end: the text begins again when it is over.

    Args:
        dataset: rows with a `text`.
        tokenizer_json: the tokenizer.
        recipe: ids of the special tokens and the sequence length.
        batching: batch sizes and rank.
        is_special: for every id of the vocabulary, whether no corruption may touch it.
        world_size: number of ranks.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        tokenizer_json: str,
        recipe: Recipe,
        batching: Batching,
        is_special: NDArray[np.bool_],
        rank: int,
        world_size: int,
    ) -> None:
        self.dataset = split_dataset_by_node(dataset, rank, world_size)
        self.tokenizer, self.recipe, self.batching, self.is_special = (
            for_text(tokenizer_json),
            recipe,
            batching,
            is_special,
        )
        self.states: deque[dict[str, Any]] = deque(maxlen=STATES_KEPT)
        self.state: dict[str, Any] = {"step": 0, "dataset": None, "rest": []}
        self.account, self.unknown = Account(), Unknown(self.tokenizer)

    def state_at(self, step: int) -> dict[str, Any]:
        """Return where this rank stood when so many steps had been handed out."""
        return next(state for state in (*self.states, self.state) if state["step"] == step)

    def __iter__(self) -> Iterator[list[TextBatch]]:
        step, rest = self.state["step"], list(self.state["rest"])
        self.account = Account.of(self.state.get("account", {}))
        self.states.clear()
        self.states.append(self.state)
        tokens = self.tokens(self.state["dataset"])
        batching, size = self.batching, self.recipe.sequence_length - 2
        per_rank = (batching.mine.stop - batching.mine.start) * batching.micro_batch_size
        while True:
            while len(rest) < per_rank * size:
                rest += next(tokens)
            windows = np.array(rest[: per_rank * size], np.int64).reshape(-1, batching.micro_batch_size, size)
            rest = rest[per_rank * size :]
            first = step * batching.global_batch_size + batching.mine.start * batching.micro_batch_size
            step += 1
            state = {"step": step, "dataset": self.dataset.state_dict(), "rest": list(rest)}
            self.states.append(state | {"account": self.account.as_dict()})
            yield [self.lay_out(rows, first + number * len(rows)) for number, rows in enumerate(windows)]

    def tokens(self, state: dict[str, Any] | None) -> Iterator[list[int]]:
        """Yield the ids of one document after another, each with a [SEP] behind.

        Raises:
            DataError: the source holds no text.
        """
        pass_ = 0 if state is None else state["epoch"]
        if state is not None:
            self.dataset.load_state_dict(state)
        while True:
            self.dataset.set_epoch(pass_)  # without it every pass would begin at the loaded state: datasets#7447
            count = 0
            for row in self.dataset:
                count += 1
                if not isinstance(row["text"], str):
                    raise DataError(
                        f"data.source: record {count} of the stream, {row['text']!r:.60}, is no text; leave "
                        "such records out with data.streaming: false and data.on_bad_record: skip"
                    )
                with one_thread():
                    encoding = self.tokenizer.encode_batch_fast([row["text"]], add_special_tokens=False)[0]
                self.count(row, encoding.ids)
                yield [*encoding.ids, self.recipe.sep_id]
            if not count and state is None:
                raise DataError(
                    "data.source: this rank's part of the stream holds no text; give more text or fewer ranks"
                )
            state, pass_ = None, pass_ + 1

    def count(self, row: dict[str, Any], ids: list[int]) -> None:
        """Enter a document, and the records before it that were none, into the account."""
        account = self.account
        for reason in LEFT_OUT:
            if number := row.get(reason, 0):
                account.left_out[reason] += number
        account.used, account.texts, account.tokens = account.used + 1, account.texts + 1, account.tokens + len(ids)
        account.records = account.used + account.left_out.total()
        self.unknown.count([row["text"]], [ids], account)
        self.unknown.count_special([row["text"]], account)

    def lay_out(self, windows: NDArray[np.int64], first: int) -> TextBatch:
        """Make a micro-batch of full windows whose first one has the given place in the global order."""
        count, length = len(windows), windows.shape[1] + 2
        ids = np.full((count, length), self.recipe.sep_id, np.int64)
        ids[:, 0], ids[:, 1:-1] = self.recipe.cls_id, windows
        lens = np.full(count, length)
        return lay_out(ids.reshape(-1), lens, lens, np.arange(first, first + count), self.is_special)


def gathered(own: dict[str, Any]) -> dict[str, Any]:
    """Join the states of all ranks; a collective."""
    if not (dist.is_available() and dist.is_initialized()):
        return {"ranks": [own]}
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, own)
    return {"ranks": states}


def own_state(states: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """Pick a rank's state.

    Raises:
        DataError: it was saved on another number of ranks.
    """
    if len(states["ranks"]) != world_size:
        raise DataError(
            f"data.streaming = true: the checkpoint was written on {len(states['ranks'])} ranks and this run has "
            f"{world_size}; go on with as many, or prepare the corpus and set it to false"
        )
    return states["ranks"][rank]
