"""What the published forms of 2D Matryoshka fix, as tables of settings: the README says where each number is from.

Layers are counted from 1, N is the last; 0 is the output of the embeddings. Nothing of torch is imported.
"""

import math
from dataclasses import dataclass, fields, replace

from lightning_modules.matryoshka2d.idle import refuse_idle

ALL = -1
LARGEST_SCALE = 100.0  # of a learnt scale, as in CLIP (Radford et al. 2021, section 2.5)


@dataclass(frozen=True)
class Settings:
    """How a step's losses are put together; `objective.plan` is the one reader of the weights.

    Students are the layers below the last that a step trains; the last layer N is always trained.
    """

    # which students
    first_layer: int = 1  # shallowest layer that can be a student
    last_layer: int = -1  # deepest one, counted from N: -1 is N - 1
    layers_per_step: int = 1  # how many are drawn without replacement; -1 all, 0 none
    fixed_pairs: bool = False  # (layer, width) pairs instead of layers and widths of their own
    pairs: tuple[tuple[int, int], ...] | None = None  # null: those of Starbucks, scaled to the encoder
    # which widths
    widths: tuple[int, ...] | None = None  # what is drawn from; null: powers of two from 8, see `default_widths`
    width_weights: tuple[float, ...] | None = None  # one for each of `widths`; null: all 1
    widths_per_step: int = 1  # how many are drawn without replacement; -1 all, 0 none
    shared_widths: bool = True  # one draw for all layers, or one for each
    full_width: str = "all"  # where a term of full width stands beside those of drawn widths: none, last or all layers
    normalise: bool = False  # scale vectors to length one, after the cut, before the base loss; cosines do not change
    # weights of the base losses
    last_weight: float = 1.0
    student_weight: float = 1.0
    weighting: str = "uniform"  # by depth, see `depth_weight`
    average: str = "all"  # what is divided by the number of students: none, base (the base losses) or all terms
    # divergence of the students from the last layer, or from a teacher
    kl_weight: float = 1.0
    kl_temperature: float = 1.0  # 0: no divergence
    kl_power: int = 2  # the divergence is multiplied by temperature ** power
    kl_weighting: str = "uniform"
    kl_width: str = "full"  # or drawn: of the student's own widths
    detach_teacher: bool = False
    # alignment of the first coordinates with a compression of the whole vector (Espresso)
    alignment: str = "none"  # none, exact or random
    alignment_temperature: float = 1.0
    # read by the module
    encoder_passes: int = 1  # 2: students come from a second pass with dropout of its own
    drop_duplicates: bool = False  # examples with a text that the global batch had before


_SENTENCE_TRANSFORMERS = Settings(
    first_layer=0,
    shared_widths=False,
    full_width="none",
    normalise=True,
    average="base",
    kl_temperature=0.3,
    kl_power=1,
    detach_teacher=True,
)
_WITHOUT_STUDENTS = Settings(layers_per_step=0, kl_weight=0.0)

MODES: dict[str, Settings] = {
    "paper": Settings(),
    "improved": Settings(weighting="linear", kl_power=1, kl_weighting="growing"),
    "espresso": Settings(
        layers_per_step=ALL, widths_per_step=ALL, full_width="last", weighting="log", kl_weight=0.0, alignment="exact"
    ),
    "starbucks": Settings(
        layers_per_step=ALL,
        fixed_pairs=True,
        full_width="last",
        normalise=True,
        average="none",
        kl_weight=0.3,
        kl_width="drawn",
    ),
    "sentence_transformers_old": replace(
        _SENTENCE_TRANSFORMERS, first_layer=1, weighting="linear", detach_teacher=False
    ),
    "sentence_transformers": _SENTENCE_TRANSFORMERS,
    "matryoshka_1d": replace(_WITHOUT_STUDENTS, widths_per_step=ALL, full_width="none", normalise=True),
    "plain": replace(_WITHOUT_STUDENTS, widths_per_step=0),
}

