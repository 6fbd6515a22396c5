"""The model card of an exported encoder: what it is, how it was trained, what was measured, how it is used."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from lightning_modules.core.base_loss import ARGUMENTS
from lightning_modules.core.export import without_pooler
from lightning_modules.core.sentence_form import Form
from lightning_modules.matryoshka2d.grid import BYTES_PER_COORDINATE, Cell, Grid
from lightning_modules.matryoshka2d.grid_report import headlines
from lightning_modules.matryoshka2d.record import Measured, Record

if TYPE_CHECKING:
    from lightning_modules.matryoshka2d.module import Matryoshka2d

POOLED = {  # of hidden states and a mask with padding on the right
    "cls": "vectors = hidden[:, 0]",
    "mean": "vectors = (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)",
    "last": "vectors = hidden[torch.arange(len(hidden)), keep.sum(1) - 1]",
    "weighted_mean": (
        "weights = keep * torch.arange(1, keep.shape[1] + 1)\n"
        "vectors = (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)"
    ),
    "max": "vectors = hidden.masked_fill(keep[..., None] == 0, -torch.inf).amax(1)",
    "mean_sqrt_len": "vectors = (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).sqrt()",
}
HEAD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
# license: for you to fill in
---
"""


class Exported(NamedTuple):
    """A model as it was written, and what it was cut from."""

    network: PreTrainedModel
    form: Form
    layers: int
    all_layers: int
    width: int
    trained: dict[int, set[int]]  # widths that a loss was put on, by layer
    notes: list[str]  # what training never saw of it


def card(model: Exported, method: "Matryoshka2d", record: Record) -> str:
    """Return the card as Markdown."""
    parts = [HEAD, *_what(model, record), *_use(model), *_training(model, method, record), *_measured(model, record)]
    license_ = (
        "## License\n\nNot stated: fill in `license` above. It depends on the data and on the encoder it began with."
    )
    return "\n".join([*parts, license_, ""])


def _what(model: Exported, record: Record) -> list[str]:
    size = sum(weight.numel() for weight in model.network.parameters())
    layers, dim = f"{model.layers} of {model.all_layers} layers", f"{model.form.dim} of {model.width} coordinates"
    scaled = ", length one" if model.form.normalize else ""
    rows = {
        "encoder": f"{model.network.config.model_type}, {layers}, {size:,} parameters",
        "vector": f"{dim}, float32, {model.form.dim * BYTES_PER_COORDINATE:,} bytes{scaled}",
        "pooling": " and ".join(model.form.modes).replace("_", " "),
        **({"after pooling": ", ".join(map(str, model.form.head))} if model.form.head else {}),
        "longest text": f"{model.form.max_tokens} tokens; what is over is cut off",
        **{f"prompt `{name}`": f"`{_quoted(text)}`" for name, text in model.form.prompts.items()},
    }
    return [
        f"# Sentence encoder, {layers}, {dim}\n",
        "It turns a text into a vector; cosines of vectors compare texts. It is the first layers and coordinates of a "
        f"model of {model.all_layers} layers and {model.width} coordinates, as trained up to step {record.step:,}.\n",
        *(f"Note: {note}.\n" for note in model.notes),
        _table(["", ""], [[name, text] for name, text in rows.items()]),
    ]


def _use(model: Exported) -> list[str]:
    first, *_ = [*(name for name, text in model.form.prompts.items() if text), None]
    prompt = f", prompt_name={first!r}" if first else ""
    options = "".join(f", {name}={value}" for name, value in without_pooler(model.network).items())
    return [
        "## Use\n\n```python",
        "from sentence_transformers import SentenceTransformer\n",
        'model = SentenceTransformer("FOLDER")',
        f'vectors = model.encode(["a text", "another one"]{prompt})  # [2, {model.form.dim}]',
        "```\n",
        *(_by_hand(model, first, options) if not model.form.head else []),
    ]


def _by_hand(model: Exported, first: str | None, options: str) -> list[str]:
    scaled = "torch.nn.functional.normalize({})" if model.form.normalize else "{}"
    poolings = [POOLED[mode] for mode in model.form.modes]
    if len(poolings) > 1:
        poolings = [*(f"{line}\npooled.append(vectors)" for line in poolings), "vectors = torch.cat(pooled, 1)"]
        poolings.insert(0, "pooled = []")
    return [
        "or, without sentence-transformers,\n\n```python",
        "import torch\nfrom transformers import AutoModel, AutoTokenizer\n",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = AutoModel.from_pretrained("FOLDER"{options}).eval()',
        'texts = ["a text", "another one"]' + (f"  # with the prompt {first!r} in front" if first else ""),
        *([f"texts = [{model.form.prompts[first]!r} + text for text in texts]"] if first else []),
        'inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    hidden = model(**inputs).last_hidden_state",
        'keep = inputs["attention_mask"]',
        *poolings,
        f"vectors = {scaled.format(f'vectors[:, :{model.form.dim}]')}",
        "```\n",
    ]


