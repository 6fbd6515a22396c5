"""What can be done to the layers of a network as a whole: cut them out, run them twice, compile them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class BlockOptions:
    """How the layers of a network are run while it trains.

    Args:
        recompute: keep only the inputs of a layer for the backward pass, and run it again there (Chen et al. 2016,
            arXiv:1604.06174): less memory for a third more operations.
        compiled: let torch.compile write the kernels of a layer.
    """

    recompute: bool = False
    compiled: bool = False


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a network: the members of its outermost lists of modules, each once."""
    seen: set[nn.Module] = set()

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        if module in seen:
            return
        seen.add(module)
        for child in module.children():
            if not isinstance(child, nn.ModuleList):
                yield from walk(child)
            else:
                yield from (layer for layer in child if layer not in seen)
                seen.update(child)

    yield from walk(network)


def prepare_blocks(network: nn.Module, options: BlockOptions) -> None:
    """Change how the layers run; their names, weights and results stay.

    `forward` alone is replaced, inside of the hooks by which strategies bring a layer's weights together.

    Raises:
        ValueError: the network has no layers to be found.
    """
    if not (options.recompute or options.compiled):
        return
    found = list(blocks(network))
    if not found:
        raise ValueError(f"{type(network).__name__} has no nn.ModuleList whose members could be taken as its layers")
    for block in found:
        block.forward = _while_training(block.forward, options)


def _while_training(plain: Callable[..., Any], options: BlockOptions) -> Callable[..., Any]:
    """Compile for any number of tokens at once, so that a process that was started again has the same kernels.

    Random numbers stay torch's own: dropout masks are those of the layer as it is written.
    """
    run = plain
    if options.compiled:
        from torch._inductor import config

        config.fallback_random = True
        run = torch.compile(plain, dynamic=True)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        if options.recompute:  # the state of the generators comes back too
            return checkpoint(run, *args, use_reentrant=False, **kwargs)
        return run(*args, **kwargs)

    return forward
