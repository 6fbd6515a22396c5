"""A small method with everything that strategies treat differently, for the harness of `checkpoint_toy`.

Two loss terms of unequal counts, a branch that is used in even steps, a tied head, a frozen layer, a changing buffer,
dropout, four micro-batches a step, and two parameter groups.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import partial

import deepspeed  # noqa: F401  in the fork server, once for all processes
import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from datamodules.core.loader import FromStep, loader
from launch.strategies.replicas import ddp
from launch.strategies.sharded import fsdp
from launch.strategies.zero import zero1, zero2, zero3
from lightning_modules.core.base import Method
from lightning_modules.core.blocks import BlockOptions, prepare_blocks
from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.checkpoint.verify import newest_complete
from lightning_modules.core.precision import widened
from lightning_modules.core.terms import LossTerms, Term
from lightning_modules.core.weights import initialise
from tests.multiproc import checkpoint_toy
from tests.multiproc.checkpoint_toy import LENGTH, ROWS, VOCABULARY, Run

MICRO_BATCHES = 4
STRATEGIES = {
    "ddp": partial(ddp, "gloo", 60.0),
    "zero1": partial(zero1, "gloo", 60.0),
    "zero2": partial(zero2, "gloo", 60.0),
    "zero3": partial(zero3, "gloo", 60.0, persistence_threshold=20),
    "zero3_offload": partial(zero3, "gloo", 60.0, offload=True, sub_group_size=500),
    "fsdp": partial(fsdp, "gloo", 60.0),
}


class Networks(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.branch = nn.Linear(width, width)
        self.frozen = nn.Linear(width, width, bias=False).requires_grad_(False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.score = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BL: Tensor, weight: float | None) -> tuple[Tensor, Tensor]:
        hidden_BLD = self.frozen(self.embed(tokens_BL))
        for layer in self.layers:
            hidden_BLD = hidden_BLD + self.dropout(torch.tanh(layer(hidden_BLD)))
        if weight is not None:
            hidden_BLD = hidden_BLD + weight * self.branch(hidden_BLD)
        hidden_BLD = self.norm(hidden_BLD)
        return self.head(hidden_BLD), self.score(hidden_BLD)[..., 0]


class Toy(Method):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.seed = run, 5
        self.optimization("adamw", 0.02, 0.1, 1e-8, "linear", 2, 1.0)
        self.register_buffer("seen", torch.zeros(2))

    def configure_model(self) -> None:
        if self.model is None:
            self.model = Networks(self.run.width, self.run.dropout)
            initialise(self.model, 0.3, self.seed)
            prepare_blocks(self.model, BlockOptions(*self.run.layers))

    def target_counts(self, batch: dict) -> dict[str, int]:
        return {"next": batch["tokens_BL"][:, 1:].numel(), "third": batch["thirds"]}

    def objective(self, batch: dict, key: int, measures: bool) -> LossTerms:
        tokens_BL = batch["tokens_BL"]
        logits_BLV, score_BL = map(widened, self.model(tokens_BL[:, :-1], self._weight(batch)))
        following, counts = tokens_BL[:, 1:], self.target_counts(batch)
        following_loss = F.cross_entropy(logits_BLV.flatten(0, 1), following.flatten(), reduction="sum")
        third_loss = (((score_BL - 1) ** 2) * (following % 3 == 0)).sum()
        step, factor = self.run.poison or (0, 1.0)
        if (self.trainer.global_step + 1, batch["number"]) == (step, MICRO_BATCHES - 1):
            following_loss = following_loss * factor
        terms = {"next": Term(following_loss, counts["next"]), "third": Term(third_loss, counts["third"], 3.0)}
        return LossTerms(terms, {"third_score": (score_BL * (following % 3 == 0)).sum().detach()})

    def _weight(self, batch: dict) -> float | None:
        """Return how much of the branch is used; at a step of the run's choice it is not even run."""
        step, micro_batches = self.run.without_branch or (0, ())
        if (self.trainer.global_step + 1, batch["number"] in micro_batches) == (step, True):
            return None
        return float(self.trainer.global_step % 2 == 0)

    def log_values(self, values: dict[str, float]) -> None:
        self.seen += torch.tensor([1.0, float(self.trainer.global_step)])
        super().log_values(values)


