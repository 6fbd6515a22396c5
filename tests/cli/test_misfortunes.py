"""What befalls a run from outside: a full disk, a long TMPDIR, few open files, another run's checkpoint."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.launching import ROOT, TOY, environment, errors, json_lines, launch

WORKERS = ["fit", "--config", "configs/finetune/debug.yaml", "--data.num_workers", "2", "--trainer.max_steps", "2",
           "--callbacks.validation", "null"]  # fmt: skip


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = Path(tempfile.mkdtemp())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("a disk of its own can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
    folder.rmdir()


def test_a_full_disk_is_told_once_and_the_run_goes_on_later(small_disk: Path) -> None:
    run = small_disk / "run"
    words = ["fit", "--config", TOY, "--run.dir", str(run), "--callbacks.checkpoint.every_n_steps", "1",
             "--callbacks.checkpoint.keep_last", "100000", "--callbacks.shout", "null"]  # fmt: skip
    full = launch(*words, "--trainer.max_steps", "100000")
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in line and str(run) in line
    saved = sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))
    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    again = launch(*words, "--trainer.max_steps", str(saved[-1] + 3))
    assert again.returncode == 0, again.stderr
    assert f"going on after step {saved[-1]}" in again.stdout
    steps = [line["step"] for line in json_lines(run / "metrics.jsonl")]
    assert steps[-1] == saved[-1] + 3 and len(steps) == len(set(steps))


def test_workers_need_no_short_tmpdir(tmp_path: Path) -> None:
    """Batch systems set long ones, and the path of a socket has 107 characters (riga/law#184)."""
    folder = tmp_path / ("a" * 60) / ("b" * 50)
    folder.mkdir(parents=True)
    done = launch(*WORKERS, "--run.dir", str(tmp_path / "run"), "--data.cache_dir", str(tmp_path / "cache"),
                  seconds=120, TMPDIR=str(folder))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "AF_UNIX" not in done.stderr


def test_few_open_files_end_the_run_with_their_reason(tmp_path: Path) -> None:
    words = [*WORKERS, "--run.dir", str(tmp_path / "run"), "--data.cache_dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "launch", *words, "--data.num_workers", "8"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=150,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)))  # fmt: skip
    assert done.returncode in (0, 1)
    if done.returncode:
        assert "Traceback" not in done.stderr.split("error: ")[0], done.stderr
        assert any("open" in line and "files" in line for line in done.stderr.splitlines()), done.stderr


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder, seed in ((mine, "3"), (other, "4")):
        done = launch("fit", "--config", TOY, "--seed", seed, "--trainer.max_steps", "4", "--run.dir", str(folder))
        assert done.returncode == 0, done.stderr
    shutil.rmtree(mine / "checkpoints/step_00000004")
    shutil.copytree(other / "checkpoints/step_00000004", mine / "checkpoints/step_00000004")
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file() and path.name != "lock"}
    words = ["fit", "--config", TOY, "--run.dir", str(mine), "--trainer.max_steps", "6"]
    (line,) = errors(launch(*words))
    assert "step_00000004: is of another run: its seed is 4, not 3; take it away" in line
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree(mine / "checkpoints/step_00000004")
    assert launch(*words).returncode == 0
    assert os.path.isdir(mine / "checkpoints/step_00000006")
