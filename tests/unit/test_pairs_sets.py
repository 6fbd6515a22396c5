"""The sets that embeddings are judged on: what each form gives, one table of texts, and the real sets."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.core.errors import DataError
from datamodules.core.loader import Batching, Evaluation
from datamodules.core.pair_options import Columns, EvaluationSet, PairSource, Prompts
from datamodules.core.tasks import PairClasses, Retrieval, Sts, TextClasses
from datamodules.pairs import TextPairs
from lightning_modules.core.embedding_metrics import metrics_of
from tests.pairs import REAL, jsonl, needs_real_sets, pairs, words


def table(made: TextPairs, split: str = "val") -> list[str]:
    """Read all texts of a split by their numbers, through the loader."""
    found = {}
    for step in made.evaluation(split):
        for batch in step:
            bounds = batch["layout"].cu_seqlens.tolist()
            for row, number in enumerate(batch["sample_B"].tolist()):
                assert number not in found
                ids = batch["ids_T"][bounds[row] : bounds[row + 1]]
                found[number] = made.tokenizer.decode(ids, skip_special_tokens=True)
    assert sorted(found) == list(range(made.num_texts(split)))
    return [found[number] for number in range(len(found))]


def judged(folder: Path, sets: dict[str, EvaluationSet], **options: object) -> TextPairs:
    source = jsonl(folder / "train.jsonl", [{"anchor": words(5 + n), "positive": words(50 + n)} for n in range(9)])
    return pairs(folder, source=source, validation=sets, **{"root": str(folder), **options})


def test_similarity_and_pair_classes_share_their_texts(tmp_path: Path) -> None:
    scored = [{"sentence1": words(5 + n % 3), "sentence2": words(60 + n, 7), "score": n / 2} for n in range(6)]
    kinds = ("entailment", "neutral", "contradiction")
    classed = [{"premise": words(5 + n % 3), "hypothesis": words(90 + n), "label": kinds[n % 3]} for n in range(6)]
    jsonl(tmp_path / "s.jsonl", scored)
    jsonl(tmp_path / "c.jsonl", classed)
    sets = {
        "similar": EvaluationSet("sts", "s.jsonl"),
        "gone": None,
        "nli": EvaluationSet("pair_classification", "c.jsonl", labels={"entailment": 1, "neutral": None, kinds[2]: 0}),
    }
    made = judged(tmp_path, sets)
    sts, classes = made.tasks("val")
    texts = table(made)
    assert isinstance(sts, Sts) and isinstance(classes, PairClasses) and (sts.name, classes.name) == ("similar", "nli")
    assert [texts[n] for n in sts.first_N] == [row["sentence1"] for row in scored]
    assert [texts[n] for n in sts.second_N] == [row["sentence2"] for row in scored]
    assert sts.score_N.tolist() == [row["score"] for row in scored]
    kept = [row for row in classed if row["label"] != "neutral"]
    assert [texts[n] for n in classes.first_N] == [row["premise"] for row in kept]
    assert classes.label_N.tolist() == [1, 0, 1, 0]
    assert len(texts) == len(set(texts)) == 3 + 6 + 4


def test_of_a_score_and_a_class_each_task_takes_its_own(tmp_path: Path) -> None:
    rows = [{"sentence1": words(5 + n), "sentence2": words(60 + n), "label": n % 2, "score": n} for n in range(4)]
    jsonl(tmp_path / "s.jsonl", rows)
    sets = {"a": EvaluationSet("sts", "s.jsonl"), "b": EvaluationSet("pair_classification", "s.jsonl")}
    scored, classed = judged(tmp_path, sets).tasks("val")
    assert (scored.score_N.tolist(), classed.label_N.tolist()) == ([0, 1, 2, 3], [0, 1, 0, 1])


def test_retrieval_from_pairs(tmp_path: Path) -> None:
    rows = [("w5", "w60", 1), ("w5", "w61", 0), ("w6", "w61", 0), ("w7", "w60", 1), ("w5", "w60", 0), ("w7", "w62", 1)]
    jsonl(tmp_path / "a.jsonl", [{"question": q, "answer": a, "label": n} for q, a, n in rows])
    jsonl(tmp_path / "b.jsonl", [{"question": q, "answer": a} for q, a, _ in rows[:2]])
    made = judged(
        tmp_path, {"qa": EvaluationSet("retrieval", "a.jsonl"), "plain": EvaluationSet("retrieval", "b.jsonl")}
    )
    task, plain = made.tasks("val")
    texts = table(made)
    assert isinstance(task, Retrieval)
    assert [texts[n] for n in task.query_Q] == ["w5", "w7"], "nothing is relevant for w6"
    assert [texts[n] for n in task.document_M] == ["w60", "w61", "w62"]
    judgements = zip(task.judged_J.tolist(), task.document_J.tolist(), task.grade_J.tolist(), strict=True)
    assert sorted(judgements) == [(0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 2, 1)]
    assert plain.grade_J.tolist() == [1, 1] and len(plain.query_Q) == 1
    jsonl(tmp_path / "b.jsonl", [{"question": "w5", "answer": "w6"}, {"question": "w6", "answer": "w5"}])
    told = judged(tmp_path, {"plain": EvaluationSet("retrieval", "b.jsonl")}).describe()
    assert any(line.startswith("val plain: 2 of the queries stand among the documents word for word") for line in told)


@pytest.mark.parametrize("form", ["folder", "parts", "both"])
def test_retrieval_in_the_form_of_beir(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [("d1", "w40", "w60"), ("d2", "", "w61"), ("d3", "", ""), ("d4", "w41", "")]
    jsonl(folder / "corpus.jsonl.gz", [{"_id": name, "title": title, "text": text} for name, title, text in documents])
    jsonl(folder / "queries.jsonl", [{"_id": 7, "text": "w5"}, {"_id": 8, "text": "w6"}, {"_id": 9, "text": "w7"}])
    lines = ["query-id\tcorpus-id\tscore", "7\td1\t2", "7\td2\t-1", "9\td4\t1", "8\td2\t-1"]
    (folder / ("qrels/dev.tsv" if form == "both" else "qrels/test.tsv")).write_text("\n".join(lines) + "\n")
    places = {"corpus": "corpus.jsonl.gz", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    given = {"path": "beir"} if form == "folder" else {part: f"beir/{name}" for part, name in places.items()}
    given = {"path": "beir", "qrels": "beir/qrels/dev.tsv"} if form == "both" else given
    options = EvaluationSet("retrieval", **given, prompts=Prompts("w300 ", "w301 "))
    made = judged(tmp_path, {"x": options}, root=".")
    (task,) = made.tasks("val")
    texts = table(made)
    assert [texts[n] for n in task.query_Q] == ["w300 w5", "w300 w7"]
    assert [texts[n] for n in task.document_M] == ["w301 w40 w60", "w301 w61", "w301", "w301 w41"]
    judgements = zip(task.judged_J.tolist(), task.document_J.tolist(), task.grade_J.tolist(), strict=True)
    assert sorted(judgements) == [(0, 0, 2), (0, 1, 0), (1, 3, 1)]


def beir(folder: Path, documents: list[str], queries: list[str], **judgements: list[tuple[str, str, int]]) -> str:
    """Write a set in the form of BEIR; the text of the id 7 is w17."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, ids in (("corpus", documents), ("queries", queries)):
        jsonl(folder / f"{name}.jsonl", [{"_id": n, "text": words(10 + int(n))} for n in ids])
    for name, rows in judgements.items():
        lines = ["\t".join(map(str, row)) for row in [("query-id", "corpus-id", "score"), *rows]]
        (folder / f"qrels/{name}.tsv").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_beir_in_the_forms_that_people_have(tmp_path: Path) -> None:
    path = Path(beir(tmp_path / "x", ["1", "2"], ["3"], test=[("3", "1", 1)]))
    (path / ".corpus.jsonl").write_text("hidden")
    (path / "corpus.old.jsonl").write_text("another name")
    sets = {"x": EvaluationSet("retrieval", str(path))}
    assert [len(task.document_M) for task in judged(tmp_path, sets).tasks("val")] == [2]
    (path / "corpus").mkdir()
    rows = (path / "corpus.jsonl").read_text().splitlines(keepends=True)
    for number, row in enumerate(rows):
        (path / f"corpus/corpus-0000{number}-of-00002.jsonl").write_text(row)
    (path / "corpus.jsonl").unlink()
    assert [len(task.document_M) for task in judged(tmp_path, sets).tasks("val")] == [2], "a folder of shards"
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        (path / name).write_text("")
    with pytest.raises(DataError, match=r"x: corpus\.jsonl and corpus\.jsonl\.gz could be the corpus; name one"):
        judged(tmp_path, sets)


