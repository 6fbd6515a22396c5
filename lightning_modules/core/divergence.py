"""When numbers go wrong: gradients that are not finite, losses far above those before.

A gradient that is not finite makes no update, on any rank: the norm of the whole gradient is the same number
everywhere, and reaches the optimizer without passing the host. What is done about it is decided by all ranks alike at
the beginning of the next step, on a GPU of the one after it, when the number has long arrived.
"""

import statistics
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from lightning import LightningModule

from datamodules.core.batches import flat_layout
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.publish import set_aside, write_file
from lightning_modules.core.checkpoint.verify import newest_complete
from lightning_modules.core.checkpoint.whole import plain

SPIKE_WINDOW, SPIKE_MINIMUM = 200, 20  # losses that make the median, and how few are too few


class Diverged(RuntimeError):
    """The loss or the gradient is not finite any more, or the loss has left its range."""


@dataclass
class Divergence:
    """What a run does when numbers go wrong.

    Args:
        policy: `stop` ends the run; `skip` goes on without the update (of a spike, which is found after its update, it
            makes a rollback); `rollback` takes weights and moments back to the newest checkpoint from before, and sets
            later ones aside. The steps that are left out keep their numbers and their data.
        budget: how many incidents a run may have before it is ended all the same.
        spike_factor: a loss over the median of the last 200 by this many robust standard deviations (1.4826 times the
            median absolute deviation) is an incident; None looks at no loss.
    """

    policy: Literal["stop", "skip", "rollback"] = "stop"
    budget: int = 10
    spike_factor: float | None = None
    incidents: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))

    def is_spike(self, loss: float) -> bool:
        """Tell whether a loss is far above those before it, and remember it if not."""
        if self.spike_factor is None or loss != loss:  # one that is no number has no finite gradient either
            return False
        if len(self.losses) >= SPIKE_MINIMUM:
            middle = statistics.median(self.losses)
            spread = 1.4826 * statistics.median(abs(past - middle) for past in self.losses)
            if loss > middle + self.spike_factor * max(spread, 1e-3 * abs(middle)):
                return True
        self.losses.append(loss)
        return False

    def act(self, module: LightningModule, step: int, what: str, batches: list, updated: bool) -> bool:
        """Deal with an incident of a step; called by all ranks. Tells whether weights of an earlier step are back.

        Raises:
            Diverged: the policy, or the budget, ends the run.
        """
        self.incidents += 1
        dump = _dump(module, step, batches)
        if self.policy == "stop" or self.incidents > self.budget:
            used = f" ({self.incidents - 1} times before)" if self.policy != "stop" else ""
            raise Diverged(
                f"step {step}: {what}{used}; samples {_samples(batches)} on rank {module.global_rank}, kept in {dump}; "
                "lower model.learning_rate, look at the data, or set callbacks.divergence.policy"
            )
        strategy, now = module.trainer.strategy, module.trainer.global_step
        if goes_on := self.policy == "skip" and not updated:
            left_out, done = [step], "it makes no update"
        else:
            folder = _roll_back(module, step, what, before=step if updated else now + 1)
            first = int(folder.name.removeprefix("step_")) + 1
            left_out, done = list(range(first, now + 1)), f"going on with the weights of {folder.name}"
            self.losses.clear()
        strategy.skipped_steps = tuple(sorted({*strategy.skipped_steps, *left_out}))
        if module.trainer.is_global_zero:
            print(f"step {step}: {what}; {done} ({self.incidents} of {self.budget}, kept in {dump})", flush=True)
        return not goes_on


def _roll_back(module: LightningModule, step: int, what: str, before: int) -> Path:
    strategy = module.trainer.strategy
    strategy.settle()
    checkpoints = Path(module.trainer.default_root_dir) / "checkpoints"
    try:
        folder = strategy.on_rank_zero(lambda: newest_complete(checkpoints, before))
        if folder is None:
            more = "callbacks.checkpoint: save more often (every_n_steps) or keep more (keep_last: 3 is always enough)"
            raise CheckpointError(f"{checkpoints}: holds none of a step before {before}; {more}")
        strategy.on_rank_zero(lambda: set_aside(checkpoints, int(folder.name.removeprefix("step_"))))
        strategy.load_checkpoint(folder)
        for callback in module.trainer.callbacks:  # checkpoints that were set aside may be remembered as the best
            getattr(callback, "on_roll_back", lambda step: None)(int(folder.name.removeprefix("step_")))
    except CheckpointError as error:
        raise Diverged(f"step {step}: {what}, and there is no way back: {error}") from error
    return folder


def _dump(module: LightningModule, step: int, batches: list) -> Path:
    """Keep the micro-batches of a step, one file a rank, for `read_dump`.

    With the checkpoint of the step just before it they make the step again. A run that goes on finds a loss which had
    not been looked at when it was saved, and has no batches of it.
    """
    folder = Path(module.trainer.default_root_dir) / "diverged" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"rank_{module.global_rank:05d}.pt"
    if batches or not file.exists():  # what the run that was stopped has kept is more than nothing
        write_file(file, {"step": step, "batches": plain(batches, "batches")})
    return folder


def read_dump(file: Path) -> list[dict]:
    """Return the micro-batches of a rank as the method got them, from RUN/diverged/step_X/rank_Y.pt."""
    batches = torch.load(file, weights_only=True)["batches"]
    # a layout is more than tensors and lists, which is all that the file may hold; the lengths say the same
    return [{**batch, "layout": flat_layout(batch["lens"])} if "layout" in batch else batch for batch in batches]


def _samples(batches: list) -> list[int]:
    """Return the places of a rank's samples in the global order, the first twenty."""
    places = [place for batch in batches if "sample_B" in batch for place in batch["sample_B"].tolist()]
    return sorted(places)[:20]
