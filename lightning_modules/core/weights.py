"""Writing weights as wholes, wherever their pieces are."""

import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers.integrations import deepspeed as integration

from lightning_modules.core.keyed import mix
from lightning_modules.core.precision import widened


def whole(parameters: Iterable[nn.Parameter]) -> AbstractContextManager:
    """Let parameters be read and written whole inside; under ZeRO-3 what rank 0 has written counts.

    Every rank has to enter: the pieces are gathered from all of them.
    """
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0)


def shape_of(parameter: Tensor) -> list[int]:
    """Return the shape of the whole parameter; between its uses ZeRO-3 leaves it empty."""
    return list(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Build ordinary modules inside, also while ZeRO-3 cuts every module into pieces as it is built."""
    if not integration.is_deepspeed_zero3_enabled():
        yield
        return
    from deepspeed.runtime.zero import partition_parameters

    known = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    partition_parameters.shutdown_init_context()
    try:
        yield
    finally:
        partition_parameters.restore_init_context()
        integration._hf_deepspeed_config_weak_ref = known


@torch.no_grad()
def initialise(network: nn.Module, std: float, seed: int, glorot: tuple[str, ...] = ()) -> None:
    """Give linear layers and tables new weights: a normal cut at two sigma, biases 0.

    Each weight is a function of the seed and of its own name, so it is the same on any rank, under any strategy, and
    whatever was built before it. Layers whose names end with one of `glorot` get Glorot's uniform weights.
    """
    done: set[int] = set()
    for name, module in network.named_modules():
        parameters = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in done]
        done.update(map(id, parameters))
        if not isinstance(module, nn.Linear | nn.Embedding) or not parameters:
            continue
        with whole(parameters):
            if any(parameter is module.weight for parameter in parameters):  # else it is tied to one that was filled
                _fill(module.weight, std, mix(seed, zlib.crc32(name.encode())), name.endswith(glorot))
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


def _fill(weight: Tensor, std: float, key: int, uniform: bool) -> None:
    if weight.is_meta:  # built for its shape alone
        return
    generator = torch.Generator(weight.device).manual_seed(key >> 1)
    wide = widened(weight)  # in half precision the same weights, rounded: torch would draw others
    if uniform:
        nn.init.xavier_uniform_(wide, generator=generator)
    else:
        nn.init.trunc_normal_(wide, std=std, a=-2 * std, b=2 * std, generator=generator)
    weight.copy_(wide)