def test_a_query_is_left_out_of_its_own_ranking_as_in_beir(tmp_path: Path) -> None:
    rows = [("1", "2", 1), ("2", "2", 1), ("2", "3", 2), ("9", "1", 1)]
    path = beir(tmp_path / "x", ["1", "2", "3", "4"], ["1", "2", "9"], test=rows)
    sets = {"x": EvaluationSet("retrieval", path), "y": EvaluationSet("retrieval", path, rank_own=True)}
    made = judged(tmp_path, sets)
    task, kept = made.tasks("val")
    assert task.own_Q.tolist() == [0, 1, -1] and kept.own_Q is None
    told = [line for line in made.describe() if "documents too" in line]
    assert told == [
        "val x: 2 of the queries are documents too, under the same id, which is left out of their own ranking, "
        "as in BEIR",
        "val y: 2 of the queries are documents too, under the same id, and find themselves, as "
        "data.validation.y.rank_own says",
    ]
    vectors = torch.randn(made.num_texts("val"), 8, generator=torch.Generator().manual_seed(0))
    assert metrics_of(task, vectors) != metrics_of(kept, vectors)
    with pytest.raises(DataError, match=r"data.validation: s.rank_own is of retrieval; take it out"):
        judged(tmp_path, {"s": EvaluationSet("sts", "s.jsonl", rank_own=True)})


