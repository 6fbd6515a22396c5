"""Hard negatives and labels under the names that data sets give them; what is not read is named, or refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from datamodules.core.batches import NO_TEXT
from datamodules.core.errors import DataError
from datamodules.core.lines import Records
from datamodules.core.pair_columns import LIKE_LABEL, LIKE_NEGATIVE, looks
from datamodules.core.pair_options import Columns, EvaluationSet, PairSource
from datamodules.core.pair_preparation import MOST_NEGATIVES
from datamodules.core.pair_records import Reading
from datamodules.pairs import TextPairs, began_before
from tests.pairs import jsonl, pairs, texts_of, words

NEGATIVES = [[words(100 + n, 200 + k) for k in range(n % 4)] for n in range(12)]
ROWS = [{"anchor": words(5 + n), "positive": words(50 + n, 7), "negatives": NEGATIVES[n]} for n in range(12)]
TRUTH = sorted((row["anchor"], row["positive"], *row["negatives"]) for row in ROWS)
KINDS = ("entailment", "neutral", "contradiction", "-")
NLI = [{"sentence1": words(5 + n), "sentence2": words(50 + n), "gold_label": KINDS[n % 4]} for n in range(8)]


def examples(made: TextPairs, steps: int = 3) -> list[tuple[str, ...]]:
    """Read the texts of the first steps: with 12 examples in batches of 4 an epoch."""
    batches = [batch for _, step in zip(range(steps), made.train_dataloader(), strict=False) for batch in step]
    return sorted(example for batch in batches for example in texts_of(batch, made))


def test_what_stands_twice_is_counted(tmp_path: Path) -> None:
    ask, told, other = words(5), words(50), words(60)
    rows = [{"anchor": ask, "positive": told, "negatives": [other]}] * 3
    rows += [{"anchor": ask, "positive": told, "negatives": [other, told]}]
    rows += [
        {"anchor": ask, "positive": told, "negatives": [ask]},
        {"anchor": other, "positive": told, "negatives": []},
    ]
    account = pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", rows)).accounts()["train"]
    assert (account.records, account.used, account.duplicated) == (6, 6, 2)
    assert account.notes["of the pairs have their own anchor or positive as a hard negative"] == 2


def numbered(row: dict, name: str) -> dict:
    """Write a row as tables do, with a column for each negative and gaps."""
    held = [*row["negatives"], None, None, None][:3]
    return {"anchor": row["anchor"], "positive": row["positive"], **{f"{name}{n + 1}": held[n] for n in range(3)}}


def csv(path: Path, rows: list[dict]) -> str:
    cells = [[json.dumps(v) if isinstance(v, list) else v or "" for v in row.values()] for row in rows]
    lines = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [[*rows[0]], *cells]]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def written(folder: Path, form: str) -> str:
    """Write the same examples in one of the forms in which data sets come."""
    if form == "parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
        return str(folder / "a.parquet")
    if form.startswith("csv of "):
        return csv(
            folder / "a.csv", [{"query": r["anchor"], "pos": [r["positive"]], form[7:]: r["negatives"]} for r in ROWS]
        )
    if form == "csv":
        return csv(folder / "a.csv", [numbered(row, "negative_") for row in ROWS])
    if form == "two files":
        (folder / "in").mkdir()
        jsonl(folder / "in/a.jsonl", [numbered(row, "negative") for row in ROWS[:4]])
        jsonl(
            folder / "in/b.jsonl",
            [{"query": r["anchor"], "pos": [r["positive"]], "neg": r["negatives"]} for r in ROWS[4:]],
        )
        return str(folder / "in")
    if form == "keys that lack":
        rows = [{k: v for k, v in numbered(row, "Hard-Negative ").items() if v} for row in ROWS]
        return jsonl(folder / "a.jsonl", rows)
    return jsonl(folder / "a.jsonl", [{form if k == "negatives" else k: v for k, v in row.items()} for row in ROWS])


NAMES = [
    "negatives",
    "negative",
    "neg",
    "hard_negatives",
    "hard_negative",
    "hard_neg",
    "negative_passages",
    "Negatives",
]
FORMS = [
    *NAMES,
    "parquet",
    "csv",
    "csv of negatives",
    "csv of neg",
    "csv of hard-negative passages",
    "two files",
    "keys that lack",
]


@pytest.mark.parametrize("form", FORMS)
def test_hard_negatives_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    made = pairs(tmp_path, source=written(tmp_path, form), global_batch_size=4, micro_batch_size=2)
    assert examples(made) == TRUTH
    account = made.accounts()["train"]
    assert account.unread == {} and account.is_conserved() and account.used == account.examples == 12
    assert account.notes["of the pairs have fewer than 3 hard negatives; none stands for them"] == 9


def test_a_negative_that_is_not_there_is_no_sequence_and_no_duplicate(tmp_path: Path) -> None:
    made = pairs(tmp_path, source=written(tmp_path, "negatives"), global_batch_size=12, micro_batch_size=12)
    ((batch,),) = [step for _, step in zip(range(1), made.train_dataloader(), strict=False)]
    there = batch["key_CP"] != NO_TEXT
    assert batch["is_ragged"] and batch["num_columns"] == 5 and there.sum() == len(batch["lens"]) == 24 + 18
    assert there.sum(0).sort().values.tolist() == [2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5] and there[:2].all()
    assert batch["slot_B"].sort().values.tolist() == there.flatten().nonzero()[:, 0].tolist()
    keys = made.parts[0].keys(np.arange(12))
    assert all(len({*row}) == 2 + n % 4 for n, row in enumerate(keys.tolist())), "the anchor's stands for what lacks"
    assert len(np.unique(keys)) == 24 + 18


def test_several_positives_are_pairs_of_their_own(tmp_path: Path) -> None:
    rows = [{"query": f"w{n}", "pos": [f"w{20 + n}", f"w{40 + n}"][: n % 2 + 1], "neg": ["w9"]} for n in range(10, 16)]
    made = pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", rows), global_batch_size=3, micro_batch_size=3)
    assert examples(made) == sorted((r["query"], text, "w9") for r in rows for text in r["pos"])
    account = made.accounts()["train"]
    assert (account.records, account.used, account.examples) == (6, 6, 9) and account.is_conserved()
    assert "train: 3 of the records hold several positives, each of which is a pair" in made.describe()


UNREAD = [
    (
        {"verdict_label": "x"},
        r"'verdict_label' looks like a label and is not read; read it with data.source.columns: {lab",
    ),
    ({"cosineScore": 1}, r"'cosineScore' looks like a label"),
    ({"relevance": 1}, r"'relevance' looks like a label"),
    (
        {"distractors": ["w9"]},
        r"'distractors' looks like negatives and .* {negatives: \[distractors\]}, leave it out with",
    ),
    ({"mined-negs-bm25": ["w9"]}, r"'mined-negs-bm25' looks like negatives"),
    ({"neg_scores": [1]}, r"'neg_scores' looks like a label"),
]


@pytest.mark.parametrize(("more", "message"), UNREAD)
def test_a_column_that_looks_like_a_label_or_negatives_must_be_read_or_accepted(
    tmp_path: Path, more: dict, message: str
) -> None:
    rows = [{"anchor": words(5 + n), "positive": words(50 + n), **(more if n != 1 else {})} for n in range(4)]
    for order in (rows, rows[1:] + rows[:1]):  # in the first record, or in a later one
        with pytest.raises(DataError, match=message):
            pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", order))
    made = pairs(tmp_path, source=str(tmp_path / "a.jsonl"), accept=["columns"])
    (name,) = more
    assert made.accounts()["train"].unread == {name: 3}
    assert f"train: columns read: 'anchor', 'positive'; not read: '{name}' (in 3 records)" in made.describe()
    with pytest.raises(DataError, match=message):  # what is in the cache was accepted by another configuration
        pairs(tmp_path, source=str(tmp_path / "a.jsonl"))
    decided = PairSource(str(tmp_path / "a.jsonl"), Columns(label="", negatives=[]))
    assert len(pairs(tmp_path, source=decided).parts[0]) == 4


@pytest.mark.parametrize("name", ["id", "negative_ids", "label_source", "title", "assignment", "classical", "pairID"])
def test_other_columns_look_like_neither(name: str) -> None:
    assert not looks(LIKE_LABEL, name) and not looks(LIKE_NEGATIVE, name)


@pytest.mark.parametrize(
    "name", ["gold_label", "Label", "labels", "GOLD-LABEL", "similarity_score", "relatedness_score"]
)
def test_labels_are_seen_under_their_names(tmp_path: Path, name: str) -> None:
    rows = [{"sentence1": words(5 + n), "sentence2": words(50 + n), name: n % 2} for n in range(4)]
    made = pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", rows))
    assert made.parts[0].store.arrays["label"].tolist() == [0, 1, 0, 1]
    sets = {
        "x": EvaluationSet("sts", str(tmp_path / "a.jsonl")),
        "y": EvaluationSet("pair_classification", str(tmp_path / "a.jsonl")),
    }
    sts, classes = pairs(tmp_path, source=str(tmp_path / "a.jsonl"), validation=sets).tasks("val")
    assert sts.score_N.tolist() == classes.label_N.tolist() == [0, 1, 0, 1]


def test_words_of_snli_are_refused_until_they_have_a_meaning(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", NLI)
    with pytest.raises(
        DataError, match=r"'gold_label' = 'entailment' is no number; .*data\.source\.labels: {entailment: 1"
    ):
        pairs(tmp_path, source=source)
    meant = PairSource(source, labels={"entailment": 1.0, "neutral": 0.5, "contradiction": 0.0})
    made = pairs(tmp_path, source=meant)
    assert made.parts[0].store.arrays["label"].tolist() == [1, 0.5, 0, 1, 0.5, 0]
    account = made.accounts()["train"]
    assert account.left_out == {"without a label": 2}, "annotators did not agree"
    assert account.classes == {"entailment": 2, "neutral": 2, "contradiction": 2, "-": 2}


def test_booleans_and_class_labels_of_pairs(tmp_path: Path) -> None:
    texts = [{"sentence1": words(5 + n), "sentence2": words(50 + n)} for n in range(3)]
    source = jsonl(tmp_path / "a.jsonl", [row | {"is_duplicate": n != 1} for n, row in enumerate(texts)])
    for labels, expected in ((None, [1, 0, 1]), ({"true": 0.0, "false": 1.0}, [0, 1, 0])):
        made = pairs(tmp_path, source=PairSource(source, labels=labels))
        assert made.parts[0].store.arrays["label"].tolist() == expected
    features = {"label": {"names": ["entailment", "not_entailment"], "_type": "ClassLabel"}}
    table = pa.Table.from_pylist([row | {"label": n % 2} for n, row in enumerate(texts)])
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"'label' = 'entailment' is no number"):  # its number is 0
        pairs(tmp_path, source=str(tmp_path / "a.parquet"))
    for labels in ({"entailment": 1.0, "not_entailment": 0.0}, {"0": 1.0, "1": 0.0}):
        made = pairs(tmp_path, source=PairSource(str(tmp_path / "a.parquet"), labels=labels))
        assert made.parts[0].store.arrays["label"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels", [("1", "0"), ("1.0", "0.0"), (1, 0), (1.0, 0.0)])
def test_numbers_have_a_meaning_however_they_are_written(tmp_path: Path, labels: tuple) -> None:
    rows = [{"sentence1": "w5", "sentence2": words(50 + n), "label": labels[n % 2]} for n in range(4)]
    turned = PairSource(jsonl(tmp_path / "a.jsonl", rows), labels={"0": 1.0, "1": 0.0})
    assert pairs(tmp_path, source=turned).parts[0].store.arrays["label"].tolist() == [0, 1, 0, 1]


FAULTS = [
    ([{"negatives": "[w5, 'w6']"}], r":1: 'negatives' = .* is no list in JSON; write \[\"one\", \"two\"\]"),
    ([{"negatives": [["w5"]]}], r":1: 'negatives' = \['w5'\] is no text"),
    ([{"negatives": [{"text": "w5"}]}], r":1: 'negatives' = {'text': 'w5'} is no text"),
    (
        [{"negatives": ["w5"] * (MOST_NEGATIVES + 1)}],
        rf"has {MOST_NEGATIVES + 1} hard negatives, at most {MOST_NEGATIVES}",
    ),
    ([{"positive": []}], r":1: 'positive' is an empty list"),
    ([{"positive": ["w5", None]}], r":1: 'positive' = None is no text"),
    ([{"positive": ["w5"], "score": 1}], r":1: 'positive' = \['w5'\] is no text"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
def test_lists_that_hold_something_else_are_refused(tmp_path: Path, changes: list[dict], message: str) -> None:
    rows = [{"anchor": "w5", "positive": "w6"} | change for change in changes]
    with pytest.raises(DataError, match=message):
        pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", rows))


def test_empty_negatives_take_no_part(tmp_path: Path) -> None:
    rows = [{"anchor": words(5 + n), "positive": words(50 + n), "negatives": ["", "w9", None, " "]} for n in range(4)]
    made = pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", rows))
    assert made.parts[0].num_columns == 3 and not made.parts[0].is_ragged
    assert made.accounts()["train"].notes["of the hard negatives are empty, and take no part"] == 12


def test_a_run_that_began_when_fewer_columns_were_known_goes_on_with_them(tmp_path: Path) -> None:
    rows = [row | {"gold_label": "x", "negative_2": "w9"} for row in ROWS]
    source = PairSource(jsonl(tmp_path / "a.jsonl", rows))
    now = pairs(tmp_path, source="embedded:title").preparation
    now = replace(now, sources={"train": source})
    before = replace(now, before=True).reading("train")
    assert before.roles() == ("anchor", "positive", "negative_2")
    assert now.reading("train").roles() == ("anchor", "positive", "negatives", "negative_2", "gold_label")
    assert before.description(tmp_path) == now.reading("train").description(tmp_path)[:-1]
    assert next(before.pairs(before_records := now.records())).texts == (ROWS[0]["anchor"], ROWS[0]["positive"], "w9")
    assert before_records.account.unread == {"negatives": 1, "gold_label": 1}


def test_what_a_run_began_with_is_told_by_its_account(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    assert began_before(file)
    for text, before in (("{}", True), ('{"rules": {"columns": 1}}', True), ("[", False), ("[1]", False)):
        file.write_text(text)
        assert began_before(file) == before
    made = pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", ROWS))
    file.write_text(json.dumps(made.report()))
    assert not began_before(file) and made.report()["rules"] == {"columns": 2}


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8)
FULL = TEXT.filter(str.strip)


@pytest.mark.parametrize("form", ["lists.jsonl", "lists.parquet", "lists.csv", "columns.jsonl", "columns.csv"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(FULL, FULL, st.lists(FULL, max_size=3)), min_size=1, max_size=8))
def test_any_negatives_are_those_that_were_written(tmp_path: Path, form: str, rows: list) -> None:
    written = [{"anchor": a, "positive": b, "negatives": held} for a, b, held in rows]
    written = [numbered(row, "negative_") for row in written] if form.startswith("columns") else written
    path = tmp_path / form
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(written), path)
    else:
        (csv if path.suffix == ".csv" else jsonl)(path, written)
    records = Records(None)
    found = [pair.texts for pair in Reading(str(path), (path,), "source", Columns()).pairs(records)]
    assert found == [(a, b, *held) for a, b, held in rows]
    assert records.account.is_conserved() and not records.account.unread
