"""Which of the processes of a run this one is, before any process group exists. Imports nothing heavy."""

import os

PARENT = "TOKAMAK_PARENT"  # set for the processes that Lightning starts on this machine


def process_rank() -> int:
    """Return 0 for the process that writes the run's files, and another number for all others."""
    if is_child():  # inside a batch script SLURM_PROCID is 0 for all of them
        return int(os.environ["LOCAL_RANK"])
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    # Several machines without SLURM: NODE_RANK is given by hand, LOCAL_RANK is set by Lightning for its children.
    return sum(int(os.environ[name]) for name in ("NODE_RANK", "LOCAL_RANK") if os.environ.get(name, "").isdigit())


def is_child() -> bool:
    """Tell whether this process was started by rank 0 on the same machine, which reports the exit code."""
    return os.environ.get(PARENT) == str(os.getppid())


def adopt_children() -> None:
    """Let the processes that Lightning starts from here on know whose they are."""
    os.environ[PARENT] = str(os.getpid())
