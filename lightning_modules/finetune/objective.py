"""Losses and metrics of fine-tuning as functions of tensors.

Shape suffixes: B examples of a micro-batch, N examples of an evaluation, C outputs.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.core.precision import widened
from lightning_modules.core.terms import Term


class Answers(NamedTuple):
    """What was predicted for some examples, on the host: their places in the data, outputs and labels."""

    sample_N: NDArray[np.int64]
    output_NC: NDArray[np.float64]
    label_N: NDArray


def classification_loss(logits_BC: Tensor, label_B: Tensor) -> Term:
    """Return the sum over examples of -log softmax(logits)[label]."""
    return Term(F.cross_entropy(widened(logits_BC), label_B, reduction="sum"), len(label_B))


def regression_loss(output_BC: Tensor, label_B: Tensor) -> Term:
    """Return the sum over examples of (output - label)^2, with one output an example."""
    return Term(F.mse_loss(widened(output_BC[:, 0]), label_B, reduction="sum"), len(label_B))


def answers_of(output_BC: Tensor, sample_B: Tensor, label_B: Tensor) -> Answers:
    """Bring the outputs of a micro-batch to the host."""
    output = widened(output_BC.detach()).double().cpu().numpy()
    return Answers(sample_B.cpu().numpy(), output, label_B.cpu().numpy())


def gathered(parts: list[Answers]) -> Answers | None:
    """Join the answers of all micro-batches of all ranks in the order of the data; None if there are none.

    An evaluation shows every example once over all ranks, so joining them is exact.
    """
    if dist.is_available() and dist.is_initialized():
        everyone: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, parts)
        parts = [part for rank in everyone for part in rank]
    if not parts:
        return None
    joined = Answers(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    order = np.argsort(joined.sample_N, kind="stable")
    return Answers(*(array[order] for array in joined))


def classification_metrics(answers: Answers) -> dict[str, float]:
    """Return accuracy, Matthews correlation and F1: of the second of two classes, else the mean over classes."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    chosen_N, num_classes = answers.output_NC.argmax(-1), answers.output_NC.shape[1]
    average = "binary" if num_classes == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(answers.label_N, chosen_N)),
        "mcc": float(matthews_corrcoef(answers.label_N, chosen_N)),
        "f1": float(f1_score(answers.label_N, chosen_N, average=average, zero_division=0)),
    }


def regression_metrics(answers: Answers) -> dict[str, float]:
    """Return Spearman's and Pearson's correlation; 0 where one side is constant."""
    from scipy.stats import pearsonr, spearmanr

    value_N = answers.output_NC[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        found = {"spearman": spearmanr(value_N, answers.label_N), "pearson": pearsonr(value_N, answers.label_N)}
    return {name: float(np.nan_to_num(result.statistic)) for name, result in found.items()}


def num_right(logits_BC: Tensor, label_B: Tensor) -> Tensor:
    """Count the examples whose largest output is that of their class."""
    return (logits_BC.argmax(-1) == label_B).sum()


def probabilities(logits_BC: Tensor) -> Tensor:
    """Return the probability of each class, in float32 at least."""
    return torch.softmax(widened(logits_BC), dim=-1)
