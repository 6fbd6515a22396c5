"""The plots of a claim that the grid judges: heat maps, differences, and lines over the depth."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.claims.grid_judge import MEANS, Seeds, mean_grid
from launch.claims.statistics import t_interval
from lightning_modules.matryoshka2d.grid import Grid, Key
from lightning_modules.matryoshka2d.grid_report import difference_map, heat_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_WIDTHS = 3


def drawn(part: dict[str, Any], grids: dict[str, Seeds], better: str, worse: str, out: Path, name: str) -> None:
    """Write NAME_cells.png, NAME_differences.png and NAME_depth.png."""
    groups = {run["arm"]: run["group"] for run in part["runs"]}
    whole = {arm: mean_grid(seeds) for arm, seeds in grids.items() if groups[arm] != "separate"}
    shown = [key for key in MEANS if key in whole[better].values]
    others = {arm: grid for arm, grid in whole.items() if groups[arm] == "judged" and arm != better}
    heat_map(whole[better], shown, {f"{worse}, cut": whole[worse]}).savefig(out / f"{name}_cells.png")
    difference_map(whole[better], shown, others).savefig(out / f"{name}_differences.png")
    depth(part, grids, groups, shown[1] if len(shown) > 1 else shown[0], out / f"{name}_depth.png")


def depth(part: dict[str, Any], grids: dict[str, Seeds], groups: dict[str, str], key: Key, file: Path) -> None:
    """Plot each arm over the layers at some widths, with 95 % intervals; models of a cell's own size are crosses."""
    from matplotlib.figure import Figure

    dims = part["dims"]
    chosen = sorted({dims[0], dims[len(dims) // 2], dims[-1]})[-MOST_WIDTHS:]
    figure = Figure(figsize=(4.4 * len(chosen), 4.0), layout="constrained", dpi=110)
    axes = list(figure.subplots(1, len(chosen), squeeze=False, sharey=True).flat)
    shown = [arm for arm in grids if groups[arm] in ("judged", "beside")]
    for axis, dim in zip(axes, chosen, strict=True):
        for number, arm in enumerate(shown):
            _line(axis, grids[arm], key, dim, f"C{number}", arm, dashed=groups[arm] == "beside")
        for run in part["runs"]:
            if run["cell"] and run["cell"][1] == dim and run["arm"] in grids:
                value = mean_grid(grids[run["arm"]]).values[key][tuple(run["cell"])]
                axis.plot(run["cell"][0], value, "kx", ms=9, label="separate")
        axis.set(title=f"width {dim}", xlabel="layers", ylabel=" ".join(key))
        axis.set_xticks(part["layers"])
    known = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    for axis in axes[1:]:
        known |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(known.values(), known.keys(), fontsize="small", loc="outside right upper")
    figure.savefig(file)


def _line(axis: "Axes", seeds: Seeds, key: Key, dim: int, color: str, arm: str, dashed: bool) -> None:
    grid: Grid = next(iter(seeds.values()))
    found = [t_interval([one.values[key].get((n, dim), math.nan) for one in seeds.values()]) for n in grid.layers]
    halves = [0.0 if i.low is None else i.mean - i.low for i in found]
    means = [interval.mean for interval in found]
    axis.errorbar(grid.layers, means, halves, color=color, ls="--" if dashed else "-", lw=1.2, capsize=2, label=arm)
