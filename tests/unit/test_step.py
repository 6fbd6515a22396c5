"""A training step is an optimizer step, however its global batch is cut."""

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from callbacks.divergence import Divergence as DivergenceCallback
from callbacks.loggers import JsonLines
from launch.strategies.replicas import single
from lightning_modules.core.base import Method
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.divergence import Diverged, Divergence
from lightning_modules.core.terms import LossTerms, Term, Totals
from lightning_modules.electra.module import Electra
from tests.text import text_batch, word_tokenizer

LENS = [30, 24, 24, 20, 13, 9, 6, 5]


def cut(batch: dict, sizes: list[int]) -> list[dict]:
    """Cut one micro-batch into several; the sequences keep their places in the global order."""
    pieces, row = [], 0
    for size in sizes:
        lens = batch["lens"][row : row + size]
        start = sum(batch["lens"][:row])
        piece = text_batch(lens, first_sample=batch["position"] + row)
        for name in ("ids_T", "type_T", "special_T"):
            piece[name] = batch[name][start : start + sum(lens)]
        piece["maskable"] = batch["maskable"][row : row + size]
        pieces.append(piece)
        row += size
    return pieces


class Steps(LightningDataModule):
    """Global batches of random text, each cut into micro-batches of the given sizes."""

    def __init__(self, sizes: list[int], steps: int):
        super().__init__()
        self.batches = [cut(text_batch(LENS, seed=s, first_sample=8 * s), sizes) for s in range(steps)]
        self.tokenizer, self.sequence_length = word_tokenizer(), 32

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


def train(method: Method, sizes: list[int], steps: int = 3, folder: str = ".", **options) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(
        strategy=single(),
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=[JsonLines(folder)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"log_every_n_steps": 1, **options},
    )
    trainer.fit(method, Steps(sizes, steps))
    return trainer


def small(**options) -> Electra:
    settings = {"hidden_size": 32, "num_layers": 2, "embedding_size": 16, "max_positions": 32, "warmup_steps": 0}
    return Electra(**{**settings, "learning_rate": 1e-3, **options})


