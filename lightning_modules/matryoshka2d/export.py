"""Cut models as folders of sentence-transformers: which cells there are, and each proved by reading it back."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_modules.core import sentence_folder
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoders import cut
from lightning_modules.matryoshka2d.card import Exported, card
from lightning_modules.matryoshka2d.encoder import MatryoshkaEncoder
from lightning_modules.matryoshka2d.grid import Cell
from lightning_modules.matryoshka2d.modes import Settings, judged_widths, trained
from lightning_modules.matryoshka2d.record import Record, record_of

if TYPE_CHECKING:
    from lightning_modules.matryoshka2d.module import Matryoshka2d

PROBE_LENGTHS = (0, 1, 3, 0.3, 0.6, 1.0, 2.0)  # tokens; fractions are of the longest text


def check(num_layers: int, width: int, layers: int | None, dim: int | None, all_cells: bool) -> None:
    """Refuse a cell that an encoder has not.

    Raises:
        ValueError: the flag, its value, the rule.
    """
    if all_cells and (layers is not None or dim is not None):
        raise ValueError("--all-cells: writes every cell; leave out --layers and --dim")
    if layers is not None and not 1 <= layers <= num_layers:
        raise ValueError(
            f"--layers {layers}: the encoder has {num_layers} layers; give a number from 1 to {num_layers}"
        )
    if dim is not None and not 1 <= dim <= width:
        raise ValueError(f"--dim {dim}: the encoder's vectors have width {width}; give a number from 1 to {width}")


def export(
    method: "Matryoshka2d",
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    run: Path,
    step: int,
    layers: int | None,
    dim: int | None,
    all_cells: bool,
) -> list[str]:
    """Write one cut model, or one for each cell in folders such as 3x128; returns what to tell the user.

    Raises:
        CheckpointError: the run's newest grid cannot be read.
        RuntimeError: what was read back differs from what was written.
    """
    record = record_of(run, step)
    form = record.handed_on(method.form)
    form = form._replace(max_tokens=min(form.max_tokens, method.model.encoder.max_tokens))
    if dim is not None or all_cells:  # how many coordinates are kept is said anew
        form = form._replace(truncate=None)
    encoder = MatryoshkaEncoder(method.model.encoder, tokenizer, form, device="cpu", head=method.model.head)
    cells = [(layers or encoder.layers, dim or form.dim)]
    if all_cells:
        usual = judged_widths(method.settings, encoder.layers, form.dim)
        cells = every_cell(record, encoder.layers, usual)
    texts = probes(encoder)
    depths = sorted({layer for layer, _ in cells})
    proved = True
    for depth, vectors_MD in zip(depths, encoder.table(texts, depths), strict=True):
        places = {d: folder / f"{depth}x{d}" if all_cells else folder for layer, d in cells if layer == depth}
        proved &= _one_depth(method, encoder, record, depth, places, (texts, vectors_MD))
    untrained = [f"warning: {problem}" for problem in not_trained(method.settings, encoder.layers, form.dim, cells)]
    done = "vectors that sentence-transformers reads out of it equal the run's own"
    return [*untrained, done if proved else "sentence-transformers is not installed, so no vector was compared"]


def _one_depth(
    method: "Matryoshka2d",
    encoder: MatryoshkaEncoder,
    record: Record,
    depth: int,
    places: dict[int, Path],
    probed: tuple[list[str], Tensor],
) -> bool:
    network, proved, first = cut(encoder.encoder.network, depth), True, None
    for dim, place in places.items():
        form = encoder.form._replace(dim=dim)
        place.parent.mkdir(parents=True, exist_ok=True)
        sentence_folder.write(network, encoder.tokenizer, place, form, first, encoder.head.state_dict())
        first = first or place
        whole = encoder.form.dim
        notes = not_trained(method.settings, encoder.layers, whole, [(depth, dim)])
        known = trained(method.settings, encoder.layers, whole)
        model = Exported(network, form, depth, encoder.layers, whole, known, notes)
        text = card(model, method, record)
        (place / "README.md").write_text(text, encoding="utf-8")
        proved &= sentence_folder.prove(place, *probed)
    return proved


def every_cell(record: Record, num_layers: int, usual: Sequence[int]) -> list[Cell]:
    """Return the cells of the grid of this step, else the newest, else all layers with the usual widths.

    Layer 0 stands for no model and is left out.
    """
    grids = record.grids()
    if grids:
        grid = grids[0].grid()
        found = [(n, d) for n in grid.layers for d in grid.dims if 1 <= n <= num_layers and 1 <= d <= usual[-1]]
        if not found:
            raise CheckpointError(f"{grids[0].file}: has no cell that can be exported; name one by --layers and --dim")
        return found
    return [(n, d) for n in range(1, num_layers + 1) for d in usual]


def not_trained(settings: Settings, num_layers: int, width: int, cells: Iterable[Cell]) -> list[str]:
    """Say which of the cells training never saw, a line for each layer, or one for all where layers are alike."""
    known = trained(settings, num_layers, width)
    alike = len({frozenset(widths) for widths in known.values()}) == 1
    layers, missed = {}, {}
    for layer, dim in cells:
        if layer not in known:
            layers[layer] = f"layer {layer} was not trained to end the model; this run trained {_list(known)}"
        elif dim not in known[layer]:
            missed.setdefault(0 if alike else layer, set()).add(dim)
    widths = [
        f"width{'s' * (len(dims) > 1)} {_list(dims)} {'were' if len(dims) > 1 else 'was'} not trained"
        f"{f' at layer {layer}' if layer else ''}; this run trained {_list(known[layer or num_layers])}"
        for layer, dims in missed.items()
    ]
    return [*layers.values(), *widths]


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def probes(encoder: MatryoshkaEncoder) -> list[str]:
    """Return texts of all lengths, one too long and one empty, made of words from the whole vocabulary."""
    draws = np.random.Generator(np.random.Philox(0))
    counts: Sequence[int] = [int(n * encoder.max_tokens) if isinstance(n, float) else n for n in PROBE_LENGTHS]
    ids = [draws.integers(len(encoder.tokenizer), size=count).tolist() for count in counts]
    texts = [encoder.tokenizer.decode(own).strip() for own in ids]
    return [text for text in texts if encoder.tokenizer(text, truncation=True, max_length=9)["input_ids"]]
