"""Whether a network can be built here at all, asked before memory is touched."""

import os
from contextlib import suppress
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from lightning_modules.core.checkpoint.errors import CheckpointError

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
MOST_LAYERS = 10_000  # each is an object of Python, also where it takes no memory
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
GIB = 1 << 30


def check_size(config: PreTrainedConfig, source: str) -> None:
    """Refuse a network that has no size, or whose weights are more than the memory of all ranks' machines.

    Args:
        config: what is about to be built.
        source: where it is from, for the message.

    Raises:
        CheckpointError: naming the size, or how much memory it takes.
    """
    for name in SIZES:
        size = getattr(config, name, None)
        if size is not None and (not isinstance(size, int) or size < 1):
            raise CheckpointError(f"{source}: {name} is {size!r}; it must be a whole number of at least 1")
    if (layers := getattr(config, "num_hidden_layers", 0)) > MOST_LAYERS:
        raise CheckpointError(f"{source}: {layers:,} layers, at most {MOST_LAYERS:,} are built")
    if torch.empty(0).device.type == "meta":  # a plan takes no memory
        return
    needed, there = 4 * least_weights(config), memory() * ranks()
    if needed > there:
        raise CheckpointError(
            f"{source}: the weights alone take {needed / GIB:,.0f} GiB or more, and here are {there / GIB:,.0f} GiB of "
            "memory; take fewer or narrower layers, or a smaller vocabulary"
        )


def least_weights(config: PreTrainedConfig) -> int:
    """Count the weights of the tables, and of the four matrices of attention and the two behind it in every layer."""
    width = getattr(config, "hidden_size", None) or 1
    table = getattr(config, "embedding_size", None) or width
    inner = getattr(config, "intermediate_size", None) or width
    rows = sum(getattr(config, name, None) or 0 for name in ("vocab_size", "max_position_embeddings"))
    grouped = (getattr(config, "num_key_value_heads", None) or 1) / (getattr(config, "num_attention_heads", None) or 1)
    shared = min(1.0, grouped) if hasattr(config, "num_key_value_heads") else 1.0
    attention = int((2 + 2 * shared) * width * width)
    return rows * table + (getattr(config, "num_hidden_layers", None) or 1) * (attention + 2 * width * inner)


def memory() -> int:
    """Return the bytes that this machine, or the group of processes that this one is in, may use."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUPS:
        with suppress(OSError, ValueError):  # "max"
            found.append(int(Path(file).read_text()))
    return min(found)


def ranks() -> int:
    """Return how many processes may share the weights."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1
