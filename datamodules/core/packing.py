"""What an example is on top of a corpus: a row as it was prepared, or a window of all documents laid end to end."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from datamodules.core.corpus import Corpus


class ExampleSource(Protocol):
    """Numbered examples with their special tokens."""

    def __len__(self) -> int:
        """Count the examples."""

    def lengths(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up how many tokens each example has."""

    def gather(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lay examples end to end: their ids, and for each the place in it where segment B begins."""


class Rows:
    """Every row of the corpus is an example."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return self.corpus.num_rows

    def lengths(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up how many tokens each example has."""
        return self.corpus.lengths(samples)

    def gather(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lay examples end to end: their ids, and for each the place in it where segment B begins."""
        rows = [self.corpus.row(sample) for sample in samples.tolist()]
        return np.concatenate([ids for ids, _ in rows], dtype=np.int64), np.array([second for _, second in rows])


class Windows:
    """Consecutive windows over the rows laid end to end, each as [CLS] window [SEP]; the last one may be shorter.

    Nothing is stored: window w holds the tokens [w * size, (w + 1) * size) with size = sequence_length - 2.
    """

    def __init__(self, corpus: Corpus, sequence_length: int, cls_id: int, sep_id: int) -> None:
        self.corpus, self.size = corpus, sequence_length - 2
        self.cls, self.sep = np.array([cls_id]), np.array([sep_id])

    def __len__(self) -> int:
        return -(-self.corpus.num_tokens // self.size)

    def lengths(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Look up how many tokens each example has."""
        return np.minimum(self.corpus.num_tokens - samples * self.size, self.size) + 2

    def gather(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lay examples end to end; there is no segment B."""
        parts = []
        for start in (samples * self.size).tolist():
            stop = min(start + self.size, self.corpus.num_tokens)
            parts += [self.cls, self.corpus.tokens(start, stop), self.sep]
        return np.concatenate(parts, dtype=np.int64), self.lengths(samples)
