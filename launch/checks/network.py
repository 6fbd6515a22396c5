"""Names, addresses and ports: what ranks need to find each other."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator

from launch.checks.finding import Finding
from launch.config.errors import HostError
from launch.config.resolved import Resolved
from launch.nodes import (
    DEFAULT_ROUTE,
    NEEDED,
    check_nodes,
    interface_of,
    is_loopback,
    loopback_complaint,
    own_address,
    own_name_mistake,
)
from launch.ranks import number_in

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check(resolved: Resolved | None) -> Iterator[Finding]:
    """Look at names only where several nodes are meant; ports are needed by several processes of one host too."""
    problems = [*interfaces()]
    hosts, count = node_names(), node_count(resolved)
    problems += [*names(hosts, count), *ports(resolved)]
    yield from problems
    if not problems:
        name = socket.gethostname()
        yield Finding("network", f"{name}: {count} nodes" if count > 1 else f"{name}: one node, a port can be opened")


def node_count(resolved: Resolved | None) -> int:
    """Return how many nodes are meant, by the configuration or by SLURM."""
    given = (resolved.get("trainer.num_nodes") if resolved else None) or 1
    return max(given, number_in("SLURM_JOB_NUM_NODES") or number_in("SLURM_NNODES") or 1)


def node_names() -> list[str]:
    """Return the names of the job's nodes; none outside of SLURM."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes or shutil.which("scontrol") is None:
        return []
    words = ["scontrol", "show", "hostnames", nodes]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def interfaces() -> Iterator[Finding]:
    """Require the interfaces that are named to be there."""
    here = [name for _, name in socket.if_nameindex()]
    for variable in INTERFACES:
        value = os.environ.get(variable, "")
        if value.startswith("^"):
            continue
        wanted = [word for word in value.removeprefix("=").split(",") if word]
        if wanted and not any(name.startswith(word) for word in wanted for name in here):
            fix = f"export {variable}= one of {', '.join(name for name in here if name != 'lo') or 'lo'}"
            yield Finding("network", f"{variable} = {value}: this host has no such interface", fix)


def names(hosts: list[str], count: int) -> Iterator[Finding]:
    """Require that the nodes' names, and this host's own, lead to addresses that other nodes reach."""
    if count < 2:
        return
    first = os.environ.get("MASTER_ADDR") or (hosts[0] if hosts else "")
    for name in dict.fromkeys([*hosts, *([first] if first else [])]):
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
        except OSError as error:
            fix = "let DNS or /etc/hosts know it, or set MASTER_ADDR to the address of node 0"
            yield Finding("network", f"{name}: does not resolve ({error.strerror or error})", fix)
            continue
        if is_loopback(found) and name == first and len(hosts) > 1:
            yield Finding(
                "network", f"{name}: resolves to {found}", "set MASTER_ADDR to an address that all nodes reach"
            )
    try:
        complaint = loopback_complaint(first) if first else _own_name()
    except OSError:
        return  # its name does not resolve: said above
    if complaint:
        text, _, fix = complaint.rpartition("; ")
        yield Finding("network", text, fix)


def ports(resolved: Resolved | None) -> Iterator[Finding]:
    """Open a port, and where several nodes are started by hand look at what each of them has to be told."""
    try:
        socket.create_server(("127.0.0.1", 0)).close()
        if resolved is not None and any(os.environ.get(name) for name in NEEDED):  # started by hand, and begun
            check_nodes(resolved)
    except HostError as error:
        for problem in error.problems:
            text, _, fix = problem.rpartition("; ") if "; " in problem else problem.rpartition(": ")
            yield Finding("network", text, fix)
    except OSError as error:
        yield Finding("network", f"no port can be opened on 127.0.0.1: {error.strerror}", "bring the interface lo up")


def _own_name() -> str | None:
    """Complain about this host's own name where nothing says which address the others are at."""
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return None
    mistake = own_name_mistake()
    return f"{mistake}; export GLOO_SOCKET_IFNAME={_likely()}" if mistake else None


def _likely() -> str:
    """Return the interface by which other hosts are most likely reached."""
    try:
        return interface_of(own_address(DEFAULT_ROUTE)) or "the interface to the other nodes"
    except OSError:
        return "the interface to the other nodes"
