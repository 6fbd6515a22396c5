"""What a checkpoint's files may hold: one check of forms, names and sizes, before anything of it is believed.

A hash says that a file is as it was written, not that what was written makes sense; a manifest that was sealed again
must not cost memory, or end in an error of Python's.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.core.checkpoint.errors import CheckpointError

MOST_RANKS = 1 << 17
MOST_STEPS = 10**15
MOST_ELEMENTS = 1 << 48
LONGEST_NAME = 1000
HASH = re.compile(r"[0-9a-f]{64}")
FILE = re.compile(r"trainer\.pt|shard_[0-9]{5,6}\.pt")
PIECE = {"start", "shape", "scalars", "tensors"}
LIGHTNING = {"pytorch-lightning_version": str, "loops": dict, "lr_schedulers": list, "callbacks": dict}
WHOLE = {"lightning": dict, "buffers": dict, "optimizers": list}


def check_manifest(manifest: dict[str, Any], path: Path) -> None:
    """Check the facts of a manifest.

    Raises:
        CheckpointError: naming the fact, its value and the rule.
    """
    _whole_number(manifest.get("step"), 0, MOST_STEPS, path, "step")
    _whole_number(manifest.get("world_size"), 1, MOST_RANKS, path, "world_size")
    skipped, files = manifest.get("skipped_steps"), manifest.get("files")
    _require(isinstance(skipped, list) and all(_is_whole(it) for it in skipped), path, "skipped_steps", skipped)
    _require(isinstance(files, dict) and len(files) == manifest["world_size"] + 1, path, "files", files)
    for name, facts in files.items():
        _require(FILE.fullmatch(name) is not None, path, "files", name)
        _require(isinstance(facts, dict), path, name, facts)
        _whole_number(facts.get("size"), 0, MOST_ELEMENTS, path, f"size of {name}")
        sha256 = facts.get("sha256")
        _require(isinstance(sha256, str) and HASH.fullmatch(sha256) is not None, path, f"sha256 of {name}", sha256)
    _require(isinstance(manifest.get("run", {}), dict), path, "run", manifest.get("run"))


def check_shard(content: Any, path: Path) -> None:
    """Check the pieces of a shard: parameter name -> where its range begins, the whole shape, scalars, 1-D tensors.

    Raises:
        CheckpointError: naming the parameter and what is wrong with its piece.
    """
    _require(isinstance(content, dict), path, "content", type(content).__name__)
    for name, piece in content.items():
        _require(isinstance(name, str) and len(name) <= LONGEST_NAME, path, "name of a parameter", name)
        _require(isinstance(piece, dict) and piece.keys() == PIECE, path, name, piece)
        _whole_number(piece["start"], 0, MOST_ELEMENTS, path, f"start of {name}")
        shape, tensors = piece["shape"], piece["tensors"]
        _require(isinstance(shape, list) and all(_is_whole(it) for it in shape), path, f"shape of {name}", shape)
        size = math.prod(shape)
        _require(size <= MOST_ELEMENTS, path, f"shape of {name}", shape)
        _require(isinstance(piece["scalars"], dict), path, f"scalars of {name}", piece["scalars"])
        for key, scalar in piece["scalars"].items():
            _require(isinstance(key, str) and _is_number(scalar), path, f"{key} of {name}", scalar)
        _require(isinstance(tensors, dict) and "param" in tensors, path, f"tensors of {name}", tensors)
        for key, tensor in tensors.items():
            whole = isinstance(key, str) and _is_plain(tensor) and tensor.dim() == 1 and not tensor.is_complex()
            _require(whole, path, f"{key} of {name}", tensor)
            _require(key == "param" or tensor.is_floating_point(), path, f"type of {key} of {name}", tensor.dtype)
        lengths = {tensor.numel() for tensor in tensors.values()}
        fits = len(lengths) == 1 and piece["start"] + max(lengths) <= size
        _require(fits, path, f"lengths of {name}", sorted(lengths))


def check_whole(content: Any, path: Path, is_complete: bool = False) -> None:
    """Check what rank 0 keeps: what Lightning knows, the buffers, and descriptions of the optimizers.

    A run goes on from all of it; weights alone may be read from a part.

    Raises:
        CheckpointError: naming what is not of its form.
    """
    _require(isinstance(content, dict), path, "content", type(content).__name__)
    for key, kind in WHOLE.items():
        fine = isinstance(content[key], kind) if key in content else not is_complete
        _require(fine, path, key, content.get(key))
    for name, buffer in content.get("buffers", {}).items():
        _require(isinstance(name, str) and _is_plain(buffer), path, f"buffer {name}", buffer)
    for entry in content.get("optimizers", []):
        _check_optimizer(entry, path)
    if is_complete:
        _whole_number(content["lightning"].get("global_step"), 0, MOST_STEPS, path, "global_step")
        for key, kind in LIGHTNING.items():
            found = content["lightning"].get(key, {} if key == "callbacks" else None)
            _require(isinstance(found, kind), path, key, found)
        for key in ("loops", "callbacks"):
            for name, state in content["lightning"].get(key, {}).items():
                _require(isinstance(state, dict), path, f"{key}.{name}", state)
        _require("fit_loop" in content["lightning"]["loops"], path, "loops", content["lightning"]["loops"])


def check_form(found: Any, own: Any, path: Path, place: str, may_lack: bool = True) -> None:
    """Require what is about to be taken over to be of the sort that its new owner has: counters, lists, dictionaries.

    Raises:
        CheckpointError: naming the place.
    """
    sort = next((sort for sort in ((int, float), str, list, dict) if isinstance(own, sort)), None)
    _require(sort is None or found is None or isinstance(found, sort), path, place, found)
    if sort is dict and isinstance(found, dict):
        _require(may_lack or own.keys() <= found.keys(), path, place, found)
        for key in own.keys() & found.keys():
            check_form(found[key], own[key], path, f"{place}.{key}", may_lack=key.endswith("state_dict"))


def _check_optimizer(entry: Any, path: Path) -> None:
    fine = isinstance(entry, dict) and isinstance(entry.get("class"), str) and isinstance(entry.get("groups"), list)
    _require(fine, path, "optimizers", entry)
    for group in entry["groups"]:
        _require(isinstance(group, dict) and isinstance(group.get("names"), list), path, "groups", group)
        numbers = group.get("numbers")
        fine = isinstance(numbers, dict) and isinstance(numbers.get("lr"), int | float)
        _require(fine, path, "numbers of a group", numbers)


def _whole_number(value: Any, low: int, high: int, path: Path, what: str) -> None:
    if not (_is_whole(value) and low <= value <= high):
        raise CheckpointError(f"{path}: {what} = {value!r:.60}, expected a whole number from {low} to {high}")


def _require(fine: bool, path: Path, what: str, value: Any) -> None:
    if not fine:
        shown = f"{type(value).__name__} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise CheckpointError(f"{path}: {str(what)[:80]} = {shown[:60]}, which no checkpoint has; it was changed")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (_is_plain(value) and value.numel() == 1)


def _is_plain(value: Any) -> bool:
    """Say whether it is a tensor like any other; one number that is repeated would cost more memory than its file."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()
