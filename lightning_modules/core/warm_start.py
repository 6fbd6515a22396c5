"""Starting from weights that exist: a run of ours, a Hugging Face folder, or a hub name. Weights only."""

import pickle
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.verify import newest_complete
from lightning_modules.core.weights import shape_of, unpartitioned, whole


def checkpoint_of(source: str) -> Path | None:
    """Return the checkpoint that a run folder or a checkpoint folder stands for; None if the source is neither.

    Raises:
        CheckpointError: a run folder without a complete checkpoint.
    """
    folder = Path(source)
    if (folder / "manifest.json").is_file():
        return folder
    if not (folder / "checkpoints").is_dir():
        return None
    newest = newest_complete(folder / "checkpoints")
    if newest is None:
        raise CheckpointError(f"{folder / 'checkpoints'}: holds no complete checkpoint")
    return newest


UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, ZeroDivisionError),
    *(pickle.UnpicklingError, SafetensorError, StrictDataclassError),
)

COMPUTES = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # what no shape of a weight shows
REASONS = {  # what transformers and torch say, and what it comes to
    "Weights only load failed": "its weights are a pickle that carries code, which is never run; save safetensors",
    "contains custom code": "it is built by code of its own, which is never run; give a model that transformers knows",
    "ignore_mismatched_sizes": "its weights have other shapes than its config.json says; give what belongs together",
}
POINTER = b"version https://git-lfs.github.com/spec/"


def _is_pointer(folder: Path) -> bool:
    """Say whether weights in a folder are pointers of git-lfs, in place of the files."""
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        with suppress(OSError), file.open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                return True
    return False


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Tell in one line why transformers cannot read a source; code and pickled objects in it are never run.

    Raises:
        CheckpointError: naming the source and the reason.
    """
    path = Path(source)
    is_path = path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if path.is_file() or (is_path and not path.exists()):
        problem = "is a file; give its folder" if path.is_file() else "there is no such folder"
        raise CheckpointError(f"model.init_from = {source}: {problem}")
    try:
        with unpartitioned():
            yield
    except UNREADABLE as error:
        reason = next((ours for theirs, ours in REASONS.items() if theirs in str(error)), None)
        reason = reason or " ".join(str(error).split())[:200] or type(error).__name__
        reason = "its weights are a git-lfs pointer; fetch them by `git lfs pull`" if _is_pointer(path) else reason
        raise CheckpointError(
            f"model.init_from = {source}: no run, folder or hub model can be read there: {reason}"
        ) from error


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights by name into a module; tied parameters go by their first name.

    Raises:
        CheckpointError: naming a parameter that is missing, unknown, or of another shape.
    """
    targets = dict(module.named_parameters()) | dict(module.named_buffers())
    targets = {name: tensor for name, tensor in targets.items() if name in weights or isinstance(tensor, nn.Parameter)}
    for names, complaint in ((targets.keys() - weights.keys(), "lacks"), (weights.keys() - targets.keys(), "also has")):
        if names:
            raise CheckpointError(
                f"{source}: {complaint} {sorted(names)[0]} ({len(names)} names differ); build the model "
                "with the options it was trained with"
            )
    with torch.no_grad():
        for name, target in targets.items():
            if not torch.isfinite(weights[name]).all():
                raise CheckpointError(f"{source}: {name} holds NaN or infinite values; save the weights again")
            found, wanted = list(weights[name].shape), shape_of(target)
            if found != wanted:
                raise CheckpointError(f"{source}: {name} has shape {found}, the model built here has {wanted}")
            with whole([target]):
                target.copy_(weights[name])


def load_pretrained(network: PreTrainedModel, source: str) -> None:
    """Copy the weights of a Hugging Face folder or hub name into a network of the same class.

    Raises:
        CheckpointError: the source is not there, lacks a weight, has other sizes, or computes otherwise.
    """
    with readable(source):
        other = type(network.config).from_pretrained(source)
    for name in COMPUTES:
        found, wanted = getattr(other, name, None), getattr(network.config, name, None)
        if found != wanted:
            raise CheckpointError(f"model.init_from = {source}: has {name} = {found}, the model built here {wanted}")
    names = {name for name, _ in network.named_parameters()}
    load_weights(network, read_pretrained(type(network), source, source, names)[0], source)


def read_pretrained(kind: type, folder: str, source: str, names: Set[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Read those of the weights of a folder or hub name that are named, as a class of transformers reads them.

    Returns them, and the names of what else lies there.

    Args:
        kind: the class, or AutoModel.
        folder: where they lie.
        source: what the user calls it.
        names: parameters that are wanted; transformers makes up those that are missing, and says so of all.

    Raises:
        CheckpointError: the source is not there, or lacks a weight.
    """
    with readable(source), quiet():
        config = (getattr(kind, "config_class", None) or AutoConfig).from_pretrained(folder, trust_remote_code=False)
        config._attn_implementation = "eager"  # it is read, not run: not by what the folder wishes for
        found, info = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(names & set(info["missing_keys"])):
        hint = "; model.head: linear takes none" if missing[0].startswith("pooler") else ""
        raise CheckpointError(
            f"model.init_from = {source}: holds no {missing[0]} ({len(missing)} weights are missing){hint}"
        )
    weights = dict(found.named_parameters())
    others = weights.keys() - names - set(info["missing_keys"])
    left = sorted(others | set(info["unexpected_keys"]))
    return {name: weight for name, weight in weights.items() if name in names}, left


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from telling of weights that are made up."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
