"""Several machines without a batch system: what each start of the command has to be told. Imports nothing heavy."""

import errno
import fcntl
import os
import socket
import struct
from contextlib import closing, suppress

from launch.config.errors import HostError
from launch.config.numbers import port_problem
from launch.config.resolved import Resolved
from launch.ranks import is_child, number_in

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
DEFAULT_ROUTE = "192.0.2.1"  # of the block for documentation (RFC 5737): it leads where the default route leads
NEEDED = {"NODE_RANK": "{ranks}", "MASTER_ADDR": "an address of node 0", "MASTER_PORT": "a free port of node 0"}


def check_nodes(resolved: Resolved) -> None:
    """Refuse a start of which Lightning would make a wait without end, where nothing but the user starts the ranks.

    Raises:
        HostError: NODE_RANK, MASTER_ADDR or MASTER_PORT is missing, is no such thing, or the port is taken.
    """
    nodes = resolved.get("trainer.num_nodes") or 1
    if resolved.get("strategy.class") == "single" or _is_started_by_others():
        return
    rank = number_in("NODE_RANK")
    if nodes == 1:
        if rank > 0:
            raise HostError(
                f"NODE_RANK = {rank} (environment): trainer.num_nodes is 1; give --trainer.num_nodes, or unset it"
            )
        return
    ranks = f"0 to {nodes - 1}"
    missing = [f"{name} ({what.format(ranks=ranks)})" for name, what in NEEDED.items() if not os.environ.get(name)]
    if missing:
        given = f"trainer.num_nodes = {nodes} ({resolved.table[('trainer', 'num_nodes')].source})"
        raise HostError(f"{given}: set {', '.join(missing)} in the environment of each node's command")
    if rank >= nodes:
        raise HostError(f"NODE_RANK = {rank} (environment): trainer.num_nodes is {nodes}; give {ranks}")
    _check_port(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], opens=rank == 0 and not is_child())


def _check_port(address: str, word: str, opens: bool) -> None:
    if problem := port_problem(word):
        raise HostError(problem)
    try:
        found = socket.getaddrinfo(address, int(word), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HostError(
            f"MASTER_ADDR = {address!r} (environment): {socket.gethostname()} cannot resolve it: {reason}; "
            "give the IP address of node 0"
        ) from None
    if not opens or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    try:
        socket.create_server(found[0][4][:2], family=found[0][0]).close()
    except OSError as error:  # an address of another machine may lead back here: it is no proof of a mistake
        if error.errno == errno.EADDRINUSE:
            raise HostError(
                f"MASTER_PORT = {word} (environment): taken on {address}; give another one to every node"
            ) from None


def own_address(toward: str) -> str:
    """Return the address of this host from which another address is reached; nothing is sent.

    Raises:
        OSError: there is no way to it.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(toward, 9, type=socket.SOCK_DGRAM)[0]
    with closing(socket.socket(family, kind, protocol)) as probe:
        probe.connect(place)
        return probe.getsockname()[0]


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an IPv4 address, None if none is found."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def is_loopback(address: str) -> bool:
    """Tell whether an address leads to the host that asks."""
    return address == "::1" or address.startswith("127.")


def loopback_complaint(first: str) -> str | None:
    """Say what to set where gloo would give other nodes this host's name as an address that leads back to them.

    Args:
        first: The address of rank 0; where it is loopback too, all nodes are one host.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME") or is_loopback(own_address(first)):
        return None
    if (mistake := own_name_mistake()) is None:
        return None
    interface = interface_of(own_address(first)) or f"the interface on the way to {first}"
    return f"{mistake}, where other nodes cannot reach it; export GLOO_SOCKET_IFNAME={interface}"


def own_name_mistake() -> str | None:
    """Say where this host's own name leads if other hosts cannot reach it there, None if they may."""
    name = socket.gethostname()
    try:
        known = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return f"{name}: its own name does not resolve"
    return f"{name}: its own name resolves to {known}" if is_loopback(known) else None


def _is_started_by_others() -> bool:
    """Tell whether torchrun, SLURM or jsrun says which rank this is, by Lightning's rules."""
    slurm = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    return slurm or "TORCHELASTIC_RUN_ID" in os.environ or "JSM_NAMESPACE_SIZE" in os.environ
