import itertools
import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, ndcg_score
from torch import Tensor

from datamodules.core.tasks import PairClasses, Retrieval, Sts, Task, TextClasses
from lightning_modules.core import embedding_metrics
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.embedding_metrics import (
    anisotropy,
    by_width,
    metrics_of,
    pair_cosines,
    ranking_metrics,
    uniformity,
)
from lightning_modules.core.embedding_suite import VectorTable, check, suite
from lightning_modules.matryoshka2d.grid import Choice, Grid, measured

TEXTS, WIDTH = 60, 12


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(rows: int = TEXTS, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=drawn(seed)) + 0.3


def numbers(count: int, high: int = TEXTS, seed: int = 1) -> Tensor:
    return torch.randint(high, (count,), generator=drawn(seed))


def sts(count: int = 40, name: str = "sts_b", seed: int = 1) -> Sts:
    scores = torch.randint(11, (count,), generator=drawn(seed + 2)).float() / 2
    return Sts(name, numbers(count, seed=seed), numbers(count, seed=seed + 1), scores)


def retrieval() -> Retrieval:
    """7 queries, one of them without a relevant document, 30 documents, grades up to 3."""
    judged = torch.tensor([3, 0, 0, 0, 1, 1, 2, 4, 5, 5, 6])
    document = torch.tensor([5, 1, 2, 29, 4, 8, 8, 0, 11, 12, 3])
    grade = torch.tensor([1.0, 1, 3, 2, 1, 0, 2, -1, 1, 1, 3])  # 0 and below: judged, and not relevant
    return Retrieval("search", torch.arange(7), torch.arange(10, 40), judged, document, grade)


def pairs() -> PairClasses:
    return PairClasses("pairs", numbers(30, seed=3), numbers(30, seed=4), torch.arange(30) % 3 // 2)


def classes(rows: int = TEXTS) -> TextClasses:
    number = torch.arange(rows)
    return TextClasses("topics", number[::2], number[::2] % 3, number[1::2], number[1::2] % 3)


def every_task() -> list[Task]:
    return [sts(), retrieval(), sts(25, "sick", 7), pairs(), classes()]


def cosines(vectors: Tensor) -> np.ndarray:
    """All cosines, one by one."""
    rows = vectors.double().numpy()
    found = np.zeros((len(rows), len(rows)))
    for i, j in itertools.product(range(len(rows)), repeat=2):
        size = math.sqrt(sum(rows[i] ** 2)) * math.sqrt(sum(rows[j] ** 2))
        found[i, j] = sum(rows[i] * rows[j]) / size if size else 0.0
    return found


def test_sts_is_what_scipy_says_of_the_cosines():
    vectors, task = table(), sts()
    own = cosines(vectors)[task.first_N, task.second_N]
    found = metrics_of(task, vectors)
    assert found["spearman"] == pytest.approx(spearmanr(own, task.score_N).statistic, abs=1e-6)
    assert found["pearson"] == pytest.approx(pearsonr(own, task.score_N.double()).statistic, abs=1e-6)
    top = own[task.score_N.numpy() > 4]
    assert found["alignment"] == pytest.approx(np.mean(2 - 2 * top), abs=1e-6)


def test_sts_with_zero_vectors_and_constant_ones():
    vectors, task = table(), sts()
    vectors[task.first_N[0]] = 0
    assert pair_cosines(vectors, task.first_N, task.second_N, [WIDTH])[0][0] == 0
    assert np.isfinite(list(metrics_of(task, vectors).values())).all()
    constant = metrics_of(task, table(1).expand(TEXTS, -1))
    assert constant == {"spearman": 0.0, "pearson": 0.0, "alignment": 0.0}


def test_equal_texts_have_exactly_equal_cosines_at_every_width():
    vectors = table(400, 384)
    vectors[200:] = vectors[:200] * 4
    first, dims = torch.arange(200), [8, 24, 100, 384]
    found = pair_cosines(vectors, first, first + 200, dims)
    assert (found == 1).all()
    same, copied = (pair_cosines(vectors, first, (first + shift) % 400, dims) for shift in (7, 207))
    assert (same == copied).all()


@pytest.mark.parametrize("half_precision", [False, True])
def test_pairs_are_found_with_the_average_precision_of_sklearn(half_precision):
    vectors, task = table().to(torch.bfloat16 if half_precision else torch.float32), pairs()
    own = cosines(vectors)[task.first_N, task.second_N]
    found = metrics_of(task, vectors)
    assert found["ap"] == pytest.approx(average_precision_score(task.label_N, own), abs=1e-6)
    assert found["alignment"] == pytest.approx(np.mean(2 - 2 * own[task.label_N == 1]), abs=1e-6)


def test_every_width_is_the_vectors_cut_and_measured_alone():
    vectors, dims = table(), [1, 3, 4, WIDTH]
    for task in every_task():
        together = by_width(task, vectors, dims, dims)
        for dim, found in zip(dims, together, strict=True):
            assert found == metrics_of(task, vectors[:, :dim].clone()), (task.name, dim)


# Search


def judgements(task: Retrieval) -> np.ndarray:
    grades = np.zeros((len(task.query_Q), len(task.document_M)))
    grades[task.judged_J, task.document_J] = task.grade_J
    return grades


def listed(order: tuple[int, ...], grades: np.ndarray) -> dict[str, float]:
    """The metrics of one ranked list, written out."""
    gained = [float(grades[document]) for document in order]
    places = [place for place, gain in enumerate(gained, 1) if gain > 0]
    ideal = sorted(gained, reverse=True)
    dcg, best = (sum(g / math.log2(p + 1) for p, g in enumerate(gains[:10], 1)) for gains in (gained, ideal))
    recall = {f"recall@{k}": sum(place <= k for place in places) / len(places) for k in (1, 10)}
    return {"ndcg@10": dcg / best, "mrr": 1 / places[0], **recall}


def averaged(lists: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in lists])) for name in lists[0]}


