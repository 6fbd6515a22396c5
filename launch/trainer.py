"""Lightning's Trainer, with what a run may do to the layers of its model."""

import os
import shutil

import lightning.pytorch as pl
from lightning.pytorch.accelerators import CPUAccelerator

from launch.config.errors import ConfigError
from lightning_modules.core.blocks import BlockOptions

COMPILERS = ("g++", "clang++", "c++")


class Trainer(pl.Trainer):
    """Lightning's Trainer and two options of our own, which the launcher hands to the model before it is built.

    Args:
        activation_checkpointing: keep a layer's inputs alone for the backward pass, and run the layer again there.
        compile_layers: let torch.compile write the kernels of the layers, while training.

    Raises:
        ConfigError: layers cannot be compiled here.
    """

    def __init__(
        self, *, activation_checkpointing: bool = False, compile_layers: bool = False, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self.block_options = BlockOptions(activation_checkpointing, compile_layers)
        if compile_layers and isinstance(self.accelerator, CPUAccelerator) and not _compiler():
            raise ConfigError(
                "trainer.compile_layers = true: torch.compile needs a C++ compiler for a CPU and found none "
                f"({', '.join(COMPILERS)}); install g++, or name one in the environment as CXX"
            )


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
