"""Folders of sentence-transformers, of any version, read whole: what is not understood is refused by its name."""

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer as Words
from torch import Tensor

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.sentence_form import ACTIVATIONS, Form, Layer, width_after

MODULES = "modules.json"
LEGACY = {  # as written until version 5, in the order in which several are laid side by side
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
NAMES = {  # since then
    **{"cls": "cls", "max": "max", "mean": "mean", "mean_sqrt_len_tokens": "mean_sqrt_len"},
    **{"weightedmean": "weighted_mean", "lasttoken": "last"},
}
NETWORKS = (
    "Transformer",
    "BERT",
    "RoBERTa",
    "DistilBERT",
    "XLMRoBERTa",
    "CamemBERT",
    "ALBERT",
)  # the last of version 0
SIZES = [f"sentence_{name}_config.json" for name in (
    "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")]  # fmt: skip
HARMLESS = {  # options of the network that change no vector, or that are followed otherwise
    "model": {
        "add_pooling_layer",
        "attn_implementation",
        "torch_dtype",
        "dtype",
        "use_safetensors",
        "low_cpu_mem_usage",
    },
    "tokenizer": {"model_max_length", "use_fast", "padding_side", "truncation_side", "clean_up_tokenization_spaces"},
    "config": {"use_cache", "output_hidden_states", "output_attentions"},
}
ARGUMENTS = {"model": "model_kwargs", "tokenizer": "processor_kwargs", "config": "config_kwargs"}  # newer names
LAYERS = {
    "Dense": ("in_features", "out_features"),
    "LayerNorm": ("dimension",),
    "Dropout": ("dropout",),
    "Normalize": (),
}
USUAL = {  # what else may stand beside the longest text, with the only values that are followed
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    **dict.fromkeys(("processing_kwargs", "query_length", "document_length", "query_expansion"), (None, {})),
}
UNLIMITED = 10**9  # what a tokenizer without a limit has is more
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, SafetensorError)


def read(folder: Path, drop: Collection[str] = ()) -> Form:
    """Read what a folder says besides the network and the tokenizer.

    Args:
        folder: it holds modules.json.
        drop: modules and settings that are left out, by the names that a refusal calls them.

    Raises:
        CheckpointError: it is no such folder, does something that is not read here, or has nothing of a name in `drop`.
    """
    try:
        return _Reader(folder, drop).form()
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise CheckpointError(f"{folder}: is no folder of sentence-transformers that can be read ({reason})") from error


def network_folder(folder: Path) -> Path:
    """Return where the network lies: the folder itself, or 0_Transformer in it.

    Raises:
        CheckpointError: its first module is no network of transformers.
    """
    try:
        first = _json(folder / MODULES)[0]
        if _kind(first) not in NETWORKS:
            raise CheckpointError(
                f"{folder}: begins with {first['type']}, which is no network of transformers; give another"
            )
        return folder / first["path"]
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise CheckpointError(f"{folder}: is no folder of sentence-transformers that can be read ({reason})") from error


def read_head(folder: Path, form: Form) -> dict[str, Tensor]:
    """Read the weights of a form's head, by their names in `Head`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    found = {}
    for number, layer in enumerate(form.head):
        if layer.kind in ("Dense", "LayerNorm"):
            found |= {f"{number}.{name}": weight for name, weight in _weights(folder / layer.path).items()}
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _kind(module: dict[str, Any]) -> str:
    """Return the name of a module's class, with its package where that is not sentence-transformers."""
    path = str(module["type"])
    return path.rpartition(".")[2] if path.startswith("sentence_transformers.") else path


