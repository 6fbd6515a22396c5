"""Which part of which parameter a rank holds, for each kind of strategy; `layout_of` is the one place that chooses.

What is read of DeepSpeed's engine is internal to it: the version is pinned, and `INTERNALS` is tested name by name.
"""

import math
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.reader import Reader
from lightning_modules.core.checkpoint.slices import Group, Layout, Slice, split_state

INTERNALS = {
    "engine": (
        "coalesce_grad_reduction",
        "_flush_coalesced_reduction_zero12",
        "_flush_coalesced_reduction_zero3",
        "get_global_grad_norm",
    ),
    "ZeRO-1 optimizer": (
        "optimizer",
        "clear_backward_seen_flag",
        "bit16_groups",
        "single_partition_of_fp32_groups",
        "update_lp_params",
        "_hp_optimizer_states_linked",
    ),
    "ZeRO-1 parameter": ("_hp_mapping",),
    "ZeRO-3 optimizer": (
        "optimizer",
        "clear_backward_seen_flag",
        "fp16_groups",
        "fp16_partitioned_groups",
        "fp16_partitioned_groups_flat",
        "fp32_partitioned_groups_flat",
        "sub_group_to_group_id",
        "grad_position",
        "get_param_id",
        "unflatten",
        "checkpoint_event_prologue",
        "checkpoint_event_epilogue",
    ),
    "ZeRO-3 parameter": ("ds_tensor", "ds_numel", "ds_shape"),
}


def layout_of(strategy: Strategy) -> Layout:
    """Choose the layout of a strategy.

    Raises:
        CheckpointError: the strategy has none.
    """
    module = strategy.lightning_module
    if isinstance(strategy, DeepSpeedStrategy):  # a DDPStrategy too to Python, so it has to be asked for first
        if not strategy.optimizers:
            return Replicas(module, []) if not strategy.zero_stage_3 else Rows(module, None, strategy)
        zero = strategy.optimizers[0]
        return Rows(module, zero, strategy) if strategy.zero_stage_3 else Fragments(module, zero, strategy)
    if isinstance(strategy, ModelParallelStrategy):
        return Shards(module, strategy.optimizers)
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return Replicas(module, strategy.optimizers)
    raise CheckpointError(f"strategy {type(strategy).__name__}: has no checkpoint layout; use one of Tokamak's")


def require_internals(part: Any, kind: str) -> None:
    """Look for what is read of a part of DeepSpeed, before anything is trained or saved with it.

    Raises:
        CheckpointError: another version of DeepSpeed keeps it elsewhere.
    """
    for name in INTERNALS[kind]:
        if not hasattr(part, name):
            version = metadata.version("deepspeed")
            raise CheckpointError(
                f"deepspeed {version}: its {kind} has no {name}, which steps or checkpoints are made of; "
                "install the version in constraints.txt"
            )


