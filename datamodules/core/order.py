"""The global order of training samples: a pure function of (seed, position) that needs no memory.

Position p of the order belongs to epoch p // n. Every epoch is another keyed permutation of the n samples: a Feistel
network over the next power of four, applied again to whatever falls outside [0, n) (cycle walking; Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", 2002). Hashes are SplitMix64 (Steele, Lea and Flood, 2014).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

GOLDEN, MIX_1, MIX_2, MASK = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, (1 << 64) - 1
ROUNDS = 6
EPOCH, MICRO_BATCHES, MIXTURE, SOURCE = 1, 2, 3, 4  # what a key is for, so that no two uses share one


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words, a bijection."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))


def keyed_hash(*parts: int | ArrayLike) -> NDArray[np.uint64]:
    """Hash integers, or broadcast arrays of them, into 64-bit words; the order of the parts matters."""
    state = np.zeros((), np.uint64)
    for part in parts:
        word = np.uint64(part & MASK) if isinstance(part, int) else np.asarray(part).astype(np.uint64)
        state = mix64(state ^ word)
    return state


def mix(x: int) -> int:
    """Scramble one 64-bit word as mix64 does, without numpy's cost per call."""
    x = (x + GOLDEN) & MASK
    x = ((x ^ (x >> 30)) * MIX_1) & MASK
    x = ((x ^ (x >> 27)) * MIX_2) & MASK
    return x ^ (x >> 31)


class Draws:
    """Uniform numbers of one key, one after the other."""

    def __init__(self, seed: int, document: int) -> None:
        self.state = mix(mix(seed & MASK) ^ document)

    def uniform(self) -> float:
        """Draw the next number in [0, 1), with 53 random bits."""
        value = mix(self.state)
        self.state = (self.state + GOLDEN) & MASK
        return (value >> 11) * 2.0**-53


def permute(index: NDArray[np.int64], n: int, *key: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Map each index in [0, n) through the permutation of [0, n) that belongs to the key, or to its own key."""
    half_bits = max(3, ((n - 1).bit_length() + 1) // 2)
    keys = [np.broadcast_to(keyed_hash(*key, round_), np.shape(index)) for round_ in range(ROUNDS)]
    out = np.array(index, dtype=np.uint64)
    outside = np.arange(out.size)
    while outside.size:
        out[outside] = feistel(out[outside], half_bits, [key[outside] for key in keys])
        outside = outside[out[outside] >= n]
    return out.astype(np.int64)


def feistel(x: NDArray[np.uint64], half_bits: int, keys: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Permute the words below 4 ** half_bits."""
    bits, low = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = x >> bits, x & low
    for key in keys:
        left, right = right, left ^ (mix64(right ^ key) & low)
    return (left << bits) | right


def sample_at(position: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
    """Say which of n samples stands at each position of the endless order of a seed."""
    epoch, index = np.divmod(np.asarray(position, np.int64), n)
    return permute(index, n, seed, EPOCH, epoch)
