"""What a checkpoint keeps whole, in `trainer.pt`: buffers, the numbers of optimizer groups, counters of the loops."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.slices import Group

Groups = list[tuple[str, list[Group]]]  # of each optimizer: its class and its groups


def plain(value: Any, place: str) -> Any:
    """Copy nested data, tensors to host memory, so that it can be written later and read without running code.

    Raises:
        CheckpointError: something is not a tensor, number, string, list or dict; `place` leads to it.
    """
    if value is None or isinstance(value, bool):
        return value
    for base in (int, float):
        if isinstance(value, base):
            return base(value)  # takes the class off an IntEnum or a numpy float
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {_plain_key(key, place): plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise CheckpointError(
        f"{place}: is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, lists and dicts"
    )


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """List the buffers that belong to a module's state, live."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, child in module.named_modules()
        for name, buffer in child._buffers.items()
        if buffer is not None and name not in child._non_persistent_buffers_set
    }


def restore_buffers(module: nn.Module, saved: dict[str, Tensor], folder: Path) -> None:
    """Copy saved buffers into a module.

    Raises:
        CheckpointError: a buffer is missing, unknown, or has another shape.
    """
    buffers = persistent_buffers(module)
    for name in sorted(buffers.keys() ^ saved.keys()):
        lacking = "the model" if name in saved else "the checkpoint"
        raise CheckpointError(f"{folder}: {lacking} lacks the buffer {name}; use the model that was saved")
    for name, buffer in buffers.items():
        if buffer.shape != saved[name].shape:
            found, wanted = list(saved[name].shape), list(buffer.shape)
            raise CheckpointError(f"{folder}: buffer {name} has shape {found}, in the model it is {wanted}")
        if buffer.is_floating_point() != saved[name].is_floating_point():
            raise CheckpointError(f"{folder}: buffer {name} is {saved[name].dtype}, in the model {buffer.dtype}")
        buffer.copy_(saved[name])


def describe_groups(groups: Groups) -> list[dict[str, Any]]:
    """Describe optimizers: class, and for each group the names of its parameters and its numbers (lr, betas, ...)."""
    return [
        {
            "class": name,
            "groups": [{"names": group.names, "numbers": _numbers(group.numbers)} for group in found],
        }
        for name, found in groups
    ]


def restore_groups(groups: Groups, saved: list[dict[str, Any]], folder: Path) -> None:
    """Require the groups that were saved, and set their learning rates back.

    A rate is where the schedule has come to; every other number (weight decay, betas, ...) is the configuration's, and
    what is configured now holds (Lightning-AI/pytorch-lightning#20801).

    Raises:
        CheckpointError: the class of an optimizer or the parameters of a group differ.
    """
    now, then = [name for name, _ in groups], [entry["class"] for entry in saved]
    if now != then:
        raise CheckpointError(f"{folder}: was saved with {' + '.join(then)}, this run has {' + '.join(now)}")
    for (name, live), entry in zip(groups, saved, strict=True):
        now, then = [group.names for group in live], [group["names"] for group in entry["groups"]]
        if now != then:
            first = next((i for i, pair in enumerate(zip(now, then, strict=False)) if pair[0] != pair[1]), len(then))
            raise CheckpointError(f"{folder}: group {first} of {name} held other parameters when saved")
        for group, saved_group in zip(live, entry["groups"], strict=True):
            _set_rate(group.numbers, saved_group["numbers"]["lr"])


def _plain_key(key: Any, place: str) -> str | int:
    if type(key) not in (str, int):
        raise CheckpointError(f"{place}: has a {type(key).__name__} as a key; use strings or integers")
    return key


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for key, value in group.items():
        if isinstance(value, Tensor):
            numbers[key] = float(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[key] = value
        elif isinstance(value, list | tuple) and value and all(isinstance(item, int | float) for item in value):
            numbers[key] = list(value)
    return numbers


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
