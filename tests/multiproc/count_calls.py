"""A callback that writes down every collective call of some training steps, as they reach the process group."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

FILE = "calls_{rank}.json"
KEEPS = re.compile("wait|wrap")  # operations that move nothing


class Calls(TorchDispatchMode):
    """Sees all calls of c10d, also those that DDP's reducer makes in C++: they go through the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Note the operation and the bytes of the largest tensor that was given to it: what it leaves on every rank."""
        if DTensor in types:
            return NotImplemented  # its own calls come here one by one
        if function.namespace in ("c10d", "_c10d_functional") and not KEEPS.search(function._schema.name):
            size = max(tensor.numel() * tensor.element_size() for tensor in _tensors(arguments))
            self.seen.append((function._schema.name.split("::")[1].strip("_"), size))
        return function(*arguments, **(keywords or {}))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


class Count(Callback):
    """Count in the steps from `first` on."""

    def __init__(self, first: int = 4) -> None:
        self.first, self.calls, self.steps = first, Calls(), []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Begin a step."""
        if trainer.global_step + 1 >= self.first:
            self.calls.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """End it."""
        if trainer.global_step >= self.first:
            self.calls.__exit__(None, None, None)
            self.steps.append(self.calls.seen)
            self.calls = Calls()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down what was seen."""
        file = Path(trainer.default_root_dir) / FILE.format(rank=trainer.global_rank)
        file.write_text(json.dumps(self.steps))
