"""Encoders with a classification head, on flat batches, and where their weights come from.

Shape suffixes: T tokens of a micro-batch, B its sequences, D width, C outputs.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    ElectraConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from datamodules.core.batches import TextBatch
from lightning_modules.core.attention import encode
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.dropout import cheap_dropout
from lightning_modules.core.warm_start import checkpoint_of, load_weights, readable
from lightning_modules.electra.module import Electra

METHODS = {"electra": Electra}  # runs whose encoder can be taken: each method says how its encoder is configured
PREFIXES = ("model.discriminator.network.electra.", "model.network.electra.")  # detection, masked language modelling
FAMILIES = ("electra", "bert")  # positions from 0, two segments, attention that can be replaced
LAYER = re.compile(r"\.encoder\.layer\.(\d+)\.")


@dataclass(frozen=True)
class UntrainedEncoder:
    """An ELECTRA encoder with fresh weights: what pre-training is compared with.

    Args:
        hidden_size: width.
        num_layers: layers.
        num_heads: attention heads.
        embedding_size: width of the tables.
        max_positions: longest sequence.
    """

    hidden_size: int = 256
    num_layers: int = 12
    num_heads: int = 4
    embedding_size: int = 128
    max_positions: int = 512

    def config(self, tokenizer: PreTrainedTokenizerBase) -> ElectraConfig:
        """Return its configuration for a tokenizer."""
        options = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Electra(**options).encoder_config(tokenizer)


class Classifier(nn.Module):
    """An encoder and a head on the vector of [CLS].

    `linear` is the head of the released ELECTRA: dropout and one linear layer. `hugging_face` is the head of the
    family's own class in transformers: for ELECTRA dropout, dense, GELU, dropout, linear; for BERT pooler, dropout,
    linear.
    """

    def __init__(self, config: PreTrainedConfig, head: str, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.head = head
        if head == "hugging_face":
            config.num_labels, config.classifier_dropout = num_outputs, dropout
            self.network = AutoModelForSequenceClassification.from_config(config, attn_implementation="flat")
            cheap_dropout(self.network)
            return
        self.network = bare_encoder(config)
        cheap_dropout(self.network)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(config.hidden_size, num_outputs)

    @property
    def encoder(self) -> PreTrainedModel:
        """The encoder without its head."""
        return self.network.base_model

    def forward(self, batch: TextBatch) -> Tensor:
        """Return the outputs [B, C] of a flat batch."""
        hidden_TD = encode(self.encoder, batch["ids_T"], batch)
        cls_BD = hidden_TD[batch["layout"].cu_seqlens[:-1].long()]
        if self.head == "linear":
            return self.output(self.dropout(cls_BD))
        if self.network.config.model_type == "electra":
            return self.network.classifier(cls_BD[:, None])
        return self.network.classifier(self.network.dropout(self.encoder.pooler(cls_BD[:, None])))


def bare_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Build an encoder that ends with its last layer, with fresh weights."""
    options = {} if config.model_type == "electra" else {"add_pooling_layer": False}
    return AutoModel.from_config(config, attn_implementation="flat", **options)


def depth_of(name: str, num_layers: int) -> int:
    """Return the depth of a parameter: 0 the embeddings and their projection, 1..n the layers, n + 1 the head."""
    if found := LAYER.search(name):
        return int(found[1]) + 1
    return 0 if ".embeddings" in name else num_layers + 1


def weights_folder(source: str) -> str:
    """Return the Hugging Face folder or hub name behind a source: of an exported ELECTRA it is the discriminator."""
    inner = Path(source, "discriminator")
    return str(inner) if inner.is_dir() else source


def encoder_config(source: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Read how the encoder of a run, a Hugging Face folder or a hub name is built.

    Raises:
        CheckpointError: there is none, it is of another family, or it has another vocabulary than the data.
    """
    checkpoint = checkpoint_of(source)
    if checkpoint is not None:
        run = checkpoint.parents[1]
        same_vocabulary(tokenizer, run / "tokenizer", source)
        return method_of_run(run).encoder_config(tokenizer)
    folder = weights_folder(source)
    with readable(source):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in FAMILIES:
        known = " and ".join(FAMILIES)
        raise CheckpointError(f"model.init_from = {source}: is of the family {config.model_type}; give one of {known}")
    same_vocabulary(tokenizer, Path(folder), source)
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"model.init_from = {source}: knows {config.vocab_size} tokens, the tokenizer has {len(tokenizer)}; "
            "set data.tokenizer to the encoder's own"
        )
    return config


def method_of_run(run: Path) -> Electra:
    """Build the method of a run from its config.yaml, without networks."""
    file = run / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{file}: is missing; model.init_from needs the whole folder of a run")
    options = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
    name = options.pop("class")
    if name not in METHODS:
        raise CheckpointError(f"{run}: is a run of {name}, and an encoder can be taken of {', '.join(METHODS)}")
    return METHODS[name](**{key: _as_number(value) for key, value in options.items()})


def _as_number(value: Any) -> Any:
    """Read a word such as 1e-06, which is a number in YAML 1.2 and a string to PyYAML."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def same_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path, source: str) -> None:
    """Refuse to read text with other ids than those that the encoder was trained with."""
    file = folder / "tokenizer.json"
    if not hasattr(tokenizer, "get_vocab"):  # a plan knows the size of the vocabulary alone
        return
    if file.is_file() and Tokenizer.from_file(str(file)).get_vocab() != tokenizer.get_vocab():
        raise CheckpointError(
            f"model.init_from = {source}: was trained with another tokenizer; set data.tokenizer to {folder}"
        )


@torch.no_grad()
def load_encoder(encoder: PreTrainedModel, source: str) -> None:
    """Copy the encoder's weights out of a run, a Hugging Face folder or a hub name.

    Raises:
        CheckpointError: they cannot be read, or do not fit.
    """
    checkpoint = checkpoint_of(source)
    if checkpoint is None:
        with readable(source):
            found = AutoModel.from_pretrained(weights_folder(source), dtype=torch.float32, trust_remote_code=False)
        names = {name for name, _ in encoder.named_parameters()}
        load_weights(encoder, {name: p for name, p in found.named_parameters() if name in names}, source)
        return
    weights = read_weights(checkpoint)
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in weights)), "")
    own = {name.removeprefix(prefix): weight for name, weight in weights.items() if prefix and name.startswith(prefix)}
    load_weights(encoder, own, source)
