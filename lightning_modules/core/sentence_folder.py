"""Folders that sentence-transformers opens: an encoder, how its tokens become one vector, and how that is cut.

They are written in the words of its version 3, which later ones read too, and name stock modules alone: Transformer,
Pooling, Dense for a cut, Normalize. The one stock way to cut before the vector is scaled to length one is a Dense layer
without bias or activation whose weight is the first rows of the identity: each coordinate is multiplied by one, and
added to zeros. (`truncate_dim` of a folder's configuration cuts after the last module, so what comes out is shorter.)

Shape suffixes: M texts, D coordinates.
"""

import copy
import filecmp
import json
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.export import save_network, without_pooler

POOLERS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}
OTHER_POOLERS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")
PADDING = ("pad_token", "eos_token", "unk_token", "bos_token")  # what can stand where nothing looks
GENERAL_TOKENIZER = "TokenizersBackend", "PreTrainedTokenizerFast"  # how transformers 5 and 4 call the same
AS_TRAINED = {
    "padding_side": "right",
    "split_special_tokens": True,
    "model_input_names": ["input_ids", "attention_mask"],
}
POOLING, DENSE = "1_Pooling", "2_Dense"
LARGEST_DIFFERENCE = 1e-5  # between vectors of length one


class Form(NamedTuple):
    """What a folder says besides the network and the tokenizer."""

    pooling: str
    dim: int  # width of the vectors
    max_tokens: int
    prompts: dict[str, str]  # what stands in front of a text, by name
    prompt: str = ""  # what does where none is asked for


