"""What Lightning is told about a SLURM job."""

import warnings

from lightning.pytorch.plugins.environments import SLURMEnvironment

from launch.ranks import tasks_of_job

warnings.filterwarnings("ignore", message="The `srun` command is available")  # on every machine that has it


class JobEnvironment(SLURMEnvironment):
    """The ranks of a srun step. Requeueing is the batch script's, and launch has checked nodes and tasks."""

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Do nothing: Lightning looks at the number of tasks that was asked for, which a step need not have."""

    @staticmethod
    def _validate_srun_variables() -> None:
        """Do nothing: `srun --nodes 2 --ntasks 4` is as good as `--ntasks-per-node 2`."""


def cluster_plugins() -> list[JobEnvironment]:
    """Return the plugin for a process that srun started as one of several, nothing for all others."""
    return [JobEnvironment()] if tasks_of_job() else []
