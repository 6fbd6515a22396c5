"""What cannot be built is refused before memory is touched."""

import json
import resource
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, DistilBertConfig, LlamaConfig

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoder_sources import encoder_config
from lightning_modules.core.encoders import bare_network
from lightning_modules.core.sizes import check_size, least_weights, memory
from lightning_modules.electra.module import Electra
from lightning_modules.finetune.modeling import UntrainedEncoder
from lightning_modules.finetune.module import Finetune
from lightning_modules.matryoshka2d.module import Matryoshka2d
from lightning_modules.matryoshka2d.options import UntrainedBert
from tests.text import word_tokenizer

WIDE = {"hidden_size": 2**19, "num_layers": 1000, "num_heads": 8}


def finetune() -> Finetune:
    method = Finetune(untrained=UntrainedEncoder(**WIDE))
    method.label_names = ["a", "b"]
    return method


@pytest.mark.parametrize(
    "method",
    [lambda: Electra(**WIDE), finetune, lambda: Matryoshka2d(untrained=UntrainedBert(**WIDE))],
    ids=["electra", "finetune", "matryoshka2d"],
)
def test_an_absurd_size_touches_no_memory(method) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"^model.*: the weights alone take [\d,]+ GiB or more, and here are"):
        method().build(word_tokenizer(), 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"hidden_size": 10**7, "vocab_size": 10**9}, "the weights alone take"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers, at most 10,000 are built"),
        ({"hidden_size": -32}, "hidden_size is -32; it must be a whole number of at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be"),
        ({"vocab_size": "many"}, "can be read there"),
    ],
)
def test_a_folder_that_says_absurd_sizes(changed: dict, problem: str, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), **changed}))
    with pytest.raises(CheckpointError) as caught:
        encoder_config(str(tmp_path), word_tokenizer())
    assert str(caught.value).startswith(f"model.init_from = {tmp_path}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128, vocab_size=500),
        DistilBertConfig(dim=64, n_layers=3, n_heads=2, hidden_dim=128, vocab_size=500),
        LlamaConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=500,
                    intermediate_size=128, max_position_embeddings=64),
    ],
    ids=["bert", "distilbert", "llama"],
)  # fmt: skip
def test_the_count_is_never_over_what_a_network_has(config) -> None:
    with torch.device("meta"):
        has = sum(parameter.numel() for parameter in bare_network(config).parameters())
        check_size(BertConfig(hidden_size=2**19, num_hidden_layers=1000), "model")
    assert 0.5 * has < least_weights(config) <= has + 64 * config.hidden_size  # llama has no table of positions
    check_size(config, "model")
    assert 2**28 < memory() < 2**50
