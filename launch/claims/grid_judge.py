"""From grids over seeds to verdicts: cell by cell, at half depth and below, and at the top."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from launch.claims.statistics import FAILS, HOLDS, OPEN, Interval, t_interval, verdict
from lightning_modules.matryoshka2d.grid import Cell, Grid, Key

SCORED = ("spearman", "ndcg@10")  # of a set that one of its metrics which counts
ALL, STS, RETRIEVAL = ("all sets", "mean"), ("sts", "mean"), ("retrieval", "mean")
MEANS = (ALL, STS, RETRIEVAL)

Seeds = Mapping[int, Grid]  # of one arm, by seed


def scored(grid: Grid) -> Grid:
    """Keep of a grid what counts of each set, and add the means over all sets, those of STS and those of retrieval."""
    sets = {key: values for key, values in grid.values.items() if key[1] in SCORED}
    wanted = {ALL: SCORED, STS: SCORED[:1], RETRIEVAL: SCORED[1:]}
    means = {mean: [v for key, v in sets.items() if key[1] in names] for mean, names in wanted.items()}
    found = {key: _mean_of(tables) for key, tables in means.items() if tables}
    return Grid(grid.layers, grid.dims, found | sets)


def mean_grid(seeds: Seeds) -> Grid:
    """Return the mean over seeds of each cell."""
    grids = list(seeds.values())
    values = {key: _mean_of([grid.values[key] for grid in grids]) for key in grids[0].values}
    return Grid(grids[0].layers, grids[0].dims, values)


def _mean_of(tables: list[dict[Cell, float]]) -> dict[Cell, float]:
    return {cell: sum(table[cell] for table in tables) / len(tables) for cell in tables[0]}


def low_cells(grid: Grid) -> list[Cell]:
    """Return the cells at half depth and below; the output of the embeddings is no layer."""
    half = grid.layers[-1] / 2
    return [(layer, dim) for layer in grid.layers if 1 <= layer <= half for dim in grid.dims]


def top_cell(grid: Grid) -> Cell:
    """Return the cell of the whole model."""
    return grid.layers[-1], grid.dims[-1]


def compared(ours: Seeds, theirs: Seeds, key: Key, highest_cost: float) -> dict[str, Any]:
    """Compare two arms at the same cells, seed by seed.

    `low` is the mean over the cells at half depth and below, `top` the cell of the whole model; the verdicts say
    whether `low` is above 0, with no cell of it that is at or below 0 for sure, and whether `top` is above minus the
    highest cost.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        empty = told([])
        return {"seeds": [], "cells": {}, "low": empty, "top": empty, "every": empty, "cells_low": {},
                "verdict_low": OPEN, "verdict_top": OPEN}  # fmt: skip
    first = ours[seeds[0]]
    cells = [(layer, dim) for layer in first.layers for dim in first.dims]

    def differences(over: Iterable[Cell]) -> list[float]:
        over = list(over)
        return [
            sum(ours[seed].values[key][cell] - theirs[seed].values[key][cell] for cell in over) / len(over)
            for seed in seeds
        ]

    low, each = low_cells(first), {cell: t_interval(differences([cell])) for cell in cells}
    decided = {cell: verdict(interval) for cell, interval in each.items()}
    at_low = [decided[cell] for cell in low]
    at_top = differences([top_cell(first)])
    return {
        "seeds": seeds,
        "cells": {named(cell): {**interval._asdict(), "verdict": decided[cell]} for cell, interval in each.items()},
        "low": told(differences(low)) if low else told([]),
        "top": told(at_top),
        "every": told(differences(cells)),
        "cells_low": {
            "cells": len(low),
            "above": sum(each[cell].mean > 0 for cell in low),
            **{word: at_low.count(word) for word in (HOLDS, FAILS, OPEN)},
        },
        "verdict_low": _low_verdict(t_interval(differences(low)), at_low) if low else OPEN,
        "verdict_top": verdict(shifted(t_interval(at_top), highest_cost)),
    }


def _low_verdict(mean: Interval, cells: list[str]) -> str:
    found = verdict(mean)
    return OPEN if found == HOLDS and FAILS in cells else found


def shifted(interval: Interval, by: float) -> Interval:
    """Move an interval up."""
    low, high = (None if bound is None else bound + by for bound in (interval.low, interval.high))
    return Interval(interval.mean + by, low, high, interval.count)


def told(values: list[float]) -> dict[str, Any]:
    """Describe differences seed by seed."""
    return {"differences": values, **t_interval(values)._asdict()}


def own_size(separate: Seeds, other: Seeds, cell: Cell, key: Key) -> dict[str, Any]:
    """Compare models that were trained at a cell's own size with an arm's cell, seed by seed.

    Means and differences are over the seeds that they share, so that one is the other's.
    """
    shared = sorted(separate.keys() & other.keys())
    seeds = [seed for seed in shared if key in separate[seed].values and key in other[seed].values]
    values = {
        name: [grids[seed].values[key].get(cell, math.nan) for seed in seeds]
        for name, grids in (("separate", separate), ("other", other))
    }
    differences = [own - other for own, other in zip(values["separate"], values["other"], strict=True)]
    return {
        "cell": named(cell),
        "separate": t_interval(values["separate"]).mean,
        "mean_other": t_interval(values["other"]).mean,
        "difference": told(differences),
        "verdict": verdict(t_interval(differences)),
    }


def named(cell: Cell) -> str:
    """Write a cell as layers x width."""
    return f"{cell[0]}x{cell[1]}"
