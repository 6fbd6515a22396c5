"""The plots of a claim: what was measured while training, against operations, and the scores of the tasks."""

import json
from pathlib import Path
from typing import Any

from launch.claims.statistics import t_interval

MAX_PANELS = 9


def curves(results: dict[str, Any], runs: Path, file: Path) -> None:
    """Plot every value of the validation, and the training loss, against the operations spent; one line a run."""
    from matplotlib.figure import Figure

    lines = {run["folder"]: metrics(runs / run["folder"]) for run in results["runs"]}
    names = sorted({name for rows in lines.values() for row in rows for name in row if name.startswith("val/")})
    names = ["train/loss", *[name for name in names if name != "val/loss"]][:MAX_PANELS]
    columns = min(3, len(names))
    figure = Figure(figsize=(4.2 * columns, 3.2 * -(-len(names) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flat
    colors = {arm: f"C{number}" for number, arm in enumerate(results["arms"])}
    for axis, name in zip(axes, names, strict=False):
        for run in results["runs"]:
            cost = results["arms"][run["arm"]]["operations_per_step"]
            points = [(row["step"] * cost, row[name]) for row in lines[run["folder"]] if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), color=colors[run["arm"]], lw=1, label=run["arm"])
        known = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        axis.legend(known.values(), known.keys(), fontsize="small")
        axis.set(title=name, xlabel="operations")
    for axis in list(figure.axes)[len(names) :]:
        axis.set_axis_off()
    figure.savefig(file, dpi=110)


def metrics(run: Path) -> list[dict[str, float]]:
    """Read the values that a run logged."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def scores(results: dict[str, Any], file: Path) -> None:
    """Plot for each task and measure the mean of every arm over its seeds, with its 95 % interval, and the floors."""
    from matplotlib.figure import Figure

    tasks, arms = list(results["tasks"]), list(results["arms"])
    figure = Figure(figsize=(2.2 + 1.7 * len(tasks), 6.4), layout="constrained")
    for axis, (measure, title) in zip(figure.subplots(2, 1), titles().items(), strict=True):
        for number, arm in enumerate(arms):
            found = [run["scores"] for run in results["runs"] if run["arm"] == arm and run["scores"]]
            intervals = [t_interval([part[task][measure] for part in found]) for task in tasks]
            places = [place + (number - (len(arms) - 1) / 2) * 0.8 / len(arms) for place in range(len(tasks))]
            halves = [0.0 if i.low is None else i.mean - i.low for i in intervals]
            axis.bar(places, [i.mean for i in intervals], 0.8 / len(arms), yerr=halves, capsize=2, label=arm)
        for place, task in enumerate(tasks):
            axis.hlines(results["tasks"][task]["majority"], place - 0.45, place + 0.45, color="0.3", ls=":")
            if floor := results["untrained"]:
                axis.hlines(floor["scores"][task][measure], place - 0.45, place + 0.45, color="0.3")
        axis.set_xticks(range(len(tasks)), tasks)
        axis.set(title=title, ylabel="percent")
        axis.set_ylim(0, 100)
    axis.legend(fontsize="small", loc="upper right")
    figure.suptitle(
        "bars: mean over seeds, 95 % interval\nline: fresh weights, dots: majority class", fontsize="medium"
    )
    figure.savefig(file, dpi=110)


def titles() -> dict[str, str]:
    """Return the measures that are plotted."""
    return {"probe_mean": "probe on frozen vectors", "finetune": "fine-tuning"}