class Replicas:
    """Every rank holds every parameter whole: one device, or DDP."""

    def __init__(self, module: nn.Module, optimizers: list[Optimizer]) -> None:
        self.parameters = dict(module.named_parameters())  # a tied weight stands here once
        self.optimizers = optimizers
        self.owner = _owners(self.parameters, optimizers)

    def slices(self) -> Iterator[Slice]:
        """List every parameter whole.

        Raises:
            CheckpointError: an optimizer keeps state that is not elementwise, or a parameter is not contiguous.
        """
        for name, parameter in self.parameters.items():
            if not parameter.is_contiguous():
                raise CheckpointError(f"parameter {name}: is not contiguous in memory, which slices cannot describe")
            optimizer, _ = self.owner.get(name, (None, None))
            state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
            yield self.slice(name, parameter, state, type(optimizer).__name__)

    def slice(self, name: str, parameter: nn.Parameter, state: dict[str, Any], optimizer: str) -> Slice:
        """Describe one parameter with its state."""
        scalars, tensors = split_state(name, parameter, state, optimizer)
        return Slice(name, 0, list(parameter.shape), True, scalars, {"param": parameter.detach().view(-1)} | tensors)

    def groups(self) -> list[tuple[str, list[Group]]]:
        """Name the parameters of every group."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        return [
            (type(optimizer).__name__, [Group([names[id(p)] for p in g["params"]], g) for g in optimizer.param_groups])
            for optimizer in self.optimizers
        ]

    def allocate(self, reader: Reader) -> None:
        """Create the optimizer state of every parameter: scalars with their values, tensors still zero."""
        for name, (optimizer, group) in self.owner.items():
            parameter = self.parameters[name]
            on_device = group.get("fused") or group.get("capturable")
            optimizer.state[parameter].update(_state(reader, name, parameter, on_device))

    def loaded(self) -> None:
        """The slices are the parameters themselves."""


class Shards(Replicas):
    """FSDP2: every rank holds some rows of dimension 0 of every parameter, as a DTensor."""

    def slice(self, name: str, parameter: nn.Parameter, state: dict[str, Any], optimizer: str) -> Slice:
        """Describe this rank's rows of one parameter."""
        if not isinstance(parameter, DTensor):
            return super().slice(name, parameter, state, optimizer)
        if [type(placement) for placement in parameter.placements] != [Shard] or parameter.placements[0].dim != 0:
            raise CheckpointError(
                f"parameter {name}: is placed as {parameter.placements}; only rows over one mesh dimension can be saved"
            )
        _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
        local = {key: value.to_local() if isinstance(value, DTensor) else value for key, value in state.items()}
        mine = parameter.detach().to_local()
        scalars, tensors = split_state(name, mine, local, optimizer)
        start = offset[0] * math.prod(parameter.shape[1:]) if parameter.dim() else 0
        return Slice(name, start, list(parameter.shape), False, scalars, {"param": mine.view(-1)} | tensors)


