"""What `launch slurm` takes, and the script that it writes: bash reads it, nothing of it is run by accident."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from launch import slurm
from launch.config.errors import ConfigError
from launch.config.tasks import Tasks
from launch.jobs.options import OPTIONS, parse, seconds_of, usage
from launch.jobs.script import Job, check, text
from launch.jobs.sweep import Member, members, split

TOY = ["--config", "tests/cli/toy.yaml"]
DDP = ["--config", "configs/strategy/ddp.yaml", "--data.micro_batch_size", "2"]
SIZE = ["--nodes", "2", "--tasks-per-node", "2", "--time", "8:00:00"]


def planned(*words: str, run: Path) -> Job:
    return slurm.plan(parse([*TOY, *words, "--run.dir", str(run)]))


def problems(*words: str, run: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        slurm.main([*TOY, *words, "--run.dir", str(run)])
    return list(caught.value.problems)


def header(job: Job) -> list[str]:
    """Return the words of the #SBATCH lines, as sbatch splits them."""
    lines = text(job).splitlines()
    return [word for line in lines if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]


def test_a_script_of_two_nodes(tmp_path: Path) -> None:
    site = ["--partition", "long", "--mem", "64G", "--cpus-per-task", "8", "--sbatch", "--exclude=n[3-4]", "--sbatch",
            "--comment=a b; $(touch x)"]  # fmt: skip
    job = planned(*DDP, *SIZE, *site, run=tmp_path / "my run%")
    assert header(job) == [
        "--job-name=" + f"{tmp_path.name}-my_run_",
        "--nodes=2",
        "--ntasks-per-node=2",
        "--time=8:00:00",
        "--signal=B:USR1@120",
        "--requeue",
        "--open-mode=append",
        f"--output={tmp_path}/my run%%/slurm-%j.out",
        "--partition=long",
        "--mem=64G",
        "--cpus-per-task=8",
        "--exclude=n[3-4]",
        "--comment=a b; $(touch x)",
    ]
    script = text(job)
    assert "srun --label --kill-on-bad-exit=0 --wait=60 " in script
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in script
    assert "--gres" not in script
    check(script)
    assert shlex.split(next(line for line in script.splitlines() if line.startswith("run=")))[:2] == [
        f"run={tmp_path}/my run%", "steps=6",
    ]  # fmt: skip


def test_gpus(tmp_path: Path) -> None:
    job = planned(
        *DDP, "--trainer.accelerator", "gpu", "--gpus-per-node", "a100:2", "--time", "60", run=tmp_path / "run"
    )
    assert "--gres=gpu:a100:2" in header(job)
    assert "--ntasks-per-node=2" in header(job)
    assert job.tasks == Tasks(1, 2)


