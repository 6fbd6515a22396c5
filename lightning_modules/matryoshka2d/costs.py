"""What an encoder costs by its depth: texts a second, and parameters."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import torch
from torch import nn

from datamodules.core.batches import TextBatch
from lightning_modules.matryoshka2d.encoder import MatryoshkaEncoder, shallow
from lightning_modules.matryoshka2d.grid import Costs
from lightning_modules.matryoshka2d.modeling import Embedder

SAMPLED_TEXTS = 128  # six layers of MiniLM, four times over, take some ten seconds with them on a CPU


def measure_speed(
    encoder: MatryoshkaEncoder,
    texts: Sequence[str],
    layers: Iterable[int] | None = None,
    batch_size: int = 32,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """Measure how many texts a second are encoded by the first n layers, tokenisation included, and count parameters.

    The layers take turns, so that what else the machine does hits them alike; of each the median counts.

    Args:
        encoder: the encoder.
        texts: what to encode; a thousand or so, of the lengths that matter.
        layers: which depths; by default 1 to all.
        batch_size: texts that are run together.
        repeats: measurements of each depth, after one that does not count.
        clock: gives seconds.

    Raises:
        ValueError: no text.
    """
    layers = list(range(1, encoder.layers + 1) if layers is None else layers)
    if not texts:
        raise ValueError("texts is empty; give some to measure with")
    seconds = by_turns(layers, lambda layer: encoder.encode(texts, layer, batch_size=batch_size), repeats, clock)
    return costs_of({layer: encoder.first(layer) for layer in layers}, len(texts), seconds)


class Sample:
    """Micro-batches of some 128 texts in all, spread evenly over an evaluation of `num_texts`, and how fast they run.

    Args:
        num_texts: texts of the whole evaluation.
    """

    def __init__(self, num_texts: int) -> None:
        self.num_texts, self.seen, self.kept = num_texts, 0, 0
        self.batches: list[TextBatch] = []

    def offer(self, batch: TextBatch) -> None:
        """Look at the next micro-batch, and keep it if it is its turn."""
        if self.kept * self.num_texts <= self.seen * SAMPLED_TEXTS:
            self.batches.append(batch)
            self.kept += len(batch["lens"])
        self.seen += len(batch["lens"])

    @torch.no_grad()
    def costs(
        self,
        model: Embedder,
        layers: Iterable[int],
        repeats: int = 3,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Costs:
        """Measure the layers as `measure_speed` does, without tokenisation: the batches hold tokens."""
        cuts = {layer: shallow(model.encoder, max(layer, 1)) for layer in layers}

        def run(layer: int) -> None:
            for batch in self.batches:
                model.pooled(cuts[layer](batch, [layer])[0], batch).cpu()

        return costs_of(cuts, self.kept, by_turns([*cuts], run, repeats, clock)) if self.batches else Costs()


def by_turns(
    layers: Sequence[int], run: Callable[[int], object], repeats: int, clock: Callable[[], float]
) -> dict[int, float]:
    """Return the median seconds of each layer; `run` ends on the host, so that nothing of it is left to do."""
    seconds: dict[int, list[float]] = {layer: [] for layer in layers}
    for layer in [*layers] * (repeats + 1):
        start = clock()
        run(layer)
        seconds[layer].append(clock() - start)
    return {layer: median(taken[1:] or taken) for layer, taken in seconds.items()}


def costs_of(encoders: Mapping[int, nn.Module], texts: int, seconds: Mapping[int, float]) -> Costs:
    """Return speed and size of encoders, by their number of layers."""
    speed = {layer: texts / seconds[layer] for layer in encoders}
    return Costs(speed, {layer: sum(w.numel() for w in encoder.parameters()) for layer, encoder in encoders.items()})
