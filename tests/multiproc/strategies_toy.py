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
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from launch.strategies.replicas import ddp
from launch.strategies.sharded import fsdp
from launch.strategies.zero import zero1, zero2, zero3
from lightning_modules.core.base import Method
from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.checkpoint.verify import newest_complete
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

    def forward(self, tokens_BL: Tensor, uses_branch: bool) -> tuple[Tensor, Tensor]:
        hidden_BLD = self.frozen(self.embed(tokens_BL))
        for layer in self.layers:
            hidden_BLD = hidden_BLD + self.dropout(torch.tanh(layer(hidden_BLD)))
        hidden_BLD = self.norm(hidden_BLD + float(uses_branch) * self.branch(hidden_BLD))
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

    def target_counts(self, batch: dict) -> dict[str, int]:
        return {"next": batch["tokens_BL"][:, 1:].numel(), "third": batch["thirds"]}

    def objective(self, batch: dict, key: int, measures: bool) -> LossTerms:
        tokens_BL = batch["tokens_BL"]
        logits_BLV, score_BL = self.model(tokens_BL[:, :-1], self.trainer.global_step % 2 == 0)
        following, counts = tokens_BL[:, 1:], self.target_counts(batch)
        following_loss = F.cross_entropy(logits_BLV.flatten(0, 1), following.flatten(), reduction="sum")
        third_loss = (((score_BL - 1) ** 2) * (following % 3 == 0)).sum()
        if self.run.poison is not None and (self.trainer.global_step + 1, batch["last"]) == (self.run.poison[0], True):
            following_loss = following_loss * self.run.poison[1]
        terms = {"next": Term(following_loss, counts["next"]), "third": Term(third_loss, counts["third"], 3.0)}
        return LossTerms(terms, {"third_score": (score_BL * (following % 3 == 0)).sum().detach()})

    def log_values(self, values: dict[str, float]) -> None:
        self.seen += torch.tensor([1.0, float(self.trainer.global_step)])
        if self.trainer.is_global_zero:
            kept = {name: float(value).hex() for name, value in values.items()}
            with (self.run.folder / "losses.jsonl").open("a") as file:
                file.write(json.dumps([self.trainer.global_step, kept]) + "\n")


class Batches(IterableDataset):
    """Batches that are a function of the step; a rank gets its micro-batches of each."""

    def __init__(self, trainer: pl.Trainer, run: Run) -> None:
        self.trainer, self.run = trainer, run

    def __iter__(self) -> Iterator[list[dict]]:
        first, rank = self.trainer.global_step, self.trainer.global_rank
        own = MICRO_BATCHES // self.run.world_size
        for step in range(first, self.run.max_steps):
            generator = torch.Generator().manual_seed(1000 + step)
            tokens_BL = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
            pieces = tokens_BL.chunk(MICRO_BATCHES)[rank * own : (rank + 1) * own]
            place = step * ROWS + rank * own * (ROWS // MICRO_BATCHES)
            yield [
                {
                    "tokens_BL": piece,
                    "thirds": int((piece[:, 1:] % 3 == 0).sum()),
                    "last": rank * own + index == MICRO_BATCHES - 1,
                    "position": place + index * (ROWS // MICRO_BATCHES),
                }
                for index, piece in enumerate(pieces)
            ]


def launch(run: Run) -> tuple[pl.Trainer, Toy]:
    trainer, toy = checkpoint_toy.trainer_of(run), Toy(run)
    loader = DataLoader(Batches(trainer, run), batch_size=None)
    trainer.fit(toy, loader, ckpt_path=None if run.resume is None else str(run.resume))
    return trainer, toy


def logged(run: Run) -> dict[int, dict[str, str]]:
    """Return what each step logged, the last attempt's where steps were repeated."""
    found = dict(json.loads(line) for line in (run.folder / "losses.jsonl").read_text().splitlines())
    assert sorted(found) == list(range(1, run.max_steps + 1))
    return found


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
