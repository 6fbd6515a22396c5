"""Which examples a global batch of pairs holds: a pure function of (seed, step) in memory for one window of steps.

Of a mixture every step has one source. Inside blocks of steps each source has an exact number of turns, permuted by the
seed. A source's turns take its examples in the endless order of order.py; inside a window of turns, examples change
places so that no text stands twice in a global batch, as far as that is possible.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.core.order import MIXTURE, SOURCE, keyed_hash, permute, sample_at

MOST_STEPS = 1000  # of a block: shares are rounded to a thousandth where no shorter block is exact
WINDOW_EXAMPLES, WINDOW_STEPS = 1 << 17, (8, 64)
MOST_TRIES = 256  # partners that an example is offered to


def quotas(weights: Sequence[float]) -> NDArray[np.int64]:
    """Share a block of steps: the shortest one in which every source has its exact share, else one of 1,000 steps.

    Every source has at least one turn.
    """
    lengths = np.arange(len(weights), max(MOST_STEPS, len(weights)) + 1)
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    turns = lengths[:, None] * shares
    whole = np.rint(turns)
    exact = (np.abs(turns - whole) < 1e-6).all(1) & (whole >= 1).all(1)
    if exact.any():
        return whole[exact.argmax()].astype(np.int64)
    wanted, found = turns[-1], np.maximum(np.floor(turns[-1]), 1)
    while found.sum() < lengths[-1]:
        found[np.argmax(wanted - found)] += 1
    while found.sum() > lengths[-1]:
        found[np.argmax(np.where(found > 1, found - wanted, -np.inf))] -= 1
    return found.astype(np.int64)


class Mixture:
    """The source of each step, and how many turns it had before."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.quotas, self.seed = quotas(weights), seed
        self.num_steps = int(self.quotas.sum())
        self.block = (-1, np.empty(0), np.empty(0))

    def at(self, step: int) -> tuple[int, int]:
        """Return the number of the source and of its turn."""
        block, inside = divmod(step, self.num_steps)
        if self.block[0] != block:
            places = permute(np.arange(self.num_steps), self.num_steps, self.seed, MIXTURE, block)
            sources = np.repeat(np.arange(len(self.quotas)), self.quotas)[places]
            turns = np.empty(self.num_steps, np.int64)
            for source, quota in enumerate(self.quotas):
                turns[sources == source] = np.arange(quota) + block * quota
            self.block = (block, sources, turns)
        return int(self.block[1][inside]), int(self.block[2][inside])


class Turns:
    """The global batches of one source.

    Args:
        num_examples: examples of the source.
        batch_size: examples of a global batch.
        seed: key of the order.
        number: number of the source, so that no two share an order.
        keys: gives the keys of all texts of some examples, [E, C]; None leaves texts where they fall.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        seed: int,
        number: int,
        keys: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None,
    ) -> None:
        self.num_examples, self.batch_size, self.keys = num_examples, batch_size, keys
        self.key = int(keyed_hash(seed, SOURCE, number))
        self.num_turns = int(np.clip(WINDOW_EXAMPLES // batch_size, *WINDOW_STEPS))
        self.window = (-1, np.empty(0, np.int64))

    def batch(self, turn: int) -> NDArray[np.int64]:
        """Return the numbers of the examples of a turn."""
        window, inside = divmod(turn, self.num_turns)
        if self.window[0] != window:
            size = self.num_turns * self.batch_size
            samples = sample_at(np.arange(window * size, (window + 1) * size), self.num_examples, self.key)
            if self.keys is not None:
                samples = samples[separated(self.keys(samples), self.num_turns)]
            self.window = (window, samples)
        return self.window[1][inside * self.batch_size : (inside + 1) * self.batch_size]


def separated(keys_EC: NDArray[np.int64], num_batches: int) -> NDArray[np.int64]:
    """Order examples so that no key stands in two examples of one batch, as far as possible.

    Args:
        keys_EC: the keys of the C texts of each example; batch b holds the places [b E / num_batches, ...).
        num_batches: number of batches of equal size.

    Returns:
        The example at each place. Only examples that repeat a text of their batch, and those with which they change
        places, move.
    """
    size = len(keys_EC) // num_batches
    _, ids = np.unique(keys_EC, return_inverse=True)
    ids_EC = np.sort(ids.reshape(keys_EC.shape), axis=1)
    batch_E = np.arange(len(keys_EC)) // size
    later = np.zeros(ids_EC.shape, bool)  # a text that an example repeats itself is no matter of its batch
    later[:, 1:] = ids_EC[:, 1:] == ids_EC[:, :-1]
    places = batch_E[:, None] * (ids_EC.max() + 1) + ids_EC
    flat, rows = places[~later], np.nonzero(~later)[0]
    first = np.zeros(len(flat), bool)
    first[np.unique(flat, return_index=True)[1]] = True
    movers = np.unique(rows[~first])
    if not len(movers):
        return np.arange(len(keys_EC))
    return Swaps(ids_EC, size, num_batches).moved(movers.tolist())


class Swaps:
    """Examples in batches, and which texts each batch holds how often."""

    def __init__(self, ids_EC: NDArray[np.int64], size: int, num_batches: int) -> None:
        self.texts = [tuple(dict.fromkeys(row)) for row in ids_EC.tolist()]
        self.size, self.num_batches = size, num_batches
        self.order = list(range(len(self.texts)))
        self.held: dict[int, Counter[int]] = {}

    def counts(self, batch: int) -> Counter[int]:
        """Count the texts of a batch."""
        if batch not in self.held:
            members = self.order[batch * self.size : (batch + 1) * self.size]
            self.held[batch] = Counter(text for example in members for text in self.texts[example])
        return self.held[batch]

    def moved(self, places: list[int]) -> NDArray[np.int64]:
        """Offer the examples at some places to other batches, twice, and return the order."""
        for _ in range(2):
            places = [place for place in places if not self.fits(place) and not self.settle(place)]
        return np.array(self.order)

    def fits(self, place: int) -> bool:
        """Say whether an example repeats no other one's text."""
        counts = self.counts(place // self.size)
        return all(counts[text] == 1 for text in self.texts[self.order[place]])

    def settle(self, place: int) -> bool:
        """Let an example change places with the first one that fits where it is; False when there is none."""
        own, texts = self.counts(place // self.size), self.texts[self.order[place]]
        for other in self.partners(place):
            if all(own[text] - (text in texts) == 0 for text in self.texts[self.order[other]]):
                self.swap(place, other)
                return True
        return False

    def partners(self, place: int) -> Iterator[int]:
        """Yield places in batches that hold none of an example's texts, a few of each batch."""
        batch, inside = divmod(place, self.size)
        texts, left = self.texts[self.order[place]], MOST_TRIES
        for ahead in range(1, self.num_batches):
            other = (batch + ahead) % self.num_batches
            counts = self.counts(other)
            if any(counts[text] for text in texts):
                continue
            for step in range(min(self.size, MOST_TRIES // 8, left)):
                yield other * self.size + (inside + step) % self.size
                left -= 1

    def swap(self, one: int, other: int) -> None:
        """Let two examples change places."""
        for place, sign in ((one, -1), (other, -1)):
            self.note(place, sign)
        self.order[one], self.order[other] = self.order[other], self.order[one]
        for place, sign in ((one, 1), (other, 1)):
            self.note(place, sign)

    def note(self, place: int, sign: int) -> None:
        """Count the texts of the example at a place in or out of its batch."""
        counts = self.counts(place // self.size)
        for text in self.texts[self.order[place]]:
            counts[text] += sign