def test_dev_judges_validation_and_test_the_test(tmp_path: Path) -> None:
    path = beir(
        tmp_path / "x", ["1", "2"], ["3", "4"], dev=[("3", "1", 1)], test=[("4", "2", 1)], train=[("3", "2", 1)]
    )
    sets = {"x": EvaluationSet("retrieval", path)}
    made = judged(tmp_path, sets, test=sets)
    for split, name, text in (("val", "dev", "w13"), ("test", "test", "w14")):
        (task,) = made.tasks(split)
        assert [table(made, split)[n] for n in task.query_Q] == [text]
        assert f"{split} x: 1 judgements are from qrels/{name}.tsv" in made.describe()
    (tmp_path / "x/qrels/dev.tsv").unlink()
    told = judged(tmp_path, sets, test=sets).describe()
    assert (
        "val x: 1 judgements are from qrels/test.tsv" in told and "test x: 1 judgements are from qrels/test.tsv" in told
    )


def test_judgements_of_what_is_not_there_are_counted(tmp_path: Path) -> None:
    rows = [("3", "1", 1), ("3", "8", 1), ("3", "9", 2), ("3", "1", 2), ("7", "1", 1), ("4", "1", 0)]
    sets = {"x": EvaluationSet("retrieval", beir(tmp_path / "x", ["1", "2", "2"], ["3", "4"], test=rows))}
    made = judged(tmp_path, sets)
    (task,) = made.tasks("val")
    assert task.document_J.tolist() == [0, -1, -2] and task.grade_J.tolist() == [2, 1, 2]
    account = made.accounts()["val x"]
    assert account.is_conserved() and account.left_out == {
        "there twice": 1,
        "without a relevant document": 1,
        "of queries that are not there": 1,
        "of queries without a relevant document": 1,
    }
    assert account.notes["of the judgements name documents that are not there, and are never found"] == 2
    assert account.notes["of the judgements stand there again; the highest grade counts"] == 1
    found = metrics_of(task, torch.eye(made.num_texts("val")))
    assert found["recall@10"] == pytest.approx(1 / 3)
    beir(tmp_path / "x", ["1"], ["3"], test=[("3", "8", 1)])
    with pytest.raises(DataError, match=r"qrels/test.tsv: none of its corpus is in .*corpus.jsonl"):
        judged(tmp_path, sets)
    beir(tmp_path / "x", ["8"], ["4"], test=[("3", "8", 1)])
    with pytest.raises(DataError, match=r"qrels/test.tsv: none of its queries is in .*queries.jsonl"):
        judged(tmp_path, sets)


