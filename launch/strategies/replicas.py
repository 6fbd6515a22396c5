"""One process, or one per device with the whole model in each."""

import inspect
from datetime import timedelta
from typing import Literal

import torch
from lightning.pytorch.overrides.distributed import prepare_for_backward
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel

from launch.config.errors import ConfigError
from lightning_modules.core.checkpoint.strategy import SlicedCheckpoint

# newer versions of torch renamed the option that sends rank 0's buffers around before every forward
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers"


class SlicedSingle(SlicedCheckpoint, SingleDeviceStrategy):
    """One process on one device: the first that the trainer's accelerator offers."""

    parallel_devices: list[torch.device] | None = None  # filled in by the trainer

    @property
    def root_device(self) -> torch.device:
        """The device of the model."""
        return self.parallel_devices[0] if self.parallel_devices else self._root_device

    def setup_environment(self) -> None:
        """Refuse to leave devices idle.

        Raises:
            ConfigError: the trainer was given more than one device.
        """
        if self.parallel_devices and len(self.parallel_devices) > 1:
            count = len(self.parallel_devices)
            raise ConfigError(
                f"trainer.devices: strategy single uses one of {count} devices; set devices: 1 or use ddp"
            )
        super().setup_environment()


class SlicedDDP(SlicedCheckpoint, DDPStrategy):
    """One process per device, each with the whole model; gradients are averaged."""

    def on_train_start(self) -> None:
        """Make the order of gradient sums final before the first step."""
        super().on_train_start()
        fix_bucket_order(self.model)


def single() -> SlicedSingle:
    """Run in this process, on one device."""
    return SlicedSingle()


def ddp(backend: Literal["auto", "gloo", "nccl"] = "auto", timeout_seconds: float = 1800.0) -> SlicedDDP:
    """Run one process per device with the whole model in each.

    Args:
        backend: what carries the collectives; auto is nccl on GPUs and gloo elsewhere.
        timeout_seconds: how long a collective waits for a rank before the run is given up.
    """
    return SlicedDDP(
        process_group_backend=None if backend == "auto" else backend,
        timeout=timedelta(seconds=timeout_seconds),
        gradient_as_bucket_view=True,
        **{_SYNC_BUFFERS: False},
    )


def fix_bucket_order(model: DistributedDataParallel) -> None:
    """Let DDP rebuild its gradient buckets now and not after the first step.

    DDP sorts gradients into buckets anew after the first backward of a process. A resumed process would make that step
    with other buckets than the run that was never stopped, and on more than two ranks the sums would round differently.
    """
    parameters = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    prepare_for_backward(model, None)
    sum(parameter.sum() * 0.0 for parameter in parameters).backward()
    model.reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None
