"""Two hosts on one machine: each has a network, a name and an /etc/hosts of its own; a cable joins them.

The namespaces have no name in the file system and are held by two processes that die with the tests, so nothing of them
is left whatever happens to the tests.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import PROJECT, environment, metrics

DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "29801"  # of a network of its own: nobody else can have it


class Rank:
    """A live command on one host, its output in a file."""

    def __init__(self, command: list[str], file: Path, more: dict[str, str]) -> None:
        self.file = file
        kept = {name: value for name, value in environment().items() if name != "GLOO_SOCKET_IFNAME"}
        with file.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=PROJECT, env={**kept, "PYTHONUNBUFFERED": "1", **more}, stdout=output, stderr=output
            )

    def end(self, seconds: float) -> tuple[int, str]:
        """Wait for its end and return the exit code and what it printed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still there after {seconds} s:\n{self.text()}") from None
        return self.process.returncode, self.text()

    def text(self) -> str:
        """Return what it has printed."""
        return self.file.read_text()


class Hosts:
    """h1 and h2, with a table of names for /etc/hosts."""

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self.folder, self.ranks, self.holders, self.count = folder, [], [], 0
        for index, host in enumerate(("h1", "h2")):
            table = folder / f"{host}.hosts"
            table.write_text("127.0.0.1 localhost\n" + "".join(f"{names[name]} {name}\n" for name in names))
            setup = f"hostname {host} && mount --bind {table} /etc/hosts && echo up && exec sleep infinity"
            command = [*DIES_WITH_US, "unshare", "--net", "--uts", "--mount", "sh", "-c", setup]
            holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.holders.append(holder)
            if holder.stdout.readline() != "up\n":
                holder.kill()
                self.close()
                pytest.skip(f"cannot make network namespaces: {holder.stderr.read().strip()}")
            self.enter(index, "ip", "link", "set", "lo", "up")
        one, two = (str(holder.pid) for holder in self.holders)
        command = ["ip", "link", "add", "v1", "netns", one, "type", "veth", "peer", "name", "v2", "netns", two]
        joined = subprocess.run(command, capture_output=True, text=True)
        if joined.returncode:
            self.close()
            pytest.skip(f"cannot join network namespaces: {joined.stderr.strip()}")
        for index, address in enumerate(ADDRESSES):
            self.enter(index, "ip", "addr", "add", f"{address}/24", "dev", f"v{index + 1}")
            self.enter(index, "ip", "link", "set", f"v{index + 1}", "up")
        time.sleep(0.1)

    def enter(self, index: int, *words: str) -> None:
        """Run a short command on a host."""
        subprocess.run(self.inside(index, *words), check=True, capture_output=True)

    def inside(self, index: int, *words: str) -> list[str]:
        """Return a command for one of the hosts; entering its mounts would lead to the root folder."""
        spaces = ["--net", "--uts", "--mount", f"--wdns={PROJECT}"]
        return [*DIES_WITH_US, "nsenter", "-t", str(self.holders[index].pid), *spaces, *words]

    def launch(self, index: int, *words: str, **more: str) -> Rank:
        """Start `python -m launch` on a host, with the variables that a user sets there."""
        self.count += 1
        given = {
            "NODE_RANK": str(index),
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": PORT,
            "GLOO_SOCKET_IFNAME": f"v{index + 1}",
        }
        chosen = {name: value for name, value in {**given, **more}.items() if value}
        command = self.inside(index, sys.executable, "-m", "launch", *words)
        rank = Rank(command, self.folder / f"out_{self.count}_h{index + 1}.txt", chosen)
        self.ranks.append(rank)
        return rank

    def both(self, *words: str, **more: str) -> list[Rank]:
        """Start the same command on both hosts."""
        return [self.launch(index, *words, **more) for index in (0, 1)]

    def cable(self, state: str) -> None:
        """Pull the cable, `down`, or plug it in, `up`."""
        self.enter(0, "ip", "link", "set", "v1", state)

    def sent(self, index: int) -> int:
        """Return the bytes that a host has sent over the cable."""
        command = self.inside(index, "ip", "-json", "-stats", "link", "show", f"v{index + 1}")
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0]["stats64"]["tx"]["bytes"]

    def close(self) -> None:
        """End everything."""
        for process in [*(rank.process for rank in self.ranks), *self.holders]:
            process.kill()
            process.wait()


def needs_root() -> None:
    """Skip where namespaces cannot be made, with the reason."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need root on Linux")
    if missing := [tool for tool in ("ip", "nsenter", "setpriv", "unshare") if shutil.which(tool) is None]:
        pytest.skip(f"network namespaces need {', '.join(missing)} (packages iproute2 and util-linux)")


def wait_for_step(ranks: list[Rank], run: Path, step: int, seconds: float = 120) -> None:
    """Wait until the metrics of a run show a step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and all(rank.process.poll() is None for rank in ranks):
        if (run / "metrics.jsonl").exists() and any(line["step"] >= step for line in metrics(run)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} did not come:\n" + "\n".join(rank.text() for rank in ranks))
