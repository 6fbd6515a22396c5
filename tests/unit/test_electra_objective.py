import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from lightning_modules.core.keyed import keyed_uniform
from lightning_modules.electra import objective


def chi_square(sampled: torch.Tensor, probabilities: torch.Tensor) -> float:
    counts = torch.bincount(sampled, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(sampled)
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("sampler", ["inverse_cdf", "gumbel"])
def test_a_million_draws_follow_the_softmax(sampler, temperature):
    torch.manual_seed(0)
    logits = torch.randn(50) * 1.5
    rows = logits.expand(100_000, -1)
    drawn = []
    for part in range(10):
        if sampler == "gumbel":
            uniform = keyed_uniform(part, torch.arange(100_000)[:, None], torch.arange(50))
            drawn.append(objective.sample_gumbel(rows, uniform, temperature))
        else:
            uniform = keyed_uniform(part, torch.arange(100_000))
            drawn.append(objective.sample_inverse_cdf(rows, uniform, temperature))
    assert chi_square(torch.cat(drawn), (logits / temperature).softmax(0)) < chi2.ppf(0.999, 49)


def test_inverse_cdf_takes_the_first_token_above_the_uniform():
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log().expand(5, -1)
    uniform = torch.tensor([1e-7, 0.2499, 0.2501, 0.7499, 1 - 1e-7])
    assert objective.sample_inverse_cdf(logits, uniform).tolist() == [0, 0, 1, 1, 2]


def test_disallow_correct_never_samples_the_truth():
    logits, truth = torch.zeros(2000, 8), torch.arange(2000) % 8
    logits[torch.arange(2000), truth] = 5.0
    forbidden = objective.without_truth(logits, truth)
    sampled = objective.sample_inverse_cdf(forbidden, keyed_uniform(1, torch.arange(2000)))
    assert not (sampled == truth).any()
    assert chi_square((sampled - truth) % 8 - 1, torch.full((7,), 1 / 7)) < chi2.ppf(0.999, 6)


def test_uniform_draws_skip_the_truth_only_when_told():
    truth, uniform = torch.arange(20_000) % 8, keyed_uniform(1, torch.arange(20_000))
    free = objective.sample_uniform(8, uniform)
    assert chi_square(free, torch.full((8,), 1 / 8)) < chi2.ppf(0.999, 7) and (free == truth).any()
    others = objective.sample_uniform(8, uniform, truth)
    assert not (others == truth).any() and others.min() == 0 and others.max() == 7
    assert chi_square((others - truth) % 8 - 1, torch.full((7,), 1 / 7)) < chi2.ppf(0.999, 6)


def test_a_correct_sample_counts_as_original():
    ids = torch.tensor([2, 10, 11, 12, 3])
    corrupted = objective.corrupt(ids, torch.tensor([1, 3]), torch.tensor([10, 99]))
    assert corrupted.tolist() == [2, 10, 11, 99, 3]
    assert (corrupted != ids).tolist() == [False, False, False, True, False]


def test_two_samples_at_one_place_become_the_floor_of_their_mean():
    ids = torch.tensor([2, 10, 11, 12, 3])
    corrupted = objective.corrupt(ids, torch.tensor([1, 1, 2]), torch.tensor([20, 25, 7]))
    assert corrupted.tolist() == [2, 22, 7, 12, 3]


def test_masking_keeps_what_was_not_chosen_and_masks_a_place_if_either_draw_does():
    ids = torch.tensor([2, 10, 11, 12, 3])
    place, masks = torch.tensor([1, 2, 2, 3]), torch.tensor([True, False, True, False])
    assert objective.mask_slots(ids, place, masks, 4).tolist() == [2, 4, 4, 12, 3]


def test_losses_are_sums_in_float32():
    logits, ids = torch.randn(4, 9, dtype=torch.bfloat16), torch.tensor([1, 2, 3, 4])
    term = objective.generator_loss(logits, ids)
    assert term.sum.dtype == torch.float32 and term.count == 4
    torch.testing.assert_close(term.sum, -logits.float().log_softmax(-1)[torch.arange(4), ids].sum())
    scores, labels = torch.randn(6), torch.tensor([0, 1, 0, 0, 1, 0]).bool()
    term = objective.discriminator_loss(scores, labels)
    by_hand = -(torch.where(labels, scores.sigmoid(), 1 - scores.sigmoid())).log().sum()
    torch.testing.assert_close(term.sum, by_hand)
    assert term.count == 6


def test_detection_metrics_equal_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.random(20_000) < 0.1
    logits = rng.normal(-1.5, 1.0, 20_000) + 2.0 * labels
    histogram = objective.logit_histogram(torch.tensor(logits), torch.tensor(labels))
    found = objective.detection_metrics(histogram)
    assert histogram.sum() == 20_000
    assert found["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-4)
    assert found["precision"] == pytest.approx(precision_score(labels, logits > 0), abs=1e-12)
    assert found["recall"] == pytest.approx(recall_score(labels, logits > 0), abs=1e-12)
    assert found["replaced_fraction"] == pytest.approx(labels.mean())


def test_detection_metrics_without_any_replaced_token():
    histogram = objective.logit_histogram(torch.randn(5), torch.zeros(5, dtype=torch.bool))
    assert objective.detection_metrics(histogram) == {
        "precision": 0.0,
        "recall": 0.0,
        "auc": 0.5,
        "replaced_fraction": 0.0,
    }
