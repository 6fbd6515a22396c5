"""Fine-tuning on two ranks gives the losses and the metrics of one: labels go with their texts, answers are joined."""

import pytest

from tests.cli.launching import json_lines
from tests.forked import train

FLAGS = [
    "--config",
    "configs/finetune/debug.yaml",
    "--data.num_examples",
    "100",
    "--callbacks.validation.max_batches",
    "null",
]


def test_two_ranks_measure_what_one_does(tmp_path):
    train(tmp_path / "one", 1, *FLAGS)
    train(tmp_path / "two", 2, *FLAGS, "--config", "configs/strategy/ddp.yaml", "--trainer.devices", "2")
    single, double = (json_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in double] == [line["step"] for line in single] == list(range(1, 9))
    measured = {"val/accuracy", "val/mcc", "val/f1", "val/classification_loss"}
    assert measured <= single[-1].keys() and single[-1].keys() >= {"train/accuracy"}
    for ours, theirs in zip(double, single, strict=True):
        for name in theirs:
            if name.startswith(("train/", "val/", "opt/")):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