AS_RELEASED: dict[str, dict[str, object]] = {  # what the authors' code does besides, when it is run
    "paper": {"encoder_passes": 2},
    "improved": {"drop_duplicates": True},
    "espresso": {"first_layer": 0, "last_layer": -2, "alignment": "random"},
}
ANGLE_AS_RELEASED: dict[str, dict[str, object]] = {  # options of the AnglE loss that belong to them
    "paper": {"angle_tau": 1.0, "integer_labels": True},
    "improved": {"angle_tau": 20.0, "integer_labels": True},
    "espresso": {"ibn_w": 1.0, "cln_w": 1.0, "angle_w": 0.02, "angle_tau": 20.0, "integer_labels": True},
}

PAIRED, UNPAIRED = ("pairs",), ("widths", "width_weights", "widths_per_step", "shared_widths", "last_layer")
WHERE = {True: "trains pairs of a layer and a width", False: "draws layers and widths apart"}

CHOICES: dict[str, tuple] = {
    "full_width": ("none", "last", "all"),
    "weighting": ("uniform", "log", "linear"),
    "kl_weighting": ("uniform", "log", "linear", "growing"),
    "average": ("none", "base", "all"),
    "kl_width": ("full", "drawn"),
    "kl_power": (0, 1, 2),
    "alignment": ("none", "exact", "random"),
    "encoder_passes": (1, 2),
}


def settings(mode: str, as_released: bool = False, **overrides: object) -> Settings:
    """Return the settings of a mode; overrides that are not None replace single ones.

    Raises:
        ValueError: an unknown mode, option or choice, or a number that cannot be.
    """
    if mode not in MODES:
        raise ValueError(f"mode = {mode}: must be one of {', '.join(MODES)}")
    wanted = {name: value for name, value in overrides.items() if value is not None}
    chosen = (AS_RELEASED.get(mode, {}) if as_released else {}) | wanted
    known = [field.name for field in fields(Settings)]
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"{unknown[0]}: is no option of the objective")
    if without := [name for name in wanted if name in (UNPAIRED if MODES[mode].fixed_pairs else PAIRED)]:
        raise ValueError(f"{without[0]}: has no meaning in mode {mode}, which {WHERE[MODES[mode].fixed_pairs]}")
    found = replace(MODES[mode], **{k: _frozen(v) for k, v in chosen.items()})
    _check(found)
    refuse_idle(found, MODES[mode], wanted)
    return found


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _check(found: Settings) -> None:
    for name, choices in CHOICES.items():
        if getattr(found, name) not in choices:
            raise ValueError(f"{name} = {getattr(found, name)}: must be one of {', '.join(map(str, choices))}")
    for name in ("layers_per_step", "widths_per_step"):
        if getattr(found, name) < -1:
            raise ValueError(f"{name} = {getattr(found, name)}: must be -1 (all), 0 or more")
    if found.first_layer not in (0, 1) or found.last_layer > -1:
        raise ValueError("first_layer must be 0 or 1, and last_layer below 0: students lie below the last layer")
    for name in ("last_weight", "student_weight", "kl_weight"):
        if not 0 <= getattr(found, name) < math.inf:
            raise ValueError(f"{name} = {getattr(found, name)}: must be finite and not negative")
    if found.full_width == "none" and not found.widths_per_step and not found.fixed_pairs:
        raise ValueError("full_width none and widths_per_step 0 leave no loss of pairs")
    if found.kl_temperature < 0 or found.alignment_temperature <= 0:
        raise ValueError("kl_temperature must not be below 0, and alignment_temperature must be above 0")
    if found.widths is not None and len(set(found.widths)) < len(found.widths):
        raise ValueError(f"widths = {list(found.widths)}: one stands there twice")
    if not all(0 <= weight < math.inf for weight in found.width_weights or ()):
        raise ValueError(f"width_weights = {list(found.width_weights)}: must be finite and not negative")
    follows = found.layers_per_step and found.kl_weight and found.kl_temperature
    of_widths = found.full_width != "none" or found.width_weights is None or any(found.width_weights)
    if not follows and not (of_widths and (found.last_weight or (found.student_weight and found.layers_per_step))):
        raise ValueError("every term has weight 0, so nothing would be trained")
    if found.pairs is not None and (not found.pairs or any(len(pair) != 2 for pair in found.pairs)):
        raise ValueError("pairs: each must be a layer and a width, as [[2, 32], [4, 64]]")
    if found.width_weights is not None and len(found.width_weights) != len(found.widths or ()):
        raise ValueError("width_weights must have as many entries as widths")


