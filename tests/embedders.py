"""Small sentence encoders of several families, with tokenizers of their own kinds, and the folder of a run for them."""

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.core.loader import lay_out
from datamodules.core.pair_store import Encoder as Tokens
from lightning_modules.core.encoders import CAUSAL, Encoder
from lightning_modules.matryoshka2d.module import Matryoshka2d
from tests.text import SPECIAL

LENGTH = 24
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 64}
OWN = {
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4},
    "gpt2": {"n_positions": 64, "n_inner": 48},
    "llama": {"num_key_value_heads": 2},
    "modernbert": {"local_attention": 6, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
}
TEXTS = [
    "a quick brown fox", "one", "[SEP] is text here, and so is [CLS]", "the fox\tand the dog " * 20,
    "naïve, café; 東京 \U0001f600", "b", "a quick brown fox",
]  # fmt: skip


def letters_tokenizer() -> PreTrainedTokenizerBase:
    """Return a WordPiece of single letters, with BERT's special tokens around a text."""
    words = [*SPECIAL, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *",;.["]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, do_lower_case=True)


def bytes_tokenizer(end: str | None) -> PreTrainedTokenizerBase:
    """Return one of bytes, as GPT-2's before any merge, with nothing around a text and one special token or none."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, **({"eos_token": end} if end else {}))


def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the kind that a family has."""
    if family in CAUSAL:
        return bytes_tokenizer(None if family == "gpt2" else "<|end|>")
    return letters_tokenizer()


def source(family: str, folder: Path) -> PreTrainedTokenizerBase:
    """Write an encoder of a family with random weights, and its tokenizer, as a Hugging Face folder."""
    tokenizer = tokenizer_of(family)
    torch.manual_seed(5)
    config = AutoConfig.for_model(family, **{**SHAPE, **IDS, **OWN.get(family, {}), "vocab_size": len(tokenizer)})
    network = Encoder(config).network
    for weight in network.parameters():  # biases and norms are not left at 0 and 1
        weight.data += 0.2 * torch.randn_like(weight)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def method_of(family: str, folder: Path, **options: Any) -> tuple[Matryoshka2d, PreTrainedTokenizerBase]:
    """Return a method that begins with such an encoder, and the tokenizer."""
    tokenizer = source(family, folder)
    method = Matryoshka2d(init_from=str(folder), **options)
    method.build(tokenizer, LENGTH)
    method.warm_start(str(folder))
    return method.eval(), tokenizer


def cell(
    method: Matryoshka2d, tokenizer: PreTrainedTokenizerBase, texts: list[str], layer: int, dim: int
) -> np.ndarray:
    """Return a cell of the grid: texts as the data module tokenises them, read at a layer of the whole network."""
    rows = [ids for ids, _ in Tokens(tokenizer)(texts, [LENGTH] * len(texts))]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    lens = np.array([len(rows[row]) for row in order])
    ids = np.concatenate([rows[row] for row in order])
    batch = lay_out(ids, lens, lens, np.arange(len(lens)), np.zeros(len(tokenizer), bool))
    with torch.no_grad():
        vectors_BD = method.model.vectors(batch, [layer])[0]
    return F.normalize(vectors_BD[torch.tensor(order).argsort(), :dim]).numpy()


def run_folder(folder: Path, model: dict[str, Any] | None = None, **data: Any) -> Path:
    """Write what a run's folder tells, and return it."""
    told = {
        "seed": 1,
        "model": {"class": "matryoshka2d", "mode": "paper", **(model or {})},
        "data": {"sequence_length": LENGTH, "global_batch_size": 16, "source": "/some/where/pairs.csv", **data},
        "trainer": {"max_steps": 9},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(told))
    return folder
