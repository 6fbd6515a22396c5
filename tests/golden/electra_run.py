"""A short training of a tiny ELECTRA, whose numbers are worth keeping."""

import json
from pathlib import Path

import torch

from datamodules.core.batches import TextBatch
from launch.config.read import read_file
from lightning_modules.core.dropout import keep_mask
from lightning_modules.electra.module import Corrupted, Electra
from tests.runs import PROJECT
from tests.text import word_tokenizer
from tests.unit.test_step import train

GOLDEN = Path(__file__).parent / "electra_cpu.json"
CUT, STEPS = [4, 4], 20  # sequences of each micro-batch; optimizer steps
LOSSES = ("train/loss", "train/generator_loss", "train/discriminator_loss")


class Recorded(Electra):
    """Keeps what was drawn in every micro-batch."""

    def __init__(self, **options) -> None:
        sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "embedding_size": 16, "max_positions": 32}
        rates = {"generator_width": 0.5, "initializer_range": 0.1, "learning_rate": 2e-3, "warmup_steps": 5}
        super().__init__(**{**sizes, **rates, "mask_fraction": 0.25, **options})
        self.found: list[Corrupted] = []

    def corrupt(self, batch: TextBatch, key: int) -> Corrupted:
        self.found.append(super().corrupt(batch, key))
        return self.found[-1]


def released() -> dict[str, object]:
    """Return every option of the model that the overlay of the released form sets."""
    path = PROJECT / "configs" / "electra" / "as_released.yaml"
    return {key[1]: entry.value for key, entry in read_file(path, path.name).items() if key[0] == "model"}


def kept_units() -> list[int]:
    """Return which of 32 units dropout keeps for a seed; a torch with another generator would keep others."""
    torch.manual_seed(0)
    return (keep_mask(torch.Size([32]), 0.5, torch.ones(1)) > 0).int().tolist()


def flat(method: Electra) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in method.parameters()])


def golden(form: str, folder: str) -> dict[str, object]:
    """Train twenty steps in a form, `clean` or `as_released`, on one thread, and return what is kept."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        method = Recorded(**(released() if form == "as_released" else {}))
        torch.manual_seed(0)
        method.build(word_tokenizer(), 32)
        start = flat(method)
        train(method, CUT, steps=STEPS, folder=folder)
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    end, first = flat(method), method.found[: len(CUT)]
    waves = [(end @ torch.cos(torch.arange(len(end)).double() * turn)).item() for turn in (1.0, 0.1, 0.01)]
    return {
        "losses": [[line[name] for name in LOSSES] for line in lines],
        "places": [found.slots.place_M.tolist() for found in first],
        "sampled": [found.sampled_M.tolist() for found in first],
        "weights": {"moved": (end - start).norm().item(), "waves": waves},
    }
