"""Hugging Face folders that are proved by reading them back."""

import copy
import inspect
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_network(
    network: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
) -> None:
    """Write a network as safetensors with its configuration and tokenizer, read it back and compare every tensor.

    The tokenizer cuts to so many tokens, by default the network's positions, if it is asked to cut.

    Raises:
        RuntimeError: what was read back differs from what was written.
    """
    network.save_pretrained(folder)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_tokens or network.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # written for its owner alone
        file.chmod((folder / "config.json").stat().st_mode & 0o777)
    again = type(network).from_pretrained(folder, dtype=next(network.parameters()).dtype, **without_pooler(network))
    written, read = network.state_dict(), again.state_dict()
    different = [name for name in written.keys() | read.keys() if not _same(written.get(name), read.get(name))]
    if different:
        raise RuntimeError(f"{folder}: reads back differently in {', '.join(sorted(different)[:5])}")


def with_options(tokenizer: PreTrainedTokenizerBase, **options: object) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer that has other options, and saves them."""
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in options.items():
        setattr(tokenizer, name, value)
    tokenizer.init_kwargs |= options  # of those names alone is anything saved
    return tokenizer


def without_pooler(network: PreTrainedModel) -> dict[str, bool]:
    """Return what keeps transformers from making up a pooler when it reads a network that has none."""
    takes = "add_pooling_layer" in inspect.signature(type(network).__init__).parameters
    return {"add_pooling_layer": False} if takes and network.pooler is None else {}


def _same(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> bool:
    return ours is not None and theirs is not None and torch.equal(ours.cpu(), theirs.cpu())
