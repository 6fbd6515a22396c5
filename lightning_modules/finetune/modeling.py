"""Encoders with a classification head, on flat batches.

Shape suffixes: T tokens of a micro-batch, B its sequences, D width, C outputs.
"""

import re
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    ElectraConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from datamodules.core.batches import TextBatch
from lightning_modules.core.attention import encode
from lightning_modules.core.dropout import cheap_dropout
from lightning_modules.electra.module import Electra

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
