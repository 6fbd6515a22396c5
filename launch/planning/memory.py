"""What each strategy holds on a rank, line by line, and when.

A step has phases: the backward pass (`backward`), the exchange of gradients over the ranks (`exchange`), the update
(`update`), and the time between two steps, in which a save copies its slices to host memory (`between`). A line names
the phases in which it is there; the peak is the phase with the largest sum. On a CPU all of it is host memory.

The formulas are those of the code that runs: launch/strategies, DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py,
stage3.py) with the options that launch/strategies/zero.py gives it, DistributedDataParallel and FSDP2 of torch 2.13.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from launch.planning.sizes import Sizes
from launch.planning.traffic import REUSE_DISTANCE

GIB = 1 << 30
ALWAYS = frozenset({"backward", "exchange", "update", "between"})
BACKWARD, EXCHANGE, UPDATE = frozenset({"backward"}), frozenset({"exchange"}), frozenset({"update"})
STEP = BACKWARD | EXCHANGE | UPDATE
LATE = EXCHANGE | UPDATE  # with one pass a step gradients come as activations go
MOMENTS = 2  # elementwise states of both optimizers
HELD = 0.25  # of the activations: freed blocks that glibc keeps on CPU ranks of single and ddp, measured
RUNTIME = 64 << 20  # on a CPU: what libraries allocate while a step runs, measured


class Line(NamedTuple):
    """One thing in memory."""

    name: str
    bytes: float
    formula: str
    phases: frozenset[str]
    on_host: bool = False  # on a GPU's rank: in the memory of the host


class Setting(NamedTuple):
    """What the formulas are about."""

    sizes: Sizes
    ranks: int
    micro_batches: int  # of a rank in a step
    size: int  # bytes of a weight, and of its gradient, as the networks hold it
    mixed: bool
    on_gpu: bool
    activations: int  # bytes
    scratch: bool  # the optimizer makes another copy of a moment while it updates
    saves: bool
    saves_while_training: bool
    options: dict[str, dict[str, Any]]  # of the strategies that have some

    @property
    def weights(self) -> int:
        """Bytes of all trained weights as the networks hold them: W."""
        return self.sizes.trained * self.size

    @property
    def masters(self) -> int:
        """Bytes of all trained weights as the optimizer holds them, in float32 at least: M; without bf16-true M = W."""
        return self.sizes.trained * max(4, self.size)

    @property
    def frozen(self) -> int:
        """Bytes of all frozen weights: F."""
        return self.sizes.frozen * self.size

    @property
    def several(self) -> bool:
        """Whether a rank makes several backward passes in a step."""
        return self.micro_batches > 1


def peak(lines: list[Line], on_host: bool | None = None) -> float:
    """Return the largest sum of lines that are there at the same time; of one place only where that is asked for."""
    wanted = [line for line in lines if on_host is None or line.on_host == on_host]
    return max(sum(line.bytes for line in wanted if phase in line.phases) for phase in sorted(ALWAYS))


def lines_of(strategy: str, at: Setting) -> list[Line]:
    """List what a rank holds under a strategy; where masters and weights are of one size, both are called W."""
    found = [line for line in [*FORMULAS[strategy](at), *_common(strategy, at)] if line.bytes > 0]
    if at.masters > at.weights:
        return found
    return [line._replace(formula=re.sub(r"\bM\b", "W", line.formula)) for line in found]


def single(at: Setting) -> list[Line]:
    """List what one process holds by itself."""
    return [
        Line("weights", at.weights + at.frozen, "W + F", ALWAYS),
        Line("gradients", at.weights, "W: with one pass in place of activations", STEP if at.several else LATE),
        Line("optimizer state", MOMENTS * at.weights, "2 W", ALWAYS),
    ]


def ddp(at: Setting) -> list[Line]:
    """List what a rank of DDP holds: gradients live in its buckets, but those of passes before the last do not."""
    own = "W: of passes that are not exchanged; they are copied into the buckets in the last pass"
    return [
        Line("weights", at.weights + at.frozen, "W + F", ALWAYS),
        Line("gradients", at.weights * at.several, own, BACKWARD),
        Line("gradient buckets", at.weights, "W, for good", ALWAYS),
        Line("optimizer state", MOMENTS * at.weights, "2 W", ALWAYS),
    ]


def zero12(at: Setting, strategy: str) -> list[Line]:
    """List what a rank of ZeRO-1 or 2 holds: with several passes in a step gradients stay whole until the last."""
    w, m, n = at.weights, at.masters, at.ranks
    bucket = at.options[strategy]["reduce_bucket_size"] * at.size
    filled = min(bucket, w)
    buffers = (2 if at.options[strategy]["overlap_comm"] else 1) * bucket if at.on_gpu else 0
    whole = BACKWARD | EXCHANGE if at.several else EXCHANGE
    return [
        Line("weights", w + at.frozen, "W + F", ALWAYS),
        Line("master weights", m / n, "M / N", ALWAYS),
        Line("optimizer state", MOMENTS * m / n, "2 M / N", ALWAYS),
        Line("gradients", w, "W: whole until the last pass, then bucket by bucket", whole),
        Line("gradient buckets", buffers, "2 x reduce_bucket_size", EXCHANGE if at.several else BACKWARD | EXCHANGE),
        Line("bucket in exchange", filled, "min(W, reduce_bucket_size)", EXCHANGE),
        Line("gradient of the own part", 2 * m / n, "2 M / N: averaged, and flat for the update", UPDATE),
    ]


def zero3(at: Setting, strategy: str = "zero3") -> list[Line]:
    """List what a rank of ZeRO-3 holds; offloaded, the parts of weights and optimizer are in host memory."""
    w, m, n, options = at.weights, at.masters, at.ranks, at.options[strategy]
    offload = strategy == "zero3_offload"
    bucket, ahead = options["reduce_bucket_size"] * at.size, options["prefetch_bucket_size"] * at.size
    found = [
        Line("weights", (w + at.frozen) / n, "(W + F) / N", ALWAYS, offload),
        Line("master weights", m / n * (offload or m > w), "M / N", ALWAYS, offload),
        Line("optimizer state", MOMENTS * m / n, "2 M / N", ALWAYS, offload),
        Line(
            "gradient of the own part", 2 * m / n, "2 M / N: summed, and flat for the update, for good", ALWAYS, offload
        ),
        Line(
            "gradient bucket", bucket if at.on_gpu else min(w, bucket), "reduce_bucket_size, on a CPU at most W", ALWAYS
        ),
        Line("gathered weights", min(w + at.frozen, REUSE_DISTANCE * at.size), "min(W + F, 10^9 elements)", BACKWARD),
        Line("weights on their way", min(w, ahead), "min(W, prefetch_bucket_size)", BACKWARD),
        Line("gradients", w * at.several, "W: whole until the last pass", BACKWARD | EXCHANGE),
        Line("bucket in exchange", min(w, bucket), "min(W, reduce_bucket_size)", EXCHANGE),
    ]
    return [*found, Line("flat gradient", m / n * (not offload), "M / N", UPDATE)]


def fsdp(at: Setting) -> list[Line]:
    """List what a rank of FSDP2 holds: one layer is whole at a time, with those before and after on their way."""
    w, n, layer, rest = at.weights, at.ranks, at.sizes.layer * at.size, at.sizes.rest * at.size
    moving = 3 * layer + rest
    return [
        Line("weights", (w + at.frozen) / n, "(W + F) / N", ALWAYS),
        Line("optimizer state", MOMENTS * w / n, "2 W / N", ALWAYS),
        Line("gathered weights", moving, "3 x the largest layer + what is in no layer", BACKWARD | EXCHANGE),
        Line("gradients", w * at.several, "W: whole until the last pass", BACKWARD),
        Line("gradient of the own part", w / n, "W / N", LATE),
    ]


def _common(strategy: str, at: Setting) -> list[Line]:
    """List what is alike under every strategy."""
    m, parts = at.masters, at.ranks if strategy not in ("single", "ddp") else 1
    written = (1 + MOMENTS) * m / at.ranks + at.frozen / at.ranks
    largest = at.sizes.largest * at.size * at.several
    there = ALWAYS if at.saves_while_training else frozenset({"between"})
    held = HELD * at.activations * (not at.on_gpu and strategy in ("single", "ddp"))
    scratch = Line("optimizer's scratch", m / parts * at.scratch, "M / N (M under single and ddp)", UPDATE)
    return [
        Line("activations", at.activations, "see below", BACKWARD),
        Line("freed blocks", held, "a quarter of the activations, which glibc keeps, measured", STEP),
        Line("bfloat16 copies of weights", 2 * at.sizes.matrices * at.mixed, "2 B x matrices", BACKWARD),
        Line("gradient that is added", largest, "the largest weight", BACKWARD),
        scratch,
        Line("copy that is saved", written * at.saves, "(3 M + F) / N, in host memory", there, True),
        Line("libraries", RUNTIME * (not at.on_gpu), "64 MiB, measured", ALWAYS),
    ]


FORMULAS: dict[str, Callable[[Setting], list[Line]]] = {
    "single": single,
    "ddp": ddp,
    "zero1": lambda at: zero12(at, "zero1"),
    "zero2": lambda at: zero12(at, "zero2"),
    "zero3": zero3,
    "zero3_offload": lambda at: zero3(at, "zero3_offload"),
    "fsdp": fsdp,
}