def test_grades_can_be_turned_round(tmp_path: Path) -> None:
    jsonl(tmp_path / "c.jsonl", [{"_id": n, "text": words(60 + n)} for n in range(3)])
    jsonl(tmp_path / "q.jsonl", [{"_id": "q", "text": "w5"}])
    grades = [{"query-id": "q", "corpus-id": n, "score": score} for n, score in enumerate((1, 4, -1))]
    jsonl(tmp_path / "r.jsonl", grades)
    labels = {"1": 4.0, "4": 1.0, "-1": None}
    options = EvaluationSet("retrieval", corpus="c.jsonl", queries="q.jsonl", qrels="r.jsonl", labels=labels)
    (task,) = judged(tmp_path, {"x": options}).tasks("val")
    assert (task.document_J.tolist(), task.grade_J.tolist()) == ([0, 1], [4, 1])
    again = [{"_id": 1, "title": None, "text": words(61)}, {"_id": 2, "text": "w9"}]
    jsonl(tmp_path / "c.jsonl", [{"_id": n, "text": words(60 + n)} for n in range(3)] + again)
    with pytest.raises(DataError, match=r"c\.jsonl:5: the id '2' stands there twice, with two texts; correct one"):
        judged(tmp_path, {"x": options})


def test_classes_for_probes(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": words(5 + n), "label": "ba"[n % 2]} for n in range(6)])
    jsonl(tmp_path / "b.jsonl", [{"text": words(9 + n), "label": "ab"[n % 2]} for n in range(3)])
    made = judged(tmp_path, {"topics": EvaluationSet("classification", "b.jsonl", "a.jsonl")})
    (task,) = made.tasks("val")
    texts = table(made)
    assert isinstance(task, TextClasses)
    assert [texts[n] for n in task.train_N] == [words(5 + n) for n in range(6)]
    assert task.train_label_N.tolist() == [1, 0, 1, 0, 1, 0] and task.test_label_N.tolist() == [0, 1, 0]
    assert len(texts) == 7, "w9 and w10 are in both parts"
    labels = {"a": 1.0, "b": None}
    fewer = EvaluationSet("classification", "b.jsonl", "a.jsonl", labels=labels)
    with pytest.raises(DataError, match=r"every class is 1, so nothing can be judged"):
        judged(tmp_path, {"topics": fewer})
    for odd in (None, "nan", -1, "-1.0", "-"):
        jsonl(tmp_path / "b.jsonl", [{"text": "w9", "label": "a"}, {"text": "w8", "label": odd}])
        with pytest.raises(DataError, match=r"b\.jsonl:2: 'label' = .* is a missing label; leave the record out"):
            judged(tmp_path, {"topics": EvaluationSet("classification", "b.jsonl", "a.jsonl")})
    jsonl(tmp_path / "c.jsonl", [{"text": "w9", "label": -1}, {"text": "w8", "label": 1}])
    signs = {"signs": EvaluationSet("classification", "c.jsonl", "c.jsonl")}
    assert judged(tmp_path, signs, accept=["labels"]).tasks("val")[0].train_label_N.tolist() == [0, 1]
    own = EvaluationSet("classification", "embedded", "embedded", columns=Columns(label="topic"))
    (articles,) = judged(tmp_path, {"topics": own}).tasks("val")
    assert len(articles.train_N) > 9000 and len(articles.test_N) == 199 and articles.train_label_N.max() >= 10


def test_texts_of_like_length_come_together_and_ranks_share_them(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"sentence1": words(*range(5, 6 + draw.integers(9))), "sentence2": words(100 + n), "score": n}
        for n in range(30)
    ]
    jsonl(tmp_path / "s.jsonl", rows)
    made = judged(tmp_path, {"x": EvaluationSet("sts", "s.jsonl")}, num_workers=2)
    batches = [batch for step in made.val_dataloader() for batch in step]
    lens = list(chain(*(batch["lens"] for batch in batches)))
    assert lens == sorted(lens, reverse=True) and lens[0] > lens[-1]
    for world in (1, 2):
        ranks = [Batching(8, 4, rank, world) for rank in range(world)]
        steps = [Evaluation(made.suites["val"], batching, made.is_special()) for batching in ranks]
        assert len({len(part) for part in steps}) == 1
        shown = [batch for part in steps for step in map(part.__getitem__, range(len(part))) for batch in step]
        numbers = [n for batch in shown if not batch.get("filler") for n in batch["sample_B"].tolist()]
        assert sorted(numbers) == list(range(made.num_texts("val")))


