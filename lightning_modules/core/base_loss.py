"""The loss of pairs that a configuration names, ready to be called on any cut of the vectors.

Torch is imported where a loss is called, so that rules of a configuration can look at the options without it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_modules.core.pair_losses import Pairs

ARGUMENTS: dict[str, dict[str, str]] = {  # options that a loss looks at, and what its function calls them
    "info_nce": {name: name for name in ("scale", "symmetric", "mask_duplicates", "false_negative_margin")},
    "cosent": {"scale": "scale"},
    "angle": {
        "cosine_weight": "cosine_w",
        "in_batch_weight": "ibn_w",
        "hard_weight": "cln_w",
        "angle_weight": "angle_w",
        "cosine_scale": "cosine_tau",
        "in_batch_scale": "ibn_tau",
        "angle_scale": "angle_tau",
        "integer_labels": "integer_labels",
    },
    "cosine_regression": {},
    "triplet": {"margin": "margin", "distance": "distance"},
}
OF_WEIGHTS = {  # options of angle that act within a term, and the weight of that term
    "cosine_scale": "cosine_weight",
    "angle_scale": "angle_weight",
    "integer_labels": "in_batch_weight",
}


@dataclass(frozen=True)
class LossOptions:
    """How pairs are compared.

    Args:
        name: info_nce for anchors, positives and hard negatives; cosent and cosine_regression for pairs with a score;
            angle for any of them; triplet for hard negatives.
        scale: of info_nce and cosent, factor of the cosines, one over the temperature.
        learn_scale: train the factor, from there.
        symmetric: of info_nce, look for anchors by positives too.
        mask_duplicates: of info_nce, leave out candidates that their text says are no negatives.
        false_negative_margin: of info_nce, leave out candidates nearer than the positive by that much; null for none.
        cosine_weight: of angle, weight of its CoSENT.
        in_batch_weight: of angle, weight of its in-batch negatives; null for 30, or what was released.
        hard_weight: of angle, weight of its in-batch and hard negatives as in release 0.6; null as before that.
        angle_weight: of angle, weight of the difference of angles; null for 1, or what was released.
        cosine_scale: of angle, factor of the cosines in its CoSENT.
        in_batch_scale: of angle, factor of the cosines among its negatives.
        angle_scale: of angle, factor of the differences of angles; null for 20, or what was released.
        integer_labels: of angle, cut labels to integers among its negatives; null for no, or what was released.
        margin: of triplet, how much nearer the positive has to be.
        distance: of triplet.
    """

    name: Literal["info_nce", "cosent", "angle", "cosine_regression", "triplet"] = "info_nce"
    scale: float = 20.0
    learn_scale: bool = False
    symmetric: bool = False
    mask_duplicates: bool = True
    false_negative_margin: float | None = None
    cosine_weight: float = 0.0
    in_batch_weight: float | None = None
    hard_weight: float | None = None
    angle_weight: float | None = None
    cosine_scale: float = 20.0
    in_batch_scale: float = 20.0
    angle_scale: float | None = None
    integer_labels: bool | None = None
    margin: float = 5.0
    distance: Literal["euclidean", "manhattan", "cosine"] = "euclidean"

    def bound(
        self, pairs: "Pairs", scale: "Tensor | None" = None, released: Mapping[str, object] | None = None
    ) -> "Callable[[Tensor], Tensor]":
        """Return the loss as a function of a table [C, B, d]: this rank's share.

        A learnt scale replaces the fixed one; `released` are numbers of the authors' code for what is null.
        """
        from lightning_modules.core.pair_losses import LOSSES

        arguments = self._arguments(self.scale if scale is None else scale, released)
        return partial(LOSSES[self.name], pairs=pairs, **arguments)

    def misfit(
        self,
        num_columns: int,
        label_range: tuple[float, float] | None,
        widths: Collection[int] = (),
        released: Mapping[str, object] | None = None,
    ) -> str | None:
        """Say why the loss cannot compare such examples, or vectors cut to one of the widths.

        `label_range` is the lowest and highest label of a source; None where it has none but 1.
        """
        has_labels = label_range is not None
        if self.name in ("cosent", "cosine_regression") and num_columns == 2 and not has_labels:
            return f"has no scores or labels, which model.loss.name = {self.name} orders pairs by; take info_nce"
        if self.name == "info_nce" and has_labels:
            return (
                "has labels other than 1, and model.loss.name = info_nce takes every pair for a positive; say which "
                "are with labels: {WORD: 1, OTHER: null}, leave them out with columns: {label: ''}, or take cosent"
            )
        if self.name == "triplet" and num_columns < 3:
            return "has no hard negatives, which model.loss.name = triplet needs; take info_nce"
        if self.name in ("triplet", "angle") and num_columns > 2 and has_labels:
            return (
                f"has labels beside hard negatives, which model.loss.name = {self.name} would not look at; leave the "
                "labels out with columns: {label: ''}"
            )
        if has_labels and (problem := self._out_of_range(num_columns, *label_range, released)):
            return f"has labels from {label_range[0]:g} to {label_range[1]:g}, and {problem}"
        odd = [width for width in sorted(widths) if width % 2]
        if self.name == "angle" and self.angle_weight != 0 and (num_columns > 2 or has_labels) and odd:
            return (
                f"is compared at width {odd[0]}, and model.loss.name = angle takes halves of a vector as real and "
                "imaginary part; give even model.objective.widths"
            )
        return None

    def unread(self, sources: Collection[tuple[int, bool]]) -> str | None:
        """Say which option of angle no source needs; of each source the number of columns, and whether it has labels.

        Of pairs without labels angle is InfoNCE, and looks at the scale of that alone.
        """
        negatives, labels = any(columns > 2 for columns, _ in sources), any(has for _, has in sources)
        needed = {"hard_weight": negatives, "integer_labels": labels, "in_batch_scale": True}
        lacking = {"hard_weight": "hard negatives", "integer_labels": "labels"}
        for option in ARGUMENTS["angle"] if self.name == "angle" else ():
            if getattr(self, option) != _default(option) and not needed.get(option, negatives or labels):
                without = lacking.get(option, "labels or hard negatives")
                return f"model.loss.{option} is not looked at: no source has {without}; take it out"
        return None

    def _out_of_range(
        self, num_columns: int, low: float, high: float, released: Mapping[str, object] | None
    ) -> str | None:
        if low >= 0 and high <= 1:
            return None
        if num_columns > 2:
            return "hard negatives get 1 - label, so they must be from 0 to 1; scale them in the file"
        if self.name == "cosine_regression" and not -1 <= low <= high <= 1:
            return (
                "model.loss.name = cosine_regression wants cosines, -1 to 1; scale them in the file, or take cosent, "
                "which looks at their order alone"
            )
        chosen = {"ibn_w": 1.0} | self._arguments(self.scale, released)
        if self.name == "angle" and chosen["ibn_w"] > 0 and not chosen.get("integer_labels"):
            return (
                "model.loss.name = angle weighs positives by labels from 0 to 1 among its in-batch negatives; scale "
                "them in the file, or leave that term out with model.loss.in_batch_weight 0"
            )
        return None

    def _arguments(self, scale: "float | Tensor", released: Mapping[str, object] | None) -> dict[str, Any]:
        given = {argument: getattr(self, option) for option, argument in ARGUMENTS[self.name].items()}
        if self.name == "angle":
            return {**(released or {}), **{name: value for name, value in given.items() if value is not None}}
        return given | ({"scale": scale} if "scale" in given else {})


def idle_option(options: Mapping[str, Any]) -> str | None:
    """Say which option a loss would not look at, as the configuration gives them; None if there is none."""
    name = options.get("name", "info_nce")
    for option in (option for option, value in options.items() if value != _default(option)):
        owners = [loss for loss, known in ARGUMENTS.items() if option in known]
        if owners and name not in owners:
            return f"{option} is for {' and '.join(owners)}, and {name} does not look at it; take it out"
        weight = OF_WEIGHTS.get(option)
        if weight and options.get(weight, _default(weight)) == 0:
            return f"{option} has no effect, as {weight} is 0; take it out"
    return None


def _default(option: str) -> object:
    return next(field.default for field in fields(LossOptions) if field.name == option)
