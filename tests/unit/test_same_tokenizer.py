"""The tokenizer of the data is compared with the encoder's own, wherever that lies and however it is written."""

import io
import json
import os
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer, XLMRobertaConfig

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoder_sources import encoder_config
from lightning_modules.core.same_tokenizer import same_tokenizer
from tests.text import SPECIAL

WORDS = ["fox", "dog", "river", "stone"]
ENTRIES = [
    *SPECIAL,
    *string.ascii_lowercase,
    *string.ascii_uppercase,
    *(f"##{it}" for it in string.ascii_lowercase),
    *WORDS,
]


def bert(entries: list[str] = ENTRIES, lower: bool = True) -> BertTokenizer:
    return BertTokenizer(vocab={word: number for number, word in enumerate(entries)}, do_lower_case=lower)


def permuted() -> list[str]:
    return [*ENTRIES[:5], *reversed(ENTRIES[5:])]


def encoder(folder: Path) -> Path:
    """Write a network alone."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(ENTRIES), **sizes)).save_pretrained(folder)
    return folder


def vocab_alone(folder: Path) -> None:
    """Write a tokenizer as older uploads have it."""
    (folder / "vocab.txt").write_text("\n".join(ENTRIES) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    )


@pytest.mark.parametrize("form", ["whole", "vocab_alone"])
def test_other_ids_are_refused_and_the_same_are_taken(form: str, tmp_path: Path) -> None:
    folder = encoder(tmp_path / "encoder")
    vocab_alone(folder) if form == "vocab_alone" else bert().save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"^model\.init_from = null: name the encoder"):
        encoder_config(None, bert())
    assert encoder_config(str(folder), bert()).hidden_size == 8
    refusal = r"^model.init_from = .*encoder: was trained with another tokenizer; set data.tokenizer to .*encoder \("
    with pytest.raises(CheckpointError, match=rf"{refusal}their vocabularies differ\)"):
        encoder_config(str(folder), bert(permuted()))
    with pytest.raises(CheckpointError, match=rf"{refusal}.* becomes .* and "):
        encoder_config(str(folder), bert(lower=False))


def test_what_stands_around_a_text_counts(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "encoder")
    bert().save_pretrained(folder)
    other = bert()
    other.backend_tokenizer.post_processor = None
    with pytest.raises(CheckpointError, match=r"with another tokenizer; .*'' becomes \[CLS\] \[SEP\] and \)"):
        same_tokenizer(other, str(folder), str(folder))


def test_a_model_of_sentencepiece_alone_is_compared(tmp_path: Path) -> None:
    folder, names = tmp_path / "encoder", {"xlm": range(200), "other": range(50, 250)}
    for name, numbers in names.items():
        file, place = io.BytesIO(), tmp_path / name
        place.mkdir()
        texts = (f"the quick brown fox jumps over the lazy dog {number}" for number in numbers)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts, model_writer=file, vocab_size=60, hard_vocab_limit=False, minloglevel=2
        )
        XLMRobertaConfig(vocab_size=80).save_pretrained(place)
        (place / "sentencepiece.bpe.model").write_bytes(file.getvalue())
    shutil.copytree(tmp_path / "xlm", folder)
    same_tokenizer(AutoTokenizer.from_pretrained(folder), str(folder), "it")
    with pytest.raises(CheckpointError, match="it: was trained with another tokenizer"):
        same_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "other"), str(folder), "it")
    (folder / "sentencepiece.bpe.model").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"it: its tokenizer cannot be opened, to be compared"):
        same_tokenizer(bert(), str(folder), "it")


def test_an_encoder_without_a_tokenizer_says_that_nothing_was_compared(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "encoder")
    with pytest.warns(UserWarning, match="holds no tokenizer, so data.tokenizer is not compared with it"):
        same_tokenizer(bert(), str(folder), "it")


HUB = """
from lightning_modules.core.encoder_sources import encoder_config, form_of, load_encoder
from lightning_modules.core.encoders import Encoder
from tests.unit.test_same_tokenizer import LAYOUTS, bert, permuted
for layout in LAYOUTS:
    name = f"acme/{layout}"
    load_encoder(Encoder(encoder_config(name, bert())).network, name)
    print(layout, form_of(name))
    try:
        encoder_config(name, bert(permuted()))
    except Exception as error:
        print(type(error).__name__, error)
"""
LAYOUTS = ("plain", "sentences", "early")


def test_a_hub_name_is_compared_and_its_folder_read_whole(tmp_path: Path) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    for layout in LAYOUTS:
        hub = tmp_path / "hub" / f"models--acme--{layout}"
        (hub / "refs").mkdir(parents=True)
        (hub / "refs" / "main").write_text(commit)
        place, inner = hub / "snapshots" / commit, "0_Transformer" if layout == "early" else ""
        bert().save_pretrained(encoder(place / inner))
        if layout != "plain":
            kinds = [("Transformer", inner), ("Pooling", "1_Pooling")]
            modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
            (place / "modules.json").write_text(json.dumps(modules))
            (place / "1_Pooling").mkdir()
            told = {"word_embedding_dimension": 8, "pooling_mode_cls_token": True}
            (place / "1_Pooling" / "config.json").write_text(json.dumps(told))
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr
    assert "plain None" in found.stdout and found.stdout.count("Form(pooling='cls'") == 2
    for layout in LAYOUTS:
        refusal = f"CheckpointError model.init_from = acme/{layout}: was trained with another tokenizer"
        assert refusal in found.stdout
    assert found.stderr.count("holds no modules.json, and the hub is not asked") == 1
