"""What the options of 2D Matryoshka must agree on; checked before anything is built."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning_modules.core.base_loss import idle_option
from lightning_modules.matryoshka2d.modes import AS_RELEASED, LARGEST_SCALE, MODES, settings


def one_encoder(init_from: str | None, hidden_size: int) -> str | None:
    """An encoder is pre-trained or fresh."""
    return "is given beside model.untrained; leave one of them out" if init_from else None


def some_encoder(init_from: str | None, untrained: Mapping[str, Any] | None) -> str | None:
    """There is something to train."""
    return (
        None if init_from or untrained else "must name an encoder (a run, a folder, a hub name); or set model.untrained"
    )


def heads_divide(hidden_size: int, num_heads: int) -> str | None:
    """Attention heads share the width evenly."""
    return f"cannot be shared by {num_heads} heads" if hidden_size % num_heads else None


def known_settings(mode: str, as_released: bool, objective: Mapping[str, Any] | None) -> str | None:
    """The mode's settings, changed as wanted, can be."""
    if as_released and mode not in AS_RELEASED:
        return f"has no released code that differs; model.as_released is for {', '.join(AS_RELEASED)}"
    try:
        settings(mode, as_released, **(objective or {}))
    except ValueError as error:
        return f"cannot be changed so: {error}"
    return None


def known_mode(mode: str, as_released: bool) -> str | None:
    """There is released code to follow."""
    return known_settings(mode, as_released, {})


def scale_is_used(learn_scale: bool, name: str) -> str | None:
    """Only losses of scaled cosines have a scale to learn."""
    return "is for model.loss.name info_nce or cosent" if learn_scale and name not in ("info_nce", "cosent") else None


def below_limit(scale: float, learn_scale: bool) -> str | None:
    """A learnt scale begins below its limit."""
    return f"must be at most {LARGEST_SCALE:g} where it is learnt" if learn_scale and scale > LARGEST_SCALE else None


def teacher_is_followed(
    fixed_teacher: str | None, mode: str, as_released: bool, objective: Mapping[str, Any] | None
) -> str | None:
    """A fixed teacher is for a divergence."""
    if not fixed_teacher or known_settings(mode, as_released, objective):
        return None
    found = settings(mode, as_released, **(objective or {}))
    if found.layers_per_step and found.kl_weight and found.kl_temperature:
        return None
    return f"is the target of a divergence, which mode {mode} has not"


def one_teacher(
    objective: Mapping[str, Any] | None, fixed_teacher: str | None, mode: str, as_released: bool
) -> str | None:
    """The last layer can be kept out of a gradient where it is the teacher."""
    if not fixed_teacher or not _changes("detach_teacher", objective, mode, as_released):
        return None
    return "detach_teacher: has no effect beside model.fixed_teacher, which has no gradient; take it out"


def lengths_are_seen(
    objective: Mapping[str, Any] | None, loss: Mapping[str, Any] | None, mode: str, as_released: bool
) -> str | None:
    """Scaling vectors to length one is for losses that see their lengths."""
    options = loss or {}
    name, distance = options.get("name", "info_nce"), options.get("distance", "euclidean")
    if not _changes("normalise", objective, mode, as_released) or (name == "triplet" and distance != "cosine"):
        return None
    by = " by cosine" if name == "triplet" else ""
    return f"normalise: has no effect on model.loss.name {name}{by}, which scales vectors itself; take it out"


def _changes(name: str, objective: Mapping[str, Any] | None, mode: str, as_released: bool) -> bool:
    """Whether an objective that can be has another value than its mode."""
    if (objective or {}).get(name) is None or known_settings(mode, as_released, objective):
        return False
    return objective[name] != getattr(MODES[mode], name)


def loss_looks_at(loss: Mapping[str, Any] | None) -> str | None:
    """A loss is given no option without effect."""
    return idle_option(loss or {})


def some_loss(
    name: str,
    cosine_weight: float,
    in_batch_weight: float | None,
    hard_weight: float | None,
    angle_weight: float | None,
) -> str | None:
    """AnglE's terms add up to something."""
    empty = name == "angle" and not cosine_weight and not hard_weight and in_batch_weight == angle_weight == 0
    return "leaves every term of angle without a weight" if empty else None


def whole_sets(max_batches: int | None) -> str | None:
    """Sets are judged on all of their texts."""
    return None if max_batches is None else "must be null: sets of texts are judged on all of their texts"


def above_zero(number: float | None) -> str | None:
    """A scale is positive."""
    return None if number is None or 0 < number < math.inf else "must be above 0 and finite"


def not_negative(number: float | None) -> str | None:
    """A rate, a decay, a norm or a weight is finite and not negative."""
    return None if number is None or 0 <= number < math.inf else "must be finite and not negative"


def share(fraction: float) -> str | None:
    """A dropout lies in [0, 1)."""
    return None if 0.0 <= fraction < 1.0 else "must be at least 0 and below 1"


RULES: list[tuple[tuple[str, ...], Callable[..., str | None]]] = [
    (("model.init_from", "model.untrained.hidden_size"), one_encoder),
    (("model.init_from", "model.untrained"), some_encoder),
    (("model.untrained.hidden_size", "model.untrained.num_heads"), heads_divide),
    (("model.mode", "model.as_released", "model.objective"), known_settings),
    (("model.mode", "model.as_released"), known_mode),
    (("model.objective", "model.fixed_teacher", "model.mode", "model.as_released"), one_teacher),
    (("model.objective", "model.loss", "model.mode", "model.as_released"), lengths_are_seen),
    (("callbacks.validation.max_batches",), whole_sets),
    (("model.loss",), loss_looks_at),
    (
        ("model.loss.name", *(f"model.loss.{name}_weight" for name in ("cosine", "in_batch", "hard", "angle"))),
        some_loss,
    ),
    *(((f"model.loss.{name}_weight",), not_negative) for name in ("cosine", "in_batch", "hard", "angle")),
    (("model.loss.margin",), not_negative),
    (("model.loss.learn_scale", "model.loss.name"), scale_is_used),
    (("model.loss.scale", "model.loss.learn_scale"), below_limit),
    (("model.fixed_teacher", "model.mode", "model.as_released", "model.objective"), teacher_is_followed),
    *(((f"model.loss.{name}",), above_zero) for name in ("scale", "cosine_scale", "in_batch_scale", "angle_scale")),
    (("model.untrained.initializer_range",), not_negative),
    *(((f"model.untrained.{name}",), share) for name in ("dropout", "attention_dropout")),
    *(((f"model.{name}",), not_negative) for name in ("learning_rate", "weight_decay", "adam_epsilon", "clip_norm")),
]
