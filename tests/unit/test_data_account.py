"""The account adds up, whatever is read, and what is trained on is what was written."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from datamodules.core.account import Account, check, told, total
from datamodules.core.base import TextDataModule
from datamodules.core.corpus import Corpus, Plan, account_of
from datamodules.core.errors import DataError
from datamodules.core.labels import Fields, read_examples
from datamodules.core.lines import Records
from datamodules.core.pair_options import Columns
from datamodules.core.pair_records import Reading
from datamodules.core.sources import Source
from datamodules.core.wordpiece import TokenizerOptions, WordPieceTraining
from datamodules.labelled import LabelledText
from datamodules.pairs import TextPairs
from datamodules.text import TextCorpus
from tests.unit.test_data_corpus import recipe, tokenizer_json

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12)
ROWS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["a", "b", "c"])), min_size=1, max_size=20)
FORMATS = ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "jsonl.gz"]
SETTINGS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, rows: list[dict]) -> Path:
    kind = path.name.split(".", 1)[1]
    if kind in ("jsonl", "jsonl.gz"):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    elif kind == "json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(
                stream, list(rows[0]), delimiter="\t" if kind == "tsv" else ",", quoting=csv.QUOTE_ALL
            )
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("kind", FORMATS)
@SETTINGS
@given(rows=ROWS)
def test_texts_are_those_that_were_written(tmp_path: Path, kind: str, rows: list[tuple[str, str, str]]) -> None:
    path = write(tmp_path / f"a.{kind}", [{"text": a, "other": b, "label": c} for a, b, c in rows])
    source = Source((path,))
    records = source.records()
    found = list(source.texts(records))
    account = records.account
    assert found == [text for text, _, _ in rows if text and not text.isspace()]
    assert account.records == len(rows) and account.used == len(found) and account.is_conserved()
    assert account.columns == dict.fromkeys(("text", "other", "label"), len(rows))


@pytest.mark.parametrize("kind", FORMATS)
@SETTINGS
@given(rows=ROWS)
def test_labelled_examples_are_those_that_were_written(
    tmp_path: Path, kind: str, rows: list[tuple[str, str, str]]
) -> None:
    path = write(tmp_path / f"a.{kind}", [{"one": a, "two": b, "label": c} for a, b, c in rows])
    records = Records("one", can_skip=False)
    found = read_examples((path,), Fields("one", "two", "label", "classes"), records)
    assert [(example.first, example.second, example.label) for example in found] == rows
    assert records.account.records == len(rows) and not records.account.unread


@pytest.mark.parametrize("kind", FORMATS)
@SETTINGS
@given(rows=ROWS)
def test_pairs_are_those_that_were_written(tmp_path: Path, kind: str, rows: list[tuple[str, str, str]]) -> None:
    path = write(tmp_path / f"a.{kind}", [{"anchor": a, "positive": b, "extra": c} for a, b, c in rows])
    bad = Records(None, skip_bad=True)
    found = list(Reading(str(path), (path,), "source", Columns()).pairs(bad))
    good = [(a, b) for a, b, _ in rows if a.strip() and b.strip()]
    assert [pair.texts for pair in found] == good
    account = bad.account
    assert account.records == len(rows) and account.used == len(good) and account.is_conserved()
    assert account.unread == {"extra": len(rows)}


@SETTINGS
@given(texts=st.lists(WORDS, min_size=5, max_size=60), low=st.floats(0.1, 0.9))
def test_accounts_of_both_sides_of_a_share_and_of_any_number_of_processes(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], low: float
) -> None:
    folder = tmp_path_factory.mktemp("share")
    texts = [*texts, "w5 w6", "w5 w6"]
    files = [write(folder / f"{n}.jsonl", [{"text": it} for it in texts[n::3]] or [{"text": "w7"}]) for n in range(3)]
    made = []
    for share in ((0.0, 1.0), (0.0, low), (low, 1.0)):
        records = (source := Source(tuple(files), share=share)).records()
        list(source.texts(records))
        assert records.account.is_conserved() and records.account.files == 3
        made.append(records.account)
    whole, one, other = made
    assert one.used + other.used == whole.used and one.records == other.records == whole.records


def test_an_account_is_the_same_for_any_number_of_processes_and_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamodules.core import sources

    monkeypatch.setattr(sources, "MIN_PIECE_BYTES", 2000)
    rows = [{"text": f"w{n % 30} w{n % 7} 中 w8" if n % 10 else "", "title": n} for n in range(2000)]
    files = tuple(write(tmp_path / f"{n}.jsonl", rows[n::4]) for n in range(4))
    accounts = []
    for number, parts in enumerate((1, 3)):
        plan = Plan("train", Source(files), recipe(), tokenizer_json(), tmp_path / f"cache{number}")
        for part in range(parts, 0, -1):
            plan.make_part(1 + number, part, parts)
        accounts.append(account_of(Corpus(plan.folder).manifest))
    first, second = accounts
    assert first == second and first.is_conserved() and first.records == 2000
    assert first.left_out == {"empty": 200} and first.duplicated > 0 and first.unread == {"title": 2000}
    assert first.files == 4 and first.unknown["Han"] == 1800
    assert Account.of(json.loads(json.dumps(first.as_dict()))) == first, "a second start shows it too"


def test_accounts_add_up_in_any_grouping() -> None:
    parts = []
    for number in range(4):
        part = Account(files=1, used=number, texts=3)
        part.see({"a": 0, "b": 0})
        part.refuse(f"bad {number}")
        part.read("a")
        parts.append(part)
    whole = total(parts)
    assert whole == total([total(parts[:2]), total(parts[2:])])
    assert whole.messages == ["bad 0", "bad 1", "bad 2", "bad 3"] and whole.unread == {"b": 4}


def test_much_that_is_lost_is_refused_and_little_is_told() -> None:
    fine, little, much = (Account(texts=10, texts_cut=1, tokens=1000, tokens_cut=cut) for cut in (5, 50, 300))
    check({"train": fine, "val": little}, [], is_corpus=True)
    assert not [line for line in told(fine, "train") if line.startswith("warning")]
    assert told(little, "val")[-1] == "warning: val: 5.0% of the tokens are lost by cutting"
    with pytest.raises(DataError, match=r"data: train: 1,000 tokens, 30\.0% lost .*data\.accept: \[lost\]"):
        check({"train": much}, ["unknown"], is_corpus=True)
    check({"train": much}, ["lost"], is_corpus=True)
    check({"train": much}, [], is_corpus=False)
    unknown = Account(tokens=1000)
    unknown.unknown["Han"] = 300
    with pytest.raises(DataError, match=r"30\.0% unknown to the tokenizer \(Han 300\).*data\.accept: \[unknown\]"):
        check({"train": unknown}, [], is_corpus=False)


def module(examples: str, tokenizer: TokenizerOptions, source: str, **options: object) -> TextDataModule:
    """Make a data module of a kind: labelled, pairs, or text with such examples."""
    sizes = {"global_batch_size": 4, "micro_batch_size": 4}
    if examples == "labelled":
        return LabelledText(tokenizer, source=source, label_field="word", **sizes, **options)
    if examples == "pairs":
        return TextPairs(tokenizer, source=source, **sizes, **options)
    return TextCorpus(tokenizer, source=source, examples=examples, validation_fraction=0.0, **sizes, **options)


@pytest.mark.parametrize("examples", ["segments", "packed", "documents", "labelled", "pairs"])
def test_texts_without_a_token_are_counted(tmp_path: Path, examples: str) -> None:
    """Characters of no width are letters to Python and nothing to a tokenizer."""
    texts = ["\u200b\u200d" if n % 4 == 0 else f"the fox and the hen, number {n}" for n in range(16)]
    rows = [{"text": text, "word": "ab"[n % 2], "anchor": text, "positive": "a den"} for n, text in enumerate(texts)]
    source = str(write(tmp_path / "a.jsonl", rows))
    tokenizer = TokenizerOptions(train=WordPieceTraining(60))
    options = {"cache_dir": str(tmp_path / "cache"), "accept": ["columns"]}
    data = module(examples, tokenizer, source, **options)
    data.prepare_data()
    data.setup()
    account = data.accounts()["train"]
    assert account.notes["of the texts hold no token for this tokenizer"] == (1 if examples == "pairs" else 4), (
        "of pairs each text is kept once"
    )
    assert account.is_conserved()


@pytest.mark.parametrize("examples", ["segments", "labelled", "pairs"])
def test_one_unknown_token_may_stand_for_a_whole_text(tmp_path: Path, examples: str) -> None:
    """A tokenizer without the letters of a writing without spaces makes one token of a line."""
    texts = ["ภาษาไทยเป็นภาษาที่มีระดับเสียง" + "ก" * n if n % 4 == 0 else f"the fox and hen {n}" for n in range(16)]
    rows = [{"text": it, "word": "ab"[n % 2], "anchor": it, "positive": f"a den {n}"} for n, it in enumerate(texts)]
    known = write(tmp_path / "known.jsonl", [{"text": f"the fox and hen {n} a den"} for n in range(10)])
    trained = TextCorpus(TokenizerOptions(train=WordPieceTraining(60)), 4, 4, str(known), cache_dir=str(tmp_path))
    tokenizer = TokenizerOptions(name=str(trained.preparation.make_tokenizer()))
    source = str(write(tmp_path / "a.jsonl", rows))
    options = {"cache_dir": str(tmp_path / "cache")}
    data = module(examples, tokenizer, source, **options)
    with pytest.raises(DataError, match=r"unknown .*; \d\d\.\d% of the characters\).*data\.accept: \[unknown\]"):
        data.prepare_data()
        data.setup()


@pytest.mark.parametrize("examples", ["segments", "packed", "labelled", "pairs"])
def test_names_of_special_tokens_in_texts_are_told(tmp_path: Path, examples: str) -> None:
    texts = [f"the fox [SEP] and the hen {n}" if n % 4 == 0 else f"the fox and the hen {n}" for n in range(16)]
    rows = [{"text": it, "word": "ab"[n % 2], "anchor": it, "positive": f"a den {n}"} for n, it in enumerate(texts)]
    tokenizer, source = TokenizerOptions(train=WordPieceTraining(60)), str(write(tmp_path / "a.jsonl", rows))
    options = {"cache_dir": str(tmp_path / "cache")}
    data = module(examples, tokenizer, source, **options)
    data.prepare_data()
    data.setup()
    assert data.accounts()["train"].notes == {"of the texts hold [SEP], which is read as characters": 4}
