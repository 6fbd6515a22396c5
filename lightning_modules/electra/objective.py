"""ELECTRA's objective (Clark et al., ICLR 2020, arXiv 2003.10555, section 2) as functions of tensors.

Shape suffixes: T tokens of a micro-batch (no padding), M slots drawn for the generator, V vocabulary.
All losses, softmaxes and draws are computed in float32 at least, whatever the precision of the networks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.core.precision import widened
from lightning_modules.core.terms import Term

LOGIT_BINS, LOGIT_RANGE = 2000, 10.0  # histogram of discriminator logits: one bin is .01 wide


def mask_slots(ids_T: Tensor, place_M: Tensor, masks_M: Tensor, mask_id: int) -> Tensor:
    """Return x_masked: the drawn places that `masks_M` (bool) chooses become [MASK], the rest stay as they are."""
    # a place that is drawn twice is masked if either draw masks it; writing back its own id must not undo that
    chosen_T = torch.zeros_like(ids_T, dtype=torch.int32).index_add(0, place_M, masks_M.int()) > 0
    return torch.where(chosen_T, mask_id, ids_T)


def generator_loss(logits_MV: Tensor, ids_M: Tensor) -> Term:
    """Return L_MLM: the sum of -log p_G(x_i | x_masked) over the drawn slots."""
    return Term(F.cross_entropy(widened(logits_MV), ids_M, reduction="sum"), len(ids_M))


def without_truth(logits_MV: Tensor, ids_M: Tensor) -> Tensor:
    """Forbid the correct token by lowering its logit by 1000 (`disallow_correct` of the released code)."""
    penalty = torch.full_like(ids_M, -1000.0, dtype=logits_MV.dtype)
    return logits_MV.scatter_add(1, ids_M[:, None], penalty[:, None])


def sample_uniform(vocab_size: int, uniform_M: Tensor, truth_M: Tensor | None = None) -> Tensor:
    """Draw every token alike; with `truth_M` every token but that one."""
    if truth_M is None:
        return (uniform_M.double() * vocab_size).long()
    drawn_M = (uniform_M.double() * (vocab_size - 1)).long()
    return drawn_M + (drawn_M >= truth_M)


@torch.no_grad()
def sample_inverse_cdf(logits_MV: Tensor, uniform_M: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw x_hat ~ p_G with one uniform number a slot: the first token whose cumulated probability exceeds it."""
    cdf_MV = torch.softmax(widened(logits_MV) / temperature, dim=-1).cumsum(dim=-1)
    reach_M1 = uniform_M[:, None] * cdf_MV[:, -1:]  # the last value is 1 up to rounding
    return torch.searchsorted(cdf_MV, reach_M1, right=True)[:, 0].clamp(max=logits_MV.shape[1] - 1)


@torch.no_grad()
def sample_gumbel(logits_MV: Tensor, uniform_MV: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw x_hat ~ p_G as the released code does: the largest of logits / T plus Gumbel noise.

    The released code takes a softmax of that sum first, which moves no maximum; the 1e-9 are its own.
    """
    gumbel_MV = -torch.log(-torch.log(uniform_MV + 1e-9) + 1e-9)
    return (widened(logits_MV) / temperature + gumbel_MV).argmax(dim=-1)


def corrupt(ids_T: Tensor, place_M: Tensor, sampled_M: Tensor) -> Tensor:
    """Return x_corrupt: the original tokens with the samples written into the drawn places.

    Where a place was drawn more than once, the released code writes the mean of its samples' ids, rounded down: an
    arbitrary token (google-research/electra#41). With one draw a place the mean is the sample.
    """
    sums_T = torch.zeros_like(ids_T).index_add(0, place_M, sampled_M)
    draws_T = torch.zeros_like(ids_T).index_add(0, place_M, torch.ones_like(place_M))
    return torch.where(draws_T > 0, sums_T.div(draws_T.clamp(min=1), rounding_mode="floor"), ids_T)


def discriminator_loss(logits_T: Tensor, replaced_T: Tensor) -> Term:
    """Return L_Disc: the sum over tokens of the binary cross-entropy of "this token was replaced"."""
    logits_T = widened(logits_T)
    loss = F.binary_cross_entropy_with_logits(logits_T, replaced_T.to(logits_T.dtype), reduction="sum")
    return Term(loss, len(logits_T))


def logit_histogram(logits_T: Tensor, replaced_T: Tensor) -> Tensor:
    """Count discriminator logits by label: int64 [2, LOGIT_BINS], row 1 the replaced tokens."""
    scaled = (widened(logits_T.detach()) / LOGIT_RANGE + 1) * (LOGIT_BINS / 2)
    bin_T = scaled.long().clamp(0, LOGIT_BINS - 1) + replaced_T.long() * LOGIT_BINS
    counts = torch.zeros(2 * LOGIT_BINS, dtype=torch.int64, device=logits_T.device)
    return counts.index_add(0, bin_T, torch.ones_like(bin_T)).view(2, LOGIT_BINS)


def detection_metrics(histogram: Tensor) -> dict[str, float]:
    """Return precision, recall (logit > 0), AUC and share of replaced tokens from a histogram of logits by label."""
    original, replaced = histogram.double()
    caught, alarms = replaced[LOGIT_BINS // 2 :].sum(), original[LOGIT_BINS // 2 :].sum()
    below = original.cumsum(0) - original / 2  # originals that score lower; a tie counts half
    pairs = original.sum() * replaced.sum()
    return {
        "precision": (caught / (caught + alarms).clamp(min=1)).item(),
        "recall": (caught / replaced.sum().clamp(min=1)).item(),
        "auc": ((replaced * below).sum() / pairs).item() if pairs > 0 else 0.5,
        "replaced_fraction": (replaced.sum() / histogram.sum().clamp(min=1)).item(),
    }
