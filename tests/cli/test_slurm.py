"""`launch slurm`, and `launch fit` in the environment of a job; a real SLURM is in tests/slurm."""

import os
import sys
from pathlib import Path

import pytest

from tests.cli.launching import TOY, errors, launch, light

SIZE = ["--nodes", "2", "--tasks-per-node", "1", "--time", "8:00:00"]
DDP = ["--config", TOY, "--config", "configs/strategy/ddp.yaml", "--data.micro_batch_size", "1"]
STEP = {
    **{"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
    **{"SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_JOB_NODELIST": "nowhere[1-2].invalid"},
}


def test_a_script_without_heavy_packages(tmp_path: Path) -> None:
    done = light("slurm", *DDP, *SIZE, "--run.dir", str(tmp_path / "run"))
    assert (done.returncode, done.stderr) == (0, "")
    script = tmp_path / "run" / "job.sbatch"
    assert done.stdout.splitlines()[0].startswith(f"{script}: 2 nodes x 1 task, warned 120 s before the end")
    assert done.stdout.splitlines()[1] == f"submit it with: sbatch {script}"
    assert script.read_text().startswith("#!/bin/bash\n#SBATCH --job-name=")
    assert light("slurm", "--help").stdout.startswith("usage: python -m launch slurm --config FILE")


def test_the_shipped_configurations_can_be_jobs(tmp_path: Path) -> None:
    words = ["--config", "configs/electra/base.yaml", "--config", "configs/strategy/zero2.yaml"]
    size = ["--nodes", "4", "--gpus-per-node", "8", "--time", "1-0"]
    micro = ["--data.micro_batch_size", "8", "--config", "configs/trainer/gpu.yaml", "--trainer.devices", "auto"]
    done = light("slurm", *words, *micro, *size, "--run.dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --gres=gpu:8\n" in (tmp_path / "job.sbatch").read_text()


def test_the_copied_code_answers_by_itself(tmp_path: Path) -> None:
    done = light("slurm", *DDP, *SIZE, "--snapshot", "--run.dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (copy,) = (tmp_path / "code").iterdir()
    assert (copy / "lightning_modules" / "electra" / "objective.py").is_file()
    assert not (copy / "tests").exists()
    assert f"launch=({sys.executable} {copy})" in (tmp_path / "job.sbatch").read_text()
    again = light("slurm", *DDP, *SIZE, "--snapshot", "--run.dir", str(tmp_path))
    assert again.returncode == 0
    assert [*(tmp_path / "code").iterdir()] == [copy], "the same code is copied once"


def test_sbatch_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    (line,) = errors(light("slurm", *DDP, *SIZE, "--submit", "--run.dir", str(tmp_path / "run"), PATH="/nowhere"))
    assert line == "--submit: there is no sbatch here; run the command on a login node, or without --submit"
    assert not (tmp_path / "run").exists()


def test_what_sbatch_refuses_is_told(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(
        '#!/bin/sh\nenv | grep SLURM_ >&2\necho "sbatch: error: no such partition" >&2\nexit 1\n'
    )
    (tools / "sbatch").chmod(0o755)
    found = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "3"}
    (line,) = errors(light("slurm", *DDP, *SIZE, "--submit", "--run.dir", str(tmp_path / "run"), **found))
    assert line == f"sbatch refused {tmp_path}/run/job.sbatch: sbatch: error: no such partition"


def test_words_of_the_batch_script_are_for_it_alone(tmp_path: Path) -> None:
    assert errors(light("slurm", "begin", str(tmp_path))) == [
        "slurm begin: is called by a batch script; write one with --time ..."
    ]
    assert errors(light("slurm", "table")) == ["slurm table: give the folder of a sweep, and nothing else"]
    (line,) = errors(light("slurm", "table", str(tmp_path)))
    assert line.startswith(f"{tmp_path}: no sweep; ")


@pytest.mark.parametrize(
    ("words", "found", "message"),
    [
        ([], {}, "SLURM_JOB_NODELIST = 'nowhere[1-2].invalid' (environment): its first node is nowhere1.invalid: "),
        ([], {"MASTER_ADDR": "nowhere.invalid"}, "MASTER_ADDR = 'nowhere.invalid' (environment): "),
        (["--trainer.devices", "2"], {}, "trainer.devices = 2 (--trainer.devices): the SLURM job has 1 task on"),
        (["--trainer.num_nodes", "3"], {}, "trainer.num_nodes = 3 (--trainer.num_nodes): the SLURM job has 2 nodes"),
        (["--strategy", "single"], {}, "strategy.class = single (--strategy): is one process, the SLURM job has 2"),
        ([], {"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_NTASKS": "3"}, "SLURM_STEP_TASKS_PER_NODE = '2,1' (envi"),
        ([], {"SLURM_STEP_ID": ""}, "SLURM_NTASKS = 2 (environment): the job has 2 tasks and this process is none of "),
        (["--trainer.accelerator", "auto"], {"SLURM_GPUS_ON_NODE": "4"}, "SLURM_GPUS_ON_NODE = 4 (environment): "),
        (["--data.micro_batch_size", "3"], {}, "data.global_batch_size = 8 (tests/cli/toy.yaml:7): must be a"),
    ],
)  # fmt: skip
def test_a_rank_that_cannot_run_says_so_at_once(words: list[str], found: dict, message: str, tmp_path: Path) -> None:
    """Before torch is imported, and before anything waits for another rank."""
    (line,) = errors(light("fit", *DDP, *words, "--run.dir", str(tmp_path / "run"), **{**STEP, **found}))
    assert line.startswith(message)
    assert not (tmp_path / "run").exists()


def test_one_process_in_the_shell_of_a_job(tmp_path: Path) -> None:
    """As after `salloc --ntasks 1`, or in a batch script without srun: one rank, and Lightning looks no further."""
    found = {**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_ID": "", "SLURM_JOB_NAME": "job", "SLURM_NTASKS_PER_NODE": "1"}
    done = launch("fit", "--config", TOY, "--run.dir", str(tmp_path), "--trainer.max_steps", "2", **found)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "step 2 of 2" in done.stdout


def test_a_stop_that_was_asked_for_before_python_was_there(tmp_path: Path) -> None:
    (tmp_path / "asked").touch()
    words = ["fit", "--config", TOY, "--run.dir", str(tmp_path / "run")]
    done = launch(*words, TOKAMAK_STOP_REQUESTED=str(tmp_path / "asked"))
    assert done.returncode == 75, done.stderr
    assert "SIGUSR1: stopping after at most 3 more steps" in done.stderr
    done = launch(*words, TOKAMAK_STOP_REQUESTED=str(tmp_path / "gone"))
    assert done.returncode == 0, done.stderr
