"""The checks of the doctor, each with something to find."""

import os
import socket
import time
from pathlib import Path

import pytest

from launch.checks import folders, gpus, network, slurm, versions
from launch.checks.finding import Finding
from launch.config.resolved import Resolved, resolve

DEBUG = ["--config", "configs/electra/debug.yaml"]


@pytest.fixture(autouse=True)
def outside_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "GLOO_", "NCCL_", "CUDA_VISIBLE")) or name == "NODE_RANK":
            monkeypatch.delenv(name)


def resolved(*words: str) -> Resolved:
    return resolve([*DEBUG, *words], "fit")


def fixes(found: object) -> list[str]:
    """Return what there is to fix, as it is printed."""
    return [finding.line() for finding in found if finding.fix]


def version_of(**changed: str | None) -> versions.Installed:
    names = {name.replace("_", "-"): version for name, version in changed.items()}
    return lambda name: names[name] if name in names else versions.installed(name)


def test_this_environment_is_in_order() -> None:
    (line,) = versions.check()
    assert line.fix is None
    assert "torch" in line.text


@pytest.mark.parametrize(
    ("package", "version", "source"),
    [
        ("lightning", "2.6.2", "Lightning-AI/pytorch-lightning#21691"),
        ("lightning", "2.6.3", "Lightning-AI/pytorch-lightning#21691"),
        ("lightning", "2.6.5", "Lightning-AI/pytorch-lightning#21822"),
        ("pytorch_lightning", "2.6.3", "Lightning-AI/pytorch-lightning#21691"),
        ("datasets", "5.0.1", "huggingface/datasets#8308"),
        ("deepspeed", "0.18.2", "deepspeedai/DeepSpeed#7718"),
        ("deepspeed", "0.19.3", "deepspeedai/DeepSpeed#8224"),
        ("nvidia_nccl_cu13", "2.29.2", "pytorch/pytorch#174338"),
    ],
)
def test_bad_releases_are_named_with_their_source(package: str, version: str, source: str) -> None:
    (found,) = versions.bad(version_of(**{package: version}))
    assert found.text.startswith(f"{package.replace('_', '-')} {version}: ")
    assert f"({source})" in found.text
    assert "pip install" in found.fix
    assert ("change every credential" in found.fix) == (version in ("2.6.2", "2.6.3"))


def test_missing_old_and_odd_packages() -> None:
    lines = fixes(versions.check(version_of(deepspeed=None, jsonargparse="4.40.0", numpy="not a version")))
    assert len(lines) == 3
    assert lines[0].startswith("fix  versions  deepspeed is not installed; pip install -c ")
    assert "jsonargparse 4.40.0 does not fit ==4.53.0" in lines[1]
    assert "numpy not a version does not fit" in lines[2]


@pytest.mark.parametrize(
    ("driver", "build", "found"),
    [
        (None, "13.0", "there is no NVIDIA driver here"),
        ("570.86.15", "13.0", "driver 570.86.15 is too old for CUDA 13.0 of torch"),
        ("520.61.05", "12.8", "driver 520.61.05 is too old for CUDA 12.8 of torch"),
        ("580.65.06", "13.0", None),
        ("580.65.06", "12.8", None),
    ],
)
def test_driver_and_cuda(driver: str | None, build: str, found: str | None) -> None:
    complaint = gpus.driver_complaint(driver, build)
    assert (complaint.text if complaint else None) == found


def test_the_driver_is_read_from_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (x@y)\nGCC 12.3.0\n"
    )
    assert gpus.driver_version(file) == "580.95.05"
    assert gpus.driver_version(tmp_path / "none") is None


def test_devices_against_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = resolved("--config", "configs/strategy/ddp.yaml", "--trainer.devices", "4")
    assert gpus.devices(2, eight).line() == "fix  gpus      2 visible, trainer.devices asks for 4; --trainer.devices 2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.devices(0, eight).text == "no GPU is visible (CUDA_VISIBLE_DEVICES = )"
    crowded = resolved("--data.num_workers", "64")
    assert gpus.cores(crowded).fix.startswith("--data.num_workers ")
    assert gpus.cores(resolved()).fix is None


def test_a_folder_that_does_what_a_run_needs(tmp_path: Path) -> None:
    lines = list(folders.check(resolved("--run.dir", str(tmp_path / "a" / "run"))))
    assert [line.subject for line in lines] == ["folder", "clock", "disk"]
    assert not fixes(lines)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_folder_that_cannot_be_written() -> None:
    (line,) = folders.check(resolved("--run.dir", "/proc/self/run"))
    assert line.text.startswith("/proc/self/run: a folder is made: ")
    assert line.fix == "give a --run.dir that you may write"


