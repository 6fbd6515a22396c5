"""What the options of fine-tuning must agree on; checked before anything is built."""

import math
from collections.abc import Callable, Mapping
from typing import Any


def one_encoder(init_from: str | None, hidden_size: int) -> str | None:
    """An encoder is pre-trained or fresh."""
    return "is given beside model.untrained; leave one of them out" if init_from else None


def some_encoder(init_from: str | None, untrained: Mapping[str, Any] | None) -> str | None:
    """Without an encoder there is nothing to fine-tune."""
    if init_from or untrained:
        return None
    return "must be the folder of a run, an exported folder or a hub name; or set model.untrained"


def heads_divide(hidden_size: int, num_heads: int) -> str | None:
    """Attention heads share the width evenly."""
    return f"cannot be shared by {num_heads} heads" if hidden_size % num_heads else None


def labels_fit(task: str, labels: str) -> str | None:
    """Classes are chosen and numbers are predicted."""
    fitting = {"classification": "classes", "regression": "numbers"}[task]
    return None if labels == fitting else f"needs data.labels {fitting}"


def one_factor(factor: float) -> str | None:
    """A factor lies in (0, 1]."""
    return None if 0.0 < factor <= 1.0 else "must be over 0 and at most 1"


def dropout_share(share: float) -> str | None:
    """A dropout lies in [0, 1)."""
    return None if 0.0 <= share < 1.0 else "must be at least 0 and below 1"


def not_negative(number: float) -> str | None:
    """A rate, a decay or a norm is finite and not negative."""
    return None if 0 <= number < math.inf else "must be finite and not negative"


RULES: list[tuple[tuple[str, ...], Callable[..., str | None]]] = [
    (("model.init_from", "model.untrained.hidden_size"), one_encoder),
    (("model.init_from", "model.untrained"), some_encoder),
    (("model.untrained.hidden_size", "model.untrained.num_heads"), heads_divide),
    (("model.task", "data.labels"), labels_fit),
    (("model.layer_decay",), one_factor),
    (("model.dropout",), dropout_share),
    *(((f"model.{name}",), not_negative) for name in ("learning_rate", "weight_decay", "adam_epsilon", "clip_norm")),
]
