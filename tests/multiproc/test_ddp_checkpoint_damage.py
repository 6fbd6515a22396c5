"""What is damaged, full or foreign is named, and nothing that was saved is lost."""

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from launch.config.errors import ConfigError
from launch.strategies.replicas import single
from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.checkpoint.verify import complete_steps
from tests.multiproc.checkpoint_toy import Run, Toy, output, result, resume, start, step_folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("checkpoints") / "run", world_size=2)
    assert start(run) == [0, 0], output(run)
    return run


def flip(folder: Path) -> None:
    path = folder / "shard_00001.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    (folder / "shard_00001.pt").write_bytes((folder / "shard_00001.pt").read_bytes()[:1000])


def edit(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 8', '"step": 9'))


def swap(folder: Path) -> None:
    shutil.copy(step_folder(folder.parent, 4) / "shard_00001.pt", folder)


DAMAGES = {
    "shard_00001.pt: its SHA-256 is": flip,
    "shard_00001.pt: has 1000 bytes": truncate,
    "shard_00001.pt: is missing": lambda folder: (folder / "shard_00001.pt").unlink(),
    "manifest.json: was changed": edit,
    "belongs to another save": swap,
}


@pytest.mark.parametrize(("complaint", "damage"), DAMAGES.items())
def test_damage_is_named_on_every_rank_and_the_older_one_serves(
    tmp_path: Path, finished: Run, complaint: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = dataclasses.replace(finished, folder=tmp_path / "run")
    shutil.copytree(finished.folder, run.folder)
    shutil.rmtree(step_folder(run.checkpoints, 12))
    for path in run.folder.glob("out_*"):
        path.unlink()
    newest = step_folder(run.checkpoints, 8)
    damage(newest)
    assert start(dataclasses.replace(run, resume=newest)) == [1, 1]
    for rank in range(2):
        assert complaint in (run.folder / f"out_{rank}.txt").read_text()
    assert resume(run) == step_folder(run.checkpoints, 4)
    assert complaint in caplog.text
    assert start(dataclasses.replace(run, resume=resume(run))) == [0, 0], output(run)
    assert result(run) == result(finished)
    assert complete_steps(run.checkpoints) == [4, 8, 12]
    assert resume(run) == step_folder(run.checkpoints, 12)
    shutil.rmtree(step_folder(run.checkpoints, 12))
    assert resume(run) == newest  # it was replaced by a good one when the run came by again


def test_an_error_of_one_rank_ends_all_at_the_next_step(tmp_path: Path) -> None:
    for rank in range(2):
        run = Run(tmp_path / f"rank_{rank}", world_size=2, kill=("write", 1), kill_rank=rank, raises=True)
        assert start(run) == [1, 1]
        for other in range(2):
            text = (run.folder / f"out_{other}.txt").read_text()
            assert f"CheckpointError: {run.checkpoints}" in text
            assert f"shard_0000{rank}.pt: could not be written (Input/output error)" in text
        assert resume(run) == step_folder(run.checkpoints, 4)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_exception_does_not_cost_the_save_in_flight(tmp_path: Path, world_size: int) -> None:
    run = Run(tmp_path / "run", world_size, kill=("step", 4), raises=True)
    assert start(run) == [1] * world_size
    assert "the data are at fault" in output(run)
    assert resume(run) == step_folder(run.checkpoints, 4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_full_disk_then_read_only_then_room_again(tmp_path: Path, small_disk: Path, finished: Run) -> None:
    run = dataclasses.replace(finished, folder=tmp_path / "run")
    assert start(run) == [1, 1]
    assert "could not be written (No space left on device)" in output(run)
    newest = resume(run)
    assert newest is not None
    remount(small_disk, "size=4m,ro")
    assert start(dataclasses.replace(run, resume=newest)) == [1, 1]
    assert "Read-only file system" in output(run)
    assert resume(run) == newest
    remount(small_disk, "rw")
    assert start(dataclasses.replace(run, resume=newest)) == [0, 0], output(run)
    assert result(run) == result(finished)
    assert not list(small_disk.glob(".*"))


def test_devices_that_nobody_uses_are_refused(tmp_path: Path) -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=single(), logger=False, max_steps=1)
    with pytest.raises(ConfigError, match=r"trainer\.devices: strategy single uses one of 2 devices"):
        trainer.fit(Toy(Run(tmp_path)), [])


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, finished: Run) -> None:
    newest = resume(finished)
    cases = {
        "embed.weight has shape [31, 6], in the model it is [31, 7]": {"width": 7},
        "was saved with AdamW, this run has SGD": {"optimizer": "SGD"},
        "optimizer Adafactor: keeps row_var of shape": {"optimizer": "Adafactor", "resume": None},
    }
    for index, (complaint, changes) in enumerate(cases.items()):
        run = Run(tmp_path / str(index), **{"max_steps": 14, "resume": newest, **changes})
        assert start(run) == [1]
        assert complaint in output(run)


@pytest.mark.parametrize("world_size", [1, 2])
def test_validate_and_test_load_the_weights(tmp_path: Path, finished: Run, world_size: int) -> None:
    weights = read_weights(resume(finished))
    assert sorted(weights) == sorted(
        ["embed.weight", "norm.weight", "norm.bias", "mix.weight", "mix.bias", "scale", "frozen.weight", "seen"]
    )
    for name, tensor in torch.load(finished.folder / "weights.pt", weights_only=True).items():
        assert name == "head.weight" or torch.equal(weights[name], tensor)
    expected = sum(weights[name].double().sum() for name in ("embed.weight", "frozen.weight", "seen")).item()
    for task in ("validate", "test"):
        run = Run(tmp_path / task, world_size, task=task, resume=resume(finished))
        assert start(run) == [0] * world_size, output(run)
        assert json.loads((run.folder / f"{task}_0.json").read_text()) == pytest.approx(expected, rel=1e-9)
