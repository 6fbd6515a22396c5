"""Tensors of a device that is not here: their shapes and types are followed, nothing is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class _Functions(TorchFunctionMode):
    """Note torch's functions; index and invert fake CUDA tensors without asking for their device, as torch would."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        if func is Tensor.__getitem__ and isinstance(args[0], FakeTensor) and args[0].is_cuda:
            shape = _empty(args[0], "meta")[tree_map_only(Tensor, lambda index: _empty(index, "meta"), args[1])]
            return _empty(shape, "cuda")
        if func is Tensor.__invert__:
            return torch.logical_not(args[0])
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Note the operations that functions come down to."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.add(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


def _empty(x: Tensor, device: str) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)


def like(values: Any, device: str, dtype: torch.dtype | None = None) -> Any:
    """Return a batch, or weights by name, with tensors of another device; numbers that are not whole take the type."""

    def moved(x: Tensor) -> Tensor:
        return torch.empty_like(x, device=device, dtype=dtype if x.is_floating_point() else None)

    return tree_map_only(Tensor, moved, values)


@contextmanager
def fake_cuda() -> Iterator[set[str]]:
    """Run what is inside on CUDA tensors without a GPU, forward only; yields the names of what was called.

    A CPU build ends the whole process in a backward pass on them.
    """
    names: set[str] = set()
    with FakeTensorMode(allow_non_fake_inputs=True), _Functions(names), torch.no_grad(), _Operations(names):
        yield names


def called(module: nn.Module, device: str, dtype: torch.dtype, *arguments: Any) -> Any:
    """Call a module with weights of another device and type in place of its own."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return functional_call(module, like(state, device, dtype), arguments)
