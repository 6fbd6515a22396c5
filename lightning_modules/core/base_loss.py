"""The loss of pairs that a configuration names, ready to be called on any cut of the vectors."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from lightning_modules.core.pair_losses import LOSSES, Pairs

SCALED = ("info_nce", "cosent")


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
        in_batch_weight: of angle, weight of its in-batch negatives.
        hard_weight: of angle, weight of its in-batch and hard negatives as in release 0.6; null as before that.
        angle_weight: of angle, weight of the difference of angles.
        cosine_scale: of angle, factor of the cosines in its CoSENT.
        in_batch_scale: of angle, factor of the cosines among its negatives.
        angle_scale: of angle, factor of the differences of angles.
        integer_labels: of angle, cut labels to integers as the released code does.
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
    in_batch_weight: float = 30.0
    hard_weight: float | None = None
    angle_weight: float = 1.0
    cosine_scale: float = 20.0
    in_batch_scale: float = 20.0
    angle_scale: float = 20.0
    integer_labels: bool = False
    margin: float = 5.0
    distance: Literal["euclidean", "manhattan", "cosine"] = "euclidean"

    def bound(self, pairs: Pairs, scale: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return the loss as a function of a table [C, B, d]: this rank's share; a learnt scale replaces the fixed."""
        return partial(LOSSES[self.name], pairs=pairs, **self._arguments(self.scale if scale is None else scale))

    def _arguments(self, scale: float | Tensor) -> dict[str, object]:
        if self.name == "info_nce":
            return {
                "scale": scale,
                "symmetric": self.symmetric,
                "mask_duplicates": self.mask_duplicates,
                "false_negative_margin": self.false_negative_margin,
            }
        if self.name == "angle":
            return {
                "cosine_w": self.cosine_weight,
                "ibn_w": self.in_batch_weight,
                "cln_w": self.hard_weight,
                "angle_w": self.angle_weight,
                "cosine_tau": self.cosine_scale,
                "ibn_tau": self.in_batch_scale,
                "angle_tau": self.angle_scale,
                "integer_labels": self.integer_labels,
            }
        if self.name == "triplet":
            return {"margin": self.margin, "distance": self.distance}
        return {"scale": scale} if self.name == "cosent" else {}
