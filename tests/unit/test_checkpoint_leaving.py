"""A rank that ends waits for the parts of others only as long as they write."""

import threading
import time
from pathlib import Path

import pytest
import torch

from lightning_modules.core.checkpoint import publish
from lightning_modules.core.checkpoint.verify import newest_complete, shard_name


def started(folder: Path, rank: int, temp: Path | None = None) -> publish.Save:
    final = folder / "step_00000003"
    save = publish.Save(final, temp or publish.begin(final), rank, 2)
    save.facts = {"step": 3, "strategy": "Toy", "skipped_steps": []}
    piece = {"start": 0, "shape": [3], "scalars": {}, "tensors": {"param": torch.ones(3)}}
    save.shard = {"weight": piece}
    save.thread.start()
    return save


def test_a_rank_that_never_writes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publish, "LEAVE_QUIET_SECONDS", 0.3)
    save = started(tmp_path, 0)
    save.leave()
    assert save.finished and save.error.endswith("step_00000003: given up, rank 1 does not write its part")
    assert newest_complete(tmp_path) is None


def test_a_rank_that_still_writes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publish, "LEAVE_QUIET_SECONDS", 0.5)
    save = started(tmp_path, 0)
    leaving = threading.Thread(target=save.leave)
    leaving.start()
    part = save.temp / shard_name(1)
    for size in range(1, 9):  # longer than a rank may be quiet
        part.write_bytes(b"x" * size)
        time.sleep(0.1)
    assert not save.finished
    started(tmp_path, 1, save.temp)
    leaving.join(10)
    assert save.finished and save.error is None
    assert newest_complete(tmp_path).name == "step_00000003"