def test_nothing_of_the_configuration_is_run(tmp_path: Path) -> None:
    """The part of the script that names things, run by bash: every hostile word arrives as it was."""
    run = tmp_path / "a'b $(touch hit) `touch hit` \" ; touch hit"
    hostile = "x'y $(touch hit) `touch hit`\\ \" * ; touch hit # é"
    member = Member("one", {"model.language": hostile})
    job = Job(run=run, name="n", tasks=Tasks(1, 1), time="5", lead=31, launch=["python"], config=run / "c.yaml",
              steps=[1], members=[member], cwd=tmp_path)  # fmt: skip
    lines = text(job).split("asked=''")[0]
    shown = f'{lines}\nprintf "%s\\n" "$run" "${{values[@]}}"'
    done = subprocess.run(["bash", "-c", shown], env={"SLURM_ARRAY_TASK_ID": "0", "PATH": "/usr/bin:/bin"}, text=True,
                          capture_output=True, cwd=tmp_path)  # fmt: skip
    assert done.stdout.splitlines() == [f"{run}/one", f"--model.language={hostile}"]
    assert [path.name for path in tmp_path.iterdir()] == []
    check(text(job))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--nodes", "0"], "--nodes 0: expected a whole number"),
        (["--nodes", "2\n#SBATCH --x"], "--nodes 2\\n#SBATCH --x: expected a whole number"),
        (["--partition", "a b"], "--partition a b: expected a name"),
        (["--partition", "a;b"], "--partition a;b: expected a name"),
        (["--time", "soon"], "--time soon: expected minutes, h:mm:ss or d-hh:mm:ss"),
        (["--mem", "-1"], "--mem -1: expected a size as 64G"),
        (["--sbatch", "x=1"], "--sbatch x=1: expected --name or --name=value"),
        (["--sbatch", "--comment=a\nb"], "--sbatch --comment=a\\nb: expected --name or --name=value"),
        (["--sbatch", "--signal=USR2@5"], "--sbatch --signal=USR2@5: launch writes that line; see"),
        (
            ["--sbatch", "--sig=USR2@5"],
            "--sbatch --sig=USR2@5: launch writes that line, and sbatch may take it for --sig",
        ),
        (["--sbatch", "--tim=5"], "--sbatch --tim=5: launch writes that line, and sbatch may take it for --time; see"),
        (
            ["--sbatch", "--no-req"],
            "--sbatch --no-req: launch writes that line, and sbatch may take it for --no-requeue",
        ),
        (["--time", "\u0663\u0660\u0660"], "--time \u0663\u0660\u0660: expected minutes, h:mm:ss"),
        (["--time", "99:99:99"], "--time 99:99:99: expected minutes, h:mm:ss"),
        (["--time", "1-\u0661\u0662"], "--time 1-\u0661\u0662: expected minutes, h:mm:ss"),
        (["--job-name", ""], "--job-name (nothing): expected a name"),
        (["--submit=yes"], "--submit: takes no value"),
        (["--mem", "1G", "--mem", "2G"], "--mem 2G: given twice; keep one"),
        (["--node", "2"], "--node: no such flag; did you mean --nodes?"),
    ],
)
def test_words_that_no_option_takes(words: list[str], complaint: str, tmp_path: Path) -> None:
    (problem,) = problems(*words, run=tmp_path / "run")
    assert problem.startswith(complaint)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "complaints"),
    [
        ([], ["--time: required", "--gpus-per-node G for jobs on GPUs"]),
        (["--time", "60", "--gpus-per-node", "1", "--tasks-per-node", "1"], ["--gpus-per-node G for jobs on GPUs"]),
        ([*SIZE], ["strategy.class = single (launch default): is one process, the SLURM job has 4"]),
        (
            [*DDP, *SIZE, "--trainer.devices", "3", "--trainer.num_nodes", "1"],
            [
                "trainer.devices = 3 (--trainer.devices): the SLURM job has 2 tasks on each node",
                "trainer.num_nodes = 1 (--trainer.num_nodes): the SLURM job has 2 nodes",
            ],
        ),
        (
            [*DDP, "--tasks-per-node", "3", "--time", "60"],
            ["data.global_batch_size = 8 (tests/cli/toy.yaml:7): must be a multiple of micro_batch_size x ranks = 2"],
        ),
        ([*DDP, *SIZE, "--model.hiden_size", "3"], ["model.hiden_size = 3 (--model.hiden_size): not an option of Toy"]),
        ([*DDP, *SIZE, "--callbacks.checkpoint", "null"], ["callbacks.checkpoint: a job that is stopped must save"]),
        ([*DDP, *SIZE, "--run.checkpoint", "4"], ["run.checkpoint = 4 (--run.checkpoint): not for a job: every"]),
        ([*DDP, *SIZE, "--run.max_wall_time", "60"], ["run.max_wall_time = 60 (--run.max_wall_time): not for a job"]),
        ([*DDP, "--gpus-per-node", "2", "--time", "60"], ["trainer.accelerator = cpu (tests/cli/toy.yaml:8): --gpus"]),
        ([*DDP, *SIZE, "--trainer.accelerator", "gpu"], ["trainer.accelerator = gpu (--trainer.accelerator): the job"]),
        ([*DDP, *SIZE, "--lead", "30"], ["--lead 30: must be above 30"]),
        ([*DDP, *SIZE[:-2], "--time", "2"], ["--time 2: too short: 120 s are kept for the end of an attempt"]),
        ([*DDP, *SIZE, "--setup", "none.sh"], ["--setup none.sh: cannot be read"]),
        ([*DDP, *SIZE, "--array-limit", "2"], ["--array-limit: is for sweeps"]),
        ([*DDP, *SIZE, "--array", "model.learning_rate"], ["--array model.learning_rate: write KEY=VALUE,VALUE,..."]),
        ([*DDP, *SIZE, "--array", "model.rate=1,2"], ["model.rate = 1 (--model.rate): not an option of Toy"]),
        ([*DDP, *SIZE, "--array", "seed=1,x"], ["seed = x (--seed): expected int"]),
        ([*DDP, *SIZE, "--array", "run.dir=a,b"], ["--array run.dir=a,b: run.dir is the same for the whole sweep"]),
        ([*DDP, *SIZE, "--array", "seed=1,2", "--array", "seed=3"], ["--array seed=3: seed is given twice"]),
        ([*DDP, *SIZE, "--array", "model.language=a/b,a:b"], ["--array: two runs would have the folder model.la"]),
    ],
)  # fmt: skip
def test_jobs_that_could_not_run(words: list[str], complaints: list[str], tmp_path: Path) -> None:
    found = problems(*words, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(found) == len(complaints), found
    for problem, complaint in zip(found, complaints, strict=True):
        assert problem.startswith(complaint)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (problem,) = problems(*DDP, *SIZE, run=tmp_path / "file" / "run")
    assert problem.endswith("cannot be used: Not a directory; give another one")
    (problem,) = problems(*DDP, *SIZE, run=tmp_path / "a\nb")
    assert problem.endswith('a\\nb" (--run.dir): must be on one line, without control characters')
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").touch()
    (problem,) = problems(*DDP, *SIZE, "--run.fresh", run=tmp_path / "old")
    assert problem.startswith(f"run.fresh = true: {tmp_path}/old exists")


def test_a_setup_file_comes_first_and_must_be_bash(tmp_path: Path) -> None:
    setup = tmp_path / "setup.sh"
    setup.write_text("module load cuda/13\nexport NCCL_DEBUG=WARN\n")
    script = text(planned(*DDP, *SIZE, "--setup", str(setup), run=tmp_path / "run"))
    assert script.index("unset RANK") < script.index("module load cuda/13\nexport NCCL") < script.index("slurm begin")
    setup.write_text("if true; then\n")
    (problem,) = problems(*DDP, *SIZE, "--setup", str(setup), run=tmp_path / "run")
    assert problem.startswith("--setup: the script is not one that bash can read: ")


@pytest.mark.parametrize(
    ("commands", "problem"),
    [
        ("cat <<END > file\nmodule load cuda\n", "here-document"),
        ("start() {\n", "is not one that bash can read"),
        ("export A='b\n", "is not one that bash can read"),
        ("module load x\nexec true\n", "--setup: line 2: 'exec true' would end the job as if it were done"),
        ("cd /x && exec env/bin/activate\n", "line 1: 'exec env/bin/activate' would end"),
        ("set -n\n", "line 1: 'set -n' would end"),
        ("trap - EXIT; exit 0\n", "line 1: 'trap - EXIT' would end"),
        ("module load cuda\r\n", ":1: lines end as on Windows; save it with LF"),
        ("module load cuda\nexport A=\x1b[31m\n", ":2: control character '\\x1b'"),
        ("#" * 300_000, "is over 256 KiB; let it call a script of yours"),
        ("\ud800", "cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_a_setup_file_leaves_nothing_open(commands: str, problem: str, tmp_path: Path) -> None:
    setup = tmp_path / "setup.sh"
    setup.write_text(commands, errors="surrogatepass")
    (found,) = problems(*DDP, *SIZE, "--setup", str(setup), run=tmp_path / "run")
    assert problem in found
    assert not (tmp_path / "run").exists()


def test_a_setup_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", "/dev/zero", tmp_path):
        (found,) = problems(*DDP, *SIZE, "--setup", str(file), run=tmp_path / "run")
        assert found == f"--setup {file}: is not a regular file; save the commands in one"


@pytest.mark.parametrize(
    ("commands", "code", "said"),
    [
        ("export A=1", 0, "went on with 1\n"),
        ("exit 0", 1, ""),
        ("exec 3>&1; export A=5; set -o pipefail", 0, "went on with 5\n"),
        ("export A=2; set -eu", 0, "went on with 2\n"),
        ("trap 'echo bye' EXIT; A=3", 0, "went on with 3\nbye\n"),
    ],
)
def test_a_job_goes_on_after_its_setup_or_fails(commands: str, code: int, said: str, tmp_path: Path) -> None:
    setup = tmp_path / "setup.sh"
    setup.write_text(commands)
    script = text(planned(*DDP, *SIZE, "--setup", str(setup), run=tmp_path / "run"))
    begun = script[script.index("trap 'echo") : script.index("export PYTHONPATH")]
    done = subprocess.run(["bash", "-c", f"{begun}\nfalse\necho went on with $A"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, said)
    assert ("the commands of --setup ended the job" in done.stderr) is bool(code)


def test_a_job_keeps_the_configuration_that_it_was_written_with(tmp_path: Path) -> None:
    first = planned(*DDP, *SIZE, run=tmp_path / "run")
    assert "learning_rate: 0.05" in first.config.read_text()
    assert "devices" not in first.config.read_text(), "the nodes are the job's to say, today's or the next one's"
    second = planned(*DDP, *SIZE, "--model.learning_rate", "0.5", run=tmp_path / "run")
    assert first.config != second.config
    assert "learning_rate: 0.05" in first.config.read_text()
    assert planned(*DDP, *SIZE, run=tmp_path / "run").config == first.config


def test_a_sweep_is_a_product(tmp_path: Path) -> None:
    sweep = ["--array", "model.learning_rate=1e-4,2e-4", "--array", "trainer.max_steps=5,6", "--array-limit", "3"]
    job = planned(*DDP, *SIZE, *sweep, run=tmp_path / "run")
    assert [member.name for member in job.members] == [
        f"model.learning_rate={rate},trainer.max_steps={steps}" for rate in ("1e-4", "2e-4") for steps in (5, 6)
    ]
    assert job.steps == [5, 6, 5, 6]
    assert "--array=0-3%3" in header(job)
    assert f"--output={tmp_path}/run/slurm-%A_%a.out" in header(job)
    assert "--model.learning_rate=2e-4 --trainer.max_steps=6)" in text(job)
    check(text(job))


def test_values_with_commas() -> None:
    assert split("1,2") == ["1", "2"]
    assert split('[1,2],[3,4],"a,b",{a: [1, 2]}') == ["[1,2]", "[3,4]", '"a,b"', "{a: [1, 2]}"]
    assert members(["model.betas=[.9,.95],[.9,.99]"])[1].words == ["--model.betas=[.9,.99]"]
    with pytest.raises(ConfigError, match="1024 runs, at most 1000"):
        members([f"{letter}=1,2" for letter in "abcdefghij"])


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("5", 300), ("5:30", 330), ("1:00:30", 3630), ("2-3", 183600), ("1-0:30", 88200), ("1-1:1:1", 90061)],
)
def test_time_limits(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


def test_the_help_names_every_flag() -> None:
    assert all(f"--{name}" in usage() for name in OPTIONS)
