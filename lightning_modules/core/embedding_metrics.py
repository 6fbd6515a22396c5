"""Metrics of sentence vectors, for several widths at once; width d of a vector is its first d coordinates.

Cosines are added up in float64 from one width to the next and rounded to float32. So a width costs no more than its new
coordinates, and equal texts have exactly equal cosines, whatever the widths, the number of threads or the device.

Shape suffixes: M texts of the table, D coordinates, W widths (ascending), N pairs, Q queries, J judged documents.
"""

import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.core.tasks import PairClasses, Retrieval, Sts, Task, TextClasses

Metrics = dict[str, float]

CUTOFF = 10
NUM_NEIGHBOURS = 5
UNIFORMITY_TEXTS = 1024
CHUNK = 1 << 18  # coordinates that are widened at once: what a cache holds
BLOCK = 1 << 22  # cosines that are held at once
METRICS: dict[type, tuple[str, ...]] = {  # an alignment is left out where no pair belongs together
    Sts: ("spearman", "pearson", "alignment"),
    Retrieval: (f"ndcg@{CUTOFF}", "mrr", "recall@1", f"recall@{CUTOFF}"),
    PairClasses: ("ap", "alignment"),
    TextClasses: ("accuracy", "knn"),
}
NEVER = 1 << 62  # documents above one that cannot be found
SHORTEST = torch.finfo(torch.float64).tiny  # stands for the length of a zero vector


def metrics_of(task: Task, vectors_MD: Tensor) -> Metrics:
    """Return the metrics of one task at the full width, by their names in METRICS."""
    width = vectors_MD.shape[1]
    return by_width(task, vectors_MD, [width], [width])[0]


def by_width(task: Task, vectors_MD: Tensor, dims: Sequence[int], probe_dims: Sequence[int] = ()) -> list[Metrics]:
    """Return the metrics of one task at each of the widths; probes of classes run only at `probe_dims`."""
    if isinstance(task, TextClasses):
        return [probes(task, vectors_MD[:, :dim]) if dim in probe_dims else {} for dim in dims]
    if isinstance(task, Retrieval):
        return [ranking_metrics(*places) for places in search(task, vectors_MD, dims)]
    return [pair_metrics(task, one_N) for one_N in pair_cosines(vectors_MD, task.first_N, task.second_N, dims)]


# Cosines


