"""Damage to a checkpoint whose weights are in pieces is named on every rank, and nothing that was saved is lost."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from lightning_modules.core.checkpoint.verify import MANIFEST, TRAINER, complete_steps, seal
from tests.multiproc.checkpoint_toy import Run, output, resume, start, step_folder
from tests.multiproc.strategies_toy import logged, saved
from tests.multiproc.test_ddp_checkpoint_damage import DAMAGES, remount, small_disk

__all__ = ["small_disk"]
long = partial(pytest.param, marks=pytest.mark.matrix)


class Code:
    """Pickled as a call that leaves a file behind when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def carry_code(folder: Path) -> None:
    """Put code into a file, and make the manifest agree with it."""
    path, manifest = folder / TRAINER, json.loads((folder / MANIFEST).read_text())
    torch.save({"lightning": Code(folder.parent.parent / "it_ran")}, path)
    data = path.read_bytes()
    manifest["files"][TRAINER] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": seal(manifest)}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Undisturbed runs by strategy, each made once."""
    made: dict[str, Run] = {}

    def get(strategy: str) -> Run:
        if strategy not in made:
            made[strategy] = Run(tmp_path_factory.mktemp(strategy) / "run", 2, strategy=strategy, width=24)
            assert start(made[strategy]) == [0, 0], output(made[strategy])
        return made[strategy]

    return get


def goes_on(run: Run, undisturbed: Run) -> None:
    """Go on from the newest good checkpoint to the same end."""
    assert start(dataclasses.replace(run, resume=resume(run))) == [0, 0], output(run)
    assert logged(run) == logged(undisturbed) and saved(run) == saved(undisturbed)
    assert not list(run.checkpoints.glob(".*"))


@pytest.mark.parametrize(
    ("strategy", "complaint", "damage"),
    [
        *(long(name, *item) for name in ("zero2", "zero3", "fsdp") for item in DAMAGES.items()),
        *(long(name, "trainer.pt: refused, it carries code", carry_code) for name in ("zero2", "zero3", "fsdp")),
    ],
)
def test_damage_is_named_on_every_rank_and_the_older_one_serves(
    tmp_path: Path, finished: Callable[[str], Run], strategy: str, complaint: str, damage: Callable[[Path], None]
) -> None:
    run = dataclasses.replace(finished(strategy), folder=tmp_path / "run")
    shutil.copytree(finished(strategy).folder, run.folder)
    shutil.rmtree(step_folder(run.checkpoints, 12))
    for path in run.folder.glob("out_*"):
        path.unlink()
    damage(step_folder(run.checkpoints, 8))
    assert start(dataclasses.replace(run, resume=step_folder(run.checkpoints, 8))) == [1, 1]
    for rank in range(2):
        assert complaint in (run.folder / f"out_{rank}.txt").read_text()
    assert complete_steps(run.checkpoints)[0] == 4 and resume(run) == step_folder(run.checkpoints, 4)
    assert not (run.folder / "it_ran").exists()
    goes_on(run, finished(strategy))


@pytest.mark.parametrize("strategy", [long("zero2"), long("zero3"), long("fsdp")])
def test_full_disk_then_read_only_then_room_again(
    tmp_path: Path, small_disk: Path, finished: Callable[[str], Run], strategy: str
) -> None:
    run = dataclasses.replace(finished(strategy), folder=tmp_path / "run")
    first = step_folder(finished(strategy).checkpoints, 4)
    pages = sum(-(-file.stat().st_size // 4096) for file in first.iterdir())
    remount(small_disk, f"size={(pages * 3 // 2) * 4}k")  # for one, and half of another
    assert start(run) == [1, 1]
    assert output(run).count("could not be written (No space left on device)") >= 2, "on every rank"
    newest = resume(run)
    assert newest == step_folder(run.checkpoints, 4)
    remount(small_disk, "size=4m,ro")
    assert start(dataclasses.replace(run, resume=newest)) == [1, 1]
    assert "Read-only file system" in output(run)
    assert resume(run) == newest
    remount(small_disk, "rw")
    goes_on(run, finished(strategy))


@pytest.mark.parametrize("strategy", [long("zero2"), long("zero3"), long("fsdp")])
def test_the_checkpoint_of_another_model_is_refused(
    tmp_path: Path, finished: Callable[[str], Run], strategy: str
) -> None:
    newest = resume(finished(strategy))
    before = sorted((path, path.stat().st_mtime_ns) for path in finished(strategy).checkpoints.rglob("*"))
    run = Run(tmp_path / "run", 2, strategy=strategy, width=20, max_steps=14, resume=newest)
    assert start(run) == [1, 1]
    for rank in range(2):
        assert (
            "model.embed.weight has shape [31, 24], in the model it is [31, 20]"
            in (run.folder / f"out_{rank}.txt").read_text()
        )
    assert sorted((path, path.stat().st_mtime_ns) for path in finished(strategy).checkpoints.rglob("*")) == before
