"""Which changes of a mode would do nothing: for each option, the conditions under which it acts.

Only the settings are looked at: what depends on the encoder (no dropout, few layers, how wide it is) or on the data (no
duplicates) is not known here. What the loss and a fixed teacher make idle is in rules.py.
"""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lightning_modules.matryoshka2d.modes import Settings


class Condition(NamedTuple):
    """A test of the changed settings and of those of the mode; `lacking` is told where it fails."""

    holds: Callable[["Settings", "Settings"], object]
    lacking: str


def _has_cuts(found: "Settings") -> bool:
    return bool(found.widths_per_step or found.fixed_pairs)


def _takes_all(found: "Settings", count: int) -> bool:
    """Whether a step has all widths, so that none is drawn; how many the default has is known of Espresso's alone."""
    offered = (1 if found.alignment != "none" else math.inf) if found.widths is None else len(found.widths)
    return count == -1 or count >= offered


STUDENTS = Condition(lambda s, _: s.layers_per_step, "no layer below the last is trained (layers_per_step is 0)")
CUTS = Condition(lambda s, _: _has_cuts(s), "no cut width is trained (widths_per_step is 0)")
COMPARED = Condition(
    lambda s, _: _has_cuts(s) or s.full_width == "all",
    "no layer below the last has a loss of pairs (full_width is not all, widths_per_step is 0)",
)
WEIGHED = Condition(lambda s, _: s.student_weight, "student_weight is 0")
FOLLOWS = Condition(lambda s, _: s.kl_weight, "there is no divergence (kl_weight is 0)")
WARM = Condition(lambda s, _: s.kl_temperature, "there is no divergence (kl_temperature is 0)")
DIVERGENCE = (STUDENTS, FOLLOWS, WARM)

NEEDS: dict[str, tuple[Condition, ...]] = {  # options that are not here always act
    "first_layer": (
        STUDENTS,
        Condition(
            lambda s, _: not s.fixed_pairs or s.weighting != "uniform" or s.kl_weighting in ("log", "linear"),
            "pairs name the layers, and no weight is by their place",
        ),
    ),
    "last_layer": (STUDENTS,),
    "widths": (CUTS,),
    "width_weights": (CUTS,),
    "widths_per_step": (
        Condition(
            lambda s, mode: not (_takes_all(s, s.widths_per_step) and _takes_all(s, mode.widths_per_step)),
            "all widths are taken anyway",
        ),
    ),
    "shared_widths": (
        *(STUDENTS, CUTS),
        Condition(lambda s, _: not _takes_all(s, s.widths_per_step), "each layer has all widths"),
    ),
    "full_width": (
        Condition(
            lambda s, mode: s.layers_per_step or "none" in (s.full_width, mode.full_width),
            "last and all differ in the layers below the last, and none is trained (layers_per_step is 0)",
        ),
    ),
    "student_weight": (STUDENTS, COMPARED),
    "weighting": (STUDENTS, COMPARED, WEIGHED),
    "average": (
        STUDENTS,
        Condition(lambda s, _: s.layers_per_step != 1, "a step trains one layer below the last (layers_per_step is 1)"),
        Condition(
            lambda s, mode: "none" in (s.average, mode.average) or (s.kl_weight and s.kl_temperature),
            "base and all differ in the divergence, and there is none",
        ),
    ),
    "kl_weight": (STUDENTS, WARM),
    "kl_temperature": (STUDENTS, FOLLOWS),
    "kl_power": (*DIVERGENCE, Condition(lambda s, _: s.kl_temperature != 1, "kl_temperature is 1")),
    "kl_weighting": DIVERGENCE,
    "kl_width": (*DIVERGENCE, CUTS),
    "detach_teacher": DIVERGENCE,
    "alignment": (CUTS,),
    "alignment_temperature": (CUTS, Condition(lambda s, _: s.alignment != "none", "alignment is none")),
    "encoder_passes": (STUDENTS,),
}


def refuse_idle(found: "Settings", mode: "Settings", wanted: Iterable[str]) -> None:
    """Refuse changes of a mode that do nothing, as a comparison that compares nothing.

    Raises:
        ValueError: the option, and what it lacks.
    """
    for name in (name for name in wanted if getattr(found, name) != getattr(mode, name)):
        for condition in NEEDS.get(name, ()):
            if not condition.holds(found, mode):
                raise ValueError(f"{name}: has no effect, as {condition.lacking}; take it out")