def write(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, form: Form, twin: Path | None = None
) -> None:
    """Write a folder; network and tokenizer are read back and compared.

    Args:
        network: the network.
        tokenizer: its tokenizer.
        folder: where to.
        form: what else it says.
        twin: a folder that was written with this network and tokenizer before; the new one shares its file of weights.

    Raises:
        RuntimeError: a tensor that was read back differs.
    """
    if twin is None:
        save_network(network, folder, for_texts(tokenizer), form.max_tokens)
    else:
        _share(twin, folder)
    told = folder / "tokenizer_config.json"
    _json(told, {**_read(told), "tokenizer_class": type(tokenizer).__name__.replace(*GENERAL_TOKENIZER)})
    width = network.config.hidden_size
    kinds = ["Transformer", "Pooling", *(["Dense"] if form.dim < width else []), "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    _json(folder / "modules.json", modules)
    chosen = {POOLERS[name]: name == form.pooling for name in POOLERS}
    pooling = {"word_embedding_dimension": width, **chosen, **dict.fromkeys(OTHER_POOLERS, False)}
    _json(folder / POOLING / "config.json", pooling | {"include_prompt": True})
    if form.dim < width:
        sizes = {"in_features": width, "out_features": form.dim, "bias": False}
        _json(folder / DENSE / "config.json", sizes | {"activation_function": "torch.nn.modules.linear.Identity"})
        (folder / DENSE / "model.safetensors").write_bytes(save({"linear.weight": torch.eye(form.dim, width)}))
        if _cut(folder / DENSE, width) != form.dim:
            raise RuntimeError(f"{folder / DENSE}: reads back differently")
    sizes = {"max_seq_length": form.max_tokens, "do_lower_case": False, "model_args": without_pooler(network)}
    _json(folder / "sentence_bert_config.json", sizes)
    versions = {"transformers": transformers.__version__, "pytorch": torch.__version__}
    known = {"prompts": form.prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _json(folder / "config_sentence_transformers.json", {"__version__": versions, **known})


def _share(twin: Path, folder: Path) -> None:
    """Copy a folder, but link its weights: read-only, as whoever writes into one of the files writes into all."""
    folder.mkdir()
    for file in filter(Path.is_file, twin.iterdir()):
        new = folder / file.name
        if file.suffix == ".safetensors":
            with suppress(OSError):  # a disk without links
                new.hardlink_to(file)
                new.chmod(new.stat().st_mode & 0o444)
        if not new.exists():
            shutil.copyfile(file, new)
            if not filecmp.cmp(file, new, shallow=False):
                raise RuntimeError(f"{new}: reads back differently")


def for_texts(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer that does with padded batches what ours does with flat ones.

    Padding is on the right, where no position is counted from it; "[SEP]" in a text is characters; there is one
    segment, so no number of it is handed over: GPT-2 would add the vector of a word for it.
    """
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in AS_TRAINED.items():
        setattr(tokenizer, name, value)
    tokenizer.init_kwargs |= AS_TRAINED  # of those names alone is anything saved
    known = [getattr(tokenizer, name) for name in PADDING] + [tokenizer.convert_ids_to_tokens(0)]
    tokenizer.pad_token = next(filter(None, known))
    tokenizer.backend_tokenizer.no_truncation()  # left behind by its last use, and saved with it
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Form:
    """Read what a folder says besides the network and the tokenizer.

    Raises:
        CheckpointError: it is no such folder, or what it does to vectors is more than pooling, a cut and scaling.
    """
    try:
        modules = _read(folder / "modules.json")
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or not {*kinds[2:]} <= {"Dense", "Normalize"}:
            raise CheckpointError(f"{folder}: is made of {', '.join(kinds)}; only Pooling, cuts and Normalize are read")
        pooling = _read(folder / modules[1]["path"] / "config.json")
        dim = pooling.get("word_embedding_dimension") or pooling["embedding_dimension"]
        for module, kind in zip(modules, kinds, strict=True):
            dim = _cut(folder / module["path"], dim) if kind == "Dense" else dim
        sizes = _read(folder / "sentence_bert_config.json")
        if sizes.get("do_lower_case"):
            raise CheckpointError(f"{folder}: lowers the case of texts before its tokenizer; that is not read")
        known = folder / "config_sentence_transformers.json"
        told = _read(known) if known.is_file() else {}
        prompts, longest = told.get("prompts") or {}, sizes.get("max_seq_length")
        dim = min(dim, told.get("truncate_dim") or dim)
        if not (longest is None or (isinstance(longest, int) and longest > 0)):
            raise ValueError(f"max_seq_length = {longest}")
        default = prompts[told["default_prompt_name"]] if told.get("default_prompt_name") else ""
        return Form(_pooler(folder, pooling), dim, longest, prompts, default)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise CheckpointError(f"{folder}: is no folder of sentence-transformers that can be read ({reason})") from error


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _pooler(folder: Path, pooling: dict[str, Any]) -> str:
    if "pooling_mode" in pooling:  # as later versions write it
        modes = [pooling["pooling_mode"]] if isinstance(pooling["pooling_mode"], str) else pooling["pooling_mode"]
        named = {"lasttoken": "last", "weightedmean": "weighted_mean"}
    else:
        modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value]
        named = {key: name for name, key in POOLERS.items()}
    found = [named.get(mode, mode) for mode in modes]
    if len(found) != 1 or found[0] not in POOLERS or pooling.get("include_prompt") is False:
        raise CheckpointError(f"{folder}: pools by {' and '.join(found)}; only one of {', '.join(POOLERS)} is read")
    return found[0]


def _cut(folder: Path, width: int) -> int:
    """Return to how many coordinates a Dense layer cuts."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    weight = weights.pop("linear.weight")
    plain = str(_read(folder / "config.json")["activation_function"]).endswith("Identity")
    if weights or not plain or not torch.equal(weight, torch.eye(len(weight), width)):
        raise CheckpointError(f"{folder}: is a layer with weights of its own; only cuts are read")
    return len(weight)


def prove(folder: Path, texts: list[str], vectors_MD: Tensor) -> bool:
    """Encode texts as a user of sentence-transformers does and compare with vectors that are to come out.

    A coordinate may be off by 1e-5, or by as much of the uncut vector where the cut one is a small part of it. Returns
    false where sentence-transformers is not installed.

    Args:
        folder: what was written.
        texts: any texts.
        vectors_MD: their whole vectors, before they are cut and scaled.

    Raises:
        RuntimeError: a vector differs.
    """
    if find_spec("sentence_transformers") is None:
        return False
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    found_MD = torch.from_numpy(model.encode(texts, batch_size=4, show_progress_bar=False))
    cut_MD = vectors_MD[:, : read(folder).dim]
    allowed_M = LARGEST_DIFFERENCE * (vectors_MD.norm(dim=1) / cut_MD.norm(dim=1).clamp(min=1e-12)).clamp(min=1)
    if found_MD.shape != cut_MD.shape:
        raise RuntimeError(f"{folder}: gives vectors of width {found_MD.shape[-1]} in place of {cut_MD.shape[-1]}")
    off_M = (found_MD - F.normalize(cut_MD)).abs().amax(1)
    if not bool((off_M <= allowed_M).all()):
        raise RuntimeError(f"{folder}: sentence-transformers reads other vectors out of it, by up to {off_M.max():.1e}")
    return True
