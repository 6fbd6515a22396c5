"""The names that a configuration may use for classes. Strings only: nothing is imported until a run needs it."""

MODELS = {
    "electra": "lightning_modules.electra.module.Electra",
    "finetune": "lightning_modules.finetune.module.Finetune",
}

DATA = {"labelled": "datamodules.labelled.LabelledText", "text": "datamodules.text.TextCorpus"}

STRATEGIES = {"single": "launch.strategies.single", "ddp": "launch.strategies.ddp"}

CALLBACKS = {
    "checkpoint": "callbacks.checkpoint.Checkpoint",
    "electra_panel": "callbacks.electra_panel.ElectraPanel",
    "progress": "callbacks.progress.Progress",
    "throughput": "callbacks.throughput.Throughput",
    "validation": "callbacks.validation.Validation",
}

LOGGERS = {"jsonl": "callbacks.loggers.JsonLines", "tensorboard": "callbacks.loggers.TensorBoard"}

GROUPS = {"model": MODELS, "data": DATA, "strategy": STRATEGIES, "callbacks": CALLBACKS, "loggers": LOGGERS}

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
RUN = "launch.config.defaults.Run"
