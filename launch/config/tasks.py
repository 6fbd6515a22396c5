"""The processes that a SLURM job starts, laid over the configuration: devices and nodes are the job's to say."""

from collections.abc import Collection
from typing import NamedTuple

from launch.config.defaults import SOURCE
from launch.config.read import Entry, Table
from launch.config.rules import count_of
from launch.config.show import named

JOB = "the SLURM job"  # the source of these values; a run's folder does not keep them


class Tasks(NamedTuple):
    """So many nodes, with so many processes on each."""

    nodes: int
    per_node: int

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * self.per_node


def lay_tasks(table: Table, tasks: Tasks, stored: Collection[str]) -> list[str]:
    """Set trainer.devices and trainer.num_nodes, in place; return a complaint for each that is given and differs.

    Args:
        table: the merged configuration.
        tasks: what the job has.
        stored: files that a run of another size may have left; what they say does not bind.
    """
    problems = []
    for name, count, unit, where in (
        ("devices", tasks.per_node, "task", " on each node"),
        ("num_nodes", tasks.nodes, "node", ""),
    ):
        key = ("trainer", name)
        given = table.get(key)
        if given and not _is_open(given, stored) and count_of(given.value) != count:
            has = f"{JOB} has {count} {unit}{'s' * (count > 1)}{where}"
            problems.append(f"{named(key, given)}: {has}; take the key away, or give the job {given.value}")
        table[key] = Entry(count, JOB)
    if table.get(("strategy", "class"), Entry(None, "")).value == "single" and tasks.ranks > 1:
        strategy = named(("strategy", "class"), table[("strategy", "class")])
        problems.append(f"{strategy}: is one process, {JOB} has {tasks.ranks}; use --config configs/strategy/ddp.yaml")
        table[("trainer", "devices")] = table[("trainer", "num_nodes")] = Entry(1, JOB)  # said once is enough
    return problems


def _is_open(given: Entry, stored: Collection[str]) -> bool:
    """Tell whether a value binds nobody: a default, `auto`, or left over from another attempt."""
    return given.source == SOURCE or given.source.rpartition(":")[0] in stored or given.value in ("auto", -1, "-1")
