"""What a person sees of a grid: heat maps, and tables in Markdown for a model card."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_modules.matryoshka2d.grid import BYTES_PER_COORDINATE, Grid, Key

HEADLINES = ("mean", "ndcg@10", "ap", "accuracy")  # of each set the one that is shown, unless others are asked for
MOST_SHOWN = 6
COLUMNS = 3
CELL_INCHES = 0.62, 0.34
MARGIN_INCHES = 1.5, 1.0


class Panel(NamedTuple):
    """One heat map: a table [layers, dims], and the range of its colours."""

    title: str
    table: NDArray[np.float64]
    low: float
    high: float


def headlines(grid: Grid, names: Sequence[str] | None = None) -> list[Key]:
    """Return the metrics that are shown: those named `<set>_<metric>`, or one for each set, six at most.

    Sets of a test may be others than those of the validation: names that are not there are left out.
    """
    found = {f"{where}_{metric}": (where, metric) for where, metric in grid.values}
    named = [found[name] for name in names or () if name in found]
    if not named:
        return ([key for key in grid.values if key[1] in HEADLINES] or list(grid.values))[:MOST_SHOWN]
    return named


def heat_map(grid: Grid, shown: Sequence[Key], baselines: Mapping[str, Grid] | None = None) -> Figure:
    """Draw a panel for each metric; below it the same one of each baseline, in the same colours."""
    sources = {"": grid, **(baselines or {})}
    panels = []
    for name, source in sources.items():
        for key in shown:
            every = np.concatenate([other.table(key, grid).ravel() for other in sources.values()])
            title = f"{name}: {' '.join(key)}" if name else " ".join(key)
            panels.append(Panel(title, source.table(key, grid), *_range(every)))
    return _drawn(grid, panels, len(shown) if baselines else COLUMNS, "viridis", "{:.3f}")


def difference_map(grid: Grid, shown: Sequence[Key], baselines: Mapping[str, Grid]) -> Figure:
    """Draw by how much the grid is above each baseline, a row of panels each; colours are symmetric about 0."""
    panels = []
    for name, baseline in baselines.items():
        for key in shown:
            table = grid.table(key) - baseline.table(key, grid)
            reach = max(map(abs, _range(table)))
            panels.append(Panel(f"{' '.join(key)} minus {name}", table, -reach, reach))
    return _drawn(grid, panels, len(shown), "RdBu", "{:+.3f}")


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as an image [height, width, 4]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)


def _drawn(grid: Grid, panels: Sequence[Panel], columns: int, colours: str, form: str) -> Figure:
    columns = max(1, min(columns, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    width = len(grid.dims) * CELL_INCHES[0] + MARGIN_INCHES[0]
    height = len(grid.layers) * CELL_INCHES[1] + MARGIN_INCHES[1]
    figure = Figure(figsize=(columns * width, rows * height), dpi=110, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        _panel(axis, grid, panel, colours, form)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _panel(axis: Axes, grid: Grid, panel: Panel, colours: str, form: str) -> None:
    axis.set_title(panel.title, fontsize=9)
    if not np.isfinite(panel.table).any():
        axis.set_axis_off()
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", fontsize=8, transform=axis.transAxes)
        return
    scale = Normalize(panel.low, panel.high if panel.high > panel.low else panel.low + 1e-9)
    shades = colormaps[colours](scale(np.ma.masked_invalid(panel.table)))
    axis.imshow(shades, aspect="auto", origin="lower")  # the deepest layer on top
    for (i, j), value in np.ndenumerate(panel.table):
        dark = shades[i, j, :3] @ (0.299, 0.587, 0.114) < 0.5 and math.isfinite(value)
        text = re.sub(r"^([+-]?)0\.", r"\1.", form.format(value)) if math.isfinite(value) else "-"
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(grid.dims)), map(str, grid.dims), fontsize=8)
    speed = grid.costs.sentences_per_second
    names = [f"{n} ({speed[n]:,.0f}/s)" if n in speed else str(n) for n in grid.layers]
    axis.set_yticks(range(len(grid.layers)), names, fontsize=8)
    axis.set_xlabel("width", fontsize=8)
    axis.set_ylabel("layers (sentences/s)" if speed else "layers", fontsize=8)


# Markdown


def markdown(grid: Grid, shown: Sequence[Key], baselines: Mapping[str, Grid] | None = None) -> str:
    """Return a table for each metric, layers down and widths across, and one for each baseline with the differences.

    Parameters and sentences a second stand beside the layers where they are known, bytes of a vector above the widths.
    """
    blocks = []
    for key in shown:
        name, table = " ".join(key), grid.table(key)
        blocks.append(_table(grid, f"**{name}**", [[_number(value) for value in row] for row in table]))
        for other, baseline in (baselines or {}).items():
            theirs = baseline.table(key, grid)
            cells = [
                [_compared(value, base) for value, base in zip(*rows, strict=True)]
                for rows in zip(table, theirs, strict=True)
            ]
            blocks.append(_table(grid, f"**{name}**, {other} (this model minus it)", cells))
    return "\n".join(blocks)


def _table(grid: Grid, title: str, cells: list[list[str]]) -> str:
    speed, size = grid.costs.sentences_per_second, grid.costs.parameters
    head = ["layers", *(["parameters"] if size else []), *(["sentences/s"] if speed else [])]
    widths = [f"{dim} ({dim * BYTES_PER_COORDINATE:,} B)" for dim in grid.dims]
    rows = [[*head, *widths], ["---:"] * (len(head) + len(widths))]
    for layer, values in reversed(list(zip(grid.layers, cells, strict=True))):
        known = [f"{size[layer]:,}" if layer in size else ""] if size else []
        known += [f"{speed[layer]:,.0f}" if layer in speed else ""] if speed else []
        rows.append([str(layer), *known, *values])
    return "\n".join([title, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def _number(value: float, form: str = "{:.4f}") -> str:
    return form.format(value) if math.isfinite(value) else "-"


def _compared(value: float, base: float) -> str:
    known = math.isfinite(value) and math.isfinite(base)
    return f"{base:.4f} ({value - base:+.4f})" if known else _number(base)
