"""The base of all methods: a training step is an optimizer step.

`training_step` receives the rank's whole share of one global batch as a list of micro-batches, so that the global step,
the step of the learning rate, the validation step and the data position are one number.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from datamodules.core.batches import TextBatch
from lightning_modules.core.blocks import BlockOptions, prepare_blocks
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.divergence import Divergence
from lightning_modules.core.keyed import mix, seed_generators
from lightning_modules.core.optim import build_optimizer, parameter_groups, set_rates
from lightning_modules.core.readings import Readings
from lightning_modules.core.same_tokenizer import same_tokenizer
from lightning_modules.core.schedules import schedule
from lightning_modules.core.source_files import tokenizer_of
from lightning_modules.core.step import GradientWatch, backward, passes, update
from lightning_modules.core.terms import LossTerms, Totals
from lightning_modules.core.warm_start import checkpoint_of, load_weights

T = TypeVar("T")

TRAIN, EVALUATE = 0, 1  # streams of randomness


class Method(LightningModule):
    """A published method: a subclass builds its networks and gives an objective, the step is here.

    A subclass gives `build`, `target_counts`, `objective`, `summarise` and `export`, and calls
    `self.optimization(...)` in its constructor.
    """

    encoder_prefixes: tuple[str, ...] = ()  # names before an encoder's weights, where other methods may take it
    texts_per_example = 1  # sequences of an example, for a plan of the memory
    clock: Callable[[], float] = staticmethod(time.perf_counter)  # by which the speed of a run is measured

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seed = 0  # set by the launcher from the top-level key
        self.model: nn.Module | None = None
        self.init_from: str | None = None  # weights to start from: run folder, Hugging Face folder or hub name
        self.block_options = BlockOptions()  # set by the launcher from the trainer's options
        self.goes_on = False  # set by the launcher: the weights come from a checkpoint of the run itself
        self.logged: dict[str, float] = {}  # the newest values that were measured, for the progress line
        self.logged_step = 0  # the step that they are of
        self.step_ended = 0.0
        self._evaluation = Totals()
        self.divergence = Divergence()
        self.readings = Readings(self)

    def optimization(
        self,
        optimizer: str,
        learning_rate: float,
        weight_decay: float,
        adam_epsilon: float,
        schedule: str,
        warmup_steps: int,
        clip_norm: float,
    ) -> None:
        """Keep the options of the optimizer, the schedule and the clipping."""
        self.optimizer_name, self.learning_rate, self.weight_decay = optimizer, learning_rate, weight_decay
        self.adam_epsilon, self.schedule_name = adam_epsilon, schedule
        self.warmup_steps, self.clip_norm = warmup_steps, clip_norm

    # What a method gives

    def build(self, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> None:
        """Build the networks for a tokenizer and the longest sequence into `self.model`."""
        raise TypeError(f"{type(self).__name__} gives no build()")

    def recall(self, run: Path) -> None:
        """Read what `build` needs besides the tokenizer from a run's folder, where there is no data module to ask."""

    def assume(self) -> None:
        """Set what `build` would ask the data module for to something of the usual size; for a plan of the memory."""

    def head_rows(self, batch: TextBatch) -> dict[str, int]:
        """Return on how many rows heads run, by the name of their module; all else runs on every token.

        Only lengths and numbers on the host are read; a plan of the memory gives no more.
        """
        return {}

    def passes_kept(self, micro_batches: int) -> int:
        """Say of how many of a step's forward passes the graphs are kept at once; for a plan of the memory."""
        return 1

    def target_counts(self, batch: TextBatch) -> dict[str, int]:
        """Return how many targets each loss term has in a micro-batch, from numbers that are on the host."""
        raise TypeError(f"{type(self).__name__} gives no target_counts()")

    def objective(self, batch: TextBatch, key: int, measures: bool) -> LossTerms:
        """Run one micro-batch; whatever is drawn is a function of the key and of the samples' places.

        Statistics are wanted only where `measures` is true; they may cost time.
        """
        raise TypeError(f"{type(self).__name__} gives no objective()")

    def summarise(self, statistics: dict[str, Tensor]) -> dict[str, float]:
        """Turn statistics, added up over a global batch or an evaluation, into metrics by name."""
        return {name: value.item() for name, value in statistics.items()}

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write Hugging Face folders below `folder`."""
        raise TypeError(f"{type(self).__name__} gives no export()")

    # Lightning's hooks

    def configure_model(self) -> None:
        """Build the networks once; the data module's setup has run before."""
        if self.model is None:
            data = self.trainer.datamodule
            self.build(data.tokenizer, data.sequence_length)
            if self.init_from and not self.goes_on:
                self.warm_start(self.init_from)
            prepare_blocks(self.model, self.block_options)

    def warm_start(self, source: str) -> None:
        """Copy the weights of a run; a method that reads Hugging Face folders extends this.

        Raises:
            CheckpointError: the source is no run, or its weights do not fit.
        """
        checkpoint = checkpoint_of(source)
        if checkpoint is None:
            raise CheckpointError(f"model.init_from = {source}: is not the folder of a run")
        same_tokenizer(self.trainer.datamodule.tokenizer, tokenizer_of(source), source)
        load_weights(self, read_weights(checkpoint), source)

    def decay_groups(self) -> list[dict]:
        """Return the parameter groups; a method with learning rates by depth overrides this."""
        return parameter_groups(self.named_parameters(), self.learning_rate, self.weight_decay)

    def configure_optimizers(self) -> Optimizer:
        """Build the optimizer; its learning rates are set at every step, so there is no scheduler with a state."""
        self.watch = GradientWatch(self)
        self.rate = schedule(self.schedule_name, self.warmup_steps, self.trainer.max_steps)
        return build_optimizer(self.optimizer_name, self.decay_groups(), self.learning_rate, self.adam_epsilon)

    def training_step(self, micro_batches: list[TextBatch], batch_idx: int) -> None:
        """Make one update from the rank's micro-batches of one global batch."""
        self.readings.settle(self.under_way)
        counts = self.readings.exchange(self._own_counts(micro_batches))
        measures = self._measures(self.trainer.global_step + 1)
        totals, shares = self.learn(micro_batches, counts, measures)
        self._update(totals if measures else None, micro_batches)
        if self.divergence.spike_factor is not None:
            self.readings.add_loss(shares, micro_batches)

    def _logs(self, step: int) -> bool:
        return step % self.trainer.log_every_n_steps == 0

    def _measures(self, step: int) -> bool:
        """Tell whether the values of a step are measured: where they are logged, and for a person at both ends."""
        return self._logs(step) or not self.logged or step == self.trainer.max_steps

    def learn(
        self, micro_batches: list[TextBatch], counts: dict[str, Tensor | float], logs: bool
    ) -> tuple[Totals, list[Tensor]]:
        """Give every parameter its gradient, one micro-batch after the other.

        Returns the terms added up, if they are logged, and this rank's share of the loss in parts.
        """
        totals, shares = Totals(), []
        with passes(self, len(micro_batches)) as contexts:
            for batch, context in zip(micro_batches, contexts, strict=True):
                with context:
                    seed_generators(self.seed, TRAIN, batch["position"])
                    with self.trainer.precision_plugin.forward_context():  # DeepSpeed's engine ends the one around it
                        found = self(self.objective, batch, mix(self.seed, TRAIN), logs)
                    loss = found.total(counts)
                    backward(self, loss * self.trainer.world_size)  # strategies average over the ranks
                shares.append(loss.detach())
                if logs:
                    totals.add(found)
        return totals, shares

    def forward(self, work: Callable[..., T], *arguments: object) -> T:
        """Call what runs the networks: `self(self.objective, ...)`.

        Strategies hang their hooks on this call, so nothing but this runs the networks.
        """
        return work(*arguments)

    def _own_counts(self, micro_batches: list[TextBatch]) -> dict[str, float]:
        counts: dict[str, float] = {}
        for batch in micro_batches:
            for name, count in self.target_counts(batch).items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def _update(self, totals: Totals | None, micro_batches: list[TextBatch]) -> None:
        optimizer = self.optimizers()
        set_rates(optimizer, self.rate(self.trainer.global_step))
        rate = optimizer.param_groups[0]["lr"]
        norm = update(self, optimizer, self.clip_norm)
        self.readings.add_norm(norm, micro_batches)
        if totals is not None:
            self._log_step(totals, {"opt/lr": rate, "opt/grad_norm": norm.item()})

    def _log_step(self, totals: Totals, more: dict[str, float]) -> None:
        totals.reduce(self.device)
        values = {**totals.means(), **self.summarise(totals.statistics())}
        self.logged = {f"train/{name}": value for name, value in values.items()} | more
        self.logged_step = self.trainer.global_step
        if self._logs(self.logged_step):  # the first step of an attempt is not: a run that was stopped has equal logs
            self.log_values(self.logged)

    @property
    def under_way(self) -> int:
        """How many of the newest steps the device may still be busy with when the next one begins."""
        return int(self.device.type != "cpu")

    def on_train_end(self) -> None:
        """Know what the last step was."""
        self.readings.settle()

    def log_values(self, values: dict[str, float]) -> None:
        """Send values to every logger under the number of completed optimizer steps."""
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)

    # Evaluation: the same code for `launch validate`, `launch test` and the validation inside a run

    def start_evaluation(self) -> None:
        """Forget what was added up."""
        self._evaluation = Totals()

    def evaluation_step(self, micro_batches: list[TextBatch]) -> None:
        """Add one batch of an evaluation; draws are keyed, so they are the same at every evaluation."""
        for batch in micro_batches:
            if not batch.get("filler"):
                self.evaluate(batch)
            elif self.trainer.strategy.gathers_in_forward:
                self(self.objective, batch, mix(self.seed, EVALUATE), False)  # other ranks wait for its part of weights

    def evaluate(self, batch: TextBatch) -> None:
        """Add one micro-batch of an evaluation."""
        self._evaluation.add(self(self.objective, batch, mix(self.seed, EVALUATE), True))

    def end_evaluation(self, prefix: str) -> dict[str, float]:
        """Return the metrics of the evaluation over all ranks, by name."""
        self._evaluation.complete()
        self._evaluation.reduce(self.device)
        values = {**self._evaluation.means(), **self.summarise(self._evaluation.statistics())}
        return {f"{prefix}/{name}": value for name, value in values.items()}

    def value_names(self, prefix: str) -> set[str] | None:
        """Name what `end_evaluation` will return, where it is known before; so a wrong name is found before a step."""
        return None

    def on_validation_epoch_start(self) -> None:
        """Start `launch validate`."""
        self.start_evaluation()

    def validation_step(self, micro_batches: list[TextBatch], batch_idx: int) -> None:
        """Evaluate one batch."""
        self.evaluation_step(micro_batches)

    def on_validation_epoch_end(self) -> None:
        """End `launch validate`; the launcher prints `self.logged`."""
        self.logged = self.end_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Start `launch test`."""
        self.start_evaluation()

    def test_step(self, micro_batches: list[TextBatch], batch_idx: int) -> None:
        """Evaluate one batch."""
        self.evaluation_step(micro_batches)

    def on_test_epoch_end(self) -> None:
        """End `launch test`; the launcher prints `self.logged`."""
        self.logged = self.end_evaluation("test")

    def on_train_batch_end(self, *_: object) -> None:
        """Note when the step and all callbacks on it were over: from here on the run waits for data."""
        self.step_ended = self.clock()
