"""Where a step's time goes, and how fast its matrix multiplications are when nothing else is in the way."""

import time
from collections import Counter
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MATMULS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
# the first group that has a word of the operation's name
GROUPS = {
    "attention kernel": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "random numbers": ("bernoulli", "dropout", "uniform", "exponential", "aten::rand"),
    "optimizer": ("adam",),
    "softmax and losses": ("softmax", "cross_entropy", "nll_loss", "searchsorted", "cumsum", "aten::log"),
    "GELU and LayerNorm": ("gelu", "layer_norm"),
}
SECONDS_PER_SHAPE = 0.02

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def profiler(device: str) -> profile:
    """Make a profiler that keeps the shapes of what it sees."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    return profile(activities=activities, record_shapes=True)


def summary(found: profile, dtype: str, device: str) -> dict[str, Any]:
    """Return the share of each group of operations, and how long the same matrix multiplications take alone."""
    shares: Counter[str] = Counter()
    shapes: Counter[Shapes] = Counter()
    for event in found.key_averages(group_by_input_shape=True):
        if not event.key.startswith("aten::") and device == "cuda":
            continue  # a kernel: its time is with the operation that launched it
        shares[group_of(event.key)] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if event.key in MATMULS:
            shapes[tuple(tuple(shape) for shape in event.input_shapes if len(shape) > 1)[-2:]] += event.count
    total = sum(shares.values())
    return {
        "shares": {name: time / total for name, time in shares.most_common()},
        "matmul_seconds": seconds_alone(shapes, getattr(torch, dtype), device),
    }


def group_of(operation: str) -> str:
    """Return the group of an operation."""
    if operation in MATMULS:
        return "matrix multiplications"
    return next((group for group, words in GROUPS.items() if any(word in operation for word in words)), "the rest")


def seconds_alone(shapes: dict[Shapes, int], dtype: torch.dtype, device: str) -> float:
    """Time `torch.mm` and `torch.bmm` at the given shapes, each by itself, and add up over their counts."""
    return sum(count * seconds_of(left, right, dtype, device) for (left, right), count in shapes.items())


def seconds_of(left: tuple[int, ...], right: tuple[int, ...], dtype: torch.dtype, device: str) -> float:
    """Return the median time of one product."""
    a, b = (torch.rand(shape, device=device).to(dtype) for shape in (left, right))
    product = torch.mm if a.dim() == 2 else torch.bmm
    out, in_a_row = product(a, b), 20 if device == "cuda" else 1  # a GPU is waited for once for all of them
    times: list[float] = []
    ends = time.perf_counter() + SECONDS_PER_SHAPE
    while len(times) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        for _ in range(in_a_row):
            product(a, b, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / in_a_row)
    return median(times)
