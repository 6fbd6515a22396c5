"""What to do when a gradient is not finite, or a loss far above those before."""

from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.core import divergence
from lightning_modules.core.checkpoint.errors import CheckpointError


class Divergence(Callback):
    """Choose what a run does when numbers go wrong. A gradient that is not finite never makes an update.

    Args:
        policy: `stop` ends the run with exit code 3; `skip` goes on without that update; `rollback` takes weights and
            moments back to the newest checkpoint from before, and sets later ones aside. What is left out is listed in
            every later checkpoint's manifest.
        budget: how many incidents a run may have before it is ended all the same.
        spike_factor: a loss over the median of the last 200 by this many robust standard deviations is an incident too;
            its update has been made, so `skip` then means a rollback. None looks at no loss.

    Raises:
        CheckpointError: a budget below 0, or a factor that is not above it.
    """

    def __init__(
        self,
        policy: Literal["stop", "skip", "rollback"] = "stop",
        budget: int = 10,
        spike_factor: float | None = None,
    ) -> None:
        if budget < 0:
            raise CheckpointError(f"callbacks.divergence.budget: {budget} is below 0")
        if spike_factor is not None and not spike_factor > 0:
            raise CheckpointError(f"callbacks.divergence.spike_factor: {spike_factor} is not above 0")
        self.rule = divergence.Divergence(policy, budget, spike_factor)
        self._open: list[tuple[int, float]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the rule to the method, whose step finds what is wrong."""
        self.method = pl_module
        pl_module.divergence = self.rule

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the method look at the losses that nobody had looked at when the checkpoint was made."""
        if self._open:
            pl_module.readings.reopen_losses(self._open)

    def state_dict(self) -> dict:
        """Keep what the rule remembers."""
        found = self.method.readings.open_losses() if self.rule.spike_factor is not None else []
        return {"incidents": self.rule.incidents, "losses": list(self.rule.losses), "open": found}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on with it."""
        self.rule.incidents = state_dict.get("incidents", 0)
        self.rule.losses.extend(state_dict.get("losses", []))
        self._open = state_dict.get("open", [])
