"""Callbacks that would have no effect in a run of ours, or another one than elsewhere, found in their source."""

import ast
from collections.abc import Iterator

from launch.config.parts import Parts
from launch.config.read import Entry, Table
from launch.config.show import named
from launch.config.sorts import is_a
from launch.config.source import base_names, lookup
from launch.registry import CALLBACKS

LIGHTNING = "lightning.pytorch.callbacks."
EPOCHS = ("on_train_epoch_start", "on_train_epoch_end")
ENDLESS = "and there are none: the data has no end"
NO_EPOCHS = f"acts at epochs ({{hooks}}), {ENDLESS}; use on_train_batch_end and trainer.global_step"
VALIDATION = tuple(
    f"on_validation_{when}" for when in ("start", "batch_start", "batch_end", "epoch_start", "epoch_end", "end")
)
NO_VALIDATION = (
    "acts at Lightning's validation ({hooks}), which a run has none of: callbacks.validation judges between steps; use "
    "on_train_batch_end and trainer.global_step"
)
# Classes that come with Lightning, and those derived from them; the first that fits is told.
REFUSED = {
    "EarlyStopping": "reads trainer.callback_metrics, which stays empty: values go to loggers; give trainer.max_steps",
    "ModelCheckpoint": "writes another form of checkpoint; use callbacks.checkpoint",
    "OnExceptionCheckpoint": "writes another form of checkpoint, in the middle of a step; use callbacks.checkpoint",
    "Timer": "ends the run as if it were done; use run.max_wall_time",
    "WeightAveraging": "swaps its average in at Lightning's validation, which a run has none of, and is not in our "
    "checkpoints; take it out: weights are not averaged here",
    "StochasticWeightAveraging": f"averages at the ends of epochs, {ENDLESS}; weights are not averaged here",
    "GradientAccumulationScheduler": "sets how many batches make a step, which follows from data.global_batch_size and "
    "data.micro_batch_size; set those",
    "LearningRateFinder": "trains by Lightning's own optimization, and a step is the method's here; try several "
    "model.learning_rate, as with launch slurm --array",
    "BatchSizeFinder": "tries values of batch_size, which the data has none of; see launch plan, and set "
    "data.micro_batch_size",
    "LearningRateMonitor": "reads learning-rate schedulers, and there are none: every run logs its rate as opt/lr; "
    "take it out",
    "SpikeDetection": "reads the loss that training_step returns, and it returns none; use callbacks.divergence",
    "ThroughputMonitor": "asks a function for the size of a batch, and none can be named; use callbacks.throughput",
    "LambdaCallback": "is made of functions, and none can be named; write a class of your own",
    "ModelPruning": f"prunes at the ends of epochs, {ENDLESS}; take it out",
    "BaseFinetuning": f"freezes and thaws as epochs begin, {ENDLESS}; take it out",
}


def idle_callbacks(parts: Parts, table: Table) -> Iterator[str]:
    """Yield a complaint for each callback of a `fit` that depends on what a run of ours does not do."""
    for part, path in parts.paths.items():
        if part[0] == "callbacks" and path not in CALLBACKS.values() and (reason := refusal(path)):
            key = (*part, "class")
            entry = table.get(key, Entry(part[1], next(e.source for k, e in table.items() if k[:2] == part)))
            yield f"{named(key, entry)}: {reason}; to take it out: --{'.'.join(part)} null"


def refusal(path: str) -> str | None:
    """Return why a callback is refused, by its class or by the hooks that it overrides; None if it is not."""
    for name, reason in REFUSED.items():
        if is_a(path, (LIGHTNING + name,)):
            return reason
    given, found = overridden(path), lookup(path)
    package = found[1].name.partition(".")[0] if found else ""
    idle = [(EPOCHS, NO_EPOCHS), *([] if package in ("lightning", "callbacks") else [(VALIDATION, NO_VALIDATION)])]
    for names, reason in idle if not is_a(path, (LIGHTNING + "ProgressBar",)) else ():
        if hooks := [name for name in names if name in given]:
            return reason.format(hooks=" and ".join(hooks))
    if package == "lightning" and not given:
        return "does nothing by itself; give a class that is derived from it"
    return None


def overridden(path: str) -> set[str]:
    """Return the names of the methods that a callback's class and its bases give, short of Lightning's Callback."""
    root = lookup(LIGHTNING + "Callback")
    found = [lookup(name) for name in base_names(path)]
    kinds = [kind[0] for kind in found if kind and kind[0] is not root[0] and isinstance(kind[0], ast.ClassDef)]
    return {item.name for kind in kinds for item in kind.body if isinstance(item, ast.FunctionDef)}
