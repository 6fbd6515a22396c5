"""What all ranks must agree on before the first step, and what a resumed run must find again."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.core.base import ACCOUNT_FILE
from launch.checkpoints import step_of
from launch.config.errors import ConfigError
from launch.config.resolved import RUN_FILE, Resolved
from launch.run_folder import RunFolder, identity, read_json, write_json
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.verify import read_manifest


class Guard(Callback):
    """Compares the configuration over the ranks and the data with the run's.

    Raises:
        ConfigError: a rank was started with another configuration, or the data is not the data that the run began with.
    """

    def __init__(self, resolved: Resolved, checkpoint: str | None, folder: RunFolder) -> None:
        self.resolved, self.checkpoint, self.folder = resolved, checkpoint, folder
        self.resumes = checkpoint is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look once, when the data is set up and the ranks can talk."""
        mine = self.resolved.digest()
        same = trainer.strategy.broadcast(mine) == mine
        if not trainer.strategy.reduce_boolean_decision(same, all=True):
            raise ConfigError("the ranks were started with different configurations; give all of them the same files")
        found = getattr(trainer.datamodule, "fingerprint", None)
        stored = trainer.strategy.broadcast(self._of_the_run() if trainer.is_global_zero else {})
        other = next((place for place, data in stored.items() if data and found and data != found), None)
        if self.resumes and other:
            raise ConfigError(
                f"data: its fingerprint is {found}, {other} began with {stored[other]}; "
                "give the same files and tokenizer, or another --run.dir"
            )

    def _of_the_run(self) -> dict[str, str | None]:
        """Return the data's fingerprint as the run's papers and its checkpoint have it, by what is said of them."""
        found = {
            f"the run in {self.folder.path}": (read_json(self.folder.path / RUN_FILE) or {}).get("data_fingerprint")
        }
        if self.checkpoint:
            of_run = read_manifest(Path(self.checkpoint)).get("run", {})
            found[f"the run whose checkpoint {self.checkpoint} is"] = of_run.get("data")
        return found

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the steps, and let the checkpoints say whose they are.

        Raises:
            CheckpointError: the counters of the checkpoint do not stand at its step.
        """
        if self.checkpoint and trainer.global_step != step_of(Path(self.checkpoint)):
            raise CheckpointError(f"{self.checkpoint}: its loops stand at step {trainer.global_step}; it was changed")
        trainer.strategy.of_run = identity(self.resolved) | {"data": getattr(trainer.datamodule, "fingerprint", None)}


class Begun(Callback):
    """Writes down what the run trains with from here on, after all other callbacks: none of them has refused it."""

    def __init__(self, resolved: Resolved, resumes: bool, folder: RunFolder) -> None:
        self.resolved, self.resumes, self.folder = resolved, resumes, folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the configuration and the data those of the run."""
        if trainer.is_global_zero:
            names = ("fingerprint", "validation_fingerprint")
            fingerprint, judged = (getattr(trainer.datamodule, name, None) for name in names)
            before = (read_json(self.folder.path / RUN_FILE) or {}).get("validation_fingerprint")
            if self.resumes and before and judged and before != judged:
                rank_zero_warn(
                    "data.validation: the sets are not those that the run was judged by before, so its numbers before "
                    f"and after step {trainer.global_step} cannot be compared"
                )
            engine = trainer.strategy.config if isinstance(trainer.strategy, DeepSpeedStrategy) else None
            self.folder.accept(
                self.resolved, data_fingerprint=fingerprint, validation_fingerprint=judged, deepspeed=engine
            )
            if hasattr(trainer.datamodule, "report"):
                write_json(self.folder.path / ACCOUNT_FILE, trainer.datamodule.report())
