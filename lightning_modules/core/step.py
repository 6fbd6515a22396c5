"""One optimizer step of several backward passes, right under every strategy. Nothing else calls `manual_backward`.

DeepSpeed is tested for before DDP, because its strategy is a DDPStrategy to Python.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def passes(module: LightningModule, count: int) -> Iterator[list[AbstractContextManager]]:
    """Yield one context for each of `count` forward and backward passes of a step; ranks exchange gradients once.

    Raises:
        RuntimeError: a parameter got no gradient.
        TypeError: a strategy whose gradients this function does not know how to gather.
    """
    strategy = module.trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        with _coalesced(strategy.model) if count > 1 else nullcontext():
            yield [nullcontext()] * count
            module.watch.check()  # before the exchange: a rank that has fewer to give would not meet the others in it
    elif isinstance(strategy, ModelParallelStrategy):
        yield [_synchronised(module, index + 1 == count) for index in range(count)]
        module.watch.check()
    elif isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        waits = strategy.model.no_sync if isinstance(strategy.model, DistributedDataParallel) else nullcontext
        yield [*(waits() for _ in range(count - 1)), nullcontext()]
        module.watch.check()
    else:
        raise TypeError(f"{type(strategy).__name__} is not supported: several backward passes need a rule of its own")


@contextmanager
def _coalesced(engine: "deepspeed.DeepSpeedEngine") -> Iterator[None]:  # noqa: F821
    """Leave gradients on the parameters until the last pass; a bare loop is silently wrong on every stage."""
    with engine.coalesce_grad_reduction():
        try:
            yield
        except BaseException:
            # Leaving the context reduces the gradients, which a rank that failed alone must not wait for.
            engine._flush_coalesced_reduction_zero12 = engine._flush_coalesced_reduction_zero3 = lambda _: None
            raise


@contextmanager
def _synchronised(module: nn.Module, is_last: bool) -> Iterator[None]:
    module.set_requires_gradient_sync(is_last)
    yield


def backward(module: LightningModule, loss: Tensor) -> None:
    """Run one backward pass; the one caller of `manual_backward`."""
    module.manual_backward(loss)


def update(module: LightningModule, optimizer: LightningOptimizer, limit: float) -> Tensor:
    """Clip the whole gradient to a norm, make the step, forget the gradients; returns the norm before clipping.

    A gradient that is not finite makes no update, on any rank. No limit is 0.
    """
    strategy = module.trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):  # clips by itself, and skips the step by itself
        optimizer.step()
        return torch.as_tensor(strategy.model.get_global_grad_norm(), device=module.device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, limit or float("inf"))
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    optimizer.optimizer.grad_scale = None
    optimizer.optimizer.found_inf = (~torch.isfinite(norm)).float()  # the fused kernel reads it on the device
    optimizer.step()
    optimizer.zero_grad()
    return norm


class GradientWatch:
    """Requires that every step gives every trainable parameter a gradient.

    Strategies differ in what they do without one (skip, decay, or on ZeRO-3 repeat the gradient of the step before), so
    a branch that was not drawn must be run with weight zero. DDP needs them all in the last micro-batch, in whose
    backward pass it averages: of a bucket that lacks one it leaves every gradient as it is on each rank.
    """

    def __init__(self, module: LightningModule) -> None:
        self.strategy = module.trainer.strategy
        self.parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.seen: set[str] | None = None
        if isinstance(module.trainer.strategy, DeepSpeedStrategy):  # takes the gradients away as soon as they are there
            self.seen = set()
            for name, parameter in self.parameters:
                parameter.register_post_accumulate_grad_hook(self._note(name))

    def _note(self, name: str) -> Callable[[Tensor], None]:
        return lambda _: self.seen.add(name)

    def check(self) -> None:
        """Look at the step that is about to be made.

        Raises:
            RuntimeError: naming the parameters that got no gradient.
        """
        missing = list(self._missing())
        if self.seen is not None:
            self.seen.clear()
        if missing:
            raise _without(missing, "")
        if isinstance(model := self.strategy.model, DistributedDataParallel):
            self._check_averaged(model)

    def _check_averaged(self, model: DistributedDataParallel) -> None:
        try:
            model.reducer._rebuild_buckets()  # looks at this first, and has nothing to rebuild any more
        except RuntimeError as error:
            found = re.search(r"indices which did not receive grad for rank \d+: ([\d ]+)", str(error))
            if found is None:
                raise
            missing = [self.parameters[int(index)][0] for index in found[1].split()]
            raise _without(missing, " in the last micro-batch") from None

    def _missing(self) -> Iterable[str]:
        if self.seen is None:
            return (name for name, parameter in self.parameters if parameter.grad is None)
        return (name for name, _ in self.parameters if name not in self.seen)


def _without(names: list[str], where: str) -> RuntimeError:
    named = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return RuntimeError(
        f"{len(names)} trainable parameters got no gradient{where}: {named}; run their branch with weight zero, "
        "or freeze them with requires_grad_(False)"
    )
