"""Which part of which parameter a rank holds, and which part it writes.

Whatever the strategy, a rank holds contiguous ranges of flattened parameters; a checkpoint is made of such ranges, so
it depends neither on the number of ranks nor on the strategy. Each kind of strategy has one class here that lists its
ranges; `layout_of` is the one place that chooses.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

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


class Layout(Protocol):
    """How one kind of strategy spreads the parameters over the ranks."""

    def slices(self) -> Iterator[Slice]:
        """List the ranges that this rank holds."""

    def allocate(self, reader: Reader) -> None:
        """Create the optimizer state that a checkpoint has, so that `slices` lists it."""


class Replicas:
    """Every rank holds every parameter whole: one device, or DDP."""

    def __init__(self, module: nn.Module, optimizers: list[Optimizer]) -> None:
        self.parameters = dict(module.named_parameters())  # a tied weight stands here once
        self.owner = _owners(self.parameters, optimizers)

    def slices(self) -> Iterator[Slice]:
        """List every parameter whole.

        Raises:
            CheckpointError: an optimizer keeps state that is not elementwise, or a parameter is not contiguous.
        """
        for name, parameter in self.parameters.items():
            if not parameter.is_contiguous():
                raise CheckpointError(f"parameter {name}: is not contiguous in memory, which slices cannot describe")
            optimizer = self.owner[name][0] if name in self.owner else None
            scalars, tensors = _split_state(name, parameter, optimizer)
            yield Slice(name, 0, list(parameter.shape), True, scalars, tensors)

    def allocate(self, reader: Reader) -> None:
        """Create the optimizer state of every parameter: scalars with their values, tensors still zero."""
        for name, (optimizer, group) in self.owner.items():
            parameter = self.parameters[name]
            on_device = group.get("fused") or group.get("capturable")
            state = optimizer.state[parameter]
            for key, value in reader.scalars(name).items():
                is_tensor = isinstance(value, Tensor)
                state[key] = value.clone().to(parameter.device if on_device else "cpu") if is_tensor else value
            for key, dtype in reader.dtypes(name).items():
                if key != "param":
                    state[key] = torch.zeros_like(parameter, dtype=dtype)


def layout_of(strategy: Strategy) -> Layout:
    """Choose the layout of a strategy.

    Raises:
        CheckpointError: the strategy has none.
    """
    # DeepSpeedStrategy is a DDPStrategy too, so it has to be asked for first
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy):
        return Replicas(strategy.lightning_module, strategy.optimizers)
    raise CheckpointError(f"strategy {type(strategy).__name__}: has no checkpoint layout; use single or ddp")


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


def _owners(parameters: dict[str, nn.Parameter], optimizers: list[Optimizer]) -> dict[str, tuple[Optimizer, dict]]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    owner: dict[str, tuple[Optimizer, dict]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name is None:
                    shape = list(parameter.shape)
                    raise CheckpointError(
                        f"optimizer: holds a tensor of shape {shape} that is no parameter of the module"
                    )
                if name in owner:
                    raise CheckpointError(f"parameter {name}: stands in two optimizer groups, slices know one")
                owner[name] = (optimizer, group)
    return owner


def _split_state(name: str, parameter: Tensor, optimizer: Optimizer | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    scalars: dict[str, Any] = {}
    tensors = {"param": parameter.detach().view(-1)}
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    for key, value in state.items():
        if key == "step" or isinstance(value, int | float):
            scalars[key] = value
        elif isinstance(value, Tensor) and value.shape == parameter.shape and value.is_contiguous():
            tensors[key] = value.detach().view(-1)
        elif isinstance(value, Tensor) and value.numel() == 1:
            scalars[key] = value
        elif value is not None:
            kind = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise CheckpointError(
                f"optimizer {type(optimizer).__name__}: keeps {key} of {kind} for {name} of shape "
                f"{list(parameter.shape)}; only elementwise state can be saved, use AdamW or SGD"
            )
    return scalars, tensors
