"""A suite of tasks judged from one table of vectors, which the ranks fill together.

Shape suffixes: L layers, M texts of the table, B texts of a micro-batch, D coordinates.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from datamodules.core.tasks import PairClasses, Sts, Task, TextClasses
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.embedding_metrics import (
    METRICS,
    anisotropy,
    by_width,
    correlations,
    pair_cosines,
    pair_metrics,
    uniformity,
)

Values = dict[tuple[str, str], float]  # by set and metric
Part = Callable[[Tensor, Sequence[int], Sequence[int]], list[Values]]  # of vectors, widths and the widths of probes

STS, TEXTS = "sts", "texts"  # the sets of what is measured over all STS tasks, and over all texts
TAKEN = f"the name is taken, as {STS} and {TEXTS} are by averages over the sets; call the set otherwise"


class VectorTable:
    """The vectors of all texts at several layers, filled in batch by batch and joined over the ranks.

    Args:
        num_layers: layers L of which there are vectors.
        num_texts: texts M of the evaluation, over all ranks.
        width: coordinates D.
        device: where the table lies; one that the ranks' collectives can read.
    """

    def __init__(self, num_layers: int, num_texts: int, width: int, device: torch.device | str = "cpu") -> None:
        self.vectors_LMD = torch.zeros(num_layers, num_texts, width, device=device)
        self.times_M = torch.zeros(num_texts, dtype=torch.int32, device=device)

    def add(self, text_B: Tensor, vectors_LBD: Tensor) -> None:
        """Take in the vectors of some texts, given by their numbers."""
        text_B = text_B.to(self.times_M.device)
        self.vectors_LMD[:, text_B] = vectors_LBD.detach().to(self.vectors_LMD)
        self.times_M += torch.bincount(text_B, minlength=len(self.times_M)).to(self.times_M)

    def join(self) -> Tensor:
        """Return the table [L, M, D] in float32, the same on all ranks; they all call it.

        Every text comes from one rank, and the others add zeros, so nothing is rounded.

        Raises:
            CheckpointError: a text has no vector, or came twice.
        """
        if dist.is_available() and dist.is_initialized():
            for part in (self.times_M, *self.vectors_LMD):
                dist.all_reduce(part)
        if missing := int((self.times_M == 0).sum()):
            raise CheckpointError(
                f"{missing} of {len(self.times_M)} texts were not encoded: tasks are judged on all of their texts; "
                "callbacks.validation.max_batches must be null"
            )
        if twice := int((self.times_M > 1).sum()):
            raise CheckpointError(f"{twice} of {len(self.times_M)} texts came more than once; each must come once")
        return self.vectors_LMD


def suite(tasks: Sequence[Task]) -> list[Part]:
    """Return what can be measured one by one: all STS tasks together, each other task, and the table as a whole.

    Over the STS tasks there are two averages, both of Spearman's correlation: (sts, mean) over the sets and
    (sts, pooled) over all pairs, whose scores are taken as they are: different scales are not brought together. Over
    all texts there are (texts, anisotropy) and (texts, uniformity).
    """
    sts = [task for task in tasks if isinstance(task, Sts)]
    parts: list[Part] = [partial(_sts, sts)] if sts else []
    return [*parts, *(partial(_task, task) for task in tasks if not isinstance(task, Sts)), _texts]


def value_names(tasks: Sequence[Task]) -> set[tuple[str, str]]:
    """Return what is measured on these tasks, by set and metric, before anything is."""
    own = {(task.name, metric) for task in tasks for metric in METRICS[type(task)]}
    together = {(STS, "mean"), (STS, "pooled")} if any(isinstance(task, Sts) for task in tasks) else set()
    return own | together | ({(TEXTS, "anisotropy"), (TEXTS, "uniformity")} if tasks else set())


def _sts(tasks: list[Sts], vectors_MD: Tensor, dims: Sequence[int], probe_dims: Sequence[int]) -> list[Values]:
    first_N, second_N, score_N = (torch.cat(tensors) for tensors in list(zip(*tasks, strict=True))[1:])
    ends, found = np.cumsum([len(task.score_N) for task in tasks])[:-1], []
    for cosine_N in pair_cosines(vectors_MD, first_N, second_N, dims):
        sets = zip(tasks, np.split(cosine_N, ends), strict=True)
        values = {(task.name, name): v for task, own_N in sets for name, v in pair_metrics(task, own_N).items()}
        mean = float(np.mean([values[task.name, "spearman"] for task in tasks]))
        pooled = correlations(cosine_N, score_N.cpu().numpy())["spearman"]
        found.append(values | {(STS, "mean"): mean, (STS, "pooled"): pooled})
    return found


def _task(task: Task, vectors_MD: Tensor, dims: Sequence[int], probe_dims: Sequence[int]) -> list[Values]:
    found = by_width(task, vectors_MD, dims, probe_dims)
    return [{(task.name, name): value for name, value in metrics.items()} for metrics in found]


def _texts(vectors_MD: Tensor, dims: Sequence[int], probe_dims: Sequence[int]) -> list[Values]:
    found = zip(anisotropy(vectors_MD, dims), uniformity(vectors_MD, dims), strict=True)
    return [{(TEXTS, "anisotropy"): mean, (TEXTS, "uniformity"): spread} for mean, spread in found]


def check(tasks: Sequence[Task]) -> None:
    """Refuse tasks on which a metric would mean nothing.

    Raises:
        CheckpointError: two tasks of one name, constant scores, no relevant document, a document judged twice for a
            query, pairs of one class, or a class that is only tested.
    """
    names = [task.name for task in tasks]
    for task in tasks:
        taken = names.count(task.name) > 1 or task.name in (STS, TEXTS)
        if problem := TAKEN if taken else _problem(task):
            raise CheckpointError(f"task {task.name}: {problem}")


def _problem(task: Task) -> str | None:
    if isinstance(task, Sts):
        return None if len(task.score_N.unique()) > 1 else "all scores are equal; there is nothing to rank"
    if isinstance(task, PairClasses):
        return None if task.label_N.unique().tolist() == [0, 1] else "labels must be 0 and 1, and both must occur"
    if isinstance(task, TextClasses):
        known, tested = set(task.train_label_N.tolist()), set(task.test_label_N.tolist())
        if len(known) < 2 or not tested:
            return f"{len(known)} classes to learn and {len(task.test_N)} texts to test; it takes 2 and 1 at least"
        return f"class {min(tested - known)} is tested and not learned" if tested - known else None
    if not (task.grade_J > 0).any():
        return "no query has a relevant document"
    twice = torch.stack([task.judged_J, task.document_J]).unique(dim=1).shape[1] < len(task.judged_J)
    return "a document is judged twice for one query" if twice else None
