"""Randomness that is a function of keys, not of history: nothing to save, the same on any number of ranks."""

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, 2^64 over the golden ratio, as a signed number
_MASK_64 = (1 << 64) - 1


def mix(*keys: int) -> int:
    """Hash integers into one of 64 bits without a sign, by the finaliser of SplitMix64 (Steele et al., 2014)."""
    state = 0
    for key in keys:
        state = (state ^ (key & _MASK_64)) + 0x9E3779B97F4A7C15 & _MASK_64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK_64
        state ^= state >> 31
    return state


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without dragging the sign bit along."""
    return (x >> bits) & ((1 << 64 - bits) - 1)


def keyed_uniform(key: int, *coordinates: Tensor) -> Tensor:
    """Draw one number in (0, 1) per place, a function of the key and of the place's int64 coordinates alone.

    The coordinates broadcast against each other; the result is float32 on their device, at the middles of a
    grid of 2^-23: with one bit more, the last middle would be rounded up to 1.
    """
    hashed = mix(key)  # neighbouring keys must not draw the same numbers in another order
    signed = hashed if hashed < 1 << 63 else hashed - (1 << 64)
    state = torch.full((), signed, dtype=torch.int64, device=coordinates[0].device)
    for coordinate in coordinates:
        state = (state ^ coordinate) + _GOLDEN
        state = (state ^ _shift(state, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
        state = (state ^ _shift(state, 27)) * -7723592293110705685  # 0x94D049BB133111EB
        state = state ^ _shift(state, 31)
    return (_shift(state, 41).to(torch.float32) + 0.5) * 2.0**-23


def seed_generators(*keys: int) -> None:
    """Seed torch's generators on every device: dropout after this call is a function of the keys."""
    torch.manual_seed(mix(*keys) >> 1)  # torch takes 63 bits without trouble on every device