SETS = {
    "stsb": EvaluationSet("sts", "stsb/dev.jsonl.gz"),
    "sts12": EvaluationSet("sts", "sts12_15/sts12_test_not_in_stsb.jsonl.gz"),
    "sick": EvaluationSet("sts", "sick/dev.jsonl.gz"),
    "cranfield": EvaluationSet(
        "retrieval", "cranfield", labels={"-1": 0, "1": 4, "2": 3, "3": 2, "4": 1}, rank_own=True
    ),
    "trecqa": EvaluationSet("retrieval", "trecqa/dev.jsonl.gz"),
    "mrpc": EvaluationSet("pair_classification", "glue_mrpc/dev.jsonl.gz"),
    "nli": EvaluationSet(
        "pair_classification", "nli_pairs/dev.jsonl.gz", labels={"entailment": 1, "neutral": 0, "contradiction": 0}
    ),
    "agnews": EvaluationSet("classification", "agnews/test.jsonl.gz", "agnews/train.jsonl.gz"),
}


@needs_real_sets
def test_real_sets(tmp_path: Path) -> None:
    only = {"entailment": 1.0, "neutral": None, "contradiction": None}
    sources = {
        "triplets": PairSource("nli_triplets/train.jsonl.gz"),
        "pairs": PairSource("nli_pairs/train.jsonl.gz", labels=only),
        "stsb": PairSource("stsb/train.jsonl.gz"),
        "sick": PairSource("sick/train.jsonl.gz"),
    }
    made = pairs(tmp_path, sources=sources, validation=SETS, root=str(REAL), sequence_length=32)
    known = {part.name: (len(part), part.num_columns) for part in made.parts}
    assert known == {"triplets": (4984, 3), "pairs": (5742, 2), "stsb": (5749, 2), "sick": (4500, 2)}
    sizes = {task.name: [len(tensor) for tensor in task[1:] if tensor is not None] for task in made.tasks("val")}
    assert sizes == {
        "stsb": [1500] * 3, "sts12": [1608] * 3, "sick": [500] * 3, "mrpc": [500] * 3, "nli": [1608] * 3,
        "cranfield": [225, 1400, 1837, 1837, 1837], "trecqa": [78, 1038, 1134, 1134, 1134],
        "agnews": [10001, 10001, 7600, 7600],
    }  # fmt: skip
    cranfield = next(task for task in made.tasks("val") if task.name == "cranfield")
    assert sorted(set(cranfield.grade_J.tolist())) == [0, 1, 2, 3, 4]
    for _, step in zip(range(50), made.train_dataloader(), strict=False):
        texts = [set(example) for batch in step for example in batch["key_CP"].T.tolist()]
        assert len(set().union(*texts)) == sum(map(len, texts)), "no text in two examples"
