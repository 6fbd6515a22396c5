"""A method whose loss compares the examples of the whole global batch, for the harness of `checkpoint_toy`.

Two columns of text, two layers of the encoder, a learnt scale, a term that needs no other example, plain gradient
descent: after one step at a large rate the weights are the gradient.
"""

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig

from datamodules.core.batches import flat_layout
from datamodules.core.loader import FromStep, lay_out, loader
from lightning_modules.core import gather, whole_batch
from lightning_modules.core.encoders import Encoder
from lightning_modules.core.terms import LossTerms, Term
from lightning_modules.core.weights import initialise
from lightning_modules.core.whole_batch import Embedded, WholeBatchMethod
from tests.multiproc import checkpoint_toy
from tests.multiproc.checkpoint_toy import Run

EXAMPLES, COLUMNS, IDS = 16, 2, 60


class Networks(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * width}
        drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        self.encoder = Encoder(BertConfig(vocab_size=IDS, max_position_embeddings=16, **sizes, **drops))
        self.log_scale = nn.Linear(1, 1, bias=False)

    def forward(self, batch: dict) -> tuple[list[Tensor], Tensor]:
        return self.encoder(batch, [1, 2]), self.log_scale(torch.ones(1)).exp()


def networks(run: Run) -> Networks:
    """Build what a run begins with."""
    made = Networks(run.width, run.dropout)
    initialise(made, 0.3, 5)
    return made


class Descent(SGD):
    """Plain gradient descent; torch's own does not know the mark of a gradient that is not finite."""

    def step(self, closure: None = None) -> None:
        self.grad_scale = self.found_inf = None
        super().step()


class PairToy(WholeBatchMethod):
    def __init__(self, run: Run) -> None:
        super().__init__(run.cached)
        self.run, self.seed = run, 5
        self.optimization("adamw", run.learning_rate, 0.0, 1e-8, "constant", 0, 0.0)

    def configure_model(self) -> None:
        if self.model is None:
            self.model = networks(self.run)

    def configure_optimizers(self) -> Optimizer:
        super().configure_optimizers()  # sets the watch and the rate
        rate = self.learning_rate
        groups = [{"params": [p for p in self.parameters() if p.requires_grad], "lr": rate, "peak_lr": rate}]
        return Descent(groups, lr=rate)

    def target_counts(self, batch: dict) -> dict[str, int]:
        return {"pairs": batch["examples"], "norms": batch["examples"]}

    def embed(self, batch: dict) -> Embedded:
        hidden_TD, scale = self.model(batch)
        lens_B = batch["layout"].lens_B
        pooled = [
            torch.zeros(len(lens_B), h.shape[1]).index_add(0, batch["sequence_T"], h) / lens_B[:, None]
            for h in hidden_TD
        ]
        table = torch.stack(pooled, 1)[torch.argsort(batch["slot_B"])].unflatten(0, (COLUMNS, -1))  # [C, P, 2, D]
        norms = Term(0.01 * table.square().sum() / table.shape[-1], batch["examples"])
        return Embedded(table.transpose(0, 1), scale, LossTerms({"norms": norms}, {}))

    def known(self, batch: dict) -> dict[str, Tensor]:
        return {"label": batch["label_P"]}

    def compare(self, vectors_BX: Tensor, known: dict[str, Tensor], own: slice, scale: Tensor) -> LossTerms:
        unit = F.normalize(vectors_BX, dim=-1)
        total = 0.0
        for layer in range(2):
            logits = scale * unit[own, 0, layer] @ unit[:, 1, layer].T
            targets = torch.arange(own.start, own.stop)
            total = total + (F.cross_entropy(logits, targets, reduction="none") * known["label"][own]).sum()
        return LossTerms({"pairs": Term(total, own.stop - own.start)}, {})


class Batches(Dataset):
    """Pairs that are a function of the step, in micro-batches of `run.micro_batch_size`."""

    def __init__(self, rank: int, run: Run) -> None:
        self.rank, self.run = rank, run

    def __getitem__(self, step: int) -> list[dict]:
        size = self.run.micro_batch_size
        own = EXAMPLES // self.run.world_size
        return [self.micro(step, self.rank * own + start, size) for start in range(0, own, size)]

    def micro(self, step: int, first: int, size: int) -> dict:
        texts, labels = [], []
        for number in range(first, first + size):
            draw = np.random.default_rng([step, number])
            texts += [draw.integers(5, IDS, draw.integers(2, 12)) for _ in range(COLUMNS)]
            labels.append(draw.random() + 0.5)
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        lens = np.array([len(texts[place]) for place in order])
        slots = [place % COLUMNS * size + place // COLUMNS for place in order]
        ids = np.concatenate([texts[place] for place in order])
        positions = np.array([step * EXAMPLES + first + place // COLUMNS for place in order])
        batch = lay_out(ids, lens, lens, positions, np.zeros(IDS, bool))
        assert batch["layout"].groups == flat_layout(lens.tolist()).groups
        return {**batch, "slot_B": torch.tensor(slots), "label_P": torch.tensor(labels), "examples": size}


class Steps(pl.LightningDataModule):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def train_dataloader(self) -> DataLoader:
        return loader(Batches(self.trainer.global_rank, self.run), 0, FromStep(lambda: self.trainer.global_step))


def launch(run: Run) -> tuple[pl.Trainer, PairToy]:
    if run.wrong_gather:
        whole_batch.gather_rows = _own_gradient_alone
    trainer, toy = checkpoint_toy.trainer_of(run), PairToy(run)
    trainer.fit(toy, datamodule=Steps(run), ckpt_path=None if run.resume is None else str(run.resume))
    return trainer, toy


def _own_gradient_alone(own: Tensor) -> Tensor:
    """Put the own rows back into what was gathered without a gradient: the right value, the wrong slope."""
    everyone = gather.gather_rows(own.detach()).clone()
    everyone[gather.own_rows(len(own))] = own
    return everyone
