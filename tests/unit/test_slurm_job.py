"""What a batch script asks before and after srun, and what a rank learns from its job; no SLURM is needed."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import ranks
from launch.config.errors import ConfigError, HostError
from launch.config.resolved import resolve
from launch.config.tasks import JOB, Tasks
from launch.jobs import attempt, rendezvous, sweep
from launch.run_folder import RunFolder
from launch.slurm import _lead

DDP = ["--config", "tests/cli/toy.yaml", "--config", "configs/strategy/ddp.yaml", "--data.micro_batch_size", "1"]
STEP = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_NODELIST": "localhost"}  # fmt: skip


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be in job 17, and in no other; what the code puts into the environment goes with it."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("SLURM", "MASTER_", "TORCHELASTIC"))]:
        del os.environ[name]
    os.environ.update(SLURM_JOB_ID="17", SLURM_JOB_NODELIST="localhost")
    yield
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


def be_in(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    for name, value in {**STEP, **more}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("spread", "count", "tasks"),
    [
        ("2(x2)", "4", (2, 2)),
        ("1(x16)", "16", (16, 1)),
        ("8", "8", (1, 8)),
        ("4,4", "8", (2, 4)),
        ("2(x2),2", "6", (3, 2)),
    ],
)
def test_the_ranks_of_a_step(spread: str, count: str, tasks: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    be_in(monkeypatch, SLURM_STEP_TASKS_PER_NODE=spread, SLURM_NTASKS=count)
    assert ranks.tasks_of_job() == Tasks(*tasks)


@pytest.mark.parametrize("spread", ["2,1", "2(x2),1", "", "3"])
def test_nodes_with_unequal_tasks_are_refused(spread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_in(monkeypatch, SLURM_STEP_TASKS_PER_NODE=spread)
    with pytest.raises(ConfigError, match="every node needs the same number of the 4 tasks"):
        ranks.tasks_of_job()


@pytest.mark.parametrize("step", ["", "4294967291", "4294967290"])  # salloc, a batch script, an interactive step
def test_a_shell_inside_a_job_is_none_of_its_tasks(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_in(monkeypatch, SLURM_STEP_ID=step)
    with pytest.raises(ConfigError, match=r"^SLURM_NTASKS = 4 .* start it as `srun python -m launch \.\.\.`, or unset"):
        ranks.tasks_of_job()
    be_in(monkeypatch, SLURM_STEP_ID=step, SLURM_NTASKS="1", SLURM_PROCID="0")
    assert ranks.tasks_of_job() is None
    assert "SLURM_NTASKS" not in os.environ, "Lightning would take it for a rank of several"


def test_torchrun_inside_a_job_says_the_ranks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    be_in(monkeypatch, TORCHELASTIC_RUN_ID="x")
    assert ranks.tasks_of_job() is None


def test_idle_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    with pytest.raises(ConfigError, match=r"^SLURM_GPUS_ON_NODE = 8 .* give --ntasks-per-node=8"):
        ranks.check_devices(Tasks(2, 2), "auto")
    ranks.check_devices(Tasks(2, 8), "auto")
    ranks.check_devices(Tasks(2, 2), "cpu")


def test_children_are_no_ranks_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    be_in(monkeypatch, MASTER_ADDR="n1", MASTER_PORT="1", RANK="0", LOCAL_RANK="0", TOKAMAK_STOP_REQUESTED="x",
          PMI_RANK="0", SLURM_CONF="/etc/slurm.conf", MINE="yes")  # fmt: skip
    found = ranks.environment_for_children()
    assert found["MINE"] == "yes"
    assert found["PATH"] == os.environ["PATH"]
    assert [name for name in found if name.startswith(("SLURM", "MASTER", "TOKAMAK", "PMI")) or "RANK" in name] == [
        "SLURM_CONF"
    ]


def test_devices_and_nodes_are_the_job_s(tmp_path: Path) -> None:
    resolved = resolve([*DDP, "--run.dir", str(tmp_path)], "fit", Tasks(2, 4))
    assert (resolved.get("trainer.devices"), resolved.get("trainer.num_nodes")) == (4, 2)
    assert resolved.table[("trainer", "devices")].source == JOB
    assert "num_nodes" not in resolved.run_text()
    assert resolved.digest() == resolve([*DDP, "--run.dir", str(tmp_path)], "fit", Tasks(1, 4)).digest()
    resolve([*DDP, "--trainer.devices", "4", "--trainer.num_nodes", "2"], "fit", Tasks(2, 4))
    for devices in ("3", "[0, 1]"):
        with pytest.raises(ConfigError, match=r"^trainer.devices = .* has 4 tasks on each node; take the key away, or"):
            resolve([*DDP, "--trainer.devices", devices], "fit", Tasks(2, 4))


def test_what_a_run_of_another_size_stored_does_not_bind(tmp_path: Path) -> None:
    first = resolve([*DDP, "--trainer.devices", "2", "--run.dir", str(tmp_path)], "fit")
    (tmp_path / "config.yaml").write_text(first.run_text())
    (tmp_path / "run.json").write_text("{}")
    assert resolve(["--run.dir", str(tmp_path)], "fit", Tasks(2, 4)).get("trainer.devices") == 4
    with pytest.raises(ConfigError, match=r"^trainer\.devices = 2"):
        resolve(["--run.dir", str(tmp_path), "--trainer.devices", "2"], "fit", Tasks(2, 4))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[1-3,7],m4", "n1"), ("n[07]", "n07"), ("a[1,3]b[2-4],c", "a1b2"), ("", "")],
)
def test_the_first_node(nodes: str, first: str) -> None:
    assert rendezvous.first_node(nodes) == first


def test_ranks_agree_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    be_in(monkeypatch)
    rendezvous.settle_place()
    found = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    assert found[0] == "localhost"
    assert found[1] in rendezvous.PORTS
    monkeypatch.delenv("MASTER_ADDR"), monkeypatch.delenv("MASTER_PORT")
    monkeypatch.setenv("SLURM_PROCID", "0")
    rendezvous.settle_place()
    assert (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])) == found


def test_a_place_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    with pytest.raises(HostError, match=r"^MASTER_ADDR = 'nowhere.invalid' .* cannot resolve it: .* IP address"):
        rendezvous.settle_place()
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "soon")
    with pytest.raises(HostError, match=r"^MASTER_PORT = 'soon'"):
        rendezvous.settle_place()
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "nowhere[1-2].invalid")
    with pytest.raises(HostError, match=r"its first node is nowhere1.invalid: \S+ cannot resolve it"):
        rendezvous.settle_place()


def test_a_node_whose_name_does_not_resolve_is_met_at_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho NodeName=$4 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=$4\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "nowhere[1-2].invalid")
    assert rendezvous.node_address() == "127.0.0.1"


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.socket() as holder:
        _, port = rendezvous.meeting_place()
        holder.bind(("", port))
        holder.listen()
        _, other = rendezvous.meeting_place()
    assert other == port + 1 if port + 1 in rendezvous.PORTS else rendezvous.PORTS[0]


def folder_at(run: Path, step: int) -> RunFolder:
    """Make a run folder with a checkpoint of a step."""
    manifest = run / "checkpoints" / f"step_{step:08d}" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    return RunFolder(run)


def outcome(folder: RunFolder, code: int, step: int) -> None:
    """End an attempt as rank 0 does."""
    folder.attempt = 1 + max((line["attempt"] for line in folder.ledger()), default=0)
    folder.began = True
    folder.end(code, step, "test")


def test_only_a_warned_run_that_saved_is_requeued(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = folder_at(tmp_path, 5)
    for code, asked, srun, then in (
        (75, "USR1", 75, "requeue"), (75, "TERM", 143, "over"), (75, "", 75, "over"), (0, "USR1", 137, "over"),
        (3, "USR1", 3, "over"), (None, "USR1", 137, "over"),
    ):  # fmt: skip
        assert attempt.begin(folder, 100, 99) == 0
        host, port = capsys.readouterr().out.split()
        assert (host, int(port) in rendezvous.PORTS) == ("localhost", True)
        if code is not None:
            outcome(folder, code, 5)
        assert attempt.end(folder, 99, srun, asked, 7) == (srun if code is None else code)
        assert capsys.readouterr().out == ("requeue\n" if then == "requeue" else "")
        assert folder.job_lines()[-1]["then"] == then
        assert folder.job_lines()[-1]["srun"] == srun


def test_the_outcome_of_an_earlier_attempt_says_nothing(tmp_path: Path) -> None:
    folder = folder_at(tmp_path, 5)
    attempt.begin(folder, 100, 9)
    outcome(folder, 75, 5)
    attempt.end(folder, 9, 75, "USR1", 1)
    attempt.begin(folder, 100, 9)
    assert attempt.end(folder, 9, 137, "USR1", 1) == 137


def test_attempts_count_while_the_step_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_at(tmp_path, 5)
    for _ in range(2):
        assert attempt.begin(folder, 100, 2) == 0
    assert attempt.begin(folder, 100, 2) == 1
    assert folder.job_lines()[-1]["then"] == "capped"
    folder_at(tmp_path, 6)
    assert attempt.begin(folder, 100, 2) == 0, "progress"
    assert attempt.begin(folder, 100, 2) == 0
    assert attempt.begin(folder, 100, 2) == 1
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert attempt.begin(folder, 100, 2) == 0, "submitted anew by somebody who looked at it"


def test_a_finished_run_is_not_begun_unless_it_may_go_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = folder_at(tmp_path, 9)
    outcome(folder, 0, 9)
    assert (attempt.begin(folder, 9, 3), capsys.readouterr().out) == (0, "")
    assert attempt.begin(folder, 10, 3) == 0
    assert capsys.readouterr().out.startswith("localhost ")


def test_the_lock_of_a_job_that_is_over_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, tools = tmp_path / "run", tmp_path / "bin"
    run.mkdir()
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for state, freed in (("RUNNING", False), ("COMPLETED", True), ("FAILED", True)):
        (tools / "scontrol").write_text(f"#!/bin/sh\necho JobId=$4 JobState={state} Reason=None\n")
        (tools / "scontrol").chmod(0o755)
        (run / "lock").write_text(json.dumps({"host": "node7", "pid": 5, "job": "16"}))
        attempt.begin(RunFolder(run), 9, 99)
        assert ((run / "lock").read_text() == "") is freed, state


def test_ledgers_of_jobs_and_attempts_are_apart(tmp_path: Path) -> None:
    folder = folder_at(tmp_path, 5)
    attempt.begin(folder, 100, 9)
    outcome(folder, 75, 5)
    attempt.end(folder, 9, 75, "USR1", 4)
    assert [line["event"] for line in folder.ledger()] == ["end"]
    assert [(line["event"], line["attempt"]) for line in folder.job_lines()] == [("job_start", 1), ("job_end", 1)]


def test_the_warning_is_as_early_as_the_longest_stop_asks_for(tmp_path: Path) -> None:
    assert _lead({"time": "60"}, tmp_path) == 30 + 90
    folder = folder_at(tmp_path, 5)
    for seconds in (100, 20):
        attempt.begin(folder, 100, 9)
        outcome(folder, 75, 5)
        attempt.end(folder, 9, 75, "USR1", seconds)
    assert _lead({"time": "60"}, tmp_path) == 30 + 150 + 15
    assert _lead({"time": "60"}, tmp_path.parent) == 30 + 150 + 15, "of the runs of a sweep"
    with pytest.raises(ConfigError, match=r"^--time 4: too short: 195 s are kept for the end of an attempt"):
        _lead({"time": "4"}, tmp_path)


def test_a_table_of_runs_that_ended_in_every_way(tmp_path: Path) -> None:
    names = {f"seed={seed}": {"seed": str(seed)} for seed in range(5)}
    (tmp_path / sweep.SWEEP).write_text(json.dumps(names))
    for seed, code in ((0, 0), (1, 3), (2, 1)):
        folder = folder_at(tmp_path / f"seed={seed}", 5)
        lines = [{"step": 4, "train/loss": 2.0, "val/auc": 0.9}, {"step": 5, "train/loss": 1.5, "val/auc": 0.75}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder.path / "metrics.jsonl").write_text(text + '{"half a li')
        attempt.begin(folder, 6, 9)
        outcome(folder, code, 5)
        attempt.end(folder, 9, code, "", 0)
    attempt.begin(RunFolder(tmp_path / "seed=3"), 6, 9)
    assert (tmp_path / "sweep.md").read_text().splitlines()[4] == "| 2 | 5 | 1.5 | 0.75 | 0.9 | failed: test |"
    assert sweep.table(tmp_path).splitlines() == [
        "| seed | step | train/loss | val/auc | best val/auc | outcome |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 0 | 5 | 1.5 | 0.75 | 0.9 | done |",
        "| 1 | 5 | 1.5 | 0.75 | 0.9 | diverged: test |",
        "| 2 | 5 | 1.5 | 0.75 | 0.9 | failed: test |",
        "| 3 | 0 |  |  |  | running |",
        "| 4 | 0 |  |  |  | not started |",
    ]
    with pytest.raises(ConfigError, match="no sweep"):
        sweep.table(tmp_path / "seed=0")


def test_the_last_of_two_that_end_together_sees_both(tmp_path: Path) -> None:
    names = {f"seed={seed}": {"seed": str(seed)} for seed in range(6)}
    (tmp_path / sweep.SWEEP).write_text(json.dumps(names))
    commands = []
    for name in names:
        folder = folder_at(tmp_path / name, 1)
        attempt.begin(folder, 9, 9)
        commands.append([sys.executable, "-m", "launch", "slurm", "end", str(folder.path), "3", "1", "", "0"])
    started = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    assert [process.wait(60) for process in started] == [1] * 6
    assert (tmp_path / "sweep.md").read_text().count("failed") == 6


@pytest.mark.parametrize(
    "text",
    ["[]", "3", '{"a": 3}', '{"a": {"k": 3}}', '{"a": {"k": null}}', '{"../../b": {}}', '{"": {}}', '{"a": [1]}'],
)
def test_a_list_of_runs_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ConfigError, match=r"sweep.json: is damaged|: no sweep; "):
        sweep.table(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "\ud800", "[]\n3\nnull\n", '{"train/loss": "x", "val/loss": null}'])
@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl", "outcome.json"])
def test_records_that_are_none_take_no_table_down(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"a": {"k": "v"}}')
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text(text, errors="surrogatepass")
    assert "| v | 0 |" in sweep.table(tmp_path)
