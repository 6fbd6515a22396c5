"""Where half precision must not reach: losses, softmaxes, norms and draws."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """Return half-precision values in float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