def _weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of one module; pickled objects are never made."""
    try:
        if (folder / "model.safetensors").is_file():
            found = load_file(folder / "model.safetensors")
        else:
            found = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return {name: weight.float() for name, weight in found.items()}
    except Exception as error:  # of a damaged file, torch raises a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder.parent}: the weights of {folder.name} cannot be read ({reason})") from error


def _width(network: Path) -> int | None:
    """Return how wide a network says that it is; None where it says it otherwise, or its reader has to refuse it."""
    with suppress(OSError, ValueError, AttributeError):
        return _json(network / "config.json").get("hidden_size")
    return None


class _Reader:
    """One folder, and the names in `drop` of which nothing was met yet."""

    def __init__(self, folder: Path, drop: Collection[str]) -> None:
        self.folder, self.drop, self.unmet = folder, set(drop), [*dict.fromkeys(drop)]

    def form(self) -> Form:
        """Read all files but those of the network and the tokenizer."""
        modules = [(_kind(module), self.folder / module["path"]) for module in _json(self.folder / MODULES)]
        longest = self._sizes(network_folder(self.folder))
        poolers, head = None, []
        for kind, place in modules[1:]:
            if kind == "Pooling" and poolers is None:
                poolers = self._poolers(_json(place / "config.json"))
                width, include = self._pooled(place)
            elif kind not in LAYERS or poolers is None:
                self._refuse(kind, f"has a module {kind}{' before pooling' if poolers is None else ''}")
            elif not self._drops(kind):
                head.append(self._layer(kind, place))
        if poolers is None:
            raise CheckpointError(
                f"{self.folder}: has no Pooling; it is made of {', '.join(kind for kind, _ in modules)}"
            )
        normalize = False
        while head and head[-1].kind == "Normalize":
            normalize = bool(head.pop())
        gives = _width(network_folder(self.folder))
        if gives not in (None, width):
            raise CheckpointError(f"{self.folder}: its network gives vectors of width {gives}, Pooling says {width}")
        width *= 1 if isinstance(poolers, str) else len(poolers)
        dim = width_after(width, tuple(head))
        if head and _is_cut(head[-1], self.folder):
            head.pop()
        form = Form(poolers, dim, longest, **self._settings(), head=tuple(head), normalize=normalize)
        if self.unmet:
            kinds = ", ".join(kind for kind, _ in modules)
            raise CheckpointError(f"{self.folder}: has no {self.unmet[0]} to be left out; it is made of {kinds}")
        return form._replace(include_prompt=include)

    def _drops(self, name: str) -> bool:
        self.unmet = [other for other in self.unmet if other != name]
        return name in self.drop

    def _refuse(self, name: str, problem: str) -> None:
        if not self._drops(name):
            raise CheckpointError(
                f"{self.folder}: {problem}, which is not kept; drop_modules: [{name}] goes on without it"
            )

    def _sizes(self, place: Path) -> int | None:
        """Return the longest text in tokens, and look at what else is said of the network."""
        told = next((_json(place / name) for name in SIZES if (place / name).is_file()), {})
        for group, newer in ARGUMENTS.items():
            given = {**(told.get(f"{group}_args") or {}), **(told.get(newer) or {})}
            for name in sorted(given.keys() - HARMLESS[group] - {"trust_remote_code"}):
                self._refuse(name, f"opens its {group} with {name} = {given[name]!r}")
        for name, usual in USUAL.items():
            if told.get(name, usual[0]) not in usual:
                self._refuse(name, f"is run with {name} = {told[name]!r}")
        if told.get("do_lower_case") and not _lowers(place):
            self._refuse("do_lower_case", "lowers the case of texts before its tokenizer")
        longest = told.get("max_seq_length")
        if longest is None and (place / "tokenizer_config.json").is_file():  # where later versions write it
            length = _json(place / "tokenizer_config.json").get("model_max_length")
            longest = length if isinstance(length, int) and length < UNLIMITED else None
        if not (longest is None or (isinstance(longest, int) and longest > 0)):
            raise ValueError(f"max_seq_length = {longest}")
        return longest

    def _poolers(self, told: dict[str, Any]) -> str | tuple[str, ...]:
        modes = told.get("pooling_mode")
        if modes is None:
            modes = [name for name, value in told.items() if name.startswith("pooling_mode_") and value]
            modes = [mode for mode in LEGACY if mode in modes] + [mode for mode in modes if mode not in LEGACY]
        modes = [modes] if isinstance(modes, str) else modes or ["mean"]
        found = [{**NAMES, **LEGACY}.get(mode, mode) for mode in modes]
        if unknown := [mode for mode in found if mode not in NAMES.values()]:
            raise CheckpointError(f"{self.folder}: pools by {' and '.join(found)}; {unknown[0]} is not known")
        return found[0] if len(found) == 1 else tuple(found)

    def _pooled(self, place: Path) -> tuple[int, bool]:
        told = _json(place / "config.json")
        include = told.get("include_prompt", True) is not False or self._drops("include_prompt")
        return told.get("word_embedding_dimension") or told["embedding_dimension"], include

    def _layer(self, kind: str, place: Path) -> Layer:
        told = _json(place / "config.json") if (place / "config.json").is_file() else {}
        path = place.relative_to(self.folder).as_posix()
        for name in ("module_input_name", "module_output_name"):
            if told.get(name) not in (None, "sentence_embedding"):
                raise CheckpointError(f"{self.folder}: {kind} has {name} = {told[name]}, not the vectors of texts")
        if kind != "Dense":
            return Layer(kind, {name: told[name] for name in LAYERS[kind]}, path)
        package, _, activation = str(told.get("activation_function", "torch.nn.Tanh")).rpartition(".")
        if not package.startswith("torch.nn") or activation not in ACTIVATIONS:
            raise CheckpointError(
                f"{self.folder}: Dense has the activation {package}.{activation}, which is not known; "
                "drop_modules: [Dense] goes on without the layer"
            )
        sizes = {name: told[name] for name in LAYERS["Dense"][:2]}
        more = {
            "bias": told.get("bias", True),
            "activation": activation,
            "use_residual": told.get("use_residual", False),
        }
        return Layer(kind, sizes | more, path)

    def _settings(self) -> dict[str, Any]:
        file = self.folder / "config_sentence_transformers.json"
        told = _json(file) if file.is_file() else {}
        if (kind := told.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
            raise CheckpointError(f"{self.folder}: is a {kind}, not a SentenceTransformer")
        prompts, default = told.get("prompts") or {}, told.get("default_prompt_name")
        if default is not None and default not in prompts:
            raise ValueError(f"default_prompt_name = {default}")
        return {
            "prompts": prompts,
            "default": default,
            "truncate": told.get("truncate_dim"),
            "similarity": told.get("similarity_fn_name") or "cosine",
        }


def _is_cut(layer: Layer, folder: Path) -> bool:
    """Tell whether a Dense layer only keeps the first coordinates."""
    plain = layer.kind == "Dense" and layer.options["activation"] == "Identity" and not layer.options["use_residual"]
    if not plain or layer.options["in_features"] < layer.options["out_features"]:
        return False
    weights = _weights(folder / layer.path)
    weight = weights.pop("linear.weight")
    return not weights and torch.equal(weight, torch.eye(*weight.shape, device="cpu"))


def _lowers(place: Path) -> bool:
    """Tell whether a tokenizer lowers the case of texts anyway."""
    if (place / "tokenizer.json").is_file():
        normalizer = Words.from_file(str(place / "tokenizer.json")).normalizer
        return normalizer is not None and normalizer.normalize_str("A") == "a"
    told = place / "tokenizer_config.json"
    return told.is_file() and _json(told).get("do_lower_case") is True
