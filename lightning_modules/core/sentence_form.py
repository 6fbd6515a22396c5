"""How an encoder's tokens become the vector of a text: pooling, what follows it, prompts and the longest text.

Shape suffixes: R texts, D coordinates.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.precision import widened

KEPT = "form.json"  # beside the configuration of an encoder, in the folder of a run
ACTIVATIONS = (  # without weights or options; the names of torch.nn
    *("Identity", "Tanh", "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid"),
    *("LogSigmoid", "Softplus", "Softsign", "Tanhshrink", "Hardtanh", "Hardswish", "Hardsigmoid"),
)


class Layer(NamedTuple):
    """One module after pooling: Dense, LayerNorm, Normalize or Dropout, with its options as its folder has them."""

    kind: str
    options: Mapping[str, Any] = {}  # in the order in which the class below takes them
    path: str = ""  # where in its folder its weights lie

    def __str__(self) -> str:
        sizes = [str(self.options[name]) for name in ("in_features", "out_features") if name in self.options]
        return " ".join([self.kind, *([" -> ".join(sizes)] if sizes else [])])


class Form(NamedTuple):
    """What a folder of sentence-transformers says besides the network and the tokenizer."""

    pooling: str | tuple[str, ...]  # several are laid side by side
    dim: int  # width of the vectors before they are scaled
    max_tokens: int | None
    prompts: dict[str, str]  # what stands in front of a text, by name
    default: str | None = None  # the name of the prompt where none is asked for
    head: tuple[Layer, ...] = ()  # modules with weights or order of their own, between pooling and the scaling
    normalize: bool = True  # scaled to length one at the end
    include_prompt: bool = True  # tokens of the prompt count in pooling
    truncate: int | None = None  # coordinates that are kept after the scaling
    similarity: str | None = "cosine"

    @property
    def prompt(self) -> str:
        """What stands in front of a text where nothing is asked for."""
        return self.prompts.get(self.default or "", "")

    @property
    def modes(self) -> tuple[str, ...]:
        """The poolers, one or several."""
        return (self.pooling,) if isinstance(self.pooling, str) else self.pooling

    @property
    def pooled(self) -> str:
        """The poolers as a word."""
        return "+".join(self.modes)

    def fitted(self, width: int, pooling: str | tuple[str, ...] | None = None) -> "Form":
        """Return the form for an encoder of a width, with another pooling if one is given; a cut stays a cut.

        Raises:
            CheckpointError: a layer of the head takes another width.
        """
        whole = width_after(width * len(self.modes), self.head)
        found = self if pooling is None else self._replace(pooling=pooling)
        return found._replace(
            dim=self.dim if 0 < self.dim < whole else width_after(width * len(found.modes), self.head)
        )

    def finish(self, vectors_RD: Tensor) -> Tensor:
        """Cut and scale what the head gives, as the folder does."""
        vectors_RD = vectors_RD[:, : self.dim]
        return (F.normalize(vectors_RD) if self.normalize else vectors_RD)[:, : self.truncate]


def width_after(pooled: int, head: tuple[Layer, ...]) -> int:
    """Return the width of what a head gives.

    Raises:
        CheckpointError: a layer takes another width than it is given.
    """
    for layer in head:
        takes = layer.options.get("in_features", layer.options.get("dimension", pooled))
        if takes != pooled:
            raise CheckpointError(f"{layer}: takes vectors of width {takes}, the ones before it have {pooled}")
        pooled = layer.options.get("out_features", pooled)
    return pooled


class Dense(nn.Module):
    """A linear layer, an activation, and perhaps what went in beside it; names as in sentence-transformers."""

    def __init__(self, in_features: int, out_features: int, bias: bool, activation: str, use_residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = getattr(nn, activation)()
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x_RD: Tensor) -> Tensor:
        """Return [R, out_features]."""
        x_RD = x_RD.to(self.linear.weight.dtype)
        found = self.activation(self.linear(x_RD))
        return found + (self.residual(x_RD) if hasattr(self, "residual") else x_RD) if self.use_residual else found


class LayerNorm(nn.Module):
    """A norm over the coordinates."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def forward(self, x_RD: Tensor) -> Tensor:
        """Return [R, D]."""
        return self.norm(x_RD.to(self.norm.weight.dtype))


class Normalize(nn.Module):
    """Scales to length one."""

    def forward(self, x_RD: Tensor) -> Tensor:
        """Return [R, D]."""
        return F.normalize(x_RD)


class Head(nn.Sequential):
    """The modules between pooling and the last scaling; without any, vectors come out as they are."""

    def __init__(self, layers: tuple[Layer, ...] = ()) -> None:
        kinds = {"Dense": Dense, "LayerNorm": LayerNorm, "Normalize": Normalize, "Dropout": nn.Dropout}
        super().__init__(*(kinds[layer.kind](*layer.options.values()) for layer in layers))

    def forward(self, x_RD: Tensor) -> Tensor:
        """Return the vectors, in float32 at least."""
        return widened(super().forward(x_RD))


def keep(form: Form, folder: Path) -> None:
    """Write a form beside the configuration of an encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEPT).write_text(json.dumps(form._asdict(), indent=2) + "\n", encoding="utf-8")


def kept(folder: Path) -> Form | None:
    """Read what `keep` wrote; None where there is nothing.

    Raises:
        CheckpointError: it is damaged.
    """
    file = folder / KEPT
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        pooling = told["pooling"] if isinstance(told["pooling"], str) else tuple(told["pooling"])
        return Form(**{**told, "pooling": pooling, "head": tuple(Layer(*layer) for layer in told["head"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
