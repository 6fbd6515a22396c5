"""Reading ranges of parameters from a checkpoint, whoever wrote them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.schema import check_shard, check_whole
from lightning_modules.core.checkpoint.verify import TRAINER, open_file, shard_name, verify


class Piece(NamedTuple):
    """What one shard holds of one parameter."""

    path: Path
    start: int
    shape: list[int]
    scalars: dict[str, Any]
    tensors: dict[str, Tensor]


class Reader:
    """The shards of one checkpoint, mapped into memory."""

    def __init__(self, folder: Path, world_size: int) -> None:
        self.folder = folder
        self.pieces: dict[str, list[Piece]] = {}
        for path in [folder / shard_name(rank) for rank in range(world_size)]:
            content = open_file(path)
            check_shard(content, path)
            for name, piece in content.items():
                self.pieces.setdefault(name, []).append(Piece(path, **piece))
        for name, pieces in self.pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            if other := next((piece for piece in pieces if not _are_of_one(piece, pieces[0])), None):
                raise CheckpointError(f"{other.path}: {name} has another shape or type than in {pieces[0].path.name}")

    def shape(self, name: str) -> list[int]:
        """Give the shape of the whole parameter."""
        return self.pieces[name][0].shape

    def scalars(self, name: str) -> dict[str, Any]:
        """Give the scalars of a parameter's optimizer state."""
        return self.pieces[name][0].scalars

    def dtypes(self, name: str) -> dict[str, torch.dtype]:
        """Give the types of what is stored for a parameter: `param` and the tensors of the optimizer state."""
        return {key: tensor.dtype for key, tensor in self.pieces[name][0].tensors.items()}

    def match(self, shapes: dict[str, list[int]]) -> None:
        """Require exactly the parameters of a model.

        Raises:
            CheckpointError: a parameter is missing, unknown, or has another shape.
        """
        self._refuse(sorted(shapes.keys() - self.pieces.keys()), "the checkpoint lacks")
        self._refuse(sorted(self.pieces.keys() - shapes.keys()), "the model lacks")
        for name, shape in shapes.items():
            if self.shape(name) != shape:
                raise CheckpointError(f"{self.folder}: {name} has shape {self.shape(name)}, in the model it is {shape}")

    def read_into(self, name: str, key: str, start: int, target: Tensor) -> None:
        """Fill a 1-D tensor with the elements from `start` on of what is stored under `key` for a parameter.

        Raises:
            CheckpointError: a part of the range is in no shard.
        """
        position, stop = start, start + target.numel()
        for piece in self.pieces[name]:
            if key not in piece.tensors:
                raise CheckpointError(f"{piece.path}: holds no {key} for {name}")
            source = piece.tensors[key]
            if source.is_floating_point() != target.is_floating_point():
                raise CheckpointError(f"{piece.path}: {key} of {name} is {source.dtype}, in the model {target.dtype}")
            if piece.start > position:
                break
            last = min(stop, piece.start + source.numel())
            if last > position:
                target[position - start : last - start].copy_(source[position - piece.start : last - piece.start])
                position = last
        if position < stop:
            raise CheckpointError(f"{self.folder}: {key} of {name} is in no shard from element {position} on")

    def _refuse(self, names: Iterable[str], complaint: str) -> None:
        if names := list(names):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{self.folder}: {complaint} {', '.join(names[:3])}{more}; use the model that was saved"
            )


def _are_of_one(one: Piece, other: Piece) -> bool:
    same = (one.tensors[key].dtype == other.tensors[key].dtype for key in one.tensors.keys() & other.tensors.keys())
    return one.shape == other.shape and all(same)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a checkpoint whole, without a model, an engine or optimizer state.

    A tied weight stands under its first name only.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    reader = Reader(folder, verify(folder)["world_size"])
    weights: dict[str, Tensor] = {}
    for name in reader.pieces:
        weights[name] = torch.empty(reader.shape(name), dtype=reader.dtypes(name)["param"])
        reader.read_into(name, "param", 0, weights[name].view(-1))
    whole = open_file(folder / TRAINER)
    check_whole(whole, folder / TRAINER)
    buffers = whole["buffers"]
    return weights | {name: buffer.clone() for name, buffer in buffers.items()}
