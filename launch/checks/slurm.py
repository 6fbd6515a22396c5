"""What SLURM says about the job: do its numbers agree with each other and with the configuration."""

import os
import shutil
from collections.abc import Iterator

from launch.checks.finding import Finding
from launch.checks.gpus import wanted
from launch.config.defaults import SOURCE
from launch.config.resolved import Resolved
from launch.config.tasks import JOB
from launch.ranks import number_in, tasks_of_nodes


def check(resolved: Resolved | None) -> Iterator[Finding]:
    """Compare nodes, tasks and devices; nothing outside of a job."""
    if "SLURM_JOB_ID" not in os.environ:
        here = "sbatch is here" if shutil.which("sbatch") else "no SLURM here"
        yield Finding("slurm", f"no job; {here}")
        return
    problems = [*_tasks(), *(_against(resolved) if resolved else [])]
    yield from problems
    if not problems:
        nodes, tasks = number_in("SLURM_JOB_NUM_NODES") or 1, number_in("SLURM_NTASKS") or 1
        yield Finding("slurm", f"job {os.environ['SLURM_JOB_ID']}: {nodes} nodes, {tasks} tasks")


def spread() -> list[int]:
    """Return the tasks of each node; empty where SLURM says nothing."""
    return tasks_of_nodes(os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE") or "")


def _tasks() -> Iterator[Finding]:
    nodes, tasks = number_in("SLURM_JOB_NUM_NODES") or number_in("SLURM_NNODES") or 1, number_in("SLURM_NTASKS")
    each, counts, gpus = number_in("SLURM_NTASKS_PER_NODE"), spread(), number_in("SLURM_GPUS_ON_NODE")
    fix = "start the job with --nodes N --ntasks-per-node T, and no --ntasks"
    if tasks and each and tasks != nodes * each:
        yield Finding("slurm", f"SLURM_NTASKS = {tasks}, but {nodes} nodes x {each} tasks a node", fix)
    if tasks and counts and len(set(counts)) > 1:
        yield Finding("slurm", f"tasks are spread unevenly over the nodes: {', '.join(map(str, counts))}", fix)
    if tasks and tasks > 1 and gpus and gpus != (each or tasks // nodes):
        fix = f"--ntasks-per-node={gpus}, one task for each GPU, or --trainer.accelerator cpu"
        yield Finding("slurm", f"SLURM_GPUS_ON_NODE = {gpus}, but {each or tasks // nodes} tasks a node", fix)


def _against(resolved: Resolved) -> Iterator[Finding]:
    """Compare the job with what the configuration gives; what it leaves open follows the job."""
    nodes = number_in("SLURM_JOB_NUM_NODES") or number_in("SLURM_NNODES") or 1
    tasks = number_in("SLURM_NTASKS") or 1
    each = number_in("SLURM_NTASKS_PER_NODE") or tasks // nodes
    single = resolved.get("strategy.class") == "single"
    if single and tasks > 1:
        fix = "--config configs/strategy/ddp.yaml, or a job of one task"
        yield Finding("slurm", f"SLURM_NTASKS = {tasks}, but strategy single is one process", fix)
        return
    for name, count, unit in (("num_nodes", nodes, "nodes"), ("devices", each, "tasks a node")):
        entry = resolved.table.get(("trainer", name))
        given = wanted(resolved) if name == "devices" else resolved.get("trainer.num_nodes")
        if tasks > 1 and given and entry and entry.source not in (SOURCE, JOB, "default") and given != count:
            yield Finding("slurm", f"trainer.{name} = {given} ({entry.source}), the job has {count} {unit}",
                          f"--trainer.{name} {count}, or give the job {given}")  # fmt: skip
