"""What a person reads at the start and at the end of a run."""

from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.fsdp import FSDPModule

from callbacks.papers import Papers
from lightning_modules.core import stop


class RunRecord(Callback):
    """Prints what is about to be trained and, at the end, where it is; tells the loggers what runs, and flushes them.

    Added by launch after all other callbacks. After the run, `began` tells whether it came to its first step, and
    `stopped` whether some rank was asked to stop before the last one.

    Args:
        papers: Name, command and configuration of the run.
    """

    def __init__(self, papers: Papers | None = None) -> None:
        self.papers = papers
        self.began = self.stopped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the start block, and let the loggers forget what came after the step that the run goes on from."""
        self.began = True
        for logger in sorted(trainer.loggers, key=lambda logger: not getattr(logger, "may_refuse", False)):
            if hasattr(logger, "rewind"):
                logger.rewind(trainer.global_step)
            if self.papers is not None:
                _tell(logger, self.papers, trainer.global_step)
        stop.install()  # libraries that were set up since the start may have put handlers of their own
        if trainer.is_global_zero:
            print(*start_block(trainer, pl_module), sep="\n", flush=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Write out what the step before has logged: a killed run loses none. Saving logs after all other callbacks."""
        if trainer.global_step % trainer.log_every_n_steps == 0:
            _flush(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write out what was logged before; that the disk is full is told by the error that is on its way."""
        with suppress(OSError):
            _flush(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on whether the run was stopped: perhaps only one rank got the signal."""
        asked = trainer.strategy.reduce_boolean_decision(bool(stop.requested()), all=False)
        self.stopped = asked and trainer.global_step < trainer.max_steps

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print where everything is and what to type next."""
        if trainer.is_global_zero and stage == "fit":
            print(*self.end_block(trainer), sep="\n", flush=True)

    def end_block(self, trainer: Trainer) -> list[str]:
        """Return the last lines."""
        run, step, steps = trainer.default_root_dir, trainer.global_step, trainer.max_steps
        saved = any(isinstance(callback, Checkpoint) for callback in trainer.callbacks)
        if self.stopped:
            then = ", and the same command goes on from there" if saved else "; no callback saves checkpoints"
            return [f"stopped at step {step} of {steps}; everything is in {run}{then}"]
        lines = [f"step {step} of {steps}; everything is in {run}"]
        if any("TensorBoard" in type(logger).__name__ for logger in trainer.loggers):
            lines.append(f"curves: tensorboard --logdir {_all_runs(run)}")
        return [*lines, *([f"next: python -m launch export {run} --out FOLDER"] if saved else [])]


def _tell(logger: Logger, papers: Papers, step: int) -> None:
    """Hand the papers over; a logger that is not ours gets the values, and is named where it cannot forget."""
    if hasattr(logger, "log_papers"):
        logger.log_papers(papers, step)
        return
    logger.log_hyperparams({**papers.values, "command": papers.command, "commit": papers.commit})
    if step and not hasattr(logger, "rewind"):
        rank_zero_warn(
            f"{type(logger).__name__} cannot forget what it was given after step {step}, from which the run goes on: "
            "steps may stand there twice"
        )


def _all_runs(run: str) -> str:
    """Return the folder below which runs have their own names: `runs` where the run is in it, else the run's own."""
    above = [folder for folder in Path(run).parents if folder.name == "runs"]
    return str(above[-1] if above else run)


def start_block(trainer: Trainer, module: LightningModule) -> list[str]:
    """Return the lines that say what is trained, on what, in which batches, and where it goes."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in module.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, wanted in sizes if wanted)
    resumed = f", going on after step {trainer.global_step}" if trainer.global_step else ""
    lines = [f"method: {_name(module)}, {total:,} parameters, {trained:,} of them trained"]
    data = trainer.datamodule
    if getattr(data, "global_batch_size", None):
        lines.append(_batch_line(data.global_batch_size, data.micro_batch_size, trainer.world_size))
        if getattr(data, "sequence_length", None):
            lines[-1] += f", up to {data.global_batch_size * data.sequence_length:,} tokens a step"
    lines += [f"data: {line}" for line in (data.describe() if hasattr(data, "describe") else [])]
    told = epochs_told(data.epochs(trainer.max_steps)) if hasattr(data, "epochs") else ""
    return [*lines, f"run: {trainer.default_root_dir}, {trainer.max_steps} steps{told}{resumed}"]


def epochs_told(found: dict[str, float]) -> str:
    """Say how many epochs the steps of a run are; sources that are read equally often are told together."""
    counts = {name: f"{count:,.2f}" if count < 10 else f"{count:,.0f}" for name, count in found.items()}
    if len(set(counts.values())) == 1:
        counts = {"": next(iter(counts.values()))}
    told = [f"{count} epochs{f' of {name}' if name else ''}" for name, count in counts.items()]
    return f" = {', '.join(told)}" if told else ""


def _name(module: LightningModule) -> str:
    """Return the name of the method's class; FSDP2 puts a class of its own in front."""
    return next(kind.__name__ for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def _batch_line(batch: int, micro: int, ranks: int) -> str:
    passes = batch // (micro * ranks)
    return f"batch: {batch} = {ranks} rank{'s' * (ranks > 1)} x {passes} micro-batch{'es' * (passes > 1)} of {micro}"


def _flush(trainer: Trainer) -> None:
    for logger in trainer.loggers:
        logger.save()
