"""Bytes that the ranks exchange in a training step under each strategy, and the time it takes. Imports nothing heavy.

The calls are those of the code that runs: lightning_modules/core/step.py and launch/strategies, with
DistributedDataParallel and FSDP2 of torch 2.13 and DeepSpeed 0.19.8; tests/multiproc/test_traffic.py counts them in
real processes. What is smaller than a kilobyte a step (counts of targets, norms, flags) is left out.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

MIB = 1 << 20
DDP_BUCKET, DDP_FIRST_BUCKET = 25 * MIB, MIB
ZERO_ALIGNMENT = 2  # DeepSpeed pads an optimizer group to this many elements for each rank
REUSE_DISTANCE = 1_000_000_000  # elements; ZeRO-3 keeps a gathered weight that is used again within so many
BACKWARD_SHARE = 2 / 3  # of a pass: the backward half does twice the operations
REDUCE, GATHER, SCATTER = "all_reduce", "all_gather", "reduce_scatter"


class Weight(NamedTuple):
    """One parameter as the strategies see it."""

    elements: int
    rows: int  # length of the first axis, along which FSDP2 cuts
    layer: int  # FSDP2 gathers the weights of a layer in one call; 0 is what is in no layer
    group: int | None  # of the optimizer; None is frozen


class Step(NamedTuple):
    """A training step of one rank."""

    weights: list[Weight]
    ranks: int
    micro_batches: int
    size: int = 4  # bytes of an element
    bucket: int = 200_000_000  # ZeRO: reduce_bucket_size, elements
    prefetch: int = 50_000_000  # ZeRO-3: prefetch_bucket_size
    persistent: int = 100_000  # ZeRO-3: persistence_threshold; weights of so many elements are whole everywhere

    @property
    def trained(self) -> list[Weight]:
        """The weights that have gradients."""
        return [weight for weight in self.weights if weight.group is not None]


class Call(NamedTuple):
    """Collective calls of one kind in a step: bytes of the whole tensors, and behind what they can hide."""

    operation: str
    bytes: int
    count: int
    behind: str  # "passes": all passes; "last": the last backward pass; "": nothing

    def sent(self, ranks: int) -> float:
        """Return the bytes that each rank sends; rings and halving need (N - 1) / N of a tensor, twice for a sum."""
        return self.bytes * (ranks - 1) / ranks * (2 if self.operation == REDUCE else 1)


class Network(NamedTuple):
    """What lies between the ranks; bandwidths in bytes a second, latencies in seconds."""

    ranks_per_node: int
    inside: float  # from one rank to another of its node
    between: float  # of all links of a node together
    latency_inside: float = 1e-6
    latency_between: float = 5e-6

    def seconds(self, call: Call, ranks: int) -> float:
        """Return the time of calls that hide behind nothing.

        A ring passes through every rank and leaves each node once, so a node sends what a rank sends, and the slower
        of the two ways sets the pace. Sums go along trees, whose depth is a logarithm, gathers along the ring.
        """
        nodes = math.ceil(ranks / self.ranks_per_node)
        pace = self.inside if nodes == 1 else min(self.inside, self.between)
        if call.operation == REDUCE:
            inside, between = math.log2(min(ranks, self.ranks_per_node)), math.log2(nodes)
            waits = 2 * (inside * self.latency_inside + between * self.latency_between)
        else:
            hops = 0 if nodes == 1 else nodes
            waits = (ranks - 1 - hops) * self.latency_inside + hops * self.latency_between
        return call.sent(ranks) / pace + call.count * max(waits, 0.0)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def ddp(step: Step) -> list[Call]:
    """Sum the gradients once, in the last backward pass."""
    size = step.size * sum(weight.elements for weight in step.trained)
    buckets = 1 + math.ceil(max(0, size - DDP_FIRST_BUCKET) / DDP_BUCKET)
    return [Call(REDUCE, size, buckets, "last")]


def zero12(step: Step) -> list[Call]:
    """Sum the gradients on all ranks (DeepSpeed does not scatter them), and gather the weights after the update.

    Several micro-batches are summed when all passes are over; of one, the sums hide behind its backward pass.
    """
    elements = sum(weight.elements for weight in step.trained)
    groups: dict[int, int] = {}
    for weight in step.trained:
        groups[weight.group] = groups.get(weight.group, 0) + weight.elements
    padded = sum(_up(count, ZERO_ALIGNMENT * step.ranks) for count in groups.values())
    return [
        Call(
            REDUCE, step.size * elements, math.ceil(elements / step.bucket), "last" if step.micro_batches == 1 else ""
        ),
        Call(GATHER, step.size * padded, len(groups), ""),
    ]


def zero3(step: Step) -> list[Call]:
    """Gather weights for each micro-batch, scatter the sums of gradients once, gather small weights after the update.

    A gathered weight is kept for the backward pass where that needs it again within REUSE_DISTANCE elements, as it does
    for all of a model of up to half as many; the first layers of a larger one are gathered twice.
    """
    large = sum(_up(w.elements, step.ranks) for w in step.weights if w.elements > step.persistent)
    small = [_up(w.elements, step.ranks) for w in step.trained if w.elements <= step.persistent]
    gathered = step.micro_batches * (large + max(0, large - REUSE_DISTANCE // 2))
    summed = sum(_up(weight.elements, step.ranks) for weight in step.trained)
    behind = "last" if step.micro_batches == 1 else ""
    return [
        Call(GATHER, step.size * gathered, math.ceil(gathered / step.prefetch), "passes"),
        Call(SCATTER, step.size * summed, math.ceil(summed / step.bucket), behind),
        Call(GATHER, step.size * sum(small), len(small), ""),
    ]


def fsdp(step: Step) -> list[Call]:
    """Gather every layer in each forward and backward pass, scatter its gradients in the last backward pass."""

    def cut(weights: list[Weight]) -> int:
        return step.size * sum(_up(w.rows, step.ranks) * (w.elements // max(1, w.rows)) for w in weights)

    layers, passes = len({weight.layer for weight in step.weights}), 2 * step.micro_batches
    return [
        Call(GATHER, passes * cut(step.weights), passes * layers, "passes"),
        Call(SCATTER, cut(step.trained), len({weight.layer for weight in step.trained}), "last"),
    ]


CALLS: dict[str, Callable[[Step], list[Call]]] = {
    "ddp": ddp,
    "zero1": zero12,
    "zero2": zero12,
    "zero3": zero3,
    "fsdp": fsdp,
}


class Estimate(NamedTuple):
    """What a step costs on a network."""

    sent: float  # bytes of a rank
    seconds: float  # of all calls, if nothing hid them
    exposed: float  # seconds in which the devices wait
    efficiency: float  # share of a step in which they compute


def estimate(calls: list[Call], ranks: int, micro_batches: int, pass_seconds: float, network: Network) -> Estimate:
    """Estimate a step whose passes take so many seconds each, forward and backward.

    What can hide does so fully, but for one call of its kind: the first gather has nothing to hide behind, and the
    last sum nothing left. All of it together hides behind the passes once.
    """
    if ranks == 1:
        return Estimate(0.0, 0.0, 0.0, 1.0)
    busy = micro_batches * pass_seconds
    cover = {"passes": busy, "last": BACKWARD_SHARE * pass_seconds}
    hidden, exposed, total = 0.0, 0.0, 0.0
    for call in calls:
        time = network.seconds(call, ranks) if call.count else 0.0
        total += time
        if call.behind and call.count:
            shown = max(time / call.count, time - cover[call.behind])
            hidden, exposed = hidden + time - shown, exposed + shown
        else:
            exposed += time
    exposed += max(0.0, hidden - busy)
    return Estimate(sum(call.sent(ranks) for call in calls), total, exposed, busy / (busy + exposed))
