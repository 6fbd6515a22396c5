"""What a step draws, and settings that cannot be."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chi2_contingency

from lightning_modules.matryoshka2d.modes import MODES, judged_widths, settings, trained
from lightning_modules.matryoshka2d.objective import Cell, Draw, draw, plan
from tests.stacks import D, N


def is_uniform(counts: list[int], cells: int) -> bool:
    expected = sum(counts) / cells
    return sum((count - expected) ** 2 / expected for count in counts) < chi2.ppf(0.999, cells - 1)


@pytest.mark.parametrize(
    ("mode", "layers", "widths"),
    [
        ("paper", range(1, 6), (8, 16, 32)),
        ("improved", range(1, 6), (8, 16, 32)),
        ("sentence_transformers_old", range(1, 6), (8, 16, 32, 64)),
        ("sentence_transformers", range(0, 6), (8, 16, 32, 64)),
    ],
)
def test_layers_and_widths_are_uniform_and_independent(mode, layers, widths):
    draws = [draw(settings(mode), 6, 64, 7, step) for step in range(6000)]
    layer, width = (Counter(values) for values in zip(*[(d.students[0][0], d.widths[0]) for d in draws], strict=True))
    assert sorted(layer) == list(layers) and sorted(width) == list(widths)
    assert is_uniform(list(layer.values()), len(layer)) and is_uniform(list(width.values()), len(width))
    together = Counter((d.students[0][0], d.widths[0]) for d in draws)
    assert chi2_contingency([[together[n, d] for d in widths] for n in layers]).pvalue > 1e-3
    own = [d.students[0][1][0] for d in draws]
    if MODES[mode].shared_widths:
        assert own == [d.widths[0] for d in draws]
    else:
        both = Counter(zip([d.widths[0] for d in draws], own, strict=True))
        assert chi2_contingency([[both[a, b] for b in widths] for a in widths]).pvalue > 1e-3
        assert is_uniform(list(Counter(own).values()), len(widths))


def test_several_layers_and_widths_are_drawn_without_replacement():
    chosen = settings("sentence_transformers", layers_per_step=2, widths_per_step=3)
    draws = [draw(chosen, 5, 64, 7, step) for step in range(5000)]
    pairs = Counter(tuple(layer for layer, _ in d.students) for d in draws)
    assert sorted(pairs) == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    assert is_uniform(list(pairs.values()), 10)
    assert all(len(set(d.widths)) == 3 and len(set(d.students[1][1])) == 3 for d in draws)
    assert is_uniform(list(Counter(d.widths for d in draws).values()), 4)


def test_minus_one_and_too_many_mean_all():
    for count in (-1, 99):
        drawn = draw(settings("paper", layers_per_step=count, widths_per_step=count), 4, 32, 0, 0)
        assert [layer for layer, _ in drawn.students] == [1, 2, 3] and drawn.widths == (16, 8)


def test_draws_are_a_function_of_seed_and_step_alone():
    def several(seed: int) -> list[Draw]:
        return [draw(settings("sentence_transformers"), 12, 768, seed, step) for step in range(40)]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = several(3)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert several(3) == first != several(4)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])
    # a run that goes on under a newer Python or torch, or on another rank, must draw these
    frozen = [(768, 3, (256,)), (32, 2, (128,)), (16, 5, (128,)), (8, 0, (512,))]
    assert [(d.widths[0], *d.students[0]) for d in first[:4]] == frozen


def test_starbucks_draws_whole_pairs_whatever_their_order():
    pairs = [(4, 8), (1, 2), (3, 6), (N, D)]
    seen = Counter()
    for step in range(900):
        drawn = draw(settings("starbucks", pairs=pairs, layers_per_step=1), N, D, 0, step)
        seen.update((layer, widths[0]) for layer, widths in drawn.students)
        assert drawn.widths == ()
    assert set(seen) == set(pairs[:3]) and is_uniform(list(seen.values()), 3)
    assert draw(settings("starbucks", pairs=[(1, 2), (N, 4)]), N, D, 0, 0).widths == (4,)


def test_the_names_of_terms_do_not_depend_on_the_draw():
    for mode in MODES:
        chosen = settings(mode)
        found = {
            tuple(sorted({cell.name for cell in plan(chosen, draw(chosen, N, D, 0, step), N, D)})) for step in range(30)
        }
        assert len(found) == 1


# Settings


def test_settings_are_frozen_and_overridden_by_what_is_given():
    chosen = settings("paper", weighting=None, kl_temperature=0.3, widths=[32, 8])
    assert chosen == dataclasses.replace(MODES["paper"], kl_temperature=0.3, widths=(32, 8))
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.weighting = "log"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "2d"}, "mode = 2d: must be one of paper, improved"),
        ({"depth": 1}, "depth: is no option"),
        ({"weighting": "sqrt"}, "weighting = sqrt: must be one of uniform, log, linear"),
        ({"kl_power": 3}, "kl_power = 3: must be one of 0, 1, 2"),
        ({"layers_per_step": -2}, "layers_per_step = -2"),
        ({"first_layer": 2}, "first_layer must be 0 or 1"),
        ({"kl_temperature": -1.0}, "kl_temperature must not be below 0"),
        ({"widths": [8, 8]}, "one stands there twice"),
        ({"widths": [8, 16], "width_weights": [1.0]}, "as many entries"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        settings(options.pop("mode", "paper"), **options)


@pytest.mark.parametrize(
    ("mode", "options", "layers", "message"),
    [
        ("paper", {"widths": [32]}, N, r"widths = \[32\]: 32 is not from 1 to the encoder's width, 16"),
        ("paper", {"widths": [0, 8]}, N, r"widths = \[0, 8\]"),
        ("paper", {}, 1, "an encoder of 1 layers has no layer below the last"),
        ("espresso", {"last_layer": -3}, 3, "has no layer below the last"),
        ("starbucks", {"pairs": [(9, 4)]}, N, r"pairs: \[9, 4\] is outside of 5 layers of width 16"),
        ("starbucks", {"pairs": [(2, 4), (2, 8)]}, N, "a layer stands in two"),
    ],
)
def test_draws_that_an_encoder_cannot_give_are_refused(mode, options, layers, message):
    with pytest.raises(ValueError, match=message):
        draw(settings(mode, **options), layers, D, 0, 0)


def test_cells_are_plain_numbers_on_the_host():
    cells = plan(settings("paper"), draw(settings("paper"), N, D, 0, 0), N, D)
    assert all(isinstance(cell, Cell) and type(cell.layer) is type(cell.width) is int for cell in cells)


def test_a_grid_has_the_widths_that_are_trained_and_those_of_other_modes():
    usual = (8, 16, 32, 64, 128, 256, 384)
    for mode in ("plain", "paper", "matryoshka_1d", "starbucks", "espresso", "sentence_transformers"):
        assert judged_widths(settings(mode), 6, 384) == usual
        assert set().union(*trained(settings(mode), 6, 384).values()) <= {*usual}
    assert judged_widths(settings("paper", widths=[12, 48]), 2, 64) == (8, 12, 16, 32, 48, 64)
    assert judged_widths(settings("plain"), 2, 4) == (4,)