def _training(model: Exported, method: "Matryoshka2d", record: Record) -> list[str]:
    options, trainer = record.options["model"], record.options.get("trainer") or {}
    changed = ", ".join(
        f"{key} {value}" for key, value in (options.get("objective") or {}).items() if value is not None
    )
    last = trainer.get("max_steps")
    rows = {
        "mode": f"{options.get('mode', 'paper')}{' as released' if options.get('as_released') else ''}",
        **({"changed in the mode": changed} if changed else {}),
        "layers and widths trained": _cells(model),
        "loss": _loss(method),
        "began with": _shown(options["init_from"]) if options.get("init_from") else "fresh weights",
        **{f"data{f' `{name}`' if name else ''}": _shown(it["path"]) for name, it in record.sources.items()},
        "steps": f"{record.step:,}{f' of {last:,}' if isinstance(last, int) else ''}, "
        f"{record.data['global_batch_size']:,} examples each",
        "seed": str(record.options.get("seed")),
    }
    return ["## Training\n", _table(["", ""], [[name, text] for name, text in rows.items()])]


def _cells(model: Exported) -> str:
    by_width: dict[tuple[int, ...], list[int]] = {}
    for layer, widths in sorted(model.trained.items()):
        by_width.setdefault(tuple(sorted(widths)), []).append(layer)
    return "; ".join(
        f"{'layers' if len(layers) > 1 else 'layer'} {_list(layers)} at {_list(widths)}"
        for widths, layers in by_width.items()
    )


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _loss(method: "Matryoshka2d") -> str:
    loss = method.loss
    if "scale" not in ARGUMENTS[loss.name]:
        return loss.name
    return f"{loss.name}, scale {'learnt, from ' if loss.learn_scale else ''}{loss.scale:g}"


def _shown(source: str) -> str:
    """Return a source as it was given, without the folders of the machine that it lay on."""
    path = PurePath(source)
    return f"`{path.name if path.is_absolute() or source.startswith(('.', '~')) else source}`"


def _measured(model: Exported, record: Record) -> list[str]:
    grids = record.grids()
    if not grids:
        return []
    found, at = grids[0], (model.layers, model.form.dim)
    grid = found.grid()
    own = grid.cell(*at)
    which = "**this model**" if own else "this model's cell was not measured"
    parts = [f"## Measured\n\n{_told(found, record)} Layers down, coordinates across; {which}.\n"]
    for key in headlines(grid):
        parts += [f"{' '.join(key)}:\n", _heat(grid, grid.table(key), at)]
    if own:
        parts += ["All that was measured of this model:\n"]
        parts += [_table(["", ""], [[name, f"{value:.4f}"] for name, value in own.items()])]
    return parts


def _told(found: Measured, record: Record) -> str:
    other = "" if found.step == record.step else f", not at this model's step {record.step:,}"
    return f"On the {found.split} sets, at step {found.step:,}{other}."


def _heat(grid: Grid, values: np.ndarray, at: Cell) -> str:
    speed, size = grid.costs.sentences_per_second, grid.costs.parameters
    head = ["layers", *(["parameters"] if size else []), *(["sentences/s"] if speed else []), *map(str, grid.dims)]
    rows = []
    for layer, row in reversed(list(zip(grid.layers, values, strict=True))):
        known = [f"{size[layer]:,}" if layer in size else ""] if size else []
        known += [f"{speed[layer]:,.0f}" if layer in speed else ""] if speed else []
        shown = [f"{value:.4f}" if np.isfinite(value) else "-" for value in row]
        marked = [f"**{text}**" if (layer, d) == at else text for d, text in zip(grid.dims, shown, strict=True)]
        rows.append([str(layer), *known, *marked])
    return _table(head, rows, "---:")


def _table(head: list[str], rows: list[list[str]], align: str = "---") -> str:
    lines = [head, [align] * len(head), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\n", "\\n").replace("`", "'")
