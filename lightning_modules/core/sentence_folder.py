"""Folders that sentence-transformers opens: an encoder, how its tokens become one vector, and how that is cut.

They are written in the words of its version 3, which later ones read too, and name stock modules alone: Transformer,
Pooling, what the encoder began with behind it, Dense for a cut, Normalize. The one stock way to cut before the vector
is scaled to length one is a Dense layer without bias or activation whose weight is the first rows of the identity: each
coordinate is multiplied by one, and added to zeros. (`truncate_dim` of a folder's configuration cuts after the last
module, so what comes out is shorter.)

Shape suffixes: M texts, D coordinates.
"""

import filecmp
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.core.export import save_network, with_options, without_pooler
from lightning_modules.core.sentence_form import Form, Layer, width_after
from lightning_modules.core.sentence_reading import LEGACY, MODULES, NAMES, read

PADDING = ("pad_token", "eos_token", "unk_token", "bos_token")  # what can stand where nothing looks
GENERAL_TOKENIZER = "TokenizersBackend", "PreTrainedTokenizerFast"  # how transformers 5 and 4 call the same
AS_TRAINED = {
    "padding_side": "right",
    "split_special_tokens": True,
    "model_input_names": ["input_ids", "attention_mask"],
}
DENSE = ("in_features", "out_features", "bias", "activation", "use_residual")
LARGEST_DIFFERENCE = 1e-5  # between vectors of length one


def write(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    form: Form,
    twin: Path | None = None,
    head: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a folder; network and tokenizer are read back and compared.

    Args:
        network: the network.
        tokenizer: its tokenizer.
        folder: where to.
        form: what else it says.
        twin: a folder that was written with this network and tokenizer before; the new one shares its file of weights.
        head: weights of the form's head, by their names in `Head`.

    Raises:
        RuntimeError: what was read back differs.
    """
    if twin is None:
        save_network(network, folder, for_texts(tokenizer), form.max_tokens)
    else:
        _share(twin, folder)
    told = folder / "tokenizer_config.json"
    _json(told, {**_read(told), "tokenizer_class": type(tokenizer).__name__.replace(*GENERAL_TOKENIZER)})
    width = width_after(network.config.hidden_size * len(form.modes), form.head)
    cut = [Layer("Dense", dict(zip(DENSE, (width, form.dim, False, "Identity", False), strict=True)))]
    layers = [*form.head, *(cut if form.dim < width else []), *([Layer("Normalize")] if form.normalize else [])]
    kinds = ["Transformer", "Pooling", *(layer.kind for layer in layers)]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    _json(folder / MODULES, modules)
    _write_pooling(folder / modules[1]["path"], network.config.hidden_size, form)
    weights = group(head or {}) | (
        {len(form.head): {"linear.weight": torch.eye(form.dim, width)}} if form.dim < width else {}
    )
    for number, (layer, module) in enumerate(zip(layers, modules[2:], strict=True)):
        _write_layer(folder / module["path"], layer, weights.get(number))
    sizes = {"max_seq_length": form.max_tokens, "do_lower_case": False, "model_args": without_pooler(network)}
    _json(folder / "sentence_bert_config.json", sizes)
    versions = {"transformers": transformers.__version__, "pytorch": torch.__version__}
    known = {"prompts": form.prompts, "default_prompt_name": form.default, "similarity_fn_name": form.similarity}
    cut_last = {} if form.truncate is None else {"truncate_dim": form.truncate}
    _json(folder / "config_sentence_transformers.json", {"__version__": versions, **known, **cut_last})
    again = read(folder)
    if again._replace(head=bare(again.head)) != form._replace(head=bare(form.head)):
        raise RuntimeError(f"{folder}: reads back as {again}, not {form}")


def _write_pooling(folder: Path, width: int, form: Form) -> None:
    poolers = [*form.modes]
    told = {"word_embedding_dimension": width, **{name: mode in poolers for name, mode in LEGACY.items()}}
    told["include_prompt"] = form.include_prompt
    if poolers != [mode for mode in LEGACY.values() if mode in poolers]:  # an order that the flags cannot say
        told["pooling_mode"] = [name for mode in poolers for name, own in NAMES.items() if own == mode]
    _json(folder / "config.json", told)


def _write_layer(folder: Path, layer: Layer, weights: dict[str, Tensor] | None) -> None:
    options = {name: value for name, value in layer.options.items() if (name, value) != ("use_residual", False)}
    if "activation" in options:
        name = options.pop("activation")
        options["activation_function"] = f"{getattr(torch.nn, name).__module__}.{name}"
    if layer.kind == "Normalize":
        folder.mkdir()  # it has no options, and version 3 looks for the folder
    else:
        _json(folder / "config.json", options)
    if weights is not None:
        (folder / "model.safetensors").write_bytes(save(weights))


def bare(head: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the layers of a head without where their weights lie."""
    return tuple(layer._replace(path="") for layer in head)


def group(weights: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Sort the weights of a head by the place of their layer."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        number, _, own = name.partition(".")
        found.setdefault(int(number), {})[own] = weight.detach().cpu().contiguous()
    return found


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
    tokenizer = with_options(tokenizer, **AS_TRAINED)
    known = [getattr(tokenizer, name) for name in PADDING] + [tokenizer.convert_ids_to_tokens(0)]
    tokenizer.pad_token = next(filter(None, known))
    tokenizer.backend_tokenizer.no_truncation()  # left behind by its last use, and saved with it
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def prove(folder: Path, texts: list[str], vectors_MD: Tensor) -> bool:
    """Encode texts as a user of sentence-transformers does and compare with vectors that are to come out.

    A coordinate may be off by 1e-5, or by as much of the uncut vector where that is longer than what is kept. Returns
    false where sentence-transformers is not installed.

    Args:
        folder: what was written.
        texts: any texts.
        vectors_MD: their whole vectors, as the head gives them, before they are cut and scaled.

    Raises:
        RuntimeError: a vector differs.
    """
    if find_spec("sentence_transformers") is None:
        return False
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    found_MD = torch.from_numpy(model.encode(texts, prompt="", batch_size=4, show_progress_bar=False))
    form = read(folder)
    cut_MD, wanted_MD = vectors_MD[:, : form.dim], form.finish(vectors_MD)
    length_M = cut_MD.norm(dim=1).clamp(min=1e-12)
    allowed_M = LARGEST_DIFFERENCE * (vectors_MD.norm(dim=1) / (length_M if form.normalize else 1)).clamp(min=1)
    if found_MD.shape != wanted_MD.shape:
        raise RuntimeError(f"{folder}: gives vectors of width {found_MD.shape[-1]} in place of {wanted_MD.shape[-1]}")
    off_M = (found_MD - wanted_MD).abs().amax(1)
    if not bool((off_M <= allowed_M).all()):
        raise RuntimeError(f"{folder}: sentence-transformers reads other vectors out of it, by up to {off_M.max():.1e}")
    return True