def test_an_update_does_not_depend_on_the_cut(tmp_path):
    ends, losses = [], []
    for sizes in ([8], [4, 4], [1, 2, 5], [1] * 8):
        method = small(dropout=0.0, attention_dropout=0.0)
        trainer = train(method, sizes, folder=str(tmp_path), precision="64-true")
        assert trainer.global_step == 3
        losses.append(method.logged["train/loss"])
        ends.append(torch.cat([p.detach().flatten() for n, p in method.named_parameters() if "key.bias" not in n]))
    for end, loss in zip(ends[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-9)
        torch.testing.assert_close(end, ends[0], atol=1e-8, rtol=1e-8)


def test_dropout_is_keyed_by_the_micro_batch_and_by_nothing_else(tmp_path):
    class Noisy(Electra):
        """Uses up random numbers before every step, as many as it is told."""

        noise = 0

        def on_train_batch_start(self, *_: object) -> None:
            torch.rand(self.noise)

    ends = []
    for noise in (0, 5):
        method = Noisy(hidden_size=32, num_layers=2, embedding_size=16, max_positions=32, warmup_steps=0)
        method.noise = noise
        train(method, [4, 4], folder=str(tmp_path))
        ends.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
    assert torch.equal(*ends)
    method = Noisy(hidden_size=32, num_layers=2, embedding_size=16, max_positions=32, warmup_steps=0)
    train(method, [8], folder=str(tmp_path))  # other micro-batches, other masks: dropout is on in all of them
    assert not torch.equal(ends[0], torch.cat([p.detach().flatten() for p in method.parameters()]))


def test_counts_of_unequal_parts_are_not_averaged_apart():
    first, second = Term(torch.tensor(6.0), 3), Term(torch.tensor(10.0), 1)
    joint = LossTerms({"a": first}, {}).total({"a": 4.0}) + LossTerms({"a": second}, {}).total({"a": 4.0})
    assert joint == 4.0 != (6 / 3 + 10 / 1) / 2


def test_totals_are_global_means():
    totals = Totals()
    totals.add(LossTerms({"a": Term(torch.tensor(6.0), 3, 2.0)}, {"hits": torch.tensor([1, 2])}))
    totals.add(LossTerms({"a": Term(torch.tensor(10.0), 1, 2.0)}, {"hits": torch.tensor([3, 4])}))
    assert totals.means() == {"loss": 8.0, "a": 4.0}
    assert totals.statistics()["hits"].tolist() == [4, 6]


class Forgetful(Method):
    """Has a parameter that its loss does not reach."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.optimization("adamw", 1e-3, 0.0, 1e-8, "constant", 0, 1.0)
        self.scale = scale

    def build(self, tokenizer: object, sequence_length: int) -> None:
        self.model = nn.ModuleDict({"used": nn.Linear(1, 1)})
        if self.scale == 1.0:
            self.model["idle"] = nn.Linear(1, 1)

    def target_counts(self, batch: dict) -> dict[str, int]:
        return {"a": 1}

    def objective(self, batch: dict, key: int, measures: bool) -> LossTerms:
        return LossTerms({"a": Term(self.model["used"](torch.ones(1)).sum() * self.scale, 1)}, {})


def test_a_parameter_without_gradient_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"2 trainable parameters got no gradient: model\.idle\.weight"):
        train(Forgetful(), [8], folder=str(tmp_path))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(Diverged, match=r"step 1: the gradient is not finite; samples \[0, 1, 2.* on rank 0, kept in"):
        train(Forgetful(scale=float("nan")), [8], folder=str(tmp_path))
    kept = torch.load(tmp_path / "diverged" / "step_00000001" / "rank_00000.pt", weights_only=True)
    assert kept["step"] == 1 and torch.equal(kept["batches"][0]["ids_T"], text_batch(LENS, seed=0)["ids_T"])


@pytest.mark.parametrize(("optimizer", "steps_late"), [("adamw", 0), ("adamw", 1), ("as_released", 0)])
def test_a_gradient_that_is_not_finite_makes_no_update(optimizer, steps_late, tmp_path):
    class Once(Electra):
        """Has a loss that is no number in its second step; on a GPU it is found a step later."""

        under_way = steps_late

        def objective(self, batch: dict, key: int, measures: bool) -> LossTerms:
            found = super().objective(batch, key, measures)
            if self.trainer.global_step != 1:
                return found
            return found._replace(terms={n: t._replace(sum=t.sum * float("nan")) for n, t in found.terms.items()})

        def on_train_batch_start(self, *_: object) -> None:
            self.before.append(torch.cat([p.detach().flatten() for p in self.parameters()]))

    method = Once(
        hidden_size=32, num_layers=1, embedding_size=16, max_positions=32, warmup_steps=0, optimizer=optimizer
    )
    method.before, method.divergence = [], Divergence("skip")
    trainer = train(method, [4, 4], steps=4, folder=str(tmp_path))
    starts = method.before
    assert torch.equal(starts[1], starts[2]) and not torch.equal(starts[2], starts[3])
    assert trainer.global_step == 4 and trainer.strategy.skipped_steps == (2,)
    method = Once(hidden_size=32, num_layers=1, embedding_size=16, max_positions=32, warmup_steps=0)
    method.before, method.divergence = [], Divergence("skip", budget=0)
    with pytest.raises(Diverged, match="step 2"):
        train(method, [4, 4], steps=4, folder=str(tmp_path))
    assert len(method.before) == 3 + steps_late


def test_a_spike_stands_out_of_the_spread_of_the_losses_before():
    rule = Divergence(spike_factor=6.0)
    assert not any(rule.is_spike(1.0 + 0.1 * (n % 3)) for n in range(19))
    assert not rule.is_spike(50.0), "too few to tell"
    assert rule.is_spike(3.0) and not rule.is_spike(1.3)
    assert not Divergence().is_spike(1e9)
    for options, message in (
        ({"budget": -1}, "budget: -1 is below 0"),
        ({"spike_factor": 0.0}, "spike_factor: 0.0 is"),
    ):
        with pytest.raises(CheckpointError, match=f"callbacks.divergence.{message}"):
            DivergenceCallback(**options)


def test_logged_norm_and_rate_are_those_of_the_step(tmp_path):
    method = small(dropout=0.0, attention_dropout=0.0, warmup_steps=2, schedule="multiplied", clip_norm=0.0)
    train(method, [4, 4], steps=4, folder=str(tmp_path))
    assert method.logged["opt/lr"] == pytest.approx(1e-3 * (1 - 3 / 4))
    lines = [eval(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["opt/lr"] for line in lines] == pytest.approx([0, 1e-3 * 0.75 * 0.5, 1e-3 * 0.5, 1e-3 * 0.25])
    again = small(dropout=0.0, attention_dropout=0.0)
    torch.manual_seed(0)
    again.build(word_tokenizer(), 32)
    batch = text_batch(LENS)
    from lightning_modules.core.keyed import mix

    terms = again.objective(batch, mix(0, 0), measures=False)
    terms.total({name: float(c) for name, c in again.target_counts(batch).items()}).backward()
    norm = torch.stack([p.grad.norm() for p in again.parameters()]).norm()
    assert lines[0]["opt/grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
