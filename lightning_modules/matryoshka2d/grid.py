"""The grid: what a model is worth at each of its layers and widths, from one table of vectors.

Shape suffixes: L layers, M texts, D coordinates.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from datamodules.core.tasks import Task
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.embedding_suite import Part, Values, check, suite

BYTES_PER_COORDINATE = 4  # of float32
COLUMNS = ["layer", "dim", "set", "metric", "value"]
COSTS = ["sentences_per_second", "parameters", "bytes_per_vector"]

Key = tuple[str, str]  # set and metric
Cell = tuple[int, int]  # layer and width


class Cells(NamedTuple):
    """Which cells there are: layers and widths, both ascending; probes of classes run at `probe_dims` alone."""

    layers: tuple[int, ...]
    dims: tuple[int, ...]
    probe_dims: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """Which cells are wanted, before the model is known.

    Args:
        layers: layers, 0 for the output of the embeddings; none for 1 to the last.
        dims: widths; none for those that are usual for the model.
        probe_dims: those of the widths at which probes of classes run, which take long; none for the widest alone.
    """

    layers: Sequence[int] | None = None
    dims: Sequence[int] | None = None
    probe_dims: Sequence[int] | None = None

    def cells(self, num_layers: int, width: int, usual_dims: Sequence[int] | None = None) -> Cells:
        """Return the cells for a model of so many layers and that width; without usual widths, that one alone.

        Raises:
            CheckpointError: the model has no such layer or width, or a probe is wanted at a width that is not measured.
        """
        layers = _chosen("layers", self.layers, range(1, num_layers + 1), range(num_layers + 1))
        dims = _chosen("dims", self.dims, usual_dims or (width,), range(1, width + 1))
        return Cells(layers, dims, _chosen("probe_dims", self.probe_dims, dims[-1:], dims))


def _chosen(name: str, wanted: Sequence[int] | None, usual: Iterable[int], allowed: Sequence[int]) -> tuple[int, ...]:
    wanted = sorted(set(usual if wanted is None else wanted))
    if name != "probe_dims" and not wanted:
        raise CheckpointError(f"callbacks.grid.{name} = []: give one at least, or null")
    for number in wanted:
        if number not in allowed:
            known = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
            raise CheckpointError(f"callbacks.grid.{name}: {number} is none of {known}")
    return tuple(wanted)


class Costs(NamedTuple):
    """What a cut model costs, by its number of layers, as far as it is known."""

    sentences_per_second: dict[int, float] = {}  # noqa: RUF012  never changed
    parameters: dict[int, int] = {}  # noqa: RUF012

    def of(self, layer: int, dim: int) -> dict[str, float | None]:
        """Return the costs of one cell by name; a vector is of float32."""
        known = [self.sentences_per_second.get(layer), self.parameters.get(layer), dim * BYTES_PER_COORDINATE]
        return dict(zip(COSTS, known, strict=True))


@dataclass(frozen=True)
class Grid:
    """Metrics of all cells.

    Args:
        layers: layers, ascending.
        dims: widths, ascending.
        values: by set and metric a number for each cell (layer, width) at which it was measured.
        costs: speed and size of the cut models, where they are known.
    """

    layers: tuple[int, ...]
    dims: tuple[int, ...]
    values: dict[Key, dict[Cell, float]]
    costs: Costs = field(default_factory=Costs)

    def cell(self, layer: int, dim: int) -> dict[str, float]:
        """Return what was measured at one cell, by `<set>_<metric>`."""
        at = layer, dim
        return {f"{where}_{name}": values[at] for (where, name), values in self.values.items() if at in values}

    def largest(self) -> dict[str, float]:
        """Return the cell of the deepest layer and the widest width."""
        return self.cell(self.layers[-1], self.dims[-1])

    def table(self, key: Key, like: "Grid | None" = None) -> NDArray[np.float64]:
        """Return one metric [layers, dims] at the cells of another grid or its own, nan where there is none."""
        like, values = like or self, self.values.get(key, {})
        return np.array([[values.get((layer, dim), math.nan) for dim in like.dims] for layer in like.layers])


def measured(vectors_LMD: Tensor, cells: Cells, tasks: Sequence[Task], costs: Costs | None = None) -> Grid:
    """Measure all cells on all tasks; the ranks share the work and each returns the whole grid.

    A piece of work is a task at a layer, with all widths: so no product of coordinates is computed twice. A layer with
    a vector that is not finite has nan everywhere.

    Args:
        vectors_LMD: the full-width vectors of all texts, the same on all ranks; row i is of layer `cells.layers[i]`.
        cells: layers and widths.
        tasks: what to measure.
        costs: speed and size of the cut models, to be kept beside the metrics.

    Raises:
        CheckpointError: a task on which a metric would mean nothing, see `embedding_suite.check`.
    """
    assert len(vectors_LMD) == len(cells.layers), f"{len(vectors_LMD)} tables for {len(cells.layers)} layers"
    check(tasks)
    together = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    parts = suite(tasks)
    work = [(part, layer) for part in range(len(parts)) for layer in range(len(cells.layers))]
    finite = [bool(vectors_MD.isfinite().all()) for vectors_MD in vectors_LMD]
    found = [
        (i, layer, _layer(parts[i], vectors_LMD[layer], cells, finite[layer])) for i, layer in work[rank::world_size]
    ]
    if together:
        everyone: list = [None] * world_size
        dist.all_gather_object(everyone, found)
        found = [piece for share in everyone for piece in share]
    found.sort(key=lambda piece: piece[:2])  # the order of the tasks, whoever measured
    values = (
        ((cells.layers[layer], dim), key, value)
        for _, layer, by_dim in found
        for dim, metrics in zip(cells.dims, by_dim, strict=True)
        for key, value in metrics.items()
    )
    return gathered(values, costs or Costs())


def _layer(part: Part, vectors_MD: Tensor, cells: Cells, finite: bool) -> list[Values]:
    if finite:
        return part(vectors_MD, cells.dims, cells.probe_dims)
    found = part(vectors_MD.nan_to_num(0, 0, 0), cells.dims, cells.probe_dims)
    return [dict.fromkeys(values, math.nan) for values in found]


# Files


def csv_of(grid: Grid) -> str:
    """Return the grid as CSV: layer, dim, set, metric, value; columns of costs where there are any."""
    has_costs = grid.costs != Costs()
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS + (COSTS if has_costs else []))
    for (where, name), values in grid.values.items():
        for (layer, dim), value in values.items():
            costs = grid.costs.of(layer, dim).values() if has_costs else []
            rows.writerow([layer, dim, where, name, repr(float(value)), *costs])
    return text.getvalue()


def read_csv(path: Path) -> Grid:
    """Read a grid that was written as CSV.

    Raises:
        CheckpointError: the file cannot be read, or is no such CSV.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        cells = [
            ((int(row["layer"]), int(row["dim"])), (row["set"], row["metric"]), float(row["value"])) for row in rows
        ]
        speed, size = (
            {int(row["layer"]): kind(row[name]) for row in rows if row.get(name)}
            for name, kind in zip(COSTS, (float, int), strict=False)
        )
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, csv.Error):
        raise CheckpointError(f"{path}: is no grid; its columns must be {', '.join(COLUMNS)}") from None
    if not cells:
        raise CheckpointError(f"{path}: holds no value")
    return gathered(cells, Costs(speed, size))


def own_sizes(grids: Iterable[Grid]) -> Grid:
    """Return one grid of models that were trained each at its own size: of every one its largest cell."""
    largest = [(grid, (grid.layers[-1], grid.dims[-1])) for grid in grids]
    found = [(cell, key, v[cell]) for grid, cell in largest for key, v in grid.values.items() if cell in v]
    return gathered(found, Costs())


def gathered(found: Iterable[tuple[Cell, Key, float]], costs: Costs) -> Grid:
    """Make a grid of single values."""
    values: dict[Key, dict[Cell, float]] = {}
    for cell, key, value in found:
        values.setdefault(key, {})[cell] = value
    layers, dims = (tuple(sorted({cell[axis] for row in values.values() for cell in row})) for axis in (0, 1))
    return Grid(layers, dims, values, costs)
