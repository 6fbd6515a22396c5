"""The loops over several ranks that a user writes by hand: DistributedDataParallel, DeepSpeed's engine, FSDP2."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from datamodules.core.batches import TextBatch
from lightning_modules.core.base import Method
from lightning_modules.core.schedules import schedule


class Loss(nn.Module):
    """What the strategies wrap: from a micro-batch and the counts of its targets to the loss."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: TextBatch, counts: dict[str, Tensor]) -> Tensor:
        """Return this rank's part of the loss, times the ranks: all of them average."""
        return self.method.objective(batch, key=self.method.seed, measures=False).total(counts) * dist.get_world_size()


def zero_config(stage: int, offload: bool, clip_norm: float) -> dict[str, Any]:
    """Return DeepSpeed's configuration with the sizes that our strategies have by default."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "reduce_bucket_size": 200_000_000}
    if stage < 3:
        zero["allgather_bucket_size"] = 200_000_000
    else:
        zero |= {"stage3_prefetch_bucket_size": 50_000_000, "stage3_param_persistence_threshold": 100_000}
    if offload:
        zero |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def begin(strategy: str) -> None:
    """Start the process group; DeepSpeed's needs a compiler for its shared memory, which is left out."""
    if not strategy.startswith("zero"):
        dist.init_process_group("gloo")
        return
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder.is_compatible = lambda self, verbose=False: False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def building(strategy: str, method: Method) -> AbstractContextManager:
    """Return the context in which the networks are built: stage 3 cuts them into pieces as they are made."""
    if not strategy.startswith("zero3"):
        return nullcontext()
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    config = zero_config(3, strategy.endswith("offload"), method.clip_norm)
    method.known_to_transformers = HfDeepSpeedConfig(config)  # which looks for it while it is alive
    return deepspeed.zero.Init(config_dict_or_path=config)


def train(
    strategy: str, method: Method, loader: Iterable[list[TextBatch]], max_steps: int, tick: Callable[..., None]
) -> None:
    """Train a built method on this rank until the loader ends, one micro-batch a step.

    Args:
        strategy: ddp, zero1, zero2, zero3, zero3_offload or fsdp.
        method: networks, objective and options of the optimizer; no Trainer is attached.
        loader: a list of one micro-batch for each step.
        max_steps: length of the schedule.
        tick: called at the beginning of each step with its number of `tokens` on this rank.
    """
    method.train()
    wrapped = Loss(method)
    if strategy == "fsdp":
        for layers in [module for module in method.modules() if isinstance(module, nn.ModuleList)]:
            for layer in layers:
                fully_shard(layer)
        fully_shard(wrapped)
    optimizer = AdamW(method.decay_groups(), lr=method.learning_rate, eps=method.adam_epsilon, fused=True)
    scheduler = LambdaLR(optimizer, schedule(method.schedule_name, method.warmup_steps, max_steps))
    if strategy.startswith("zero"):
        import deepspeed

        config = zero_config(int(strategy[4]), strategy.endswith("offload"), method.clip_norm)
        wrapped, *_ = deepspeed.initialize(model=wrapped, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    elif strategy == "ddp":
        wrapped = DistributedDataParallel(wrapped, gradient_as_bucket_view=True)
    for (batch,) in loader:
        tick(tokens=sum(batch["lens"]))
        counts = method.target_counts(batch)
        packed = torch.tensor([*counts.values()], dtype=torch.float64)
        dist.all_reduce(packed)
        loss = wrapped(batch, dict(zip(counts, packed.unbind(), strict=True)))
        if strategy.startswith("zero"):
            wrapped.backward(loss)
            wrapped.step()
            continue
        loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), method.clip_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
