"""The loop that a user of PyTorch writes by hand, around a method's own networks and objective."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from datamodules.core.batches import TextBatch
from lightning_modules.core.base import Method
from lightning_modules.core.schedules import schedule


def train(
    method: Method,
    loader: Iterable[list[TextBatch]],
    max_steps: int,
    half: bool = False,
    device: str = "cpu",
    tick: Callable[..., None] = lambda **_: None,
) -> None:
    """Train a built method until the loader ends.

    Args:
        method: networks, objective and options of the optimizer; no Trainer is attached.
        loader: one list of micro-batches for each step.
        max_steps: length of the schedule.
        half: autocast to bfloat16.
        device: where to train.
        tick: called at the beginning of each step with its number of `tokens`.
    """
    method.to(device).train()
    optimizer = AdamW(method.decay_groups(), lr=method.learning_rate, eps=method.adam_epsilon, fused=True)
    scheduler = LambdaLR(optimizer, schedule(method.schedule_name, method.warmup_steps, max_steps))
    for micro_batches in loader:
        tick(tokens=sum(sum(batch["lens"]) for batch in micro_batches))
        micro_batches = move_data_to_device(micro_batches, device) if device != "cpu" else micro_batches
        counts: dict[str, int] = {}
        for batch in micro_batches:
            for name, count in method.target_counts(batch).items():
                counts[name] = counts.get(name, 0) + count
        for batch in micro_batches:
            with precision(half, device):
                loss = method.objective(batch, key=method.seed, measures=False).total(counts)
            loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), method.clip_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def precision(half: bool, device: str) -> AbstractContextManager:
    """Return the context of the forward pass."""
    return torch.autocast(device, dtype=torch.bfloat16) if half else nullcontext()
