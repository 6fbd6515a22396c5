"""Where the ranks of a job meet: an address that resolves and a port that is free. Imports nothing heavy."""

import hashlib
import os
import re
import socket
import subprocess
from contextlib import suppress

from launch.config.errors import HostError
from launch.config.numbers import port_problem

PORTS = range(20000, 32000)  # below those that kernels give away by themselves
SCONTROL_SECONDS = 20


def meeting_place() -> tuple[str, int]:
    """Return address and port for the ranks of the job whose batch script runs here, on the node of rank 0.

    Raises:
        HostError: no name or address of the node resolves, or no port is free.
    """
    port = _first_port()
    for offset in range(len(PORTS)):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", PORTS[(port + offset) % len(PORTS)]))
            return node_address(), probe.getsockname()[1]
    raise HostError(f"{socket.gethostname()}: no port from {PORTS[0]} to {PORTS[-1]} is free; ask for another node")


def settle_place() -> None:
    """Make sure, in a rank, that MASTER_ADDR and MASTER_PORT say where the ranks meet; all ranks find the same.

    Raises:
        HostError: MASTER_ADDR does not resolve here, or MASTER_PORT is no port.
    """
    given = os.environ.get("MASTER_ADDR")
    if given and (reason := unresolved(given)):
        raise HostError(_cannot_resolve(f"MASTER_ADDR = {given!r} (environment)", reason))
    if not given:
        os.environ["MASTER_ADDR"] = node_address()
    port = os.environ.setdefault("MASTER_PORT", str(PORTS[_first_port()]))
    if problem := port_problem(port):
        raise HostError(problem)


def node_address() -> str:
    """Return the name of the job's first node, or the address that SLURM knows of it if the name does not resolve.

    Raises:
        HostError: neither resolves.
    """
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")
    name = first_node(nodes) or socket.gethostname()
    reason = unresolved(name)
    if reason is None:
        return name
    found = re.search(r"\bNodeAddr=(\S+)", scontrol("show", "node", "-o", name))
    if found and unresolved(found[1]) is None:
        return found[1]
    raise HostError(_cannot_resolve(f"SLURM_JOB_NODELIST = {nodes!r} (environment): its first node is {name}", reason))


def first_node(nodes: str) -> str:
    """Return the first name of a list as SLURM writes it: `n1` of `n[1-3,7],m4`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def unresolved(name: str) -> str | None:
    """Return why a name leads to no address, None if it leads to one."""
    try:
        socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def scontrol(*words: str) -> str:
    """Return what a command of scontrol prints, errors included; nothing where it cannot be run."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=SCONTROL_SECONDS)
        return done.stdout + done.stderr
    return ""


def _first_port() -> int:
    """Return where to begin in PORTS: two jobs on one node, or two attempts of a job, begin apart."""
    words = [os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:4], "big") % len(PORTS)


def _cannot_resolve(what: str, reason: str) -> str:
    host = socket.gethostname()
    return f"{what}: {host} cannot resolve it: {reason}; export MASTER_ADDR with the IP address of the first node"
