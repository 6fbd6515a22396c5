"""Which of the processes of a run this one is, before any process group exists. Imports nothing heavy."""

import os

from launch.config.errors import ConfigError

PARENT = "TOKAMAK_PARENT"  # set for the processes that Lightning starts on this machine
RANKS = {"RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}  # a rank, and where the number of ranks stands
BY_HAND = ("NODE_RANK", "LOCAL_RANK")  # several machines without SLURM; Lightning sets the second for its children


def process_rank() -> int:
    """Return 0 for the process that writes the run's files, and another number for all others."""
    if is_child():  # inside a batch script SLURM_PROCID is 0 for all of them
        return _number("LOCAL_RANK")
    for rank, size in RANKS.items():
        if _number(size) > 1 and os.environ.get(rank):
            return _number(rank)
    return sum(map(_number, BY_HAND))


def is_child() -> bool:
    """Tell whether this process was started by rank 0 on the same machine, which reports the exit code."""
    return os.environ.get(PARENT) == str(os.getppid())


def adopt_children() -> None:
    """Let the processes that Lightning starts from here on know whose they are."""
    os.environ[PARENT] = str(os.getpid())


def check_environment(strategy: str) -> None:
    """Refuse what `single` cannot be, one of several processes, and forget ranks that mean nothing for it.

    Raises:
        ConfigError: the environment says that there are several processes, or its numbers are none.
    """
    for name in (*RANKS, *RANKS.values(), *BY_HAND):
        value = os.environ.get(name, "")
        if value and not value.isdecimal():
            raise ConfigError(f"{name} = {value!r} (environment): expected a whole number; unset it")
    if strategy != "single":
        return
    for name in RANKS.values():
        if _number(name) > 1:
            raise ConfigError(
                f"{name} = {_number(name)} (environment): strategy single is one process; use --config "
                f"configs/strategy/ddp.yaml, start one process only, or unset {name}"
            )
    for name in (*RANKS, *BY_HAND):
        os.environ.pop(name, None)


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0
