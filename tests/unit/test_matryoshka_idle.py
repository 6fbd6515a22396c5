"""Changes of a mode that would do nothing are refused, and no others."""

import re
from dataclasses import replace

import pytest

from lightning_modules.matryoshka2d.modes import CHOICES, MODES, Settings, settings
from lightning_modules.matryoshka2d.objective import draw, plan

NO_KL, NO_STUDENTS = "there is no divergence (kl_weight is 0)", "no layer below the last is trained"


@pytest.mark.parametrize(
    ("mode", "options", "problem"),
    [
        *(
            ("espresso", {name: value}, f"{name}: has no effect, as {NO_KL}")
            for name, value in (
                *(("detach_teacher", True), ("kl_temperature", 0.3), ("kl_power", 1)),
                *(("kl_weighting", "growing"), ("kl_width", "drawn")),
            )
        ),
        (
            "paper",
            {"kl_temperature": 0, "detach_teacher": True},
            "detach_teacher: has no effect, as there is no diverg",
        ),
        (
            "paper",
            {"kl_temperature": 0, "kl_weight": 2},
            "kl_weight: has no effect, as there is no divergence (kl_temp",
        ),
        ("paper", {"kl_power": 1}, "kl_power: has no effect, as kl_temperature is 1"),
        ("starbucks", {"first_layer": 0}, "first_layer: has no effect, as pairs name the layers"),
        ("matryoshka_1d", {"shared_widths": False}, f"shared_widths: has no effect, as {NO_STUDENTS}"),
        ("plain", {"full_width": "last"}, "full_width: has no effect, as last and all differ in the layers below"),
        (
            "paper",
            {"widths": [8], "shared_widths": False},
            "shared_widths: has no effect, as each layer has all widths",
        ),
        ("espresso", {"widths_per_step": 1}, "widths_per_step: has no effect, as all widths are taken anyway"),
        ("paper", {"average": "none"}, "average: has no effect, as a step trains one layer below the last"),
        ("espresso", {"average": "base"}, "average: has no effect, as base and all differ in the divergence"),
        ("paper", {"student_weight": 0, "weighting": "log"}, "weighting: has no effect, as student_weight is 0"),
        (
            "paper",
            {"full_width": "last", "widths_per_step": 0, "weighting": "log"},
            "weighting: has no effect, as no layer below the last has a loss of pairs",
        ),
    ],
)
def test_settings_without_effect(mode, options, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        settings(mode, **options)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("espresso", {"kl_weight": 0.3, "kl_temperature": 0.3, "detach_teacher": True, "average": "base"}),
        ("starbucks", {"first_layer": 0, "weighting": "log"}),
        ("paper", {"kl_temperature": 0.3, "kl_power": 1}),
        ("paper", {"kl_weight": 0}),
        ("paper", {"layers_per_step": 2, "average": "base"}),
        ("espresso", {"widths": [8, 16], "widths_per_step": 1, "shared_widths": False}),
        ("plain", {"layers_per_step": 1, "weighting": "log", "kl_weight": 1.0, "full_width": "all"}),
    ],
)
def test_options_that_another_one_makes_act(mode, options):
    assert settings(mode, **options)


CHANGES = {
    **CHOICES,
    **dict.fromkeys(("first_layer", "last_weight", "student_weight", "kl_weight", "kl_temperature"), (0, 1)),
    **dict.fromkeys(("shared_widths", "detach_teacher"), (False, True)),
    **{"last_layer": (-1, -2), "layers_per_step": (0, 1, -1), "widths_per_step": (0, 1, -1), "widths": ([8], [8, 32])},
    **{"width_weights": ([1, 2],), "pairs": ([[1, 8], [3, 64]],), "alignment_temperature": (1, 2)},
}


def terms(chosen: Settings) -> list[list[tuple]]:
    """Return all that is left of the settings in the terms of some steps."""
    found = []
    for step in range(12):
        cells = plan(chosen, draw(chosen, 6, 64, 0, step), 6, 64)
        extra = {"kl": (chosen.kl_temperature, chosen.detach_teacher)}
        extra["alignment"] = (chosen.alignment, chosen.alignment_temperature)
        found.append([(cell, extra.get(cell.name), cell.layer < 6 and chosen.encoder_passes) for cell in cells])
    return found


@pytest.mark.parametrize("mode", MODES)
def test_an_option_is_refused_if_and_only_if_the_terms_stay_the_same(mode):
    for name, value in ((name, value) for name, values in CHANGES.items() for value in values):
        beside = {"widths": [8, 32]} if name == "width_weights" else {}
        try:
            changed = terms(settings(mode, **beside, **{name: value}))
        except ValueError as error:
            if "has no effect" in str(error):
                assert terms(replace(MODES[mode], **{name: value})) == terms(MODES[mode]), (name, value)
            continue
        before = settings(mode, **beside)
        assert changed != terms(before) or getattr(before, name) == value, (name, value)
