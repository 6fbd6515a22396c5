"""Cells under MTEB itself, where it is installed: tasks over local data, by the adapter and by an exported folder."""

import gzip
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from lightning_modules.core.sentence_form import Form
from lightning_modules.matryoshka2d import MatryoshkaEncoder, MtebEncoder
from tests.embedders import LENGTH, method_of, run_folder
from tests.pairs import REAL, needs_real_sets

mteb = pytest.importorskip("mteb")
PROMPTS = {"query": "q: ", "document": "d: "}
ROWS = [
    ("a man is playing a guitar", "a person plays music", 3.8),
    ("a dog runs", "a dog is running fast", 4.4),
    ("the moon is bright", "rain falls on the house", 0.6),
    ("two cats sleep", "two cats are asleep", 5.0),
    ("a red car", "an old tree", 0.8),
    ("a woman cuts an onion", "a man slices bread", 1.6),
]


def told(name: str, kind: str, score: str) -> "mteb.TaskMetadata":
    return mteb.TaskMetadata(
        name=name, description=name, type=kind, category="t2t", modalities=["text"], eval_splits=["test"],
        eval_langs=["eng-Latn"], main_score=score, dataset={"path": "local", "revision": "1"}, reference=None,
        date=("2020-01-01", "2020-01-02"), domains=[], task_subtypes=[], license=None, annotations_creators=None,
        dialect=[], sample_creation=None, bibtex_citation="",
    )  # fmt: skip


def similarity(rows: list[tuple[str, str, float]]) -> "mteb.AbsTask":
    """Make a task of the form of STS-B of pairs with scores."""
    import datasets
    from mteb.abstasks import AbsTaskSTS

    class LocalSTS(AbsTaskSTS):
        metadata = told("LocalSTS", "STS", "cosine_spearman")
        min_score, max_score = 0, 5

        def load_data(self, **_: object) -> None:
            records = [dict(zip(("sentence1", "sentence2", "score"), row, strict=True)) for row in rows]
            self.dataset, self.data_loaded = datasets.DatasetDict(test=datasets.Dataset.from_list(records)), True

    return LocalSTS()


@pytest.fixture
def sts() -> "mteb.AbsTask":
    """Pairs with scores."""
    return similarity(ROWS)


@pytest.fixture
def search() -> "mteb.AbsTask":
    """Search among the second texts for those of the first."""
    import datasets
    from mteb.abstasks import AbsTaskRetrieval

    class LocalSearch(AbsTaskRetrieval):
        metadata = told("LocalSearch", "Retrieval", "ndcg_at_10")

        def load_data(self, **_: object) -> None:
            queries, corpus = ([{"id": f"{c}{n}", "text": row[c]} for n, row in enumerate(ROWS)] for c in (0, 1))
            split = {
                "queries": datasets.Dataset.from_list(queries),
                "corpus": datasets.Dataset.from_list([{**row, "title": ""} for row in corpus]),
                "relevant_docs": {f"0{n}": {f"1{n}": 1} for n in range(len(ROWS))},
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return LocalSearch()


def score(model: object, task: "mteb.AbsTask", name: str) -> float:
    return mteb.evaluate(model, task, cache=None, co2_tracker=False).task_results[0].scores["test"][0][name]


def test_mteb_scores_a_cell_as_its_vectors_say(sts, search, tmp_path: Path) -> None:
    method, tokenizer = method_of("bert", tmp_path / "source")
    encoder = MatryoshkaEncoder(method.model.encoder, tokenizer, Form("mean", 32, LENGTH, PROMPTS), device="cpu")
    model = MtebEncoder(encoder, "me/mine", 2, 12)
    assert isinstance(model, mteb.EncoderProtocol) and model.mteb_model_meta.embed_dim == 12
    first, second = (encoder.encode([row[c] for row in ROWS], 2, 12) for c in (0, 1))
    wanted = spearmanr((first * second).sum(1), [row[2] for row in ROWS]).statistic
    assert score(model, sts, "cosine_spearman") == pytest.approx(wanted, abs=1e-6)
    other = score(MtebEncoder(encoder, "me/mine", 1, 4), sts, "cosine_spearman")
    assert other != pytest.approx(wanted, abs=1e-6)
    query, document = (
        encoder.encode([row[c] for row in ROWS], 2, 12, prompt=PROMPTS[name])
        for c, name in ((0, "query"), (1, "document"))
    )
    cosine_NN = query @ document.T
    rank_N = (cosine_NN > np.diag(cosine_NN)[:, None]).sum(1)
    ndcg = float(np.where(rank_N < 10, 1 / np.log2(rank_N + 2), 0).mean())
    assert score(model, search, "ndcg_at_10") == pytest.approx(ndcg, abs=1e-5)


@needs_real_sets
def test_mteb_scores_real_pairs_as_scipy_does(tmp_path: Path) -> None:
    with gzip.open(REAL / "stsb/test.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in islice(file, 200)]
    rows = [(record["sentence1"], record["sentence2"], record["score"]) for record in records]
    method, tokenizer = method_of("bert", tmp_path / "source")
    encoder = MatryoshkaEncoder(method.model.encoder, tokenizer, Form("mean", 32, LENGTH, {}), device="cpu")
    for layer, dim in ((3, 32), (1, 8)):
        first, second = (encoder.encode([row[c] for row in rows], layer, dim).astype(np.float64) for c in (0, 1))
        wanted = spearmanr((first * second).sum(1), [row[2] for row in rows]).statistic
        found = score(MtebEncoder(encoder, "me/mine", layer, dim), similarity(rows), "cosine_spearman")
        # two pairs of cosines that are equal to rounding may change places: each time 1.5e-6 of 200 pairs
        assert found == pytest.approx(wanted, abs=1e-5) and abs(wanted) > 0.1


def test_an_exported_folder_runs_as_any_model_of_sentence_transformers(sts, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    method, tokenizer = method_of("bert", tmp_path / "source")
    method.export(tmp_path / "out", tokenizer, run_folder(tmp_path / "run"), 9, 2, 12)
    exported = library.SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    encoder = MatryoshkaEncoder.from_folder(tmp_path / "out", device="cpu")
    found = score(exported, sts, "cosine_spearman")
    assert found == pytest.approx(score(MtebEncoder(encoder, "out"), sts, "cosine_spearman"), abs=1e-6)
