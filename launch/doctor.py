"""`launch doctor`: versions, devices, folders, clock, network and SLURM, looked at before a run is queued."""

import socket
from collections.abc import Iterator

from launch.checks import folders, gpus, network, slurm, versions
from launch.checks.finding import Finding
from launch.config.resolved import Resolved, resolve

USAGE = """usage: python -m launch doctor [--config FILE ...] [--key value ...]

Looks at this machine before a run is queued, and prints one line for each thing: ok, or fix with what to do. With the
words of a `fit` it looks at what that run needs; without them at the machine alone. Exits 1 if there is something to
fix. On several nodes: srun --ntasks-per-node=1 python -m launch doctor --config ...
"""


def main(words: list[str]) -> int:
    """Print what was found and return 1 if anything has to be mended.

    Raises:
        ConfigError: the words or the files are wrong.
    """
    if "--help" in words or "-h" in words:
        print(USAGE, end="")
        return 0
    resolved = resolve(words, "fit") if words else None
    print(*(resolved.notes if resolved else []), f"doctor on {socket.gethostname()}", sep="\n")
    found = []
    for finding in examine(resolved):
        print(finding.line(), flush=True)
        found.append(finding)
    count = sum(finding.fix is not None for finding in found)
    print(f"{count} thing{'s' if count > 1 else ''} to fix" if count else "nothing to fix")
    return 1 if count else 0


def examine(resolved: Resolved | None) -> Iterator[Finding]:
    """Run all checks, the quick ones first."""
    yield from versions.check()
    yield from slurm.check(resolved)
    yield from network.check(resolved)
    yield from gpus.check(resolved)
    yield from folders.check(resolved)
