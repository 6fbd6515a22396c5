"""PyTorch's own sharding: weights, gradients and optimizer state in rows over the ranks (FSDP2)."""

from datetime import timedelta
from typing import Literal

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_modules.core.blocks import blocks
from lightning_modules.core.checkpoint.strategy import SlicedCheckpoint


class SlicedFSDP(SlicedCheckpoint, ModelParallelStrategy):
    """FSDP2 over all ranks, in units of one layer; what is in no layer is one more unit."""

    gathers_in_forward = True

    def setup_environment(self) -> None:
        """Give all ranks to data parallelism."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Cut the weights into rows before the optimizer sees them."""
        shard(self.lightning_module, self.device_mesh["data_parallel"])
        super().setup(trainer)


def fsdp(backend: Literal["auto", "gloo", "nccl"] = "auto", timeout_seconds: float = 1800.0) -> SlicedFSDP:
    """Run one process per device with weights, gradients and optimizer state in pieces over them (FSDP2).

    Args:
        backend: what carries the collectives; auto is nccl on GPUs and gloo elsewhere.
        timeout_seconds: how long a collective waits for a rank before the run is given up.
    """
    return SlicedFSDP(
        process_group_backend=None if backend == "auto" else backend, timeout=timedelta(seconds=timeout_seconds)
    )


def shard(module: nn.Module, mesh: "torch.distributed.device_mesh.DeviceMesh") -> None:  # noqa: F821
    """Cut a module's weights into rows over a mesh, layer by layer.

    Weights are cut again after every forward pass, the outermost too, so that between two steps the module holds what
    the optimizer and the checkpoints know.
    """
    for layer in list(blocks(module)):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
