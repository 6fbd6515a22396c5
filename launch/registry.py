"""The names that a configuration may use for classes. Strings only: nothing is imported until a run needs it."""

MODELS = {
    "electra": "lightning_modules.electra.module.Electra",
    "finetune": "lightning_modules.finetune.module.Finetune",
    "matryoshka2d": "lightning_modules.matryoshka2d.module.Matryoshka2d",
}

DATA = {
    "labelled": "datamodules.labelled.LabelledText",
    "pairs": "datamodules.pairs.TextPairs",
    "text": "datamodules.text.TextCorpus",
}

STRATEGIES = {
    "single": "launch.strategies.replicas.single",
    "ddp": "launch.strategies.replicas.ddp",
    "zero1": "launch.strategies.zero.zero1",
    "zero2": "launch.strategies.zero.zero2",
    "zero3": "launch.strategies.zero.zero3",
    "fsdp": "launch.strategies.sharded.fsdp",
}

CALLBACKS = {
    "checkpoint": "callbacks.checkpoint.Checkpoint",
    "divergence": "callbacks.divergence.Divergence",
    "electra_panel": "callbacks.electra_panel.ElectraPanel",
    "grid": "callbacks.grid.Grid",
    "progress": "callbacks.progress.Progress",
    "throughput": "callbacks.throughput.Throughput",
    "validation": "callbacks.validation.Validation",
}

LOGGERS = {
    "csv": "callbacks.table.Csv",
    "jsonl": "callbacks.loggers.JsonLines",
    "mlflow": "callbacks.trackers.MLflow",
    "tensorboard": "callbacks.loggers.TensorBoard",
    "wandb": "callbacks.trackers.WeightsAndBiases",
}

GROUPS = {"model": MODELS, "data": DATA, "strategy": STRATEGIES, "callbacks": CALLBACKS, "loggers": LOGGERS}

TRAINER = "launch.trainer.Trainer"
RUN = "launch.config.defaults.Run"
