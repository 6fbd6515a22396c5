"""Labelled text: formats, examples as transformers would make them, labels that go with their texts, complaints."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from datamodules.core.account import NO_TOKEN
from datamodules.core.encoded import Encoded, shortened
from datamodules.core.errors import DataError
from datamodules.core.labels import Example
from datamodules.core.made_tasks import halves, make_examples
from datamodules.core.wordpiece import TokenizerOptions, WordPieceTraining
from datamodules.labelled import LabelledText
from tests.text import word_tokenizer

ROWS = [{"text": " ".join(f"w{5 + (n + k) % 90}" for k in range(n % 7 + 1)), "label": n % 3} for n in range(30)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def jsonl(path: Path, rows: list) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text)
    return str(path)


def data(tokenizer: str, source: str, **options) -> LabelledText:
    settings = {"global_batch_size": 8, "micro_batch_size": 4, "sequence_length": 16, **options}
    made = LabelledText(TokenizerOptions(name=tokenizer), source=source, **settings)
    made.seed = 7
    made.setup()
    return made


def texts(batch: dict, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    bounds = batch["layout"].cu_seqlens.tolist()
    spans = pairwise(bounds)
    return [tokenizer.decode(batch["ids_T"][a:b], skip_special_tokens=True) for a, b in spans]


def test_a_label_stays_with_its_text_in_every_epoch(tmp_path, tokenizer_folder):
    made = data(tokenizer_folder, jsonl(tmp_path / "a.jsonl", ROWS), global_batch_size=10, micro_batch_size=5)
    truth = {row["text"]: row["label"] for row in ROWS}
    assert made.label_names == ["0", "1", "2"] and len(truth) == 30
    steps = iter(made.train_dataloader())
    seen = []
    for _ in range(12):  # four epochs of 30 in batches of 10
        for batch in next(steps):
            found = texts(batch, made.tokenizer)
            assert [truth[text] for text in found] == batch["label_B"].tolist()
            seen += found
    assert sorted(seen[:30]) == sorted(truth) == sorted(seen[90:120])
    assert seen[:30] != seen[30:60]


def test_an_evaluation_keeps_the_order_of_the_file(tmp_path, tokenizer_folder):
    source = jsonl(tmp_path / "a.jsonl", ROWS)
    made = data(tokenizer_folder, source, test_source=source)
    batches = [batch for step in made.test_dataloader() for batch in step]
    by_sample = {s: t for b in batches for s, t in zip(b["sample_B"].tolist(), texts(b, made.tokenizer), strict=True)}
    assert [by_sample[number] for number in range(30)] == [row["text"] for row in ROWS]
    labels = {s: n for b in batches for s, n in zip(b["sample_B"].tolist(), b["label_B"].tolist(), strict=True)}
    assert [labels[number] for number in range(30)] == [row["label"] for row in ROWS]


def test_all_formats_give_the_same_examples(tmp_path, tokenizer_folder):
    table = pa.table({name: [row[name] for row in ROWS] for name in ("text", "label")})
    parquet.write_table(table, tmp_path / "d.parquet")
    with pa.OSFile(str(tmp_path / "e.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "b.csv").write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS))
    (tmp_path / "c.tsv").write_text("label\ttext\n" + "".join(f"{row['label']}\t{row['text']}\n" for row in ROWS))
    jsonl(tmp_path / "a.jsonl.gz", ROWS)
    names = ["a.jsonl.gz", "b.csv", "c.tsv", "d.parquet", "e.arrow"]
    prints = {name: data(tokenizer_folder, str(tmp_path / name)).fingerprint for name in names}
    assert len(set(prints.values())) == 1, prints


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [8, 9, 12, 64])
def test_ids_segments_and_cuts_are_those_of_transformers(length, side):
    tokenizer = word_tokenizer()
    tokenizer.truncation_side = side
    word = [f"w{n}" for n in range(5, 60)]
    pairs = [(word[:a], word[20 : 20 + b]) for a, b in [(1, 1), (9, 2), (2, 9), (9, 9), (8, 9), (9, 8), (30, 4)]]
    examples = [Example(" ".join(a), " ".join(b), "x", "") for a, b in pairs]
    ours = Encoded(examples, tokenizer, length, torch.zeros(len(pairs)))
    special = [(tokenizer.cls_token, tokenizer.cls_token_id), (tokenizer.sep_token, tokenizer.sep_token_id)]
    from tokenizers.processors import BertProcessing

    tokenizer.backend_tokenizer.post_processor = BertProcessing(special[1], special[0])
    for number, example in enumerate(examples):
        theirs = tokenizer(example.first, example.second, truncation="longest_first", max_length=length)
        ids, second = ours.gather(np.array([number]))
        assert ids.tolist() == theirs["input_ids"]
        assert second[0] == theirs["input_ids"].index(tokenizer.sep_token_id) + 1
    assert ours.num_cut == sum(len(a) + len(b) + 3 > length for a, b in pairs)


def test_a_single_text_is_cut_on_the_side_of_the_tokenizer():
    assert shortened([[1, 2, 3]], 2) == [[1, 2]]
    assert shortened([[1, 2, 3]], 2, "left") == [[2, 3]]


def test_numbers_and_pairs(tmp_path, tokenizer_folder):
    rows = [{"a": "w5", "b": "w6 w7", "score": n / 4} for n in range(8)]
    options = {"text_field": "a", "pair_field": "b", "label_field": "score", "labels": "numbers"}
    made = data(tokenizer_folder, jsonl(tmp_path / "a.jsonl", rows), **options)
    batch = next(iter(made.train_dataloader()))[0]
    assert batch["label_B"].dtype == torch.float32 and made.label_names == []
    assert batch["type_T"].view(4, 6).tolist() == [[0, 0, 0, 1, 1, 1]] * 4


def test_words_are_classes_in_alphabetical_order_and_numbers_in_theirs(tmp_path, tokenizer_folder):
    for labels, names in (
        (["b", "a", "b"], ["a", "b"]),
        ([10, 9, 2], ["2", "9", "10"]),
        ([True, False], ["False", "True"]),
        (["1", "001", "-2", "01"], ["-2", "001", "01", "1"]),
        (["--5", "5"], ["--5", "5"]),
        (["9" * 400, "10"], ["10", "9" * 400]),
    ):
        rows = [{"text": "w5", "label": label} for label in labels]
        assert data(tokenizer_folder, jsonl(tmp_path / "a.jsonl", rows)).label_names == names


def test_epochs_are_counted_in_steps(tmp_path, tokenizer_folder):
    made = data(tokenizer_folder, jsonl(tmp_path / "a.jsonl", ROWS))
    assert made.epochs(10) == {"": 10 * made.global_batch_size / len(ROWS)}


def test_a_run_without_validation_is_told_so(tmp_path, tokenizer_folder):
    source = jsonl(tmp_path / "a.jsonl", ROWS)
    line = "val: none, so nothing is validated; name data.validation_source"
    assert line in data(tokenizer_folder, source).describe()
    assert line not in data(tokenizer_folder, source, validation_source=source).describe()


def test_predictions_need_no_labels(tmp_path, tokenizer_folder):
    unlabelled = jsonl(tmp_path / "p.jsonl", [{"text": "w9"}, {"text": "w8 w7"}])
    made = data(tokenizer_folder, jsonl(tmp_path / "a.jsonl", ROWS), predict_source=unlabelled)
    (batch,) = next(iter(made.predict_dataloader()))
    assert batch["sample_B"].tolist() == [1, 0]  # longest first


def test_a_drawn_part_of_the_training_data(tmp_path, tokenizer_folder):
    source = jsonl(tmp_path / "a.jsonl", ROWS)
    assert len(data(tokenizer_folder, source, num_examples=10).splits["train"]) == 10
    assert len(data(tokenizer_folder, source, num_examples=99).splits["train"]) == 30


@pytest.mark.parametrize("number", [0, -1])
def test_no_number_of_examples_below_one(tmp_path, tokenizer_folder, number):
    with pytest.raises(DataError, match=rf"data.num_examples = {number}: must be at least 1"):
        data(tokenizer_folder, jsonl(tmp_path / "a.jsonl", ROWS), num_examples=number)


BAD = [
    ([*ROWS, {"text": "w5"}], {}, r"a\.jsonl:31: has no field 'label', only 'text'; add it, or set data\.label_field"),
    ([{"label": 1}], {}, r"a\.jsonl:1: has no field 'text', only 'label'; .*data\.text_field"),
    (ROWS, {"pair_field": "other"}, r"a\.jsonl:1: has no field 'other'.*data\.pair_field"),
    ([{"text": 5, "label": 1}], {}, r"a\.jsonl:1: 'text' = 5 is no text"),
    ([{"text": "w5", "label": None}], {}, r"a\.jsonl:1: 'label' = None is a missing label; leave the record out"),
    ([{"text": "w5", "label": 0.5}], {}, r"a\.jsonl:1: 'label' = 0.5 names no class"),
    ([{"text": "w5", "label": "x"}], {"labels": "numbers"}, r"a\.jsonl:1: 'label' = 'x' is no number; .*data\.labels"),
    ([{"text": "w5", "label": 10**400}], {"labels": "numbers"}, r"a\.jsonl:1: 'label' = 1000+ is no number"),
    ([ROWS[0], ROWS[3]], {}, r"a\.jsonl:1: every label is '0'; there is nothing to learn"),
    ([], {}, r"a\.jsonl: holds no example; write one record a line"),
    (["w5"], {}, r"a\.jsonl:1: not a record but 'w5'; write one JSON object a line"),
]


@pytest.mark.parametrize(("rows", "options", "message"), BAD)
def test_bad_records_are_refused_with_their_line(tmp_path, tokenizer_folder, rows, options, message):
    with pytest.raises(DataError, match=message) as error:
        data(tokenizer_folder, jsonl(tmp_path / "a.jsonl", rows), **options)
    assert "\n" not in str(error.value)


def test_a_label_that_training_does_not_know_is_refused(tmp_path, tokenizer_folder):
    train = jsonl(tmp_path / "a.jsonl", ROWS)
    other = jsonl(tmp_path / "v.jsonl", [ROWS[0], {"text": "w5", "label": 7}])
    with pytest.raises(DataError, match=r"v\.jsonl:2: label '7' is none of the training labels '0', '1', '2'; correct"):
        data(tokenizer_folder, train, validation_source=other)


def test_broken_files_are_refused(tmp_path, tokenizer_folder):
    (tmp_path / "a.jsonl").write_text('{"text": "w5", "label": 1}\n\n{"text": \n')
    (tmp_path / "b.csv").write_text("text,label\nw5,1\nw5,1,2\n")
    (tmp_path / "c.csv").write_text('text,label\nw5,"1\n')
    (tmp_path / "d.txt").write_text("w5\n")
    for name, message in (
        ("a.jsonl", r"a\.jsonl:3: not JSON"),
        ("b.csv", r"b\.csv:3: has 3 columns, the header has 2"),
        ("c.csv", r"c\.csv:2: not CSV"),
        ("d.txt", r"d\.txt: has no fields for a label; give jsonl"),
        ("none.jsonl", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            data(tokenizer_folder, str(tmp_path / name))


@pytest.mark.parametrize("name", ["embedded:tpic", "embedded", "embedded:"])
def test_an_unknown_made_task_is_refused(tokenizer_folder, name):
    with pytest.raises(DataError, match=rf"data.source = '{name}': no such task; there are embedded:topic"):
        LabelledText(TokenizerOptions(train=WordPieceTraining(vocab_size=100)), 4, 2, name)
    with pytest.raises(DataError, match=rf"data.test_source = '{name}': no such task"):
        LabelledText(TokenizerOptions(name=tokenizer_folder), 4, 2, "a.csv", test_source=name)


def test_tasks_of_the_embedded_articles_have_fields_of_their_own(tokenizer_folder):
    for option, value in (
        ("label_field", "nosuch"),
        ("text_field", "body"),
        ("pair_field", "b"),
        ("labels", "numbers"),
    ):
        with pytest.raises(
            DataError, match=rf"data.{option} = {value}: the tasks of embedded have fields of their own"
        ):
            LabelledText(TokenizerOptions(name=tokenizer_folder), 4, 2, "embedded:topic", **{option: value})


def test_classes_that_are_alike_are_told(tmp_path, tokenizer_folder):
    made = data(tokenizer_folder, table(tmp_path / "a.csv", ["Yes", "yes", "no", "yes "]))
    line = "warning: 'Yes', 'yes', 'yes ' are different classes, though only capitals or spaces tell them apart"
    assert [told for told in made.describe() if "warning" in told] == [line]


def test_classes_of_one_example_are_counted(tmp_path, tokenizer_folder):
    rows = [{"text": f"w{5 + n}", "label": f"c{max(n, 4)}"} for n in range(20)]
    made = data(tokenizer_folder, jsonl(tmp_path / "a.jsonl", rows))
    assert made.accounts()["train"].notes == {"of the classes have one example alone": 15}
    assert any(line.endswith(", ... (16 in all)") for line in made.describe())


def test_texts_that_judge_and_are_trained_on_are_counted(tmp_path, tokenizer_folder):
    rows = [{"text": f"w{5 + n}", "label": "ab"[n % 2]} for n in range(12)]
    train, val = (
        jsonl(tmp_path / "a.jsonl", rows),
        jsonl(tmp_path / "b.jsonl", [*rows[:3], {"text": "w90", "label": "a"}]),
    )
    accounts = data(tokenizer_folder, train, validation_source=val).accounts()
    assert accounts["val"].notes == {"of the examples have a text that is trained on too": 3}
    assert not accounts["train"].notes


def test_the_account_of_labelled_data(tmp_path, tokenizer_folder):
    rows = [{"text": "w5 w6", "label": "a", "id": n} for n in range(3)]
    rows += [{"text": "w5 w6", "label": "b"}, {"text": " ".join(["w7"] * 20), "label": "b"}, {"text": "", "label": "b"}]
    account = data(tokenizer_folder, jsonl(tmp_path / "a.jsonl", rows), num_examples=None).accounts()["train"]
    assert account.is_conserved() and account.records == account.used == account.examples == 6 and account.files == 1
    assert account.classes == {"a": 3, "b": 3} and account.unread == {"id": 3} and account.duplicated == 2
    assert (account.texts, account.texts_cut, account.tokens, account.tokens_cut) == (6, 1, 28, 6)
    assert account.notes == {"of the texts stand there again with another label": 1, NO_TOKEN: 1}
    drawn = data(tokenizer_folder, str(tmp_path / "a.jsonl"), num_examples=5).accounts()["train"]
    assert drawn.is_conserved() and drawn.left_out == {"not drawn": 1}


def test_made_tasks_are_balanced_and_no_single_text_tells_the_label():
    for name in ("embedded:same_article", "embedded:in_order"):
        examples = make_examples(name, "test")
        kinds = sorted({example.label for example in examples})
        for side in (0, 1):
            texts = [sorted(e[side] for e in examples if e.label == kind) for kind in kinds]
            assert len(texts[0]) == len(texts[1]) > 150
            if name == "embedded:same_article":
                assert texts[0] == texts[1]  # every text stands on this side once with each label
    pair = halves("One is. Two is. Three is. Four is.", skip=1)
    assert pair == ("Two is.", "Three is. Four is.") and halves("One is. Two is.", skip=1) is None
    assert len({example.label for example in make_examples("embedded:topic", "val")}) <= 11


def table(path: Path, labels: list, kind: str | None = None) -> str:
    """Write texts with labels; a ClassLabel has its names in the schema, as `datasets` writes it."""
    texts, names = [f"w{5 + n}" for n in range(len(labels))], ["world", "sports", "business"]
    if path.suffix == ".csv":
        path.write_text("text,label\n" + "".join(f"{t},{n}\n" for t, n in zip(texts, labels, strict=True)))
        return str(path)
    found = pa.table({"text": texts, "label": labels})
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    if kind == "schema":
        found = found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    if kind == "beside":
        (path.parent / "dataset_info.json").write_text(json.dumps({"features": features}))
    if path.suffix == ".parquet":
        parquet.write_table(found, path)
        return str(path)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found)
    return str(path)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0.0", "1.0", "2.0", "10.0"], ["0", "1", "2", "10"]),  # as pandas writes a column that once had gaps
        (["10", "10.0", "2.0", "9"], ["2", "9", "10"]),
        (["True", "False"], ["False", "True"]),
        (["1.2.0", "10", "2"], ["1.2.0", "10", "2"]),
    ],
)
def test_numbers_of_tables_are_the_same_classes_as_those_of_json(tmp_path, tokenizer_folder, labels, names):
    assert data(tokenizer_folder, table(tmp_path / "a.csv", labels)).label_names == names


@pytest.mark.parametrize("label", ["nan", "NaN", "", "<NA>", "null", "-", "-1", "-1.0", "0.5", "inf"])
def test_a_missing_label_is_refused_and_not_a_class(tmp_path, tokenizer_folder, label):
    source = table(tmp_path / "a.csv", ["0", label, "1"])
    with pytest.raises(DataError, match=r"a\.csv:3: 'label' = .* (is a missing label; leave|names no class; give)"):
        data(tokenizer_folder, source)


@pytest.mark.parametrize("label", [float("nan"), None, -1, -1.0])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_missing_label_is_refused_in_every_format(tmp_path, tokenizer_folder, name, label):
    path, labels = tmp_path / name, [0, label, 1]
    rows = [{"text": "w5", "label": label} for label in labels]
    source = jsonl(path, rows) if path.suffix == ".jsonl" else table(path, labels)
    with pytest.raises(DataError, match=r"(a\.jsonl:2|row 1): 'label' = .* is a missing label"):
        data(tokenizer_folder, source)


def test_what_mostly_means_no_label_can_be_a_class(tmp_path, tokenizer_folder):
    source = table(tmp_path / "a.csv", ["-1", "1", "-1", "null"])
    assert data(tokenizer_folder, source, accept=["labels"]).label_names == ["-1", "1", "null"]


@pytest.mark.parametrize(("name", "kind"), [("a.arrow", "schema"), ("a.parquet", "schema"), ("a.arrow", "beside")])
def test_names_of_classes_are_those_of_the_data_set_in_its_order(tmp_path, tokenizer_folder, name, kind):
    made = data(tokenizer_folder, table(tmp_path / name, [0, 1, 2, 0], kind), global_batch_size=4)
    assert made.label_names == ["world", "sports", "business"]
    assert made.splits["train"].labels.tolist() == [0, 1, 2, 0]
    assert made.accounts()["train"].classes == {"world": 2, "sports": 1, "business": 1}
    with pytest.raises(DataError, match=r"'label' = -1 is a missing label"):
        data(tokenizer_folder, table(tmp_path / name, [0, 1, -1], kind))
