"""DeepSpeed's ZeRO: optimizer state, gradients and weights in pieces over the ranks."""

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn
from torch.optim import Optimizer
from transformers.integrations.deepspeed import set_hf_deepspeed_config

from lightning_modules.core.checkpoint.layouts import require_internals
from lightning_modules.core.checkpoint.strategy import SlicedCheckpoint

# DeepSpeed calls collectives by names that torch 2.13 calls old, at every step
warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # it would search for one


class ZeroPrecision(DeepSpeedPrecision):
    """Float32 weights for `32-true` and, with autocast in the step as elsewhere, for `bf16-mixed`.

    Lightning turns both bf16 names into a bf16 engine, whose weights are bf16; here only `bf16-true` is one.
    """

    def convert_input(self, data: Any) -> Any:
        """Leave the batch alone."""
        return data

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Leave the weights alone: DeepSpeed casts them, and keeps float32 masters."""
        return module

    def module_init_context(self) -> AbstractContextManager:
        """Build in float32: weights are drawn and read before they are rounded."""
        return nullcontext()

    def forward_context(self) -> torch.autocast:
        """Run a forward pass as the precision says."""
        from deepspeed.accelerator import get_accelerator

        kind = get_accelerator().device_name()
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16-mixed")


class KnownToTransformers:
    """What transformers asks about the engine before it writes weights; it keeps a weak reference to it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        """Tell that weights are in pieces."""
        return True


class SlicedZero(SlicedCheckpoint, DeepSpeedStrategy):
    """A ZeRO stage on GPUs with NCCL or on CPU processes with gloo, from the same configuration.

    `group_names` are the parameters of each optimizer group, by name, as they were before DeepSpeed flattened them.
    """

    group_names: list[list[str]]

    def __init__(self, zero: dict[str, Any], backend: str, timeout_seconds: float) -> None:
        super().__init__(
            config={"zero_optimization": zero, "zero_allow_untested_optimizer": True},
            process_group_backend=None if backend == "auto" else backend,
            timeout=timedelta(seconds=timeout_seconds),
        )

    @property
    def root_device(self) -> torch.device:
        """The device of this rank; DeepSpeed wants a CPU to have a number."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    @property
    def precision_plugin(self) -> ZeroPrecision:
        """How weights and forward passes are cast."""
        return self._precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Any) -> None:
        # With none yet it stays none: a strategy that brings one along overrules trainer.precision.
        self._precision_plugin = ZeroPrecision(plugin.precision) if plugin is not None else None

    @property
    def gathers_in_forward(self) -> bool:
        """Whether a forward pass needs all ranks."""
        return self.zero_stage_3

    def setup_environment(self) -> None:
        """Do what DDP does: Lightning allows DeepSpeed on GPUs alone."""
        if not isinstance(self.accelerator, CUDAAccelerator):
            from deepspeed.accelerator import set_accelerator
            from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

            set_accelerator(CPU_Accelerator())  # it took a GPU if there is one, when it was imported
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Start the process group."""
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_distributed()
            return
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        # every rank would compile it at its first start, and needs a compiler for that
        ShareMemCommBuilder.is_compatible = lambda self, verbose=False: False
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _format_config(self) -> None:
        """Complete the dictionary; several backward passes in a step are not DeepSpeed's accumulation."""
        module = self.lightning_module
        self.config |= {
            "train_micro_batch_size_per_gpu": 1,  # for its own throughput, which nobody reads
            "gradient_accumulation_steps": 1,
            "gradient_clipping": getattr(module, "clip_norm", 0.0),
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": self.precision_plugin.precision == "bf16-true"},
        }

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Make a step without a forward pass of the engine around it: its hooks are on the step's own passes.

        With both, ZeRO-3 gathers all weights once more in every step; and in steps of one micro-batch it takes the
        order in which weights are used for a new one every time, and gathers them one by one.
        """
        self.model.optimizer.clear_backward_seen_flag()  # as the engine does first
        with self.precision_plugin.train_step_context():
            return self.lightning_module.training_step(*args, **kwargs)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Cut every module into pieces as soon as it is built, if this is stage 3, and let transformers know."""
        with super().model_sharded_context():
            if self.zero_stage_3:
                self._known = KnownToTransformers(self.config)
                set_hf_deepspeed_config(self._known)
            yield

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = optimizer.param_groups if optimizer is not None else []
        self.group_names = [[names[id(p)] for p in group["params"]] for group in groups]
        import_muon()
        engine, optimizer = super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        require_internals(engine, "engine")
        return engine, optimizer


