"""Twenty steps of a tiny ELECTRA against stored values, and steps of the released form computed again by hand.

The stored values are those of float32 on one CPU thread, dropout on. Draws are integers and must be equal. Losses may
differ by 1e-4 of themselves, the distance from the first weights by as much, three projections of the last weights by
1e-3; other vector instructions were seen to move them by 1e-7, 3e-8 and 7e-6.

Only this command writes the file; a change of the numbers is named, with its reason, in the commit that makes it:

    python -m tests.golden.update
"""

import copy
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from datamodules.core.batches import TextBatch
from lightning_modules.core.keyed import keyed_uniform, mix, seed_generators
from lightning_modules.electra.modeling import ElectraPair
from tests.golden.electra_run import CUT, GOLDEN, LOSSES, Recorded, golden, kept_units, released
from tests.text import word_tokenizer
from tests.unit.test_step import Steps, train

MASK, VOCABULARY, LENGTH, FRACTION = 4, 100, 32, 0.25


@pytest.mark.parametrize("form", ["clean", "as_released"])
def test_twenty_steps_equal_the_stored_ones(form, tmp_path):
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if stored["kept_units"] != kept_units():
        pytest.skip(f"this torch drops other units for a seed than torch {stored['torch']} for x86-64 did")
    stored, found = stored[form], golden(form, str(tmp_path))
    assert found["places"] == stored["places"] and found["sampled"] == stored["sampled"]
    np.testing.assert_allclose(found["losses"], stored["losses"], rtol=1e-4)
    assert found["weights"]["moved"] == pytest.approx(stored["weights"]["moved"], rel=1e-4)
    assert found["weights"]["waves"] == pytest.approx(stored["weights"]["waves"], abs=1e-3)


# The released form by hand: numpy in float64. Networks give logits and pull gradients back, and do nothing else.


class Corrupted(NamedTuple):
    """One micro-batch, written out: S slots, T tokens."""

    place_S: np.ndarray
    sampled_S: np.ndarray
    corrupted_T: np.ndarray
    label_T: np.ndarray


def uniforms(stream: int, samples: list[int], ranks: list[int], tokens: int = 0) -> np.ndarray:
    """Return the uniform numbers of slots, [S], or of every token of a slot, [S, V]."""
    where = torch.tensor(samples), torch.tensor(ranks)
    if tokens:
        where = where[0][:, None], where[1][:, None], torch.arange(tokens)
    return keyed_uniform(mix(mix(0, 0), stream), *where).double().numpy()


def places(batch: TextBatch) -> tuple[list[int], list[int], list[int]]:
    """Draw with replacement: the places, their sequences in the global order, their numbers in the sequence."""
    found, samples, ranks, start = [], [], [], 0
    for length, sample in zip(batch["lens"], batch["sample_B"].tolist(), strict=True):
        slots = min(max(round(FRACTION * length), 1), int((FRACTION + 0.005) * LENGTH))  # halves go to the even number
        candidates = [t for t in range(start, start + length) if int(batch["ids_T"][t]) not in (0, 2, 3, MASK)]
        uniform = uniforms(0, [sample] * slots, list(range(slots)))
        found += sorted(candidates[int(u * len(candidates))] for u in uniform)
        samples, ranks, start = samples + [sample] * slots, ranks + list(range(slots)), start + length
    return found, samples, ranks


