"""Validation every n optimizer steps, without any effect on the training's randomness."""

import torch
from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from lightning_modules.core.base import Method
from lightning_modules.core.checkpoint.errors import CheckpointError


class Validation(Callback):
    """Evaluate on the validation data every n steps and at the end, and log `val/*`.

    It runs beside Lightning's own validation, whose counters go wrong when a run is resumed inside an epoch
    (Lightning-AI/pytorch-lightning#19549). Draws of an evaluation are keyed by sample, so that two evaluations differ
    by the weights alone; dropout of the training is keyed by micro-batch, so nothing has to be put back.

    Args:
        every_n_steps: Optimizer steps between two evaluations.
        max_batches: Batches of one evaluation, each of the global batch size; null for all.

    Raises:
        CheckpointError: a number is below one, or the model is no Method.
    """

    def __init__(self, every_n_steps: int = 1000, max_batches: int | None = None) -> None:
        for key, value in {"every_n_steps": every_n_steps, "max_batches": max_batches}.items():
            if value is not None and value < 1:
                raise CheckpointError(f"callbacks.validation.{key}: {value} is below 1")
        self.every_n_steps, self.max_batches = every_n_steps, max_batches
        self.last: dict[str, float] = {}
        self.last_step = -1

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Refuse a model that has no evaluation of ours."""
        if not isinstance(module, Method):
            raise CheckpointError(
                f"callbacks.validation: {type(module).__name__} is no lightning_modules.core.base.Method; derive "
                "it from that, or take the callback out with --callbacks.validation null"
            )

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Evaluate where the step says so."""
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps:
            self.evaluate(trainer, module)

    @torch.no_grad()
    def evaluate(self, trainer: Trainer, module: Method) -> None:
        """Run one evaluation on all ranks and log it."""
        loader = trainer.datamodule.val_dataloader()
        if not loader:
            return
        module.eval()
        module.start_evaluation()
        with trainer.precision_plugin.val_step_context():
            for index, batch in enumerate(loader):
                if index == self.max_batches:
                    break
                module.evaluation_step(trainer.strategy.batch_to_device(batch))
        self.last, self.last_step = module.end_evaluation("val"), trainer.global_step
        module.train()
        module.log_values(self.last)
        if trainer.is_global_zero:  # tqdm.write keeps a progress bar whole
            numbers = " ".join(f"{name} {value:.4g}" for name, value in sorted(self.last.items()))
            tqdm.write(f"step {trainer.global_step}: {numbers}")

    def state_dict(self) -> dict:
        """Return the newest result, so that the choice of a best checkpoint survives a stop."""
        return {"last": self.last, "last_step": self.last_step}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take the newest result back."""
        self.last, self.last_step = state_dict["last"], state_dict["last_step"]
