"""What an exported folder lets others do."""

import os
from pathlib import Path

import pytest
import transformers
from transformers import AutoTokenizer, BertConfig, BertModel

from launch.export import opened_by
from lightning_modules.core.export import save_network
from tests.text import word_tokenizer


def test_an_exported_tokenizer_cuts_to_the_network_and_all_may_read(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    length = tokenizer.model_max_length
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **sizes)
    before = os.umask(0o027)
    try:
        save_network(BertModel(config), tmp_path, tokenizer)
    finally:
        os.umask(before)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert len(again("the cat " * 100, truncation=True)["input_ids"]) == 16
    assert tokenizer.model_max_length == length, "the caller's own stays as it is"
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize(
    ("kind", "opener"),
    [
        ("BertModel", "AutoModel"),
        ("BertForSequenceClassification", "AutoModelForSequenceClassification"),
        ("ElectraForMaskedLM", "AutoModelForMaskedLM"),
        ("ElectraForPreTraining", "AutoModelForPreTraining"),
        ("BertLMHeadModel", "BertLMHeadModel"),
    ],
)
def test_the_class_that_is_named_after_an_export_reads_every_weight(kind: str, opener: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    network = getattr(transformers, kind)
    config = network.config_class(vocab_size=20, **sizes, is_decoder="LMHead" in kind)
    network(config).save_pretrained(tmp_path / "out")
    (told,) = opened_by(tmp_path)
    assert told == f'{opener}.from_pretrained("{tmp_path / "out"}")'
    found, info = getattr(transformers, opener).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(found).__name__ == kind and not info["unexpected_keys"] and not info["missing_keys"]