@pytest.mark.parametrize("name", list(folders.PROBES))
def test_what_fails_in_a_folder_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setitem(folders.PROBES, name, refuse)
    found = folders.behaves(tmp_path, tmp_path)
    assert found.text == f"{tmp_path}: {name}: Operation not supported"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_made_twice_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders.os, "O_EXCL", 0)
    assert folders.behaves(tmp_path, tmp_path).text.endswith("a file that must not exist was made twice")


def test_a_clock_that_is_off(tmp_path: Path) -> None:
    assert folders.clock(tmp_path).fix is None
    late = folders.clock(tmp_path, lambda: time.time() - 60)
    assert "are dated +60.0 s from this machine's time" in late.text
    assert folders.clock(tmp_path, lambda: 0.0).fix == "set the clock: timedatectl set-ntp true"


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    words = ["--model.hidden_size", "65536", "--model.num_heads", "1024", "--model.num_layers", "20"]
    run = resolved("--run.dir", str(tmp_path / "run"), *words)
    found = folders.room(run.run_dir, tmp_path, run)
    assert "3 checkpoints take" in found.text
    assert found.fix.startswith("free ")
    named = resolved("--data.tokenizer", "somebody/bert", "--data.tokenizer.train", "null")
    found = folders.room(run.run_dir, tmp_path, named)
    assert found.fix is None
    assert "what a checkpoint takes is not known (data.tokenizer.name = somebody/bert" in found.text


def test_names_on_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    two = resolved("--config", "configs/strategy/ddp.yaml", "--trainer.num_nodes", "2", "--trainer.devices", "1")
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    (line,) = fixes(network.names([], network.node_count(two)))
    assert line.startswith("fix  network   no-such-host.invalid: does not resolve (")
    assert fixes(network.names([], 1)) == [], "one host needs no name"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert fixes(network.names([], 2)) == [], "two nodes on one host, as in tests"
    monkeypatch.delenv("MASTER_ADDR")
    own = socket.getaddrinfo(socket.gethostname(), None)[0][4][0]
    lines = fixes(network.names([], 2))
    assert len(lines) == own.startswith("127.")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert fixes(network.names([], 2)) == []


def test_interfaces_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "^docker0")
    assert fixes(network.interfaces()) == []
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nothere0")
    (line,) = fixes(network.interfaces())
    assert line.startswith("fix  network   NCCL_SOCKET_IFNAME = nothere0: this host has no such interface; export ")


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    two = resolved("--config", "configs/strategy/ddp.yaml", "--trainer.num_nodes", "2", "--trainer.devices", "1")
    assert fixes(network.ports(two)) == [], "nothing says yet how it will be started"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        (line,) = fixes(network.ports(two))
    assert f"MASTER_PORT = {port} (environment): taken on 127.0.0.1; give another one" in line
    monkeypatch.delenv("NODE_RANK")
    (line,) = fixes(network.ports(two))
    assert "set NODE_RANK (0 to 1) in the environment" in line


def test_tasks_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(**values: str) -> list[str]:
        for name in list(os.environ):
            if name.startswith("SLURM_"):
                monkeypatch.delenv(name)
        for name, value in {"JOB_ID": "7", **values}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        words = ["--config", "configs/strategy/ddp.yaml", "--trainer.devices", "2", "--trainer.num_nodes", "2"]
        return fixes(slurm.check(resolved(*words, "--trainer.accelerator", "gpu")))

    good = {"JOB_NUM_NODES": "2", "NTASKS": "4", "NTASKS_PER_NODE": "2", "TASKS_PER_NODE": "2(x2)"}
    assert job(**good) == []
    (line,) = job(**{**good, "NTASKS": "3", "TASKS_PER_NODE": ""})
    assert line.startswith(
        "fix  slurm     SLURM_NTASKS = 3, but 2 nodes x 2 tasks a node; start the job with --nodes N"
    )
    (line,) = job(JOB_NUM_NODES="2", NTASKS="4", TASKS_PER_NODE="3,1")
    assert "tasks are spread unevenly over the nodes: 3, 1" in line
    (line,) = job(**good, GPUS_ON_NODE="4")
    assert "SLURM_GPUS_ON_NODE = 4, but 2 tasks a node; --ntasks-per-node=4" in line
    lines = job(JOB_NUM_NODES="1", NTASKS="4", NTASKS_PER_NODE="4")
    assert [line.split("; ")[-1] for line in lines] == [
        "--trainer.num_nodes 1, or give the job 2",
        "--trainer.devices 4, or give the job 2",
    ]


def test_one_process_in_a_job_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    (line,) = fixes(slurm.check(resolved()))
    assert "SLURM_NTASKS = 2, but strategy single is one process" in line


def test_lines() -> None:
    assert Finding("clock", "right").line() == "ok   clock     right"
    assert Finding("clock", "wrong", "set it").line() == "fix  clock     wrong; set it"