def import_muon() -> None:
    """Import the optimizer Muon, as the engine does at its start, but without torch's compiler, which takes seconds.

    Muon cannot be chosen here; the engine looks whether it was.
    """
    from deepspeed.runtime import compiler

    compiles, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compiles


def zero1(
    backend: Literal["auto", "gloo", "nccl"] = "auto",
    timeout_seconds: float = 1800.0,
    reduce_bucket_size: int = 200_000_000,
    allgather_bucket_size: int = 200_000_000,
    overlap_comm: bool = True,
) -> SlicedZero:
    """Run one process per device, the optimizer's state in pieces over them (ZeRO stage 1).

    Args:
        backend: what carries the collectives; auto is nccl on GPUs and gloo elsewhere.
        timeout_seconds: how long a collective waits for a rank before the run is given up.
        reduce_bucket_size: elements that are averaged in one call.
        allgather_bucket_size: elements of weights that are gathered in one call.
        overlap_comm: average gradients while the backward pass goes on.
    """
    return SlicedZero(
        {
            "stage": 1,
            "reduce_bucket_size": reduce_bucket_size,
            "allgather_bucket_size": allgather_bucket_size,
            "overlap_comm": overlap_comm,
        },
        backend,
        timeout_seconds,
    )


def zero2(
    backend: Literal["auto", "gloo", "nccl"] = "auto",
    timeout_seconds: float = 1800.0,
    reduce_bucket_size: int = 200_000_000,
    allgather_bucket_size: int = 200_000_000,
    overlap_comm: bool = True,
) -> SlicedZero:
    """Run one process per device, optimizer state and gradients in pieces over them (ZeRO stage 2).

    Args:
        backend: what carries the collectives; auto is nccl on GPUs and gloo elsewhere.
        timeout_seconds: how long a collective waits for a rank before the run is given up.
        reduce_bucket_size: elements that are averaged in one call.
        allgather_bucket_size: elements of weights that are gathered in one call.
        overlap_comm: average gradients while the backward pass goes on.
    """
    strategy = zero1(backend, timeout_seconds, reduce_bucket_size, allgather_bucket_size, overlap_comm)
    strategy.config["zero_optimization"]["stage"] = 2
    return strategy


def zero3(
    backend: Literal["auto", "gloo", "nccl"] = "auto",
    timeout_seconds: float = 1800.0,
    offload: bool = False,
    pin_memory: bool = True,
    reduce_bucket_size: int = 200_000_000,
    prefetch_bucket_size: int = 50_000_000,
    persistence_threshold: int = 100_000,
    max_live_parameters: int = 1_000_000_000,
    sub_group_size: int = 1_000_000_000,
    overlap_comm: bool = True,
) -> SlicedZero:
    """Run one process per device, optimizer state, gradients and weights in pieces over them (ZeRO stage 3).

    Args:
        backend: what carries the collectives; auto is nccl on GPUs and gloo elsewhere.
        timeout_seconds: how long a collective waits for a rank before the run is given up.
        offload: keep weights and optimizer state in host memory, and make the update there.
        pin_memory: keep what is offloaded in page-locked memory, which is copied faster.
        reduce_bucket_size: elements that are averaged in one call.
        prefetch_bucket_size: elements of weights that are gathered ahead of their use.
        persistence_threshold: parameters of fewer elements are kept whole on every rank.
        max_live_parameters: elements of weights that may be whole at a time.
        sub_group_size: elements that are updated at a time.
        overlap_comm: average gradients while the backward pass goes on.
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "reduce_bucket_size": reduce_bucket_size,
        "stage3_prefetch_bucket_size": prefetch_bucket_size,
        "stage3_param_persistence_threshold": persistence_threshold,
        "stage3_max_live_parameters": max_live_parameters,
        "sub_group_size": sub_group_size,
        "overlap_comm": overlap_comm,
    }
    if offload:
        pinned = pin_memory and torch.cuda.is_available()
        zero |= {
            "offload_optimizer": {"device": "cpu", "pin_memory": pinned},
            "offload_param": {"device": "cpu", "pin_memory": pinned},
        }
    return SlicedZero(zero, backend, timeout_seconds)