def prefix_sums(values_ND: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the sums over the first d coordinates [W, N], from one width to the next."""
    return torch.stack([values_ND[:, block].sum(1) for block in coordinates(dims)]).cumsum(0)


def coordinates(dims: Sequence[int]) -> list[slice]:
    """Return the coordinates that each width has and the one before has not; widths must ascend."""
    assert all(low < high for low, high in zip([0, *dims], dims, strict=False)), f"widths {dims} do not ascend"
    return [slice(low, high) for low, high in zip([0, *dims], dims, strict=False)]


def rows_at_once(vectors_ND: Tensor) -> int:
    """Return how many vectors are widened to float64 at once."""
    return max(1, CHUNK // vectors_ND.shape[1])


def lengths(vectors_ND: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the Euclidean lengths [W, N] in float64; that of a zero vector is the smallest number, not zero."""
    squares = [prefix_sums(part.double().square(), dims) for part in vectors_ND.split(rows_at_once(vectors_ND))]
    return torch.cat(squares, 1).sqrt().clamp(min=SHORTEST)


def pair_cosines(vectors_MD: Tensor, first_N: Tensor, second_N: Tensor, dims: Sequence[int]) -> NDArray[np.float32]:
    """Return the cosines [W, N] of pairs of texts; that with a zero vector is 0."""
    text_U, row_2N = torch.cat([first_N, second_N]).to(vectors_MD.device).unique(return_inverse=True)
    vectors_UD = vectors_MD[text_U]
    length_WU, found = lengths(vectors_UD, dims), []
    rows = rows_at_once(vectors_MD)
    for first, second in zip(*(half.split(rows) for half in row_2N.tensor_split(2)), strict=True):
        dot_WN = prefix_sums(vectors_UD[first].double() * vectors_UD[second].double(), dims)
        found.append((dot_WN / length_WU[:, first] / length_WU[:, second]).float())
    return torch.cat(found, 1).cpu().numpy()


# Pairs


def pair_metrics(task: Sts | PairClasses, cosine_N: NDArray) -> Metrics:
    """Return the metrics of pairs from their cosines."""
    if isinstance(task, Sts):
        score_N = task.score_N.cpu().numpy()
        # of STS-B the scores above 4 of 5 are taken (SimCSE, section 3)
        found, positive_N = correlations(cosine_N, score_N), score_N > score_N.min() + 0.8 * np.ptp(score_N)
    else:
        positive_N = task.label_N.cpu().numpy() == 1
        found = {"ap": average_precision(cosine_N, positive_N)}
    return found | ({"alignment": alignment(cosine_N[positive_N])} if positive_N.any() else {})


def correlations(cosine_N: NDArray, score_N: NDArray) -> Metrics:
    """Return Spearman's and Pearson's correlation with the scores; 0 where all cosines are equal."""
    from scipy.stats import pearsonr, spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        found = {"spearman": spearmanr(cosine_N, score_N), "pearson": pearsonr(cosine_N.astype(np.float64), score_N)}
    return {name: float(np.nan_to_num(result.statistic)) for name, result in found.items()}


def average_precision(cosine_N: NDArray, positive_N: NDArray) -> float:
    """Return the average precision of finding the positive pairs by their cosine."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(positive_N, cosine_N))


def alignment(cosine_N: NDArray) -> float:
    """Return the mean squared distance of normalised vectors that belong together (Wang and Isola 2020, equation 4)."""
    return float(np.mean(2 - 2 * cosine_N.astype(np.float64)))


# Search


def search(task: Retrieval, vectors_MD: Tensor, dims: Sequence[int]) -> list[tuple[NDArray, ...]]:
    """Compare every query with every document but its own, exactly; return the places of the relevant ones.

    Returns:
        for each width four arrays [J] over the relevant documents, by query: row of the query, grade, number of
        documents with a higher cosine, and number of those with the same one, itself included. What cannot be found,
        a query's own document or one that is not there, has NEVER documents above it.
    """
    device = vectors_MD.device
    relevant = (task.grade_J > 0).nonzero()[:, 0]
    order = relevant[task.judged_J[relevant].argsort(stable=True)]
    query_J, document_J, grade_J = (t[order].to(device) for t in (task.judged_J, task.document_J, task.grade_J))
    documents_MD = vectors_MD[task.document_M.to(device)]
    higher_WJ, equal_WJ = torch.zeros(2, len(dims), len(order), dtype=torch.int64, device=device)
    length_WM, asked_Q = lengths(documents_MD, dims), query_J.unique()
    own_Q = torch.full_like(task.query_Q, -1) if task.own_Q is None else task.own_Q
    own_Q = own_Q.to(device)
    never_J = (document_J < 0) | (document_J == own_Q[query_J])
    first = 0  # judgements are in the order of the queries, as the blocks are
    for row_B in asked_Q.split(max(1, BLOCK // len(documents_MD))):
        last = int(torch.searchsorted(query_J, row_B[-1], right=True))
        own, place_J = slice(first, last), torch.searchsorted(row_B, query_J[first:last])
        queries_BD = vectors_MD[task.query_Q.to(device)[row_B]].double()
        has_own_O = (own_Q[row_B] >= 0).nonzero()[:, 0]
        for width, cosine_BM in enumerate(_cosines(queries_BD, documents_MD, length_WM, dims)):
            cosine_BM[has_own_O, own_Q[row_B][has_own_O]] = -torch.inf
            _count(cosine_BM, place_J, document_J[own], higher_WJ[width, own], equal_WJ[width, own])
        first = last
    higher_WJ[:, never_J], equal_WJ[:, never_J] = NEVER, 1
    query, grade, higher, equal = (t.cpu().numpy() for t in (query_J, grade_J, higher_WJ, equal_WJ))
    return [(query, grade, *places) for places in zip(higher, equal, strict=True)]


def _cosines(queries_BD: Tensor, documents_MD: Tensor, length_WM: Tensor, dims: Sequence[int]) -> Iterator[Tensor]:
    length_WB = lengths(queries_BD, dims)
    dot_BM = queries_BD.new_zeros(len(queries_BD), len(documents_MD))
    rows = rows_at_once(documents_MD)
    for width, block in enumerate(coordinates(dims)):
        for dot, documents in zip(dot_BM.split(rows, 1), documents_MD[:, block].split(rows), strict=True):
            dot += queries_BD[:, block] @ documents.double().T
        yield (dot_BM / length_WB[width, :, None] / length_WM[width]).float()


def _count(cosine_BM: Tensor, place_J: Tensor, document_J: Tensor, higher_J: Tensor, equal_J: Tensor) -> None:
    """Count, in place, the documents above and level with each relevant one."""
    rows = max(1, BLOCK // cosine_BM.shape[1])
    for place, document, higher, equal in zip(
        *(t.split(rows) for t in (place_J, document_J, higher_J, equal_J)), strict=True
    ):
        others, own = cosine_BM[place], cosine_BM[place, document][:, None]
        higher.copy_((others > own).sum(1))
        equal.copy_((others == own).sum(1))


def ranking_metrics(query_J: NDArray, grade_J: NDArray, higher_J: NDArray, equal_J: NDArray) -> Metrics:
    """Return ndcg@10, mrr, recall@1 and recall@10 of the places of the relevant documents, sorted by query.

    Documents with the same cosine count as if in random order: every value is its expectation (McSherry and Najork,
    ECIR 2008; for nDCG, whose gain is the grade, as in sklearn.metrics.ndcg_score). Queries without a relevant document
    are left out. The reciprocal rank is that of the first relevant document in the whole list.
    """
    first_Q, query_J = np.unique(query_J, return_index=True, return_inverse=True)[1:]
    count_Q = np.bincount(query_J)
    discount = 1 / np.log2(np.arange(CUTOFF) + 2)
    summed = np.concatenate([[0.0], discount.cumsum()])
    share_J = (summed[np.minimum(higher_J + equal_J, CUTOFF)] - summed[np.minimum(higher_J, CUTOFF)]) / equal_J
    best = np.lexsort((-grade_J, query_J))
    place_J = np.arange(len(query_J)) - first_Q[query_J]
    ideal_Q = np.bincount(query_J, grade_J[best] * np.append(discount, 0)[np.minimum(place_J, CUTOFF)])
    recall = {
        f"recall@{k}": float(np.mean(np.bincount(query_J, np.clip(k - higher_J, 0, equal_J) / equal_J) / count_Q))
        for k in (1, CUTOFF)
    }
    ndcg = float(np.mean(np.bincount(query_J, grade_J * share_J) / ideal_Q))
    return {f"ndcg@{CUTOFF}": ndcg, "mrr": mean_reciprocal_rank(query_J, first_Q, higher_J, equal_J), **recall}


def mean_reciprocal_rank(query_J: NDArray, first_Q: NDArray, higher_J: NDArray, equal_J: NDArray) -> float:
    """Return the mean over queries of the expected 1 / rank of the first relevant document."""
    from scipy.stats import nhypergeom

    higher_Q = np.minimum.reduceat(higher_J, first_Q)
    top_J = higher_J == higher_Q[query_J]
    relevant_Q = np.bincount(query_J[top_J], minlength=len(first_Q))
    equal_Q = np.maximum.reduceat(np.where(top_J & (higher_J < NEVER), equal_J, 0), first_Q)
    reciprocal_Q = np.where(higher_Q < NEVER, 1 / (higher_Q + 1), 0)
    for query in np.flatnonzero(equal_Q > relevant_Q):
        others = equal_Q[query] - relevant_Q[query]
        before = np.arange(others + 1)  # irrelevant documents of the same cosine that come first
        chance = nhypergeom.pmf(before, equal_Q[query], others, 1)
        reciprocal_Q[query] = (chance / (higher_Q[query] + 1 + before)).sum()
    return float(reciprocal_Q.mean())


# Probes


def probes(task: TextClasses, vectors_MD: Tensor) -> Metrics:
    """Return the accuracy of a logistic regression and of the 5 nearest neighbours by cosine, on normalised vectors."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train_ND, test_ND = (normalised(vectors_MD[t.to(vectors_MD.device)]) for t in (task.train_N, task.test_N))
    train_label, test_label = task.train_label_N.cpu().numpy(), task.test_label_N.cpu().numpy()
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    nearest = KNeighborsClassifier(min(NUM_NEIGHBOURS, len(train_ND)), metric="cosine", algorithm="brute")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations that were used up
        fitted = {"accuracy": linear.fit(train_ND, train_label), "knn": nearest.fit(train_ND, train_label)}
    return {name: float(np.mean(model.predict(test_ND) == test_label)) for name, model in fitted.items()}


def normalised(vectors_ND: Tensor) -> NDArray[np.float32]:
    """Return vectors of length 1 on the host; zero vectors stay."""
    length_N = lengths(vectors_ND, [vectors_ND.shape[1]])[0]
    return (vectors_ND.double() / length_N[:, None]).float().cpu().numpy()


# The table as a whole


def anisotropy(vectors_MD: Tensor, dims: Sequence[int]) -> list[float]:
    """Return the mean cosine of two different texts, over all pairs (Ethayarajh 2019, section 3.4)."""
    sum_WD, units_W = vectors_MD.new_zeros(len(dims), vectors_MD.shape[1], dtype=torch.float64), 0
    for vectors in vectors_MD.split(rows_at_once(vectors_MD)):
        length_WN = lengths(vectors, dims)
        weight_WN = torch.where(length_WN > SHORTEST, 1 / length_WN, 0)
        sum_WD += weight_WN @ vectors.double()
        units_W = units_W + (weight_WN > 0).sum(1)
    squares_W = torch.stack([sum_D[:dim].square().sum() for dim, sum_D in zip(dims, sum_WD, strict=True)])
    return ((squares_W - units_W) / max(1, len(vectors_MD) * (len(vectors_MD) - 1))).tolist()


def uniformity(vectors_MD: Tensor, dims: Sequence[int]) -> list[float]:
    """Return log mean exp(-2 |x - y|^2) over pairs of normalised vectors (Wang and Isola 2020, equation 5, t = 2).

    All pairs of at most 1,024 texts, taken at even distances from the table; nan where there is no pair.
    """
    count = min(len(vectors_MD), UNIFORMITY_TEXTS)
    chosen = torch.linspace(0, len(vectors_MD) - 1, count, dtype=torch.float64).round().long()
    vectors, found = vectors_MD[chosen.to(vectors_MD.device)].double(), []
    for cosine_BB in _cosines(vectors, vectors, lengths(vectors, dims), dims):
        likeness_BB = (4 * cosine_BB - 4).exp()
        total = likeness_BB.sum(dtype=torch.float64) - likeness_BB.diagonal().sum(dtype=torch.float64)
        found.append(float((total / (count * (count - 1))).log()) if count > 1 else math.nan)
    return found