class _Zero:
    """What the stages of DeepSpeed's ZeRO have in common: an optimizer over flat partitions."""

    def __init__(self, module: nn.Module, zero: Any, strategy: DeepSpeedStrategy) -> None:
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.parameters = dict(module.named_parameters())
        self.zero, self.strategy = zero, strategy
        stage = "ZeRO-3" if strategy.zero_stage_3 else "ZeRO-1"
        if zero is not None:
            require_internals(zero, f"{stage} optimizer")
            require_internals(next(p for p in self.parameters.values() if p.requires_grad), f"{stage} parameter")

    def groups(self) -> list[tuple[str, list[Group]]]:
        """Name the parameters of every group, as they were before DeepSpeed flattened them."""
        if self.zero is None:
            return []
        optimizer = self.zero.optimizer
        pairs = zip(self.strategy.group_names, optimizer.param_groups, strict=True)
        return [(type(optimizer).__name__, [Group(names, numbers) for names, numbers in pairs])]

    def state(self, flat: Tensor, start: int, count: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Give the scalars, and a range of the tensors, that the optimizer keeps for a flat partition."""
        optimizer = self.zero.optimizer
        scalars, tensors = split_state(
            "a flat partition", flat, optimizer.state.get(flat, {}), type(optimizer).__name__
        )
        return scalars, {key: tensor.narrow(0, start, count) for key, tensor in tensors.items()}

    def allocate_flat(self, reader: Reader, flat: Tensor, name: str, numbers: dict[str, Any]) -> None:
        """Create the state of one flat partition after that of a parameter in it; each has a step of its own."""
        on_device = numbers.get("fused") or numbers.get("capturable")
        self.zero.optimizer.state[flat].update(_state(reader, name, flat, on_device))


class Fragments(_Zero):
    """ZeRO-1 and 2: a rank holds the fp32 masters of a fragment of each group's flat partition."""

    def slices(self) -> Iterator[Slice]:
        """List the fragments on this rank, and frozen parameters whole."""
        for parameters, flat in zip(self.zero.bit16_groups, self.zero.single_partition_of_fp32_groups, strict=True):
            for parameter in parameters:
                mapping = parameter._hp_mapping
                if mapping is None:  # not on this rank
                    continue
                first, count = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
                scalars, tensors = self.state(flat, first, count)
                tensors = {"param": flat.detach().narrow(0, first, count)} | tensors
                start, shape = mapping.lp_fragment_address.start, list(parameter.shape)
                yield Slice(self.names[id(parameter)], start, shape, False, scalars, tensors)
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:
                yield Slice(name, 0, list(parameter.shape), True, {}, {"param": parameter.detach().view(-1)})

    def allocate(self, reader: Reader) -> None:
        """Create the optimizer's state, which DeepSpeed leaves to the first step."""
        groups = self.zero.optimizer.param_groups
        for parameters, flat, numbers in zip(
            self.zero.bit16_groups, self.zero.single_partition_of_fp32_groups, groups, strict=True
        ):
            self.allocate_flat(reader, flat, self.names[id(parameters[0])], numbers)

    def loaded(self) -> None:
        """Copy the masters into the weights of the forward pass, on every rank."""
        self.zero.update_lp_params()
        self.zero._hp_optimizer_states_linked = False


class Rows(_Zero):
    """ZeRO-3: of every parameter a rank holds ceil(n / ranks) elements; the last ranks hold padding too."""

    def slices(self) -> Iterator[Slice]:
        """List the ranges on this rank without their padding."""
        if self.zero is not None:
            for index, parameters in enumerate(self.zero.fp16_groups):
                flat = self.zero.fp32_partitioned_groups_flat[index]
                for parameter in parameters:
                    _, first, size = self.zero.grad_position[self.zero.get_param_id(parameter)]
                    if count := self._own(parameter, size):
                        scalars, tensors = self.state(flat, first, count)
                        yield self._slice(
                            parameter, size, scalars, {"param": flat.detach().narrow(0, first, count)} | tensors
                        )
        for parameter in self.parameters.values():
            if self.zero is None or not parameter.requires_grad:
                piece = parameter.ds_tensor.detach().view(-1)
                if count := self._own(parameter, piece.numel()):
                    yield self._slice(parameter, piece.numel(), {}, {"param": piece[:count]})

    def _own(self, parameter: nn.Parameter, size: int) -> int:
        return max(0, min(size, parameter.ds_numel - self.strategy.global_rank * size))

    def _slice(self, parameter: nn.Parameter, size: int, scalars: dict[str, Any], tensors: dict[str, Tensor]) -> Slice:
        name, start = self.names[id(parameter)], self.strategy.global_rank * size
        return Slice(name, start, list(parameter.ds_shape), False, scalars, tensors)

    def allocate(self, reader: Reader) -> None:
        """Partition what is whole, and create the optimizer's state, which DeepSpeed leaves to the first step."""
        self.zero.checkpoint_event_prologue()
        for index, parameters in enumerate(self.zero.fp16_groups):
            numbers = self.zero.optimizer.param_groups[self.zero.sub_group_to_group_id[index]]
            flat = self.zero.fp32_partitioned_groups_flat[index]
            self.allocate_flat(reader, flat, self.names[id(parameters[0])], numbers)

    def loaded(self) -> None:
        """Copy the masters into the weights of the forward pass, and gather those that stay whole."""
        zero = self.zero
        if zero is None:
            return
        for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
            weights = zero.fp16_partitioned_groups_flat[index]
            if weights is not None and weights.data_ptr() != flat.data_ptr():  # in fp32 they may be one tensor
                weights.copy_(flat)
            pieces = zero.fp16_partitioned_groups[index]
            for piece, fresh in zip(pieces, zero.unflatten(weights, pieces), strict=True):
                piece.data = fresh
        zero.checkpoint_event_epilogue()


def _state(reader: Reader, name: str, like: Tensor, on_device: bool | None) -> dict[str, Any]:
    """Create the state that a checkpoint has for a parameter, of another tensor's size: scalars set, tensors zero."""
    state: dict[str, Any] = {}
    for key, value in reader.scalars(name).items():
        state[key] = value.clone().to(like.device if on_device else "cpu") if isinstance(value, Tensor) else value
    for key, dtype in reader.dtypes(name).items():
        if key != "param":
            state[key] = torch.zeros_like(like, dtype=dtype)
    return state


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
