"""Encoders of Hugging Face on flat batches, read at any of their layers, and cut there.

Shape suffixes: T tokens of a micro-batch, B its sequences, W longest of them, D width.

Layer n of N is what the model would return if the layers above n were removed: the final norm, where a family has one
outside of its layers, is applied to it. Layer 0 is the output of the embeddings.
"""

import copy
import inspect
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from datamodules.core.batches import TextBatch
from lightning_modules.core import attention  # noqa: F401  registers "flat"
from lightning_modules.core.blocks import blocks
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.dropout import cheap_dropout

CAUSAL = ("gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
FLAT = (  # take the tokens of a micro-batch without padding
    *("bert", "camembert", "distilbert", "electra", "ernie", "modernbert", "roberta", "xlm-roberta"),
    *CAUSAL,
)
PADDED = ("deberta", "deberta-v2", "mpnet")  # have an attention of their own
FROM_PAD = ("camembert", "mpnet", "roberta", "xlm-roberta")  # the first position is the one after that of padding


class Encoder(nn.Module):
    """An encoder, or the body of a causal language model, whose layers can be read.

    Raises:
        CheckpointError: a family whose layers cannot be told apart.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.network = bare_network(config)
        cheap_dropout(self.network)
        self.final_norm_name = final_norm(self.network)

    @property
    def config(self) -> PreTrainedConfig:
        """How the network is built."""
        return self.network.config

    @property
    def num_layers(self) -> int:
        """Number of layers N."""
        return self.config.num_hidden_layers

    @property
    def width(self) -> int:
        """Width D of the vectors."""
        return self.config.hidden_size

    @property
    def max_tokens(self) -> int:
        """Longest sequence."""
        return self.config.max_position_embeddings - self._first_position

    @property
    def _first_position(self) -> int:
        return self.config.pad_token_id + 1 if self.config.model_type in FROM_PAD else 0

    def forward(self, batch: TextBatch, layers: Iterable[int]) -> list[Tensor]:
        """Return the hidden states [T, D] of the given layers (0 to N) in one pass."""
        states, last_TD = self._flat(batch) if self.config.model_type in FLAT else self._padded(batch)
        return [last_TD if layer == self.num_layers else self._normed(states[layer]) for layer in layers]

    def _normed(self, hidden_TD: Tensor) -> Tensor:
        return getattr(self.network, self.final_norm_name)(hidden_TD) if self.final_norm_name else hidden_TD

    def _flat(self, batch: TextBatch) -> tuple[list[Tensor], Tensor]:
        options = {"use_cache": False} if self.config.model_type in CAUSAL else {}
        if getattr(self.config, "type_vocab_size", 0) > 1:
            options["token_type_ids"] = batch["type_T"][None]
        found = self.network(
            batch["ids_T"][None],
            position_ids=batch["position_T"][None] + self._first_position,
            layout=batch["layout"],
            output_hidden_states=True,
            **options,
        )
        return [hidden[0] for hidden in found.hidden_states], found.last_hidden_state[0]

    def _padded(self, batch: TextBatch) -> tuple[list[Tensor], Tensor]:
        lens_B, longest = batch["layout"].lens_B, batch["layout"].max_len
        keep_BW = torch.arange(longest, device=lens_B.device) < lens_B[:, None]
        ids_BW = torch.full_like(keep_BW, self.config.pad_token_id or 0, dtype=torch.int64)
        ids_BW[keep_BW] = batch["ids_T"]
        found = self.network(ids_BW, attention_mask=keep_BW.long(), output_hidden_states=True)
        return [hidden[keep_BW] for hidden in found.hidden_states], found.last_hidden_state[keep_BW]


def bare_network(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a network that ends with its last layer, with fresh weights.

    Raises:
        CheckpointError: a family whose layers cannot be told apart.
    """
    family = config.model_type
    if family not in FLAT + PADDED:
        raise CheckpointError(
            f"the family {family} cannot be cut at its layers; take one of {', '.join(sorted(FLAT + PADDED))}"
        )
    if family in CAUSAL and getattr(config, "is_causal", None) is False:
        raise CheckpointError(f"the family {family} is read as causal, and its config.json says is_causal = false")
    options = {"attn_implementation": "flat"} if family in FLAT else {}
    if "add_pooling_layer" in inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters:
        options["add_pooling_layer"] = False
    network = AutoModel.from_config(config, **options)
    if len(list(blocks(network))) != config.num_hidden_layers:
        raise CheckpointError(f"the family {family} has not one module a layer, so that none can be removed")
    return network


def layer_list(network: PreTrainedModel) -> str:
    """Return the name of the list of a network's layers."""
    first = next(blocks(network))
    return next(name for name, module in network.named_modules() if module is first).rpartition(".")[0]


def final_norm(network: PreTrainedModel) -> str | None:
    """Return the name of the norm that a network applies after all of its layers, None if the last layer ends it.

    It is a child of the network itself, beside the list of layers; norms inside of an encoder module are of the
    positions (DeBERTa).
    """
    if "." in layer_list(network):
        return None
    names = [name for name, _ in network.named_children()]
    after = names[names.index(layer_list(network)) + 1 :]
    norms = [name for name in after if "Norm" in type(getattr(network, name)).__name__]
    return norms[0] if norms else None


def cut(network: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Return a network of the first layers alone, its configuration corrected; the weights are copies.

    Raises:
        ValueError: the network has not so many layers.
    """
    whole = network.config.num_hidden_layers
    if not 1 <= layers <= whole:
        raise ValueError(f"layers = {layers}: the network has layers 1 to {whole}")
    config = copy.deepcopy(network.config)
    config.num_hidden_layers = layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == whole and "layer" in name:  # a kind for each layer
            setattr(config, name, value[:layers])
    config.architectures = None
    shallow = bare_network(config)
    prefix = f"{layer_list(network)}."
    kept = {
        name: weight
        for name, weight in network.state_dict().items()
        if not name.startswith(prefix) or int(name.removeprefix(prefix).partition(".")[0]) < layers
    }
    shallow.load_state_dict(kept, strict=True)
    return shallow.to(next(network.parameters()).dtype).train(network.training)
