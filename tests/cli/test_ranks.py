"""Two processes: one writes the folder, all read one configuration, any of them can be asked to stop."""

import json
import os
import socket
from pathlib import Path

import pytest

from tests.cli.launching import TOY, Live, environment, errors, json_lines, launch

DDP = ["--config", TOY, "--config", "configs/strategy/ddp.yaml", "--data.micro_batch_size", "2"]


def test_a_run_of_two_ranks_stops_by_a_signal_to_the_second_and_goes_on(tmp_path: Path) -> None:
    words = [*DDP, "--trainer.devices", "2", "--run.dir", str(tmp_path)]
    done = launch("fit", *words, "--model.ends", "term", "--model.ends_at", "3")
    assert done.returncode == 75, done.stderr
    stored = ["fit", "--config", f"{tmp_path}/config.next.yaml"]
    assert f"rank 1 was started with {stored}" in done.stdout.splitlines()
    assert done.stdout.count("method: Toy") == 1
    assert "batch: 8 = 2 ranks x 2 micro-batches of 2, up to 128 tokens a step" in done.stdout
    assert done.stdout.count("step 3\n") == 2
    assert "step 4" not in done.stdout
    done = launch("fit", *words)
    assert done.returncode == 0, done.stderr
    resumed = [*stored, "--run.checkpoint", f"{tmp_path}/checkpoints/step_00000003"]
    assert f"rank 1 was started with {resumed}" in done.stdout.splitlines()
    assert [line["step"] for line in json_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    ledger = [(line["attempt"], line["event"], line["reason"]) for line in json_lines(tmp_path / "ledger.jsonl")]
    assert ledger == [
        (1, "start", "new"), (1, "end", "a signal to another rank"),
        (2, "start", "resumed after step 3"), (2, "end", "done"),
    ]  # fmt: skip


def test_ranks_of_one_machine_that_do_not_fit_are_refused_before_the_model(tmp_path: Path) -> None:
    words = [*DDP, "--trainer.devices", "auto", "--run.dir", str(tmp_path), "--data.micro_batch_size", "16"]
    (line,) = errors(launch("fit", *words))
    assert line.startswith("data.global_batch_size = 8 (tests/cli/toy.yaml:7): must be a multiple of")
    assert line.endswith("ranks = 1 (--trainer.devices)]")


def from_outside(run: Path, *words: str) -> list[tuple[int, str, str]]:
    """Start two ranks as srun does: each reads its own words, in which RANK is its number. Returns how they ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = []
    for rank in ("0", "1"):
        own = [word.replace("RANK", rank) for word in words]
        ranks.append(
            Live("fit", *DDP, "--trainer.devices", "2", "--run.dir", str(run), *own, LOCAL_RANK=rank, **shared)
        )
    return [rank.end() for rank in ranks]


@pytest.mark.matrix
def test_a_damaged_checkpoint_is_passed_over_by_ranks_that_have_not_read_it(tmp_path: Path) -> None:
    assert [code for code, *_ in from_outside(tmp_path, "--trainer.max_steps", "4")] == [0, 0]
    shard = tmp_path / "checkpoints" / "step_00000004" / "shard_00000.pt"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (code_0, stdout, stderr_0), (code_1, _, stderr_1) = from_outside(tmp_path)
    assert (code_0, code_1) == (0, 0), stderr_0 + stderr_1
    assert "shard_00000.pt: its SHA-256 is" in stderr_0 and "going on after step 2" in stdout
    assert [line["step"] for line in json_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_ranks_with_different_configurations_are_refused(tmp_path: Path) -> None:
    (code_0, _, stderr_0), (code_1, _, stderr_1) = from_outside(tmp_path, "--model.language", "xRANK")
    assert (code_0, code_1) == (1, 1)
    assert stderr_0 == "error: the ranks were started with different configurations; give all of them the same files\n"
    assert "error:" not in stderr_1
    assert len(json_lines(tmp_path / "ledger.jsonl")) == 2, "the second rank writes nothing"
    assert json.loads((tmp_path / "outcome.json").read_text())["code"] == 1


def test_a_collective_that_ends_while_a_rank_leaves_does_not_abort_it(tmp_path: Path) -> None:
    """Python must not be taken down then; here it would be for two seconds, in which nobody else gets its lock."""
    (tmp_path / "sitecustomize.py").write_text("import atexit\n\natexit.register(sum, range(150_000_000))\n")
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    run = ["--trainer.devices", "2", "--run.dir", str(tmp_path / "run")]
    done = launch("fit", *DDP, *run, "--callbacks.unfinished.class=tests.cli.toy.Unfinished", PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["reason"] == "done"


def test_deepspeed_runs_where_the_trainer_says(tmp_path: Path) -> None:
    words = ["--config", TOY, "--config", "configs/strategy/zero2.yaml", "--trainer.accelerator", "cpu"]
    found = {"DS_ACCELERATOR": "cuda"}  # what it chooses by itself on a machine with GPUs
    done = launch("fit", *words, "--trainer.max_steps", "2", "--run.dir", str(tmp_path), **found)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in json_lines(tmp_path / "metrics.jsonl")] == [1, 2]