class Batches(Dataset):
    """Batches that are a function of the step; a rank gets its micro-batches of each."""

    def __init__(self, rank: int, run: Run) -> None:
        self.rank, self.own = rank, MICRO_BATCHES // run.world_size

    def __getitem__(self, step: int) -> list[dict]:
        generator = torch.Generator().manual_seed(1000 + step)
        tokens_BL = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
        pieces = tokens_BL.chunk(MICRO_BATCHES)[self.rank * self.own :][: self.own]
        place = step * ROWS + self.rank * self.own * (ROWS // MICRO_BATCHES)
        return [
            {
                "tokens_BL": piece,
                "thirds": int((piece[:, 1:] % 3 == 0).sum()),
                "number": self.rank * self.own + index,
                "position": place + index * (ROWS // MICRO_BATCHES),
            }
            for index, piece in enumerate(pieces)
        ]


class Steps(pl.LightningDataModule):
    """Loads them as a run does."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def train_dataloader(self) -> DataLoader:
        batches = Batches(self.trainer.global_rank, self.run)
        return loader(batches, self.run.num_workers, FromStep(lambda: self.trainer.global_step))


def launch(run: Run) -> tuple[pl.Trainer, Toy]:
    trainer, toy = checkpoint_toy.trainer_of(run), Toy(run)
    trainer.fit(toy, datamodule=Steps(run), ckpt_path=None if run.resume is None else str(run.resume))
    return trainer, toy


def logged(run: Run) -> dict[int, dict[str, str]]:
    """Return what each step logged, exactly, after checking that each stands once in metrics.jsonl and TensorBoard."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = list(range(1, run.max_steps + 1))
    assert [line["step"] for line in lines] == steps
    board = EventAccumulator(str(run.folder)).Reload()
    shown = [event.step for event in board.Scalars("train/loss")]
    assert shown == steps, (shown, sorted(file.name for file in run.folder.iterdir()))
    return {
        line["step"]: {name: _exact(v) for name, v in line.items() if not name.startswith("perf/")} for line in lines
    }


def _exact(value: float | None) -> str:
    return "not finite" if value is None else float(value).hex()


def saved(run: Run) -> dict[str, str]:
    """Hash all that the newest checkpoint holds, tensor by tensor; two ways of cutting it give other names."""
    folder = newest_complete(run.checkpoints)
    assert folder is not None and int(folder.name[5:]) == run.max_steps
    found = {}
    for file in sorted(folder.glob("*.pt")):
        found |= {f"{file.name} {name}": value for name, value in _leaves(torch.load(file, weights_only=True), "")}
    return found


def _leaves(value: object, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}/{key}")
    elif isinstance(value, Tensor):
        yield place, hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    else:
        yield place, repr(value)


def weights(run: Run) -> dict[str, Tensor]:
    """Return the weights and buffers of the newest checkpoint."""
    return read_weights(newest_complete(run.checkpoints))


def assert_same(ours: Run, theirs: Run, losses: float = 1e-6) -> None:
    """Compare what was logged in all steps, and the weights at the end, to rounding."""
    mine, other = logged(ours), logged(theirs)
    for step, values in other.items():
        assert values.keys() == mine[step].keys()
        for name, value in values.items():
            near = losses if name.startswith("train/") else 1e-5
            expected = pytest.approx(float.fromhex(value), rel=near, abs=near / 100)
            assert float.fromhex(mine[step][name]) == expected, (step, name)
    at_end, expected = weights(ours), weights(theirs)
    assert at_end.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(at_end[name], weight, rtol=1e-5, atol=1e-5)
