"""How large a method's networks are, from networks that are built without memory (torch's meta device)."""

from typing import Any, NamedTuple

import torch

from launch.classes import imported
from launch.config.errors import ConfigError, one_line
from launch.config.resolved import Resolved
from launch.config.shadow import signature
from launch.registry import STRATEGIES
from lightning_modules.core.base import Method
from lightning_modules.core.blocks import blocks
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.whole import persistent_buffers


class Vocabulary:
    """Stands for a tokenizer of so many tokens where none is opened."""

    pad_token_id, unk_token_id, cls_token_id, sep_token_id, mask_token_id = range(5)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class Sizes(NamedTuple):
    """Elements of a method's weights; a weight that is tied counts once."""

    trained: int
    frozen: int
    largest: int  # of the trained weights
    layer: int  # of the largest layer
    rest: int  # in no layer: tables and heads
    matrices: int  # of two dimensions: what autocast makes copies of
    buffers: int  # bytes of those that are saved


def build(resolved: Resolved, vocab_size: int) -> Method:
    """Build the networks of a configuration on the meta device.

    Raises:
        ConfigError: the method wants to look at something that is not opened for a plan.
    """
    kind = imported(resolved.parts, ("model",))
    if not issubclass(kind, Method):
        raise ConfigError(f"model.class = {resolved.get('model.class')}: is no Method, its memory cannot be planned")
    options = {name: value for name, value in resolved.values["model"].items() if name != "class"}
    method = kind(**options)
    method.assume()
    try:
        with torch.device("meta"):
            method.build(Vocabulary(vocab_size), resolved.get("data.sequence_length"))
    except CheckpointError as error:
        source = resolved.get("model.init_from")
        if source is None or not str(error).startswith("model.init_from"):
            raise ConfigError(one_line(error)) from None
        raise ConfigError(
            f"model.init_from = {source}: not on this machine, and a plan fetches nothing; describe its shape, as "
            f"--model.init_from null --model.untrained '{{hidden_size: 256, num_layers: 12}}' ({one_line(error)})"
        ) from None
    return method


def measure(method: Method) -> Sizes:
    """Count what a method's networks hold."""
    parameters = list(method.parameters())
    trained = [parameter.numel() for parameter in parameters if parameter.requires_grad]
    layers = [sum(p.numel() for p in layer.parameters()) for layer in blocks(method)]
    whole = sum(p.numel() for p in parameters)
    return Sizes(
        trained=sum(trained),
        frozen=whole - sum(trained),
        largest=max(trained, default=0),
        layer=max(layers, default=0),
        rest=whole - sum(layers),
        matrices=sum(p.numel() for name, p in method.named_parameters() if p.dim() == 2 and "embeddings" not in name),
        buffers=sum(buffer.numel() * buffer.element_size() for buffer in persistent_buffers(method).values()),
    )


def weight_bytes(resolved: Resolved) -> int:
    """Return the bytes of a weight, and of its gradient, as the networks hold it; bf16-mixed casts copies."""
    return {"64": 8, "64-true": 8, "bf16-true": 2}.get(str(resolved.get("trainer.precision")), 4)


def strategy_options(resolved: Resolved) -> dict[str, dict[str, Any]]:
    """Return the options of the ZeRO stages: what is configured for the one that is, and the defaults of the others.

    Their source is read, nothing is imported.
    """
    found = {}
    for name in ("zero1", "zero2", "zero3"):
        found[name] = {key: field.default for key, field in signature(STRATEGIES[name]).fields.items()}
        if resolved.get("strategy.class") == name:
            found[name] |= resolved.values["strategy"]
    return {**found, "zero3_offload": found["zero3"]}
