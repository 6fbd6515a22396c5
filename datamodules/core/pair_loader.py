"""Batches of pairs: item s is a rank's share of global batch s, all columns of a micro-batch in one flat batch."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datamodules.core.batches import NO_TEXT, PairBatch, TextBatch
from datamodules.core.loader import Batching, lay_out
from datamodules.core.pair_order import Mixture, Turns
from datamodules.core.pair_store import Store


@dataclass(frozen=True)
class Part:
    """One source of a mixture: its name, its share of the steps, and its examples."""

    name: str
    weight: float
    store: Store

    def __len__(self) -> int:
        return len(self.store.arrays["text"])

    @property
    def num_columns(self) -> int:
        """Texts of an example."""
        return self.store.arrays["text"].shape[1]

    @cached_property
    def label_range(self) -> tuple[float, float] | None:
        """Lowest and highest score or label; None where there is none but 1."""
        labels = self.store.arrays["label"]
        return (float(labels.min()), float(labels.max())) if (labels != 1).any() else None

    @property
    def is_ragged(self) -> bool:
        """Say whether examples have different numbers of hard negatives."""
        return self.store.told.get("is_ragged", False)

    def keys(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look the keys of the texts of some examples up, [E, C]; for a text that is not there the anchor's."""
        texts = self.store.arrays["text"][samples]
        return self.store.arrays["key"][np.where(texts < 0, texts[:, :1], texts)]


class PairSteps(Dataset[list[PairBatch]]):
    """Training data: item s is this rank's share of global batch s, for any s.

    Args:
        parts: the sources.
        batching: batch sizes in examples, and rank.
        seed: key of the order.
        is_special: for every id of the vocabulary, whether no corruption may touch it.
        no_duplicates: let examples change places so that no text stands twice in a global batch.
    """

    def __init__(
        self, parts: list[Part], batching: Batching, seed: int, is_special: NDArray[np.bool_], no_duplicates: bool
    ) -> None:
        self.parts, self.batching, self.is_special = parts, batching, is_special
        self.mixture = Mixture([part.weight for part in parts], seed)
        size = batching.global_batch_size
        self.turns = [
            Turns(len(part), size, seed, number, part.keys if no_duplicates else None)
            for number, part in enumerate(parts)
        ]

    def __getitem__(self, step: int) -> list[PairBatch]:
        number, turn = self.mixture.at(step)
        shape = (-1, self.batching.micro_batch_size)
        samples = self.turns[number].batch(turn).reshape(shape)
        places = (step * self.batching.global_batch_size + np.arange(samples.size)).reshape(shape)
        own = self.batching.mine
        return [
            collate_pairs(self.parts[number], *rows, self.is_special)
            for rows in zip(samples[own], places[own], strict=True)
        ]


def collate_pairs(
    part: Part, samples_P: NDArray[np.int64], places_P: NDArray[np.int64], is_special: NDArray[np.bool_]
) -> PairBatch:
    """Lay the texts of some examples out as one micro-batch, longest first.

    Args:
        part: the source.
        samples_P: which examples.
        places_P: their places in the global order, the keys of their randomness.
        is_special: for every id of the vocabulary, whether no corruption may touch it.
    """
    text_CP = part.store.arrays["text"][samples_P].T
    there = np.flatnonzero(text_CP >= 0)
    lens = part.store.lengths(text_CP.reshape(-1)[there].astype(np.int64))
    order = np.argsort(-lens, kind="stable")
    slots = there[order]
    ids, seconds = part.store.gather(text_CP.reshape(-1)[slots].astype(np.int64))
    batch: TextBatch = lay_out(ids, seconds, lens[order], places_P[slots % len(places_P)], is_special)
    return {
        **batch,
        "slot_B": torch.from_numpy(slots),
        "num_columns": part.num_columns,
        "key_CP": torch.from_numpy(np.where(text_CP < 0, NO_TEXT, part.store.arrays["key"][text_CP])),
        "is_ragged": part.is_ragged,
        "label_P": torch.from_numpy(part.store.arrays["label"][samples_P]),
        "has_labels": part.label_range is not None,
        "source": part.name,
    }
