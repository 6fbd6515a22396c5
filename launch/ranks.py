"""Which of the processes of a run this one is, before any process group exists. Imports nothing heavy."""

import os
import re

from launch.config.errors import ConfigError
from launch.config.numbers import is_whole, port_problem
from launch.config.tasks import Tasks

PARENT = "TOKAMAK_PARENT"  # set for the processes that Lightning starts on this machine
RANKS = {"RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}  # a rank, and where the number of ranks stands
BY_HAND = ("NODE_RANK", "LOCAL_RANK")  # several machines without SLURM; Lightning sets the second for its children
OF_A_TASK = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM numbers a batch script, an interactive shell and the like from here on
OF_THE_PLACE = re.compile(r"(SLURM|SRUN|PMI|MASTER_|TOKAMAK_|TORCHELASTIC_)\w*|(GROUP_|LOCAL_|NODE_)?RANK|WORLD_SIZE")


def process_rank() -> int:
    """Return 0 for the process that writes the run's files, and another number for all others."""
    if is_child():  # inside a batch script SLURM_PROCID is 0 for all of them
        return number_in("LOCAL_RANK")
    for rank, size in RANKS.items():
        if number_in(size) > 1 and os.environ.get(rank):
            return number_in(rank)
    return sum(map(number_in, BY_HAND))


def is_child() -> bool:
    """Tell whether this process was started by rank 0 on the same machine, which reports the exit code."""
    return os.environ.get(PARENT) == str(os.getppid())


def adopt_children() -> None:
    """Let the processes that Lightning starts from here on know whose they are."""
    os.environ[PARENT] = str(os.getpid())


def environment_for_children() -> dict[str, str]:
    """Return the environment for a run that this process starts: it is no rank of this one's job."""
    kept = ("SLURM_CONF", "SLURM_TMPDIR")
    return {name: value for name, value in os.environ.items() if name in kept or not OF_THE_PLACE.fullmatch(name)}


def check_environment(strategy: str) -> None:
    """Refuse what `single` cannot be, one of several processes, and forget ranks that mean nothing for it.

    Raises:
        ConfigError: the environment says that there are several processes, or its numbers are none.
    """
    for name in (*RANKS, *RANKS.values(), *BY_HAND):
        value = os.environ.get(name, "")
        if value and not is_whole(value):
            raise ConfigError(f"{name} = {value!r} (environment): expected a whole number; unset it")
    port = os.environ.get("MASTER_PORT", "")
    if port and (problem := port_problem(port)):
        raise ConfigError(problem)
    if strategy != "single":
        return
    for name in RANKS.values():
        if number_in(name) > 1:
            raise ConfigError(
                f"{name} = {number_in(name)} (environment): strategy single is one process; use --config "
                f"configs/strategy/ddp.yaml, start one process only, or unset {name}"
            )
    for name in (*RANKS, *BY_HAND):
        os.environ.pop(name, None)


def tasks_of_job() -> Tasks | None:
    """Return the processes of the srun step that this process belongs to, None if it is alone or not under srun.

    A process that is alone on its node may start others as outside of SLURM; the variables that would make it a rank of
    the job are forgotten.

    Raises:
        ConfigError: the job has several tasks and this process is none of them, or nodes have unequal numbers of tasks.
    """
    if "SLURM_JOB_ID" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ or is_child():
        return None
    ranks = number_in("SLURM_NTASKS")
    if ranks > 1 and not _is_in_step():
        raise ConfigError(
            f"SLURM_NTASKS = {ranks} (environment): the job has {ranks} tasks and this process is none of them; start "
            "it as `srun python -m launch ...`, or unset SLURM_NTASKS for one process here"
        )
    if ranks <= 1:
        for name in OF_A_TASK:
            os.environ.pop(name, None)
        return None
    spread = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts = tasks_of_nodes(spread)
    if not counts or len(set(counts)) > 1 or sum(counts) != ranks:
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE = {spread!r} (environment): every node needs the same number of the {ranks} "
            "tasks; start the job with --nodes N --ntasks-per-node T"
        )
    return Tasks(len(counts), counts[0])


def tasks_of_nodes(spread: str) -> list[int]:
    """Return the tasks of each node from a list as SLURM writes it: 2, 2, 2 and 1 of `2(x3),1`."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", spread)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def check_devices(tasks: Tasks, accelerator: str) -> None:
    """Refuse a job in which processes would share GPUs or leave some idle.

    Raises:
        ConfigError: a node has another number of GPUs than of tasks.
    """
    gpus = number_in("SLURM_GPUS_ON_NODE")
    if accelerator != "cpu" and gpus and gpus != tasks.per_node:
        raise ConfigError(
            f"SLURM_GPUS_ON_NODE = {gpus} (environment): the job has {tasks.per_node} tasks on each node; give "
            f"--ntasks-per-node={gpus}, one for each GPU, or --trainer.accelerator cpu"
        )


def _is_in_step() -> bool:
    """Tell whether srun started this process: batch scripts and shells have numbers of their own kind or none."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return is_whole(step) and int(step) < FIRST_SPECIAL_STEP


def number_in(name: str) -> int:
    """Return the whole number that a variable of the environment holds, 0 if it holds none."""
    value = os.environ.get(name, "")
    return int(value) if is_whole(value) else 0