def default_widths(found: Settings, width: int) -> tuple[int, ...]:
    """Return the widths to draw from: those that are given, or a default.

    It is the powers of two from 8 below the encoder's width, as in the authors' code, and that width as well where no
    term of full width stands beside them; for Espresso 128, or half the width of a narrow encoder.

    Raises:
        ValueError: a width beyond the encoder's, or an encoder too narrow for the default.
    """
    if found.widths is not None:
        chosen = found.widths
    elif found.alignment != "none":
        chosen = (min(128, width // 2),)
    else:
        chosen = powers(width) + (width,) * (found.full_width == "none")
    if not chosen:
        raise ValueError(f"widths: an encoder of width {width} is too narrow for the default, 8, 16, ...; name some")
    if wrong := [dim for dim in chosen if not 1 <= dim <= width]:
        raise ValueError(f"widths = {list(chosen)}: {wrong[0]} is not from 1 to the encoder's width, {width}")
    return chosen


def powers(width: int) -> tuple[int, ...]:
    """Return the powers of two from 8 that are below a width."""
    return tuple(2**power for power in range(3, width.bit_length()) if 2**power < width)


def judged_widths(settings: Settings, num_layers: int, width: int) -> tuple[int, ...]:
    """Return the widths of a grid where none are named: those that the run trains, and what other modes would train."""
    return tuple(sorted({*powers(width), width}.union(*trained(settings, num_layers, width).values())))


def default_pairs(num_layers: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return Starbucks's pairs (2, 32), (4, 64), (6, 128), (8, 256), (10, 512), (12, 768), scaled to an encoder.

    Layers are sixths of the depth, rounded up; widths are width / 24, 1/12, 1/6, 1/3, 2/3 and 1, rounded down, even. Of
    two pairs at one layer of a shallow encoder the wider stays.
    """
    widths = {}
    for sixth, parts in enumerate((24, 12, 6, 3, 1.5, 1), 1):
        widths[math.ceil(num_layers * sixth / 6)] = max(2, int(width / parts) // 2 * 2) if parts > 1 else width
    return tuple(widths.items())


def trained(settings: Settings, num_layers: int, width: int) -> dict[int, set[int]]:
    """Return the widths on which a run puts a loss of pairs, at some step, by layer."""
    if settings.fixed_pairs:
        found = {layer: {dim} for layer, dim in settings.pairs or default_pairs(num_layers, width)}
    else:
        has_students, last = settings.layers_per_step, num_layers + settings.last_layer
        students = range(settings.first_layer, last + 1) if has_students else ()
        drawn = default_widths(settings, width) if settings.widths_per_step else ()
        found = {layer: {*drawn} for layer in [*students, num_layers]}
    whole = {"none": (), "last": (num_layers,), "all": [*found, num_layers]}[settings.full_width]
    return {layer: found.get(layer, set()) | ({width} if layer in whole else set()) for layer in {*found, *whole}}


def depth_weight(weighting: str, place: int, layer: int) -> float:
    """Return a student's weight: 1, 1 / (1 + ln place), 1 / place, or ln(2 + layer).

    `place` counts the layers that can be students from 1, which makes one rule of all codes: where they begin with the
    output of the embeddings, its place is 1. Log is Espresso's, linear and growing (for the divergence) are those of
    AnglE's second commit.
    """
    match weighting:
        case "log":
            return 1 / (1 + math.log(place))
        case "linear":
            return 1 / place
        case "growing":
            return math.log(2 + layer)
    return 1.0
