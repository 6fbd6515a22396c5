"""Several backward passes in one optimizer step, right under every strategy. Nothing else calls `manual_backward`."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def passes(module: LightningModule, count: int) -> Iterator[AbstractContextManager]:
    """Yield one context for each of `count` forward and backward passes of a step.

    Under DDP gradients are exchanged by the last pass alone. DeepSpeed is tested for first, because its strategy is a
    DDPStrategy to Python (Lightning-AI/pytorch-lightning `strategies/deepspeed.py`).

    Raises:
        TypeError: a strategy whose gradients this function does not know how to gather.
    """
    strategy = module.trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy) or not isinstance(strategy, (DDPStrategy, SingleDeviceStrategy)):
        raise TypeError(f"{type(strategy).__name__} is not supported: several backward passes need a rule of its own")
    wrapped = strategy.model
    for index in range(count):
        waits = isinstance(wrapped, DistributedDataParallel) and index + 1 < count
        yield wrapped.no_sync() if waits else nullcontext()


def backward(module: LightningModule, loss: Tensor) -> None:
    """Run one backward pass; the one caller of `manual_backward`."""
    module.manual_backward(loss)


def check_gradients(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Require that a step gave every trainable parameter a gradient.

    Strategies differ in what they do without one (skip, decay, or on ZeRO-3 repeat the gradient of the step before), so
    a branch that was not drawn must be run with weight zero.

    Raises:
        RuntimeError: naming the parameters that have none.
    """
    missing = [name for name, p in named_parameters if p.grad is None]
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise RuntimeError(
            f"{len(missing)} trainable parameters got no gradient: {named}; run their branch with weight zero, "
            "or freeze them with requires_grad_(False)"
        )
