"""Fine-tuning as a LightningModule: a pre-trained encoder, a head, and labels."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datamodules.core.batches import LabelledBatch
from lightning_modules.core.base import Method
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoder_sources import (
    TakesEncoder,
    encoder_config,
    load_encoder,
    said_of_vectors,
    tell_left,
)
from lightning_modules.core.export import save_network, with_options
from lightning_modules.core.optim import parameter_groups
from lightning_modules.core.sizes import check_size
from lightning_modules.core.terms import LossTerms
from lightning_modules.core.weights import initialise
from lightning_modules.electra.modeling import GLOROT
from lightning_modules.finetune import modeling, objective
from lightning_modules.finetune.modeling import UntrainedEncoder


class Finetune(TakesEncoder, Method):
    """Fine-tuning of an encoder on labelled text, with learning rates by depth (ELECTRA, appendix B).

    Args:
        init_from: Run of ELECTRA, folder of its export, other Hugging Face folder or hub name; ELECTRA or BERT.
        untrained: An encoder with fresh weights instead.
        task: Choose a class by cross-entropy, or predict a number by squared error.
        head: On the vector of [CLS], dropout and one linear layer, or the head of transformers, which can be exported.
        dropout: Share of the head's input dropped; the encoder keeps its own dropout.
        layer_decay: Factor of the learning rate from a layer to the one below.
        layer_decay_form: The top layer has the factor once, or twice as in the released code.
        optimizer: Bias-corrected fused AdamW, or Adam without bias correction as released.
        learning_rate: Peak learning rate of the head.
        weight_decay: Decoupled weight decay; none on biases and normalisations.
        adam_epsilon: Added to the root of the second moment.
        schedule: Shape of the learning rate; `multiplied` is the released one.
        warmup_steps: Steps of linear warm-up; a tenth of the steps in the paper.
        clip_norm: Largest norm of the whole gradient; 0 for no limit.
    """

    def __init__(
        self,
        init_from: str | None = None,
        untrained: UntrainedEncoder | None = None,
        task: Literal["classification", "regression"] = "classification",
        head: Literal["linear", "hugging_face"] = "linear",
        dropout: float = 0.1,
        layer_decay: float = 0.8,
        layer_decay_form: Literal["paper", "as_released"] = "paper",
        optimizer: Literal["adamw", "as_released"] = "adamw",
        learning_rate: float = 3e-4,
        weight_decay: float = 0.0,
        adam_epsilon: float = 1e-6,
        schedule: Literal["linear", "multiplied", "cosine", "constant"] = "linear",
        warmup_steps: int = 0,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__()
        self.optimization(optimizer, learning_rate, weight_decay, adam_epsilon, schedule, warmup_steps, clip_norm)
        self.init_from = init_from
        self.shape_from = init_from
        self.goes_on = False
        # `launch export` hands over what stands in the file, the parser of `fit` the object
        self.untrained = UntrainedEncoder(**untrained) if isinstance(untrained, dict) else untrained
        self.task, self.head, self.dropout = task, head, dropout
        self.layer_decay, self.layer_decay_form = layer_decay, layer_decay_form
        self.label_names: list[str] | None = None
        self._answers: list[objective.Answers] = []

    def recall(self, run: Path) -> None:
        """Read the names of the classes that the data left in the run, where the model is built without data.

        Raises:
            CheckpointError: they are not there.
        """
        file = run / "labels.json"
        try:
            names = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error}); it names the classes of the run") from None
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or len({*names}) < len(names)
        ):
            raise CheckpointError(f"{file}: is no list of different names; restore it: it names the classes of the run")
        self.label_names = names
        super().recall(run)

    def assume(self) -> None:
        """Take two classes: the data would know their names."""
        self.label_names = ["0", "1"]

    def head_rows(self, batch: LabelledBatch) -> dict[str, int]:
        """Say that the head runs once for each example."""
        heads = ("model.network.classifier", "model.network.pooler", "model.network.bert.pooler", "model.output")
        return dict.fromkeys(heads, len(batch["lens"]))

    def configure_model(self) -> None:
        """Build the networks, and say early what cannot be exported."""
        is_new = self.model is None
        super().configure_model()
        if is_new and not self.goes_on and self.head == "linear":
            rank_zero_warn("model.head = linear: this run cannot be exported; take hugging_face for that")

    def taken(self) -> PreTrainedModel:
        """Return the network that is built like the source."""
        return self.model.network

    def build(self, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> None:
        """Build the encoder as its source says, and a head for the classes of the data.

        Raises:
            CheckpointError: there is no such encoder, or the sequences are too long for it.
        """
        if self.label_names is None:
            self.label_names = self.trainer.datamodule.label_names
        if self.untrained is not None:
            config = self.untrained.config(tokenizer)
            check_size(config, "model.untrained")
        else:
            config = encoder_config(self.shape_from, tokenizer, modeling.FAMILIES, self.shape_from != self.init_from)
        longest = config.max_position_embeddings
        if sequence_length > longest:
            raise CheckpointError(f"data.sequence_length = {sequence_length}: the encoder has {longest} positions")
        if self.label_names:
            config.id2label = dict(enumerate(self.label_names))
            config.label2id = {name: number for number, name in enumerate(self.label_names)}
        config.problem_type = "regression" if self.task == "regression" else "single_label_classification"
        self.num_layers = config.num_hidden_layers
        outputs = len(self.label_names) if self.task == "classification" else 1
        self.model = modeling.Classifier(config, self.head, outputs, self.dropout)
        initialise(self.model, config.initializer_range, self.seed, GLOROT)

    def warm_start(self, source: str) -> None:
        """Copy the encoder's weights; the head stays fresh. A run that goes on has weights of its own."""
        if self.goes_on:
            return
        left = load_encoder(self.model.encoder, source)
        tell_left(source, left, said_of_vectors(source))

    def decay_groups(self) -> list[dict[str, Any]]:
        """Give every depth its learning rate."""
        return parameter_groups(
            self.named_parameters(),
            self.learning_rate,
            self.weight_decay,
            depth_of=lambda name: modeling.depth_of(name, self.num_layers),
            num_layers=self.num_layers,
            layer_decay=self.layer_decay,
            layer_decay_form=self.layer_decay_form,
        )

    def target_counts(self, batch: LabelledBatch) -> dict[str, int]:
        """Count the examples."""
        return {f"{self.task}_loss": len(batch["lens"])}

    def terms(self, output_BC: Tensor, label_B: Tensor) -> LossTerms:
        """Return the loss of a micro-batch's outputs."""
        found = objective.classification_loss if self.task == "classification" else objective.regression_loss
        return LossTerms({f"{self.task}_loss": found(output_BC, label_B)}, {})

    def objective(self, batch: LabelledBatch, key: int, measures: bool) -> LossTerms:
        """Return the loss of one micro-batch and, for classes, how many were right."""
        output_BC, label_B = self.model(batch), batch["label_B"]
        found = self.terms(output_BC, label_B)
        if not measures or self.task == "regression":
            return found
        counts = {"right": objective.num_right(output_BC, label_B), "seen": torch.tensor(len(label_B))}
        return found._replace(statistics=counts)

    def summarise(self, statistics: dict[str, Tensor]) -> dict[str, float]:
        """Return the accuracy of a training step."""
        return {"accuracy": (statistics["right"] / statistics["seen"]).item()} if statistics else {}

    # Evaluation: metrics of the whole, not means over batches

    def start_evaluation(self) -> None:
        """Forget the answers so far."""
        super().start_evaluation()
        self._answers = []

    def evaluate(self, batch: LabelledBatch) -> None:
        """Keep the answers to one micro-batch."""
        output_BC = self(self.model, batch)
        self._evaluation.add(self.terms(output_BC, batch["label_B"]))
        self._answers.append(objective.answers_of(output_BC, batch["sample_B"], batch["label_B"]))

    def end_evaluation(self, prefix: str) -> dict[str, float]:
        """Return the loss, and the metrics over all examples of all ranks."""
        values, answers = super().end_evaluation(prefix), objective.gathered(self._answers)
        if answers is None:
            return values
        metrics = objective.classification_metrics if self.task == "classification" else objective.regression_metrics
        return values | {f"{prefix}/{name}": value for name, value in metrics(answers).items()}

    def predict_step(self, micro_batches: list[LabelledBatch], batch_idx: int) -> list[dict[str, Any]]:
        """Return one row an example, in the order of the data."""
        rows = [row for batch in micro_batches for row in self.rows(batch)]
        return sorted(rows, key=lambda row: row["sample"])

    def rows(self, batch: LabelledBatch) -> list[dict[str, Any]]:
        """Return what is predicted for each example of a micro-batch."""
        output_BC, samples = self(self.model, batch), batch["sample_B"].tolist()
        if self.task == "regression":
            return [{"sample": s, "value": v} for s, v in zip(samples, output_BC[:, 0].tolist(), strict=True)]
        rows = zip(samples, objective.probabilities(output_BC).tolist(), strict=True)
        named = [(sample, dict(zip(self.label_names, shares, strict=True))) for sample, shares in rows]
        return [{"sample": s, "label": max(shares, key=shares.get), "probabilities": shares} for s, shares in named]

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder for AutoModelForSequenceClassification.

        Raises:
            CheckpointError: transformers has no class with this head.
        """
        if self.head == "linear":
            raise CheckpointError(
                "model.head = linear: transformers has no class with this head; fine-tune with model.head hugging_face "
                "to export"
            )
        as_trained = with_options(tokenizer, split_special_tokens=True)  # "[SEP]" in a text is characters
        save_network(self.model.network, folder, as_trained)
