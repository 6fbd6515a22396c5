"""TextCorpus from options to batches: tokenizers, splits, resuming, what is told to the user."""

import ast
import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import lightning
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datamodules.core.errors import DataError
from datamodules.core.wordpiece import TokenizerOptions, WordPieceTraining, load
from datamodules.text import TextCorpus
from tests.corpora import texts, txt
from tests.text import word_tokenizer

TRAINED = TokenizerOptions(train=WordPieceTraining(400))


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> TokenizerOptions:
    folder = tmp_path_factory.mktemp("tokenizer")
    word_tokenizer(400).save_pretrained(folder)
    return TokenizerOptions(name=str(folder))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def corpus(
    tokenizer: TokenizerOptions, cache: Path | str, source: Path | str = "embedded", **options: object
) -> TextCorpus:
    options = {"sequence_length": 32, "num_prepare_processes": 1, "accept": ["unknown", "lost"]} | options
    return TextCorpus(tokenizer, 8, 4, source=str(source), cache_dir=str(cache), **options)


def ready(*args: object, **options: object) -> TextCorpus:
    data = corpus(*args, **options)
    data.prepare_data()
    data.setup()
    return data


class Recorder(lightning.LightningModule):
    """Takes one real optimizer step a batch and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch: list, index: int) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(self.layer(torch.ones(1, 1)).sum())
        self.optimizers().step()
        self.seen.append([token for micro_batch in batch for token in micro_batch["ids_T"].tolist()])

    def validation_step(self, batch: list, index: int) -> None:
        assert all(micro_batch["ids_T"].numel() for micro_batch in batch)


def fit(data: TextCorpus, folder: Path, steps: int, checkpoint: Path | None = None) -> list[list[int]]:
    module = Recorder()
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        val_check_interval=3,
        check_val_every_n_epoch=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(folder / "last.ckpt")
    return module.seen


def test_embedded_corpus_end_to_end(cache: str) -> None:
    data = ready(TRAINED, cache)
    assert data.vocab_size == len(data.tokenizer) == 400 and data.sequence_length == 32
    step = next(iter(data.train_dataloader()))
    assert [len(batch["lens"]) for batch in step] == [4, 4] and all(max(batch["lens"]) <= 32 for batch in step)
    ids = step[0]["ids_T"][: step[0]["lens"][0]].tolist()
    assert ids[0] == data.tokenizer.cls_token_id and ids[-1] == data.tokenizer.sep_token_id
    seen = [p for items in data.val_dataloader() for batch in items for p in batch["sample_B"].tolist()]
    assert sorted(seen) == list(range(len(data.example_source("val"))))
    assert sum(1 for _ in data.test_dataloader()) > 10
    lines = data.describe()
    assert lines[0].endswith("(trained), 400 tokens")
    assert [*dict.fromkeys(line.split(":")[0] for line in lines)][:4] == ["tokenizer", "train", "val", "test"]
    assert data.epochs(100) == {"": 100 * 8 / len(data.example_source("train"))}
    assert "columns read: 'text'; not read: 'title' (in 309 records), 'topic' (in 309 records)" in " ".join(lines)


def test_a_second_start_makes_nothing(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready(TRAINED, cache)
    monkeypatch.setattr("datamodules.core.corpus.make_shards", None)
    monkeypatch.setattr("datamodules.core.wordpiece.train", None)
    assert ready(TRAINED, cache).fingerprint == first.fingerprint


def test_construction_touches_nothing(tmp_path: Path) -> None:
    corpus(TRAINED, tmp_path / "cache", "no/such/file.txt")
    assert list(tmp_path.iterdir()) == []


def test_two_resumes_go_on_with_the_same_samples(tmp_path: Path, named: TokenizerOptions) -> None:
    source = txt(tmp_path / "a.txt", texts(60))
    options = {"source": source, "validation_fraction": 0.2, "length_grouping_steps": 4}
    whole = fit(corpus(named, tmp_path, **options), tmp_path / "whole", 14)
    seen = fit(corpus(named, tmp_path, **options), tmp_path / "parts", 3)
    for steps, workers in ((8, 2), (14, 0)):
        data = corpus(named, tmp_path, num_workers=workers, **options)
        seen += fit(data, tmp_path / "parts", steps, tmp_path / "parts/last.ckpt")
    assert len(whole) == 14 and seen == whole


def test_seed_decides_order_and_cuts(tmp_path: Path, named: TokenizerOptions) -> None:
    source, firsts = txt(tmp_path / "a.txt", texts(200)), []
    for seed in (1, 2, 1):
        data = corpus(named, tmp_path, source)
        data.seed = seed
        data.setup()
        firsts.append([batch["ids_T"].tolist() for batch in next(iter(data.train_dataloader()))])
    assert firsts[0] == firsts[2] != firsts[1]


@pytest.mark.parametrize("examples", ["segments", "packed", "documents"])
def test_special_strings_in_the_text_are_text(tmp_path: Path, examples: str) -> None:
    lines = [f"Number {n} says [MASK] and [SEP], [CLS] or [PAD] and [UNK]. Then it ends." for n in range(200)]
    data = ready(TRAINED, tmp_path, txt(tmp_path / "a.txt", lines), examples=examples, validation_fraction=0.0)
    tokenizer, source = data.tokenizer, data.example_source("train")
    for sample in range(len(source)):
        ids = source.gather(torch.tensor([sample]).numpy())[0].tolist()
        assert tokenizer.mask_token_id not in ids and tokenizer.pad_token_id not in ids
        assert ids.count(tokenizer.cls_token_id) == 1 and ids[0] == tokenizer.cls_token_id
        if examples != "packed":
            assert ids.count(tokenizer.sep_token_id) <= 2
    assert "[ mask ]" in tokenizer.decode(source.gather(torch.arange(5).numpy())[0])


def test_special_ids_are_marked_and_unknown_words_are_not(tmp_path: Path, named: TokenizerOptions) -> None:
    data = ready(named, tmp_path, txt(tmp_path / "a.txt", ["w7 strange w8."] * 50), validation_fraction=0.0)
    batch = next(iter(data.train_dataloader()))[0]
    unknown = batch["ids_T"] == data.tokenizer.unk_token_id
    assert unknown.any() and not batch["special_T"][unknown].any()
    assert batch["special_T"].sum() == sum(batch["lens"]) - sum(batch["maskable"])
    assert data.is_special().nonzero()[0].tolist() == [0, 2, 3, 4]


def test_training_a_tokenizer_is_deterministic(tmp_path: Path) -> None:
    source = txt(tmp_path / "a.txt", texts(300) + ["Ünïcödé ✓ 中文 αβγ naïve café"] * 3)
    command = (
        "import sys; from collections import Counter; from datamodules.core.wordpiece import *\n"
        "texts = open(sys.argv[1]).read().split('\\n\\n')\n"
        "letters = alphabet_of(folded(Counter(''.join(texts)), True), 300); "
        "print(train_wordpiece(iter(texts), letters, WordPieceTraining(300)))"
    )
    vocabularies = set()
    for parallel in ("true", "false", "true", "true"):
        environment = os.environ | {"PYTHONPATH": os.getcwd(), "TOKENIZERS_PARALLELISM": parallel}
        words = [sys.executable, "-c", command, str(source)]
        printed = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
        vocabularies.add(tuple(sorted(ast.literal_eval(printed).items(), key=lambda item: item[1])))
    assert len(vocabularies) == 1
    data = ready(TokenizerOptions(train=WordPieceTraining(300)), tmp_path, source, validation_fraction=0.0)
    assert tuple(sorted(data.tokenizer.get_vocab().items(), key=lambda item: item[1])) in vocabularies
    tokenizer = AutoTokenizer.from_pretrained(data.places.tokenizer)
    assert tokenizer.tokenize("Café") == tokenizer.tokenize("cafe") and len(tokenizer) <= 300
    assert tokenizer("a", "b")["token_type_ids"][-2:] == [1, 1]


def test_a_cased_tokenizer_keeps_case(tmp_path: Path) -> None:
    options = TokenizerOptions(train=WordPieceTraining(200, lowercase=False))
    data = ready(options, tmp_path, txt(tmp_path / "a.txt", ["Big Cats and big cats."] * 99), validation_fraction=0.0)
    assert data.tokenizer.tokenize("Big") != data.tokenizer.tokenize("big")


def test_validation_is_held_out_by_document(tmp_path: Path, named: TokenizerOptions) -> None:
    documents = [f"w{5 + n % 390} w{5 + n // 390}." for n in range(1000)]
    data = ready(named, tmp_path, txt(tmp_path / "a.txt", documents), validation_fraction=0.1)
    parts = [data.example_source(split) for split in ("train", "val")]
    keys = [{tuple(part.gather(torch.tensor([n]).numpy())[0]) for n in range(len(part))} for part in parts]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 1000 and 60 < len(keys[1]) < 140
    with pytest.raises(DataError, match=r"data.test_source = null: there is no text for test; name a source"):
        data.test_dataloader()
    whole = ready(named, tmp_path, tmp_path / "a.txt", validation_fraction=0.0)
    assert len(whole.example_source("train")) == 1000 and whole.val_dataloader() == []
    txt(tmp_path / "b.txt", texts(20))
    other = ready(
        named, tmp_path, tmp_path / "a.txt", validation_source=str(tmp_path / "b.txt"), test_source="embedded"
    )
    assert other.corpora["val"].manifest["documents"] == 20 and other.corpora["test"].manifest["documents"] == 309


def test_a_run_keeps_its_tokenizer(tmp_path: Path, named: TokenizerOptions) -> None:
    source = txt(tmp_path / "a.txt", texts(60))
    options = {"validation_fraction": 0.2}
    fit(corpus(named, tmp_path, source, **options), tmp_path / "run", 1)
    kept = AutoTokenizer.from_pretrained(tmp_path / "run/tokenizer")
    assert kept.get_vocab() == word_tokenizer(400).get_vocab()
    fit(corpus(named, tmp_path, source, **options), tmp_path / "run", 1)
    with pytest.raises(DataError, match=r"run/tokenizer: is another tokenizer than data.tokenizer"):
        fit(corpus(TRAINED, tmp_path, source, **options), tmp_path / "run", 1)


def test_a_run_goes_on_with_its_own_tokenizer_when_the_named_one_is_gone(tmp_path: Path) -> None:
    source, named = txt(tmp_path / "a.txt", texts(60)), TokenizerOptions(name=str(tmp_path / "named"))
    word_tokenizer(400).save_pretrained(tmp_path / "named")
    first = corpus(named, tmp_path, source, validation_fraction=0.2)
    fit(first, tmp_path / "run", 1)
    (tmp_path / "named").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"named': cannot be opened"):
        fit(corpus(named, tmp_path, source, validation_fraction=0.2), tmp_path / "run", 2)
    (tmp_path / "run/checkpoints/step_00000001").mkdir(parents=True)
    again = corpus(named, tmp_path, source, validation_fraction=0.2)
    fit(again, tmp_path / "run", 2)
    assert again.places.tokenizer == str(tmp_path / "run/tokenizer") and again.fingerprint == first.fingerprint


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert TextCorpus(TRAINED, 8, 4).preparation.cache == tmp_path / "xdg/tokamak"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TextCorpus(TRAINED, 8, 4).preparation.cache == tmp_path / ".cache/tokamak"


def test_a_user_who_is_not_there_is_told(tmp_path: Path) -> None:
    for options in ({"cache": "~nosuchuser/cache"}, {"source": "~nosuchuser/text.txt"}):
        with pytest.raises(DataError, match=r"~nosuchuser/.*: there is no such user"):
            corpus(TRAINED, **{"cache": tmp_path, **options}).prepare_data()


def test_a_source_of_bad_records_alone_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"tex": 1}\n' * 7)
    data = corpus(TRAINED, tmp_path, tmp_path / "a.jsonl", on_bad_record="skip")
    with pytest.raises(DataError, match=r"no document .*\(7 bad records were skipped, the first: .*:1: has no field"):
        data.prepare_data()


def test_few_examples_warn_and_repeat(tmp_path: Path, named: TokenizerOptions) -> None:
    data = corpus(named, tmp_path, txt(tmp_path / "a.txt", ["w7 w8 w9."]), validation_fraction=0.0)
    with pytest.warns(UserWarning, match="1 examples are fewer than one global batch of 8, so examples repeat"):
        data.setup()
    step = next(iter(data.train_dataloader()))
    assert [batch["lens"] for batch in step] == [[6] * 4] * 2  # the full stop is a word of its own


def test_skipped_records_are_told(tmp_path: Path, named: TokenizerOptions) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "w7 w8 w9"}\n{"tex": 1}\n' * 20)
    options = {"source": tmp_path / "a.jsonl", "validation_fraction": 0.0}
    with pytest.raises(DataError, match=r"a.jsonl:2: has no field 'text'"):
        ready(named, tmp_path, **options)
    lines = ready(named, tmp_path, on_bad_record="skip", **options).describe()
    assert lines[2].startswith("train: 40 records read, 20 used; not: 20 refused; the first refused: ")
    assert "a.jsonl:2" in lines[2]


def test_no_validation_document_is_told(tmp_path: Path, named: TokenizerOptions) -> None:
    data = corpus(named, tmp_path, txt(tmp_path / "a.txt", ["w7 w8."] * 3), validation_fraction=0.001)
    with pytest.raises(DataError, match=r"no text for val; of \d+ documents none .*validation_fraction"):
        data.prepare_data()


def without(role: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}, unk_token="[UNK]"))
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{key: value for key, value in names.items() if key != role})


@pytest.mark.parametrize("role", ["cls_token", "sep_token", "mask_token"])
def test_a_tokenizer_that_cannot_mask_is_refused(tmp_path: Path, role: str) -> None:
    without(role).save_pretrained(tmp_path / "tokenizer")
    usual = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}[role]
    with pytest.raises(DataError, match=rf"tokenizer': has no \{usual[:-1]}\] \({role}\); give one of the BERT family"):
        ready(TokenizerOptions(name=str(tmp_path / "tokenizer")), tmp_path, txt(tmp_path / "a.txt", texts(5)))


@pytest.mark.parametrize(
    ("tokenizer", "options", "message"),
    [
        (TokenizerOptions(), {}, r"data.tokenizer: needs one of name and train, neither is given"),
        (TokenizerOptions("a", WordPieceTraining(100)), {}, r"data.tokenizer: .* both are given"),
        (TRAINED, {"sequence_length": 7}, r"data.sequence_length = 7: must be at least 8"),
        (TRAINED, {"validation_fraction": 1.0}, r"data.validation_fraction = 1.0: must be from 0 to below 1"),
        (TRAINED, {"streaming": True}, r"data.examples = 'segments': data.streaming makes packed examples only"),
    ],
)
def test_options_that_contradict_each_other(
    tmp_path: Path, tokenizer: TokenizerOptions, options: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        corpus(tokenizer, tmp_path, **options)


def test_a_tokenizer_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"data.tokenizer.name = 'no/such-tokenizer': cannot be opened"):
        ready(TokenizerOptions(name="no/such-tokenizer"), tmp_path, txt(tmp_path / "a.txt", texts(5)))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_code_that_lies_beside_a_tokenizer_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    described = {"auto_map": {"AutoTokenizer": ["other.Other", None], "AutoConfig": "other.Other"}}
    (tmp_path / file).write_text(json.dumps(described | {"tokenizer_class": "Other", "model_type": "other"}))
    (tmp_path / "other.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Other: pass\n")
    with pytest.raises(DataError, match=r"data.tokenizer.name = .*: cannot be opened"):
        load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_tokenizers_of_an_unknown_form_or_with_holes_are_refused(tmp_path: Path) -> None:
    word_tokenizer(50).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())
    whole["model"]["vocab"]["w49"] = 60
    file.write_text(json.dumps(whole))
    with pytest.raises(DataError, match=r"holds 50 tokens and the id 60; give one whose ids have no holes"):
        load(str(tmp_path))
    for text in ("{}", '{"model": {"type": "unheard of"}}', "[]", "{"):
        file.write_text(text)
        with pytest.raises(DataError, match=r"data.tokenizer.name = .*: cannot be opened") as error:
            load(str(tmp_path))
        assert "\n" not in str(error.value)


def test_packed_examples_are_full(tmp_path: Path, named: TokenizerOptions) -> None:
    data = ready(named, tmp_path, txt(tmp_path / "a.txt", texts(100)), examples="packed", validation_fraction=0.0)
    steps = list(itertools.islice(data.train_dataloader(), 5))
    lens = [length for step in steps for batch in step for length in batch["lens"]]
    assert lens.count(32) >= 39 and len(lens) == 40  # the last window may be shorter
    assert all(batch["type_T"].sum() == 0 for step in steps for batch in step)