def test_search_is_what_ranked_lists_written_out_give():
    vectors, task = table(), retrieval()
    own, grades = cosines(vectors)[:7, 10:40], judgements(task)
    asked = [0, 1, 2, 3, 5, 6]  # query 4 has no relevant document
    lists = [listed(tuple(np.argsort(-own[query])), grades[query]) for query in asked]
    found = metrics_of(task, vectors)
    assert found == pytest.approx(averaged(lists), abs=1e-9)
    assert found["ndcg@10"] == pytest.approx(ndcg_score(grades[asked], own[asked], k=10), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_search_is_that_of_trec_eval_without_each_query_s_own_document(seed):
    """As BEIR does: scores.pop(query), and judgements of what is not found stay."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    draw, vectors = np.random.default_rng(seed), table(seed=seed)
    places = draw.choice(9 * 33, 60, replace=False)
    judged, document = places // 33, places % 33 - 3  # three documents are not there
    judged[:9], document[:9], grade = np.arange(9), np.arange(9) + 20, draw.integers(0, 4, 60).astype(np.float32)
    grade[:9] = 1  # every query has a relevant document
    rows = {(q, d): (q, d, g) for q, d, g in zip(judged.tolist(), document.tolist(), grade.tolist(), strict=True)}
    own = np.where(np.arange(9) % 3 < 2, np.arange(9) + 19 + np.arange(9) % 2, -1)  # some are judged relevant
    parts = [torch.tensor(part) for part in zip(*rows.values(), strict=True)]
    task = Retrieval("search", torch.arange(9), torch.arange(20, 50), *parts, torch.from_numpy(own))
    qrels = {str(q): {str(d): int(g) for one, d, g in rows.values() if one == q} for q in range(9)}
    cosine = cosines(vectors)[:9, 20:50]
    scores = {str(q): {str(d): cosine[q, d] for d in range(30) if d != own[q]} for q in range(9)}
    measures = {"ndcg@10": "ndcg_cut.10", "mrr": "recip_rank", "recall@1": "recall.1", "recall@10": "recall.10"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {*measures.values()}).evaluate(scores)
    wanted = {ours: np.mean([v[name.replace(".", "_")] for v in theirs.values()]) for ours, name in measures.items()}
    assert metrics_of(task, vectors) == pytest.approx(wanted, abs=1e-9)


def test_documents_of_one_cosine_count_as_in_random_order():
    vectors, task = torch.zeros(50, 2), retrieval()
    vectors[:7, 0] = 1
    vectors[10:40] = torch.tensor([[1.0, 0], [1, 1], [0, 1]]).repeat(10, 1)
    own, grades = cosines(vectors)[:7, 10:40], judgements(task)
    asked = [0, 1, 2, 3, 5, 6]
    found = metrics_of(task, vectors)
    assert found["ndcg@10"] == pytest.approx(ndcg_score(grades[asked], own[asked], k=10), abs=1e-9)
    chance, lists = np.random.default_rng(0), []
    for query in asked * 3000:
        mixed = chance.permutation(30)
        lists.append(listed(tuple(mixed[np.argsort(-own[query][mixed], kind="stable")]), grades[query]))
    assert found == pytest.approx(averaged(lists), abs=0.02)


@pytest.mark.parametrize("relevant", [(0,), (0, 1), (0, 2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("above", [0, 2])
def test_expectations_over_ties_are_those_over_all_orders(relevant, above):
    """`above` irrelevant documents, then 4 of one cosine, some of them relevant with grades 1, 2, ..."""
    grades = np.zeros(above + 4)
    for grade, document in enumerate(relevant, 1):
        grades[above + document] = grade
    orders = [(*range(above), *(above + d for d in mixed)) for mixed in itertools.permutations(range(4))]
    wanted = averaged([listed(order, grades) for order in orders])
    count = len(relevant)
    found = ranking_metrics(
        np.zeros(count, int), np.arange(1, count + 1), np.full(count, above), np.full(count, 4, int)
    )
    assert found == pytest.approx(wanted, abs=1e-12)


def test_search_with_collapsed_vectors_is_chance_not_the_order_of_the_documents():
    task = Retrieval("one", torch.tensor([0]), torch.arange(1, 21), *map(torch.tensor, ([0], [0], [1.0])))
    found = metrics_of(task, torch.ones(21, 5))
    assert found["recall@1"] == pytest.approx(1 / 20) and found["recall@10"] == pytest.approx(0.5)
    assert found["mrr"] == pytest.approx(sum(1 / rank for rank in range(1, 21)) / 20)


def test_small_blocks_change_nothing(monkeypatch):
    vectors, dims = table(), [2, 5, WIDTH]
    whole = [by_width(task, vectors, dims, dims) for task in every_task()]
    around = [anisotropy(vectors, dims), uniformity(vectors, dims)]
    monkeypatch.setattr(embedding_metrics, "BLOCK", 64)
    monkeypatch.setattr(embedding_metrics, "CHUNK", 64)
    assert [by_width(task, vectors, dims, dims) for task in every_task()] == whole
    np.testing.assert_allclose([anisotropy(vectors, dims), uniformity(vectors, dims)], around, rtol=1e-12)


# Probes and the table as a whole


def test_probes_find_classes_that_are_apart_and_count_neighbours():
    task = classes()
    apart = torch.zeros(TEXTS, 6)
    apart[torch.arange(TEXTS), torch.arange(TEXTS) % 3] = 5
    assert metrics_of(task, apart + 0.1 * table(width=6)) == {"accuracy": 1.0, "knn": 1.0}
    vectors = table()
    own, right = cosines(vectors), 0
    for text, label in zip(task.test_N.tolist(), task.test_label_N.tolist(), strict=True):
        nearest = sorted(task.train_N.tolist(), key=lambda other: -own[text, other])[:5]
        votes = np.bincount([other % 3 for other in nearest], minlength=3)
        right += int(votes.argmax()) == label
    assert metrics_of(task, vectors)["knn"] == right / len(task.test_N)


def test_probes_run_only_where_they_are_asked_for():
    found = by_width(classes(), table(), [4, WIDTH], [WIDTH])
    assert found[0] == {} and set(found[1]) == {"accuracy", "knn"}


def test_anisotropy_and_uniformity_are_means_over_pairs():
    vectors = table()
    vectors[5] = 0
    for dim in (4, WIDTH):
        own = cosines(vectors[:, :dim])
        between = [own[i, j] for i, j in itertools.combinations(range(TEXTS), 2)]
        assert anisotropy(vectors, [dim]) == pytest.approx([np.mean(between)], abs=1e-9)
        assert uniformity(vectors, [dim]) == pytest.approx([np.log(np.mean(np.exp(4 * np.array(between) - 4)))])
    assert math.isnan(uniformity(vectors[:1], [4])[0]) and abs(anisotropy(vectors[:1], [4])[0]) < 1e-12
    unit = torch.nn.functional.normalize(table().double())
    paper = torch.pdist(unit).pow(2).mul(-2).exp().mean().log()  # as Wang and Isola print it
    assert uniformity(table(), [WIDTH])[0] == pytest.approx(paper.item(), abs=1e-6)


def test_uniformity_of_a_large_table_is_of_texts_at_even_distances():
    vectors = table(5000, 4)
    chosen = vectors[np.linspace(0, 4999, 1024).round().astype(int)]
    assert uniformity(vectors, [4]) == uniformity(chosen, [4])
    assert abs(uniformity(vectors, [4])[0] - uniformity(table(1024, 4, seed=9), [4])[0]) < 0.1


# The suite


def test_sts_is_averaged_over_sets_and_pooled_over_pairs():
    vectors, (one, two) = table(), (sts(), sts(25, "sick", 7))
    found = suite([one, two])[0](vectors, [WIDTH], [])[0]
    assert found["sts", "mean"] == np.mean([metrics_of(task, vectors)["spearman"] for task in (one, two)])
    both = Sts("both", *(torch.cat(tensors) for tensors in list(zip(one, two, strict=True))[1:]))
    assert found["sts", "pooled"] == metrics_of(both, vectors)["spearman"] != found["sts", "mean"]
    for task in (one, two):
        assert {name: found[task.name, name] for name in metrics_of(task, vectors)} == metrics_of(task, vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t[0], t[0]], "task sts_b: the name is taken"),
        (lambda t: [t[3]._replace(name="sts")], "task sts: the name is taken"),
        (lambda t: [t[0]._replace(score_N=torch.ones(40))], "task sts_b: all scores are equal"),
        (lambda t: [t[1]._replace(grade_J=torch.zeros(11))], "task search: no query has a relevant document"),
        (lambda t: [t[1]._replace(document_J=torch.ones(11, dtype=torch.long))], "task search: .* judged twice"),
        (lambda t: [t[3]._replace(label_N=torch.ones(30, dtype=torch.long))], "task pairs: labels must be 0 and 1"),
        (lambda t: [t[4]._replace(test_label_N=torch.full((30,), 7))], "class 7 is tested and not learned"),
        (lambda t: [t[4]._replace(train_label_N=torch.zeros(30))], "task topics: 1 classes to learn"),
    ],
)
def test_tasks_that_mean_nothing_are_refused_by_name(change, message):
    check(every_task())
    with pytest.raises(CheckpointError, match=message):
        check(change(every_task()))


def filled(vectors: Tensor, shares: list[list[int]]) -> VectorTable:
    made = VectorTable(len(vectors), vectors.shape[1], vectors.shape[2])
    for texts in shares:
        made.add(torch.tensor(texts), vectors[:, texts])
    return made


def test_a_table_is_the_same_however_it_was_filled():
    vectors = torch.stack([table(), table(seed=3)])
    order = torch.randperm(TEXTS, generator=drawn()).tolist()
    for size in (1, 7, TEXTS):
        shares = [order[start : start + size] for start in range(0, TEXTS, size)]
        assert torch.equal(filled(vectors, shares).join(), vectors)


def test_a_table_with_holes_or_doubles_is_refused():
    vectors = table()[None]
    with pytest.raises(CheckpointError, match=r"2 of 60 texts were not encoded.*max_batches must be null"):
        filled(vectors, [list(range(58))]).join()
    with pytest.raises(CheckpointError, match="1 of 60 texts came more than once"):
        filled(vectors, [list(range(TEXTS)), [4]]).join()


CHOICE = Choice([0, 2, 3], [3, 8, WIDTH], [8, WIDTH])


def layers() -> Tensor:
    return torch.stack([table(seed=seed) for seed in (4, 5, 6)])


def share_work(rank: int, world_size: int, folder: Path, results: "multiprocessing.Queue") -> None:
    """One rank of a group: encodes some texts, the last rank none, and measures its share."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
    encoding = world_size - 1
    texts = list(range(rank, TEXTS, encoding)) if rank < encoding else []
    made = filled(layers(), [texts[start : start + 4] for start in range(0, len(texts), 4)]).join()
    results.put((rank, measured(made, CHOICE.cells(3, WIDTH), every_task())))
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_share_the_work_and_all_get_the_grid_of_one_process(tmp_path):
    alone = measured(layers(), CHOICE.cells(3, WIDTH), every_task())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    results = context.Queue()
    ranks = [context.Process(target=share_work, args=(rank, 3, tmp_path, results)) for rank in range(3)]
    for process in ranks:
        process.start()
    found: dict[int, Grid] = dict(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert all(found[rank] == alone and list(found[rank].values) == list(alone.values) for rank in range(3))
