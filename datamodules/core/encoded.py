"""Labelled examples as token ids in memory, in the form in which the loaders take examples."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.core.account import NO_TOKEN, Account
from datamodules.core.batches import LabelledBatch, TextBatch
from datamodules.core.labels import Example
from datamodules.core.tokenization import for_text
from datamodules.core.unknown import Unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Samples = Callable[[NDArray[np.int64]], NDArray[np.int64]]  # places in the global order -> numbers of examples


class Encoded:
    """Examples in memory: [CLS] text [SEP], for pairs [CLS] text [SEP] second text [SEP], and their labels."""

    def __init__(
        self,
        examples: list[Example],
        tokenizer: "PreTrainedTokenizerFast",
        length: int,
        labels: torch.Tensor,
        account: Account | None = None,
    ) -> None:
        account = Account() if account is None else account
        core = for_text(tokenizer.backend_tokenizer.to_str())
        paired = examples[0].second is not None
        texts = [text for example in examples for text in (example[:2] if paired else example[:1])]
        found = [encoding.ids for encoding in core.encode_batch_fast(texts, add_special_tokens=False)]
        unknown = Unknown(core)
        unknown.count(texts, found, account)
        unknown.count_special(texts, account)
        account.note(NO_TOKEN, sum(not ids for ids in found))
        first, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        rows, seconds, self.num_cut = [], [], 0
        for number in range(len(examples)):
            pair = found[2 * number : 2 * number + 2] if paired else [found[number]]
            kept = shortened(pair, length - 1 - len(pair), tokenizer.truncation_side)
            self.num_cut += kept != pair
            account.texts += len(pair)
            account.tokens += sum(map(len, pair))
            account.tokens_cut += sum(map(len, pair)) - sum(map(len, kept))
            account.texts_cut += sum(len(ids) < len(whole) for ids, whole in zip(kept, pair, strict=True))
            rows.append(sum(([*ids, *sep] for ids in kept), first))
            seconds.append(len(kept[0]) + 2)
        self.ids = np.array([number for row in rows for number in row], np.int32)
        self.starts = np.cumsum([0, *map(len, rows)])
        self.seconds, self.labels = np.array(seconds), labels

    def __len__(self) -> int:
        return len(self.seconds)

    def lengths(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Looks up how many tokens each example has."""
        return self.starts[samples + 1] - self.starts[samples]

    def gather(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lays examples end to end: their ids, and for each the place in it where the second text begins."""
        rows = [self.ids[self.starts[sample] : self.starts[sample + 1]] for sample in samples.tolist()]
        return np.concatenate(rows, dtype=np.int64), self.seconds[samples]

    def content(self) -> bytes:
        """All of the data as bytes."""
        return b"".join(part.tobytes() for part in (self.ids, self.starts, self.seconds, self.labels.numpy()))


def shortened(texts: list[list[int]], room: int, side: str = "right") -> list[list[int]]:
    """Cuts one or two texts on a side to `room` tokens together, the longer one first."""
    if side == "left":
        return [ids[::-1] for ids in shortened([ids[::-1] for ids in texts], room)]
    if sum(map(len, texts)) <= room:
        return texts
    if len(texts) == 1:
        return [texts[0][:room]]
    short = min(*map(len, texts), room // 2)
    limits = (short, room - short) if len(texts[0]) <= len(texts[1]) else (room - short, short)
    return [ids[:limit] for ids, limit in zip(texts, limits, strict=True)]


class WithLabels(Dataset[list[LabelledBatch]]):
    """Adds to every micro-batch the labels of its samples, found by their places in the global order."""

    def __init__(self, batches: Dataset[list[TextBatch]], labels: torch.Tensor, sample_of: Samples) -> None:
        self.batches, self.labels, self.sample_of = batches, labels, sample_of

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> list[LabelledBatch]:
        return [
            {**batch, "label_B": self.labels[self.sample_of(batch["sample_B"].numpy())]} for batch in self.batches[item]
        ]
