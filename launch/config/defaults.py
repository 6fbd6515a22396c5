"""What launch sets before any file is read, and the keys of Lightning's Trainer that it keeps to itself."""

from dataclasses import dataclass

from launch.config.read import Entry, Table

SOURCE = "launch default"


@dataclass(frozen=True)
class Run:
    """Where a run lives and how it starts."""

    dir: str | None = None
    """folder of the run; without it runs/<folder>/<name> of the first --config"""
    fresh: bool = False
    """refuse a folder that exists, instead of going on from its newest checkpoint"""
    checkpoint: str | int | None = None
    """the checkpoint to evaluate, or to go on from: "best", a step, or a folder; without it the newest one"""
    max_wall_time: str | int | None = None
    """how long one `fit` may take, in seconds, "h:mm:ss" or "d-hh:mm:ss"; then it saves and exits with 75"""


def start_table() -> Table:
    """Return the table that files and flags are laid over."""
    values = {
        ("seed",): 1,
        ("trainer", "devices"): 1,
        ("trainer", "log_every_n_steps"): 10,
        ("trainer", "enable_progress_bar"): False,  # callbacks.progress prints lines that a log file can hold
        ("trainer", "enable_model_summary"): False,
        ("strategy", "class"): "single",
        ("callbacks", "progress"): {},
        ("callbacks", "throughput"): {},
        ("callbacks", "checkpoint"): {},
        ("callbacks", "divergence"): {},
        ("callbacks", "validation"): {},
        ("loggers", "tensorboard"): {},
        ("loggers", "jsonl"): {},
    }
    return {key: Entry(value, SOURCE) for key, value in values.items()}


# What the Trainer is given besides: a training step is an optimizer step, the data position is the step, and saving
# and validating are callbacks of ours.
FIXED_TRAINER = {
    "max_epochs": -1,
    "accumulate_grad_batches": 1,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}

RESERVED = {
    "accumulate_grad_batches": "follows from data.global_batch_size and data.micro_batch_size",
    "barebones": "is not supported; remove callbacks and loggers with null",
    "callbacks": "is the mapping `callbacks` at the top level, keyed by name",
    "check_val_every_n_epoch": "is the callback callbacks.validation",
    "default_root_dir": "is run.dir",
    "enable_checkpointing": "is the callback callbacks.checkpoint; null removes it",
    "fast_dev_run": "is not supported; use a small trainer.max_steps",
    "gradient_clip_algorithm": "is an option of the model; see model.clip_norm",
    "gradient_clip_val": "is an option of the model; see model.clip_norm",
    "limit_train_batches": "is trainer.max_steps",
    "limit_val_batches": "is the callback callbacks.validation",
    "logger": "is the mapping `loggers` at the top level, keyed by name",
    "max_epochs": "is trainer.max_steps; the data has no end",
    "max_time": "is run.max_wall_time, after which the run saves and can be started again",
    "min_epochs": "is trainer.max_steps",
    "min_steps": "is trainer.max_steps",
    "model_registry": "is not supported; no model is uploaded",
    "num_sanity_val_steps": "is the callback callbacks.validation",
    "overfit_batches": "is not supported; use a small data source",
    "plugins": "cannot be written in YAML; give a strategy of your own as strategy.class",
    "reload_dataloaders_every_n_epochs": "is not supported; the data has no epochs",
    "strategy": "is the key `strategy` at the top level",
    "use_distributed_sampler": "is not supported; the data module cuts the batch for each rank",
    "val_check_interval": "is the callback callbacks.validation",
}
