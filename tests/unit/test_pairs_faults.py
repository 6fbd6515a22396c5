"""Bad data is refused in one line that names the file, the place, the value and a fix; or left out, where wanted."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from datamodules.core.errors import DataError
from datamodules.core.pair_options import Columns, EvaluationSet, PairSource, Prompts
from datamodules.core.wordpiece import TokenizerOptions, WordPieceTraining
from datamodules.pairs import TextPairs
from tests.pairs import jsonl, pairs, saved_tokenizer

GOOD = {"sentence1": "w5", "sentence2": "w6", "score": 0.5}


def refused(folder: Path, match: str, **options: object) -> None:
    with pytest.raises(DataError, match=match) as error:
        pairs(folder, **options)
    assert "\n" not in str(error.value)


BAD = [
    ([], None, r"a\.jsonl: holds no pair; write one record a line"),
    ([{}], None, r"a\.jsonl:1: has no column for the anchor \(anchor, query, .*\), only nothing; name it in "),
    ([{"x": "w5", "y": "w6"}], None, r"only 'x', 'y'; name it in data\.source\.columns\.anchor"),
    (
        [{"query": "w5", "y": "w6"}],
        None,
        r"has no column for the positive \(positive, passage, .*data\.source\.columns\.",
    ),
    ([GOOD | {"query": "w7"}], None, r":1: 'sentence1' and 'query' could be the anchor; name one in data\.source\.col"),
    (
        [{"A man eats it.": "", "It is eaten.": ""}],
        None,
        r"is the header line missing\? If not, name it in data\.source",
    ),
    ([GOOD], Columns(anchor="text"), r":1: has no column 'text', only 'sentence1', 'sentence2', 'score'; name it in "),
    ([GOOD], Columns(negatives=["no"]), r":1: has no column 'no', only .*; correct data\.source\.columns\.negatives"),
    ([GOOD], Columns(label="s"), r":1: has no column 's', only .*; name it in data\.source\.columns\.label"),
    ([GOOD, {"sentence1": "w5", "score": 1}], None, r":2: has no field 'sentence2', only .*data\.source\.columns\.pos"),
    ([GOOD, GOOD | {"score": "good"}], None, r":2: 'score' = 'good' is no number; .*data\.source\.labels: \{good: 1\}"),
    ([GOOD | {"score": float("nan")}], None, r":1: 'score' = nan is no number"),
    ([GOOD | {"score": float("inf")}], None, r":1: 'score' = inf is no number"),
    ([GOOD | {"score": None}], None, r":1: 'score' = None is no number"),
    ([GOOD | {"score": 10**400}], None, r":1: 'score' = 1000+ is no number"),
    ([GOOD, GOOD | {"sentence1": ""}], None, r":2: 'sentence1' is empty; write a text, or set data\.on_bad_record to"),
    ([GOOD | {"sentence2": " \t "}], None, r":1: 'sentence2' is empty"),
    ([GOOD | {"sentence2": ["w5"]}], None, r":1: 'sentence2' = \['w5'\] is no text"),
    ([GOOD | {"sentence1": "\ud800x"}], None, r":1: '\\ud800' is half of a surrogate pair, not a character"),
    (["w5"], None, r":1: not a record but 'w5'; write one JSON object a line"),
    (
        [{"premise": "w5", "hypothesis": "w6", "label": 2}],
        None,
        r":1: 'label' = 2 is not from 0 to 1; say what it stands",
    ),
]


@pytest.mark.parametrize(("rows", "columns", "message"), BAD)
def test_bad_records_are_refused(tmp_path: Path, rows: list, columns: Columns | None, message: str) -> None:
    refused(tmp_path, message, source=PairSource(jsonl(tmp_path / "a.jsonl", rows), columns))


def test_bad_records_can_be_left_out(tmp_path: Path) -> None:
    bad = [{"sentence1": ""}, {"sentence2": None}, {"score": "x"}, {"score": float("nan")}]
    source = jsonl(tmp_path / "a.jsonl", [GOOD, *({**GOOD, **fault} for fault in bad), GOOD | {"sentence1": "w9"}])
    made = pairs(tmp_path, source=source, on_bad_record="skip")
    assert len(made.parts[0]) == 2
    assert any(
        "6 records read, 2 used; not: 4 refused; the first refused: " in line and "a.jsonl:2: " in line
        for line in made.describe()
    )
    refused(tmp_path, r"holds no pair \(1 bad records were skipped, the first: .*a\.jsonl:1: ", on_bad_record="skip",
            source=jsonl(tmp_path / "a.jsonl", [GOOD | {"score": "x"}]))  # fmt: skip


def test_a_tokenizer_without_its_words_is_refused(tmp_path: Path) -> None:
    source, folder = jsonl(tmp_path / "a.jsonl", [GOOD]), Path(saved_tokenizer(tmp_path / "words"))
    (folder / "tokenizer.json").unlink()
    for file in folder.glob("vocab*"):
        file.unlink()
    refused(tmp_path, r"data\.tokenizer\.name = .*words", source=source, tokenizer=TokenizerOptions(str(folder)))


def test_words_of_labels_must_be_known(tmp_path: Path) -> None:
    rows = [{"premise": "w5", "hypothesis": "w6", "label": word} for word in ("entailment", "maybe")]
    source = PairSource(jsonl(tmp_path / "a.jsonl", rows), labels={"entailment": 1, "neutral": 0})
    message = (
        r"a\.jsonl:2: 'label' = 'maybe' is none of data\.source\.labels \(entailment, neutral\); add it, with null"
    )
    refused(tmp_path, message, source=source)
    rows = [{"premise": "w5", "hypothesis": "w6", "verdict": "entailment"}]
    unread = PairSource(jsonl(tmp_path / "b.jsonl", rows), labels={"entailment": 1, "contradiction": None})
    refused(tmp_path, r"b\.jsonl:1: has no column for the label .*data\.source\.columns\.label", source=unread)
    jsonl(tmp_path / "c.jsonl", [{"premise": "w5", "hypothesis": "w6", "Label": 2}])
    refused(tmp_path, r"c\.jsonl:1: 'Label' = 2 is not from 0 to 1; say", source=str(tmp_path / "c.jsonl"))
    good = {"premise": "w5", "hypothesis": "w6"}
    jsonl(tmp_path / "d.jsonl", [good, good | {"score": 0.5}])
    refused(tmp_path, r"d\.jsonl:2: has 'score', which the first record has not; give it to all, or leave it out with "
            r"data\.source\.columns: \{label: ''\}", source=str(tmp_path / "d.jsonl"))  # fmt: skip
    (tmp_path / "both").mkdir()
    for name, more in (("a", {}), ("b", {"score": 0.5})):
        jsonl(tmp_path / f"both/{name}.jsonl", [good | more])
    refused(tmp_path, r"b\.jsonl:1: has a label, 'score', and files before it have none; make two sources",
            source=str(tmp_path / "both"))  # fmt: skip
    (tmp_path / "e.csv").write_text("anchor,positive,positive\nw5,w6,w7\n")
    refused(tmp_path, r"e\.csv:1: its header names 'positive' twice", source=str(tmp_path / "e.csv"))
    long = PairSource(jsonl(tmp_path / "f.jsonl", [good]), prompts=Prompts(anchor="w7 " * 20))
    refused(tmp_path, r"data\.source\.prompts: 'w7 w7 .* has 20 tokens, and texts have room for 16", source=long)
    everything_out = PairSource(source.path, labels={"entailment": None, "maybe": None})
    refused(tmp_path, r"a\.jsonl: holds no pair", source=everything_out)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    lines = "".join(json.dumps(GOOD) + "\n" for _ in range(500)).encode()
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + '\n\n{"sentence1": \n')
    (tmp_path / "b.csv").write_text("sentence1,sentence2,score\nw5,w6,1\nw5,w6\n")
    (tmp_path / "c.csv").write_text('sentence1,sentence2,score\nw5,"w6,1\n')
    (tmp_path / "d.csv").write_text("sentence1,sentence2,score\n")
    (tmp_path / "e.txt").write_text("w5\n")
    (tmp_path / "f.jsonl.gz").write_bytes(lines)
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(lines)[:-20])
    (tmp_path / "h.jsonl").write_bytes(b'{"sentence1": "\xff"}\n')
    (tmp_path / "i.parquet").write_bytes(b"PAR1 no")
    parquet.write_table(pa.table({"query": ["w5", None], "answer": ["w6", "w7"]}), tmp_path / "j.parquet")
    parquet.write_table(pa.table({"query": [1, 2], "answer": ["w6", "w7"]}), tmp_path / "k.parquet")
    (tmp_path / "l.csv").write_text("")
    (tmp_path / "m.csv").write_text("anchor;positive\nw5, a;w6\n")
    (tmp_path / "n.tsv").write_text("anchor,positive\nw5,w6\n")
    for name, message in (
        ("a.jsonl", r"a\.jsonl:3: not JSON"),
        ("b.csv", r"b\.csv:3: has 2 columns, the header has 3"),
        ("c.csv", r"c\.csv:\d: not CSV"),
        ("d.csv", r"d\.csv: holds no pair"),
        ("e.txt", r"e\.txt: a txt file has no columns; give jsonl"),
        ("f.jsonl.gz", r"f\.jsonl\.gz: is plain text, not compressed; take \.gz off its name"),
        ("g.jsonl.gz", r"g\.jsonl\.gz: truncated or damaged after"),
        ("h.jsonl", r"h\.jsonl:1: not UTF-8"),
        ("i.parquet", r"i\.parquet: not a Parquet file or damaged"),
        ("j.parquet", r"j\.parquet: row 1: 'query' = None is no text"),
        ("k.parquet", r"k\.parquet: row 0: 'query' = 1 is no text"),
        ("l.csv", r"l\.csv: is empty; write a header line"),
        ("m.csv", r"m\.csv:1: its header is one column, 'anchor;positive'; write commas"),
        ("n.tsv", r"n\.tsv:1: its header is one column, 'anchor,positive'"),
        ("none.jsonl", r"none\.jsonl: no such file"),
        ("embedded:tpic", r"embedded:tpic: no such pairs; there are embedded, embedded:title, embedded:sentence"),
    ):
        source = name if name.startswith("embedded") else str(tmp_path / name)
        refused(tmp_path, message, source=source)


def test_nothing_is_left_behind_by_a_source_that_was_refused(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [GOOD, GOOD | {"sentence1": ""}])
    refused(tmp_path, "is empty", source=source)
    left = [
        path for path in (tmp_path / "cache/pairs").rglob("*") if path.is_file() and not path.name.endswith(".lock")
    ]
    assert left == []
    jsonl(tmp_path / "a.jsonl", [GOOD])
    assert len(pairs(tmp_path, source=source).parts[0]) == 1


SETS = [
    (
        EvaluationSet("sts", "a.jsonl"),
        [GOOD, GOOD],
        r"a\.jsonl: every score is 0\.5, so nothing can be judged by data\.valid",
    ),
    (EvaluationSet("sts", "a.jsonl"), [], r"a\.jsonl: no record, so nothing can be judged by data\.validation\.x"),
    (
        EvaluationSet("sts", "a.jsonl"),
        [{"query": "w5", "answer": "w6"}],
        r":1: has no column for the label \(score, sim",
    ),
    (
        EvaluationSet("pair_classification", "a.jsonl"),
        [GOOD],
        r"a\.jsonl: label 0\.5 is neither 0 nor 1; say what it st",
    ),
    (EvaluationSet("retrieval", "a.jsonl"), [GOOD | {"score": 0}], r"a\.jsonl: no query has a relevant document"),
    (EvaluationSet("classification", "a.jsonl", "a.jsonl"), [{"text": "w5", "label": "x"}], r"every class is x"),
    (
        EvaluationSet("classification", "a.jsonl", "a.jsonl"),
        [{"text": "w5"}],
        r"no field 'label', .*validation\.x\.columns",
    ),
    (EvaluationSet("classification", "a.jsonl"), [], r"data\.validation: x needs train"),
    (EvaluationSet("sts"), [], r"data\.validation: x needs path"),
    (
        EvaluationSet("classification", "a.jsonl", "a.jsonl", passage_tokens=8),
        [],
        r"x\.passage_tokens is of second texts, which classification has not; take it out",
    ),
    (
        EvaluationSet("classification", "a.jsonl", "a.jsonl", columns=Columns(positive="b")),
        [],
        r"x\.columns\.positive is of second texts",
    ),
    (EvaluationSet("sts", "a.jsonl", columns=Columns(negatives=["n"])), [], r"x\.columns\.negatives: no set looks at"),
    (
        EvaluationSet("retrieval", corpus="a.jsonl", queries="a.jsonl", qrels="a.jsonl", columns=Columns("q")),
        [],
        r"validation\.x\.columns: has no meaning for files in the form of BEIR; take it out",
    ),
    (
        EvaluationSet("retrieval", corpus="a.jsonl"),
        [],
        r"data\.validation: x needs a path, or corpus, queries and qrels",
    ),
    (EvaluationSet("sts", "b.jsonl"), [], r"b\.jsonl: no such file"),
    (
        EvaluationSet("sts", "a.jsonl", query_tokens=17),
        [],
        r"x\.query_tokens = 17 must be from 3 to data\.sequence_length",
    ),
]


@pytest.mark.parametrize(("options", "rows", "message"), SETS)
def test_bad_sets_are_refused(tmp_path: Path, options: EvaluationSet, rows: list, message: str) -> None:
    jsonl(tmp_path / "a.jsonl", rows)
    good = jsonl(tmp_path / "good.jsonl", [GOOD])
    refused(tmp_path, message, source=good, validation={"x": options}, root=str(tmp_path))


def test_bad_judgements_are_refused_or_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    folder.mkdir()
    jsonl(folder / "corpus.jsonl", [{"_id": n, "title": "", "text": f"w{5 + n}"} for n in range(4)])
    jsonl(folder / "queries.jsonl", [{"_id": "q", "text": "w9"}])
    judged = [{"query-id": "q", "corpus-id": n, "score": score} for n, score in ((0, 1), (1, "x"))]
    jsonl(folder / "qrels.jsonl", judged)
    sets = {"x": EvaluationSet("retrieval", str(folder))}
    message = r"qrels\.jsonl:2: 'score' = 'x' is no number; .*, or set data\.on_bad_record to skip"
    refused(tmp_path, message, source="embedded:title", test=sets)
    made = pairs(tmp_path, source="embedded:title", test=sets, on_bad_record="skip")
    assert made.tasks("test")[0].document_J.tolist() == [0]
    jsonl(folder / "qrels.jsonl", [{"query-id": "q", "doc": 0, "score": 1}])
    message = r"qrels\.jsonl:1: has no field 'corpus-id', only 'query-id', 'doc', 'score'"
    refused(tmp_path, message, source="embedded:title", test=sets)


def test_a_class_that_is_not_in_the_training_part_is_refused(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", [{"text": "w5", "label": "x"}, {"text": "w6", "label": "y"}])
    other = jsonl(tmp_path / "b.jsonl", [{"text": "w5", "label": "z"}])
    sets = {"x": EvaluationSet("classification", other, train)}
    refused(tmp_path, r"b\.jsonl:1: class 'z' is not in data\.validation\.x\.train", source="embedded:title",
            validation=sets)  # fmt: skip


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    tokenizer = TokenizerOptions(train=WordPieceTraining(300))
    for options, message in (
        ({}, r"data\.source: give a source, as data\.source: pairs\.csv"),
        ({"source": "a", "sources": {"b": "c"}}, r"data\.source: is given beside data\.sources"),
        ({"sources": {"b": None}}, r"data\.source: give a source"),
        ({"sources": {"a.b": "c"}}, r"data\.sources: the name 'a\.b' may hold letters, digits, _ and - only"),
        ({"source": PairSource("a", passage_tokens=2)}, r"source\.passage_tokens = 2 must be from 3"),
        ({"source": PairSource("a", labels={"x": float("nan")})}, r"source\.labels\.x = nan must be finite"),
        ({"source": "a", "validation": {"x y": EvaluationSet("sts", "a")}}, r"data\.validation: the name 'x y'"),
    ):
        with pytest.raises(DataError, match=message):
            TextPairs(tokenizer, 8, 4, **options)
    with pytest.raises(DataError, match=r"data\.tokenizer: needs one of name and train, neither is given"):
        TextPairs(TokenizerOptions(), 8, 4, source="embedded")


def test_there_is_no_loader_where_there_are_no_sets(tmp_path: Path) -> None:
    made = pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", [GOOD]))
    assert made.val_dataloader() == [] and made.tasks("val") == [] and made.num_texts("test") == 0
    assert made.describe()[-1] == "val: none, so nothing is validated; name sets in data.validation"
    with pytest.raises(DataError, match=r"data\.test = null: there are no sets to judge by; name one"):
        made.test_dataloader()
