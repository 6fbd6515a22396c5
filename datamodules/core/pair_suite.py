"""The sets that embeddings are judged on, as tasks over one table of texts."""

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.core.pair_store import Store
from datamodules.core.tasks import PairClasses, Retrieval, Sts, Task, TextClasses

KINDS = {"sts": Sts, "retrieval": Retrieval, "pair_classification": PairClasses, "classification": TextClasses}
TEXTS = {"first", "second", "query", "document", "train", "test"}  # the arrays that hold numbers of texts


class Suite:
    """The sets of a split over one table of texts, which are numbered by length, the longest first.

    As an ExampleSource it gives the texts in that order, so that an evaluation meets texts of like length together.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        lens = store.lengths(np.arange(len(store)))
        self.order = np.argsort(-lens, kind="stable")
        self.number = np.empty_like(self.order)
        self.number[self.order] = np.arange(len(self.order))

    def __len__(self) -> int:
        return len(self.order)

    def lengths(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up how many tokens each text has."""
        return self.store.lengths(self.order[samples])

    def gather(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lay texts end to end: their ids, and their lengths, for there is no segment B."""
        return self.store.gather(self.order[samples])

    def tasks(self) -> list[Task]:
        """Give the sets, in the order of the configuration."""
        found = []
        for name, (kind, sizes) in self.store.told["sets"].items():
            arrays = {part: np.array(self.store.arrays[f"{name}.{part}"]) for part in sizes}
            arrays |= {part: self.number[arrays[part]] for part in TEXTS & {*sizes}}
            found.append(KINDS[kind](name, *map(torch.from_numpy, arrays.values())))
        return found
