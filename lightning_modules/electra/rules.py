"""What the options of ELECTRA must agree on; checked before anything is built."""

import math
from collections.abc import Callable


def heads_divide(hidden_size: int, num_heads: int | None) -> str | None:
    """Attention heads share the width evenly."""
    heads = num_heads or max(1, hidden_size // 64)
    if hidden_size % heads:
        return f"cannot be shared by {heads} heads; give model.num_heads that divides it"
    return None


def generator_fits(width: float, hidden_size: int, num_heads: int | None, generator: str, task: str) -> str | None:
    """The scaled generator has a whole width that its heads share."""
    if generator != "trained" or task == "mlm" or one_share(width) or heads_divide(hidden_size, num_heads):
        return None
    hidden = round(hidden_size * width)
    heads = max(1, hidden // (hidden_size // (num_heads or max(1, hidden_size // 64))))
    if hidden < 1 or abs(hidden - hidden_size * width) > 0.01 or hidden % heads:
        exact, head = hidden_size * width, hidden_size // (num_heads or max(1, hidden_size // 64))
        near = max(1, round(exact / head)) * head / hidden_size
        return (
            f"gives the generator a width of {exact:g} for {heads} heads; give a width that they share, as {near:.10g}"
        )
    return None


def shares_whole_encoder(tying: str, width: float, depth: float, generator: str) -> str | None:
    """Two encoders that are one have one size."""
    if tying == "all" and generator == "trained" and (width != 1.0 or depth != 1.0):
        return "needs a generator of the encoder's size: set model.generator_width and model.generator_depth to 1.0"
    return None


def one_share(share: float) -> str | None:
    """A share lies in (0, 1]."""
    return None if 0.0 < share <= 1.0 else "must be over 0 and at most 1"


def dropout_share(share: float) -> str | None:
    """A dropout lies in [0, 1)."""
    return None if 0.0 <= share < 1.0 else "must be at least 0 and below 1"


def above_zero(number: float) -> str | None:
    """A size, a rate or a temperature is positive."""
    return None if 0 < number < math.inf else "must be above 0 and finite"


def not_negative(number: float) -> str | None:
    """A weight, a decay or a number of steps is not negative."""
    return None if 0 <= number < math.inf else "must be finite and not negative"


def generator_is_read(source: str | None, init_from: str | None, generator: str, task: str) -> str | None:
    """A generator that is named is one that is trained, beside a discriminator that is named too."""
    if source is None:
        return None
    if task == "mlm" or generator != "trained":
        return "no generator is trained; leave it out"
    return None if init_from else "needs the discriminator in model.init_from"


RULES: list[tuple[tuple[str, ...], Callable[..., str | None]]] = [
    (("model.hidden_size", "model.num_heads"), heads_divide),
    (("model.init_generator_from", "model.init_from", "model.generator", "model.task"), generator_is_read),
    (
        ("model.generator_width", "model.hidden_size", "model.num_heads", "model.generator", "model.task"),
        generator_fits,
    ),
    (("model.tying", "model.generator_width", "model.generator_depth", "model.generator"), shares_whole_encoder),
    *(
        ((f"model.{name}",), one_share)
        for name in ("mask_fraction", "mask_share", "generator_width", "generator_depth")
    ),
    *(((f"model.{name}",), dropout_share) for name in ("dropout", "attention_dropout")),
    *(
        ((f"model.{name}",), above_zero)
        for name in (
            "temperature",
            "learning_rate",
            "initializer_range",
        )
    ),
    *(
        ((f"model.{name}",), not_negative)
        for name in (
            "generator_weight",
            "discriminator_weight",
            "weight_decay",
            "adam_epsilon",
            "warmup_steps",
            "clip_norm",
        )
    ),
]
