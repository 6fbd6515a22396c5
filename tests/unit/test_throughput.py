"""The speed that is logged, from batches of known tokens and a clock that stands still unless it is told."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import nn

from callbacks.loggers import JsonLines
from callbacks.throughput import Throughput, Window
from launch.strategies.replicas import single
from lightning_modules.core.base import Method
from lightning_modules.core.terms import LossTerms, Term
from tests.text import text_batch

LOADING, STEP, SAVING = 0.25, 2.0, 100.0  # seconds


class Clock:
    """Tells the time that it was set to."""

    now = 7.0

    def __call__(self) -> float:
        return self.now


class Slow(Method):
    """Takes STEP seconds for a pass, and knows its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.optimization("adamw", 1e-3, 0.0, 1e-8, "constant", 0, 1.0)
        self.clock = Clock()

    def build(self, *_: object) -> None:
        self.model = nn.Linear(1, 1, bias=False)

    def target_counts(self, batch: dict) -> dict[str, int]:
        return {"a": 1}

    def flops(self, batch: dict) -> float:
        return 1e9 * sum(batch["lens"])

    def objective(self, batch: dict, key: int, measures: bool) -> LossTerms:
        self.clock.now += STEP
        return LossTerms({"a": Term(self.model(torch.ones(1)).sum(), 1)}, {})


class Batches(LightningDataModule):
    """Takes LOADING seconds for a batch."""

    tokenizer, sequence_length = None, 16

    def __init__(self, batches: list[list[dict]], clock: Clock) -> None:
        super().__init__()
        self.batches, self.clock = batches, clock

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.clock.now += LOADING
            yield batch

    def train_dataloader(self) -> "Batches":
        return self


class Save(Callback):
    """Takes SAVING seconds after a step."""

    def on_train_batch_end(self, trainer: Trainer, module: Slow, *_: object) -> None:
        module.clock.now += SAVING


def logged(folder: Path, batches: list[list[dict]], every: int, **options) -> list[dict]:
    method = Slow()
    trainer = Trainer(
        strategy=single(),
        accelerator="cpu",
        max_steps=len(batches),
        max_epochs=-1,
        log_every_n_steps=every,
        logger=[JsonLines(str(folder))],
        callbacks=[Throughput(**options), Save()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(method, Batches(batches, method.clock))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k == "step" or k.startswith("perf/")} for line in lines]


def test_tokens_time_and_operations_of_every_window_are_told(tmp_path):
    """Two micro-batches a step, two steps a line: 4 passes and 2 loads, and nothing of the time that saving took."""
    first, second = [text_batch([8, 4]), text_batch([6])], [text_batch([4]), text_batch([16, 2])]
    found = logged(tmp_path, [first, second, second, second], every=2, peak_tflops=0.5)
    seconds = 4 * STEP + 2 * LOADING
    for line, (step, tokens, padded) in zip(found, [(2, 40, 58), (4, 44, 72)], strict=True):
        assert line == {
            "step": step,
            "perf/tokens_per_s": pytest.approx(tokens / seconds),
            "perf/pad_fraction": pytest.approx(1 - tokens / padded),
            "perf/data_wait_fraction": pytest.approx(2 * LOADING / seconds),
            "perf/mfu": pytest.approx(1e9 * tokens / seconds / 0.5e12),
        }


def test_pairs_are_counted_by_examples_where_there_are_any(tmp_path):
    batch = {**text_batch([8, 8, 4, 4, 2, 2]), "label_P": torch.ones(2)}  # two examples of three texts
    (line,) = logged(tmp_path, [[batch, batch]], every=1)
    assert line["perf/pairs_per_s"] == pytest.approx(4 / (2 * STEP + LOADING))
    assert "perf/mfu" not in line, "the peak of a CPU is not known"


def test_ranks_hold_like_shares_and_have_a_device_each():
    window = Window(tokens=30, padded=40, pairs=6, flops=3e12, seconds=2.0, waited=1.0)
    assert window.values(4, 2.0) == {
        "perf/tokens_per_s": pytest.approx(40.0),
        "perf/pairs_per_s": pytest.approx(8.0),
        "perf/pad_fraction": pytest.approx(0.25),
        "perf/data_wait_fraction": pytest.approx(1 / 3),
        "perf/mfu": pytest.approx(0.5),
    }


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("Quadro 600", None),
    ],
)
def test_the_peak_is_known_by_the_name_of_the_device(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    speed = Throughput()
    speed.on_train_start(None, SimpleNamespace(device=torch.device("cuda", 0), clock=Clock()))
    assert speed.peak_tflops == peak