def corrupt(
    batch: TextBatch, logits_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> tuple[Corrupted, torch.Tensor]:
    """Mask, sample by Gumbel noise, write the samples in and label; also return the generator's logits."""
    place, sample, rank = places(batch)
    ids = batch["ids_T"].numpy()
    masked = ids.copy()
    for p, u in zip(place, uniforms(1, sample, rank), strict=True):
        masked[p] = MASK if u < 0.85 else masked[p]
    logits = logits_of(torch.from_numpy(masked), torch.tensor(place))
    noise = -np.log(-np.log(uniforms(2, sample, rank, VOCABULARY) + 1e-9) + 1e-9)
    sampled = (logits.detach().numpy() + noise).argmax(1)
    corrupted = ids.copy()
    for p in set(place):
        mine = [int(s) for s, q in zip(sampled, place, strict=True) if q == p]
        corrupted[p] = sum(mine) // len(mine)
    return Corrupted(np.array(place), sampled, corrupted, corrupted != ids), logits


def losses_by_hand(model: ElectraPair, batches: list[TextBatch]) -> tuple[list[Corrupted], list[float]]:
    """Run one step's forward and backward passes; the losses' own gradients are written out, not derived by torch."""
    found, sums = [], [0.0, 0.0]
    num_slots, num_tokens = sum(len(places(batch)[0]) for batch in batches), sum(sum(b["lens"]) for b in batches)
    for batch in batches:
        seed_generators(0, 0, batch["position"])  # dropout
        seen, logits = corrupt(batch, lambda ids, place, batch=batch: model.generator(ids, batch, place))
        scores = model.discriminator(torch.from_numpy(seen.corrupted_T), batch)
        truth = np.eye(VOCABULARY)[batch["ids_T"].numpy()[seen.place_S]]
        shares = np.exp(logits.detach().numpy())
        shares /= shares.sum(1, keepdims=True)
        fake = 1 / (1 + np.exp(-scores.detach().numpy()))
        sums[0] += -np.log((shares * truth).sum(1)).sum()
        sums[1] += -np.log(np.where(seen.label_T, fake, 1 - fake)).sum()
        pulls = (shares - truth) / num_slots, 50.0 * (fake - seen.label_T) / num_tokens
        torch.autograd.backward([logits, scores], [torch.from_numpy(pull) for pull in pulls])
        found.append(seen)
    prediction, detection = sums[0] / num_slots, sums[1] / num_tokens
    return found, [prediction + 50.0 * detection, prediction, detection]


class Adam:
    """Adam without bias correction over the weights of a model; decay stands beside the update."""

    def __init__(self, model: ElectraPair) -> None:
        self.parameters = dict(model.named_parameters())
        self.m = {name: np.zeros(p.shape) for name, p in self.parameters.items()}
        self.v = {name: np.zeros(p.shape) for name, p in self.parameters.items()}

    def update(self, rate: float) -> float:
        """Clip to a norm of 1 over both networks, update, and return the norm before."""
        norm = np.sqrt(sum((p.grad.numpy() ** 2).sum() for p in self.parameters.values()))
        for name, p in self.parameters.items():
            w, g = p.detach().numpy().copy(), p.grad.numpy() / max(norm, 1.0)
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
            decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.01
            w -= rate * (self.m[name] / (np.sqrt(self.v[name]) + 1e-6) + decay * w)
            p.data, p.grad = torch.from_numpy(w), None
        return norm


def test_released_steps_by_hand(tmp_path):
    """Three steps, dropout on, two micro-batches each: rates 0, 1/2 * 2/3 and 1/3 of the peak."""
    ours = Recorded(**released(), warmup_steps=2)
    torch.manual_seed(0)
    ours.build(word_tokenizer(), LENGTH)
    model = copy.deepcopy(ours.model).double().train()
    train(ours, CUT, steps=3, folder=str(tmp_path), precision="64-true")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    adam, seen, means = Adam(model), [], 0
    for step, batches in enumerate(Steps(CUT, 3).batches):
        found, losses = losses_by_hand(model, batches)
        rate = 2e-3 * (1 - step / 3) * min(1, step / 2)
        norm = adam.update(rate)
        assert [lines[step][name] for name in LOSSES] == pytest.approx(losses, rel=1e-9)
        assert lines[step]["opt/lr"] == pytest.approx(rate) and lines[step]["opt/grad_norm"] == pytest.approx(norm)
        assert norm > 1.5, "a gradient that the clipping reaches"
        seen += found
    for mine, theirs in zip(seen, ours.found, strict=True):
        assert mine.place_S.tolist() == theirs.slots.place_M.tolist()
        assert mine.sampled_S.tolist() == theirs.sampled_M.tolist()
        assert mine.corrupted_T.tolist() == theirs.ids_T.tolist()
        assert mine.label_T.tolist() == theirs.replaced_T.tolist()
        means += (mine.corrupted_T[mine.place_S] != mine.sampled_S).sum()
    assert means > 1, "places that were drawn twice and got two tokens"
    for name, p in ours.model.named_parameters():
        np.testing.assert_allclose(p.detach(), adam.parameters[name].detach(), rtol=0, atol=1e-8, err_msg=name)
