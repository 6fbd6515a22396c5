"""A configuration on numbers of nodes: its passes, what they send, how long that takes, whether it fits."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from launch.config.errors import ConfigError
from launch.config.resolved import Resolved, resolve
from launch.plan import Plan, plan_of
from launch.planning.memory import peak
from launch.planning.sizes import build, strategy_options, weight_bytes
from launch.planning.traffic import CALLS, Estimate, Network, Step, Weight, estimate
from lightning_modules.core.base import Method
from lightning_modules.core.blocks import blocks

GIGABIT = 1e9 / 8
Numbers = dict[str, list[float]]  # of the command's flags


class Row(NamedTuple):
    """One strategy on one number of nodes."""

    nodes: int
    cut: str  # GPUs x passes x sequences
    strategy: str
    estimates: list[Estimate]  # one a link
    memory: float  # bytes of a GPU
    fits: bool


class Scale:
    """One configuration, to be put on numbers of nodes.

    Args:
        words: The configuration's.
        given: The command's flags.
    """

    def __init__(self, words: list[str], given: Numbers) -> None:
        self.words, self.given = [*words, "--trainer.accelerator=gpu"], given
        self.resolved = resolve(self.words, "fit")
        self.batch, self.length = self.resolved.get("data.global_batch_size"), self.resolved.get("data.sequence_length")
        self.micro = self.resolved.get("data.micro_batch_size")
        vocabulary = int(given["--vocab-size"][0]) if "--vocab-size" in given else None
        first = self.plan(1, math.gcd(self.batch, self.micro), vocabulary)
        self.vocab_size, self.matrices = first.vocab_size, first.sizes.matrices
        self.weights = weights_of(build(self.resolved, self.vocab_size))
        self.speed = given.get("--tokens-per-second", [given["--tflops"][0] * 1e12 / (6 * self.matrices)])[0]

    def plan(self, ranks: int, micro: int, vocabulary: int | None) -> Plan:
        """Plan the configuration on so many ranks with another micro-batch."""
        return plan_of(resolve([*self.words, f"--data.micro_batch_size={micro}"], "fit"), ranks, vocabulary)

    def head(self) -> Iterator[str]:
        """Yield lines that say what is counted."""
        tflops, total = self.given["--tflops"][0], sum(weight.elements for weight in self.weights)
        source = (
            "given" if "--tokens-per-second" in self.given else f"{tflops:g} TFLOP/s, 6 x {self.matrices:,} a token"
        )
        yield f"{self.resolved.get('model.class')}: {total:,} parameters, a step of {self.batch} x {self.length} tokens"
        yield f"one GPU: {self.speed:,.0f} tokens/s ({source}), {self.given['--memory-gb'][0]:g} GB"

    def rows(self, nodes: int) -> Iterator[Row]:
        """Yield the strategies on one number of nodes; each rank makes passes of the largest micro-batch that divides.

        Raises:
            ConfigError: the batch cannot be cut into so many equal parts.
        """
        ranks = nodes * int(self.given["--gpus-per-node"][0])
        if self.batch % ranks:
            raise ConfigError(
                f"--nodes: data.global_batch_size = {self.batch} cannot be cut into {ranks} equal parts; give "
                "--data.global_batch_size, or other numbers of nodes"
            )
        micro = math.gcd(self.micro, self.batch // ranks)
        plan, passes = self.plan(ranks, micro, self.vocab_size), self.batch // ranks // micro
        inside = self.given["--inside-gbps"][0] * GIGABIT
        networks = [Network(ranks // nodes, inside, link * GIGABIT) for link in self.given["--link-gbps"]]
        for strategy, calls in CALLS.items():
            step = Step(self.weights, ranks, passes, **options_of(plan.resolved, strategy))
            found = [
                estimate(calls(step), ranks, passes, micro * self.length / self.speed, network) for network in networks
            ]
            memory = peak(plan.memory[strategy], False)
            fits = memory <= self.given["--memory-gb"][0] * 1e9
            yield Row(nodes, f"{ranks} x {passes} x {micro}", strategy, found, memory, fits)


def weights_of(method: Method) -> list[Weight]:
    """List a method's parameters as the strategies see them."""
    layers = {id(p): number for number, layer in enumerate(blocks(method), 1) for p in layer.parameters()}
    groups = {id(p): number for number, group in enumerate(method.decay_groups()) for p in group["params"]}
    return [
        Weight(
            p.numel(),
            p.shape[0] if p.dim() else 1,
            layers.get(id(p), 0),
            groups.get(id(p)) if p.requires_grad else None,
        )
        for p in method.parameters()
    ]


def options_of(resolved: Resolved, strategy: str) -> dict[str, int]:
    """Return what the traffic depends on besides the weights: bytes of an element, and options of a ZeRO stage."""
    names = {"reduce_bucket_size": "bucket", "prefetch_bucket_size": "prefetch", "persistence_threshold": "persistent"}
    options = strategy_options(resolved).get(strategy, {})
    return {"size": weight_bytes(resolved), **{ours: options[name] for name, ours in names.items() if name in options}}
