"""What a checkpoint is made of: ranges of flattened parameters, each written by one rank.

Whatever the strategy, a rank holds contiguous ranges of flattened parameters; a checkpoint is made of such ranges, so
it depends neither on the number of ranks nor on the strategy. `layouts.py` lists the ranges of each kind of strategy.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.reader import Reader


class Slice(NamedTuple):
    """A range of one flattened parameter with its optimizer state: views of the live tensors, 1-D, of equal length.

    `tensors` maps `param`, `exp_avg`, ... to the elements from `start` on; `scalars` holds the rest of the state, such
    as Adam's `step`; `replicated` says that every rank holds this same range.
    """

    name: str
    start: int
    shape: list[int]
    replicated: bool
    scalars: dict[str, Any]
    tensors: dict[str, Tensor]


class Group(NamedTuple):
    """A parameter group of an optimizer: the names of its parameters, and its numbers, live."""

    names: list[str]
    numbers: dict[str, Any]


class Layout(Protocol):
    """How one kind of strategy spreads the parameters over the ranks."""

    def slices(self) -> Iterator[Slice]:
        """List the ranges that this rank holds."""

    def groups(self) -> list[tuple[str, list[Group]]]:
        """List the class of each optimizer with its groups."""

    def allocate(self, reader: Reader) -> None:
        """Create the optimizer state that a checkpoint has, so that `slices` lists it."""

    def loaded(self) -> None:
        """Let the strategy take over what was read into the slices."""


def snapshot(slices: Iterable[Slice], rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    """Copy to host memory what this rank has to write: its own ranges, and its share of the replicated ones."""
    shard: dict[str, dict[str, Any]] = {}
    for name, start, shape, replicated, scalars, tensors in slices:
        count = tensors["param"].numel()
        first, last = share(count, rank, world_size) if replicated else (0, count)
        if first < last or (replicated and rank == 0):
            shard[name] = {
                "start": start + first,
                "shape": shape,
                "scalars": {
                    k: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else v for k, v in scalars.items()
                },
                "tensors": {key: tensor[first:last].to("cpu", copy=True) for key, tensor in tensors.items()},
            }
    return shard


def share(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Cut `count` elements into one range per rank, as equal as ceil(count / world_size) allows."""
    size = -(-count // world_size)
    return min(rank * size, count), min((rank + 1) * size, count)


def split_state(
    name: str, whole: Tensor, state: dict[str, Any], optimizer: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sort optimizer state into scalars and tensors that match the (local, contiguous) parameter elementwise.

    Raises:
        CheckpointError: the state is neither, as factored second moments are.
    """
    scalars: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == "step" or isinstance(value, int | float):
            scalars[key] = value
        elif isinstance(value, Tensor) and value.shape == whole.shape and value.is_contiguous():
            tensors[key] = value.detach().view(-1)
        elif isinstance(value, Tensor) and value.numel() == 1:
            scalars[key] = value
        elif value is not None:
            kind = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise CheckpointError(
                f"optimizer {optimizer}: keeps {key} of {kind} for {name} of shape {list(whole.shape)}; "
                "only elementwise state can be saved, use AdamW or SGD"
            )
    return scalars, tensors
