"""Ranks that cannot meet, or go away on the same host: one line says where, who, and what to do."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.cli.launching import TOY, Live, errors, light
from tests.network.hosts import Hosts, wait_for_step

DDP = ["--config", TOY, "--config", "configs/strategy/ddp.yaml", "--data.micro_batch_size", "2"]
TWO = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--strategy.timeout_seconds", "30"]
PLACE = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29877"}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "trainer.num_nodes = 2 (--trainer.num_nodes): set NODE_RANK (0 to 1), MASTER_ADDR (an address of node 0), "
             "MASTER_PORT (a free port of node 0) in the environment of each node's command"),
        ({**PLACE, "MASTER_PORT": ""}, "trainer.num_nodes = 2 (--trainer.num_nodes): set MASTER_PORT (a free port"),
        ({**PLACE, "NODE_RANK": "2"}, "NODE_RANK = 2 (environment): trainer.num_nodes is 2; give 0 to 1"),
        ({**PLACE, "NODE_RANK": "one"}, "NODE_RANK = 'one' (environment): expected a whole number"),
        ({**PLACE, "MASTER_PORT": "http"}, "MASTER_PORT = 'http' (environment): expected a number from 1 to 65535"),
        ({**PLACE, "MASTER_PORT": "65536"}, "MASTER_PORT = '65536' (environment): expected a number from 1 to 65535"),
        ({**PLACE, "NODE_RANK": "1", "MASTER_ADDR": "no-such-node.invalid"}, "MASTER_ADDR = 'no-such-node.invalid' "),
    ],
)  # fmt: skip
def test_what_a_start_on_a_node_lacks_is_said_without_torch(given, complaint, tmp_path: Path):
    (line,) = errors(light("fit", *DDP, *TWO, "--run.dir", str(tmp_path / "run"), **given))
    assert line.startswith(complaint)


def test_a_port_that_is_taken_is_refused_without_torch(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        (line,) = errors(light("fit", *DDP, *TWO, "--run.dir", str(tmp_path), **{**PLACE, "MASTER_PORT": port}))
    assert line == f"MASTER_PORT = {port} (environment): taken on 127.0.0.1; give another one to every node"


def test_nodes_that_were_not_asked_for_are_refused(tmp_path: Path):
    (line,) = errors(light("fit", *DDP, "--trainer.devices", "1", "--run.dir", str(tmp_path), NODE_RANK="1"))
    assert line.startswith("NODE_RANK = 1 (environment): trainer.num_nodes is 1; give --trainer.num_nodes")
    (line,) = errors(light("fit", "--config", TOY, "--trainer.num_nodes", "2", "--run.dir", str(tmp_path)))
    assert "is one process on one node" in line


def test_a_rank_that_is_killed_is_named_by_the_others(tmp_path: Path):
    slow = ["--callbacks.slow.class=tests.network.slow.Slow", "--trainer.max_steps", "300"]
    words = [*DDP, *slow, "--trainer.devices", "2", "--run.dir", str(tmp_path)]
    run = Live("fit", *words)
    run.wait_for("step 4")
    (child,) = children(run.process.pid)
    os.kill(child, signal.SIGKILL)
    code, _, stderr = run.end()
    assert code == 1
    step = max(int(folder.name[5:]) for folder in (tmp_path / "checkpoints").glob("step_*"))
    assert re.search(
        rf"^error: rank 1 \({re.escape(socket.gethostname())}, 127.0.0.1:\d+\): was ended by SIGKILL; "
        rf"checkpoints up to step {step} stand, start the same command again$",
        stderr,
        re.MULTILINE,
    ), stderr


@pytest.mark.slow
def test_a_rank_that_hangs_is_not_said_to_be_gone(tmp_path: Path):
    slow = ["--callbacks.slow.class=tests.network.slow.Slow", "--trainer.max_steps", "300"]
    words = [*DDP, *slow, "--trainer.devices", "2", "--strategy.timeout_seconds", "30", "--run.dir", str(tmp_path)]
    run = Live("fit", *words)
    run.wait_for("step 4")
    (child,) = children(run.process.pid)
    os.kill(child, signal.SIGSTOP)
    code, _, stderr = run.end()
    assert code == 1 and ends(child)
    assert re.search(
        "^error: Timed out waiting 30000ms for .*; all other ranks can be reached: one was silent", stderr, re.M
    )


def children(parent: int) -> list[int]:
    """Return the Python processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def ends(pid: int) -> bool:
    """Wait for the end of a process; one that has ended may still have to be reaped."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp"])
def test_a_node_alone_gives_up_in_time(strategy, hosts: Hosts, tmp_path: Path):
    words = ["fit", *DDP, "--config", f"configs/strategy/{strategy}.yaml", *TWO, "--strategy.timeout_seconds=3"]
    code, text = hosts.launch(0, *words, f"--run.dir={tmp_path / 'run'}").end(60)
    assert code == 1 and "error: h1: only 1 of 2 ranks came to 10.77.0.1:29801 within 3 s; start the command" in text
    code, text = hosts.launch(1, *words, f"--run.dir={tmp_path / 'run'}").end(60)
    answer = "rank 1: error: h2: rank 0 does not answer at 10.77.0.1:29801 after 3 s: Connection refused; start"
    assert code == 1 and answer in text and "Traceback" not in text
    swapped = hosts.launch(1, *words, f"--run.dir={tmp_path / 'run'}", NODE_RANK="0")
    code, text = swapped.end(60)
    assert code == 1 and "error: h2: is node 0, but 10.77.0.1:29801 does not lead to it; give an address of" in text


@pytest.mark.slow
def test_a_name_that_leads_back_to_its_own_host_is_refused(loopback_hosts: Hosts, tmp_path: Path):
    words = ["fit", *DDP, *TWO, f"--run.dir={tmp_path / 'run'}"]
    for index, rank in enumerate(loopback_hosts.both(*words, GLOO_SOCKET_IFNAME="")):
        code, text = rank.end(60)
        name = f"h{index + 1}"
        assert (
            code == 1
            and (
                f"error: {name}: its own name resolves to 127.0.1.1, where other nodes cannot reach it; "
                f"export GLOO_SOCKET_IFNAME=v{index + 1}\n"
            )
            in text
        )
    for rank in loopback_hosts.both(*words):
        code, text = rank.end(60)
        assert code == 0, text


@pytest.mark.slow
def test_names_that_lead_to_addresses_need_no_interface(hosts: Hosts, tmp_path: Path):
    words = ["fit", *DDP, *TWO, f"--run.dir={tmp_path / 'run'}"]
    for rank in hosts.both(*words, GLOO_SOCKET_IFNAME="", MASTER_ADDR="h1"):
        code, text = rank.end(60)
        assert code == 0, text


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused_by_both(hosts: Hosts, tmp_path: Path):
    ranks = [hosts.launch(index, "fit", *DDP, *TWO, f"--run.dir={tmp_path / str(index)}") for index in (0, 1)]
    for index, rank in enumerate(ranks):
        code, text = rank.end(60)
        assert code == 1 and re.search(
            rf"error: run.dir = {tmp_path / str(index)}: rank 1 \(h2, 10.77.0.2:\d+\) does not see what rank 0 "
            rf"\(h1, 10.77.0.1:\d+\) has written there; give a folder on a file system that all nodes share\n",
            text,
        ), text


@pytest.mark.slow
def test_two_ranks_on_each_of_two_hosts(hosts: Hosts, tmp_path: Path):
    """A rank of the other host is killed, then the cable is pulled; every process of both hosts ends by itself."""
    slow = ["--callbacks.slow.class=tests.network.slow.Slow", "--trainer.max_steps=300"]
    words = ["fit", *DDP, *TWO, "--trainer.devices=2", *slow]
    for way in ("kill", "cable"):
        run = tmp_path / way
        ranks = hosts.both(*words, f"--run.dir={run}")
        wait_for_step(ranks, run, 3)
        started = [children(rank.process.pid) for rank in ranks]
        os.kill(started[1][0], signal.SIGKILL) if way == "kill" else hosts.cable("down")
        texts = []
        for rank in ranks:
            code, text = rank.end(60)
            assert code == 1, text
            texts.append(text)
        gone = r"rank 3 \(h2, 10.77.0.2:\d+\)" if way == "kill" else r"rank 2 \(h2, \S+\): .+; rank 3 \(h2, \S+\)"
        assert re.search(rf"^error: .*{gone}: .*start the same command again$", texts[0], re.MULTILINE), texts[0]
        assert all(ends(pid) for pids in started for pid in pids)
        hosts.cable("up")
