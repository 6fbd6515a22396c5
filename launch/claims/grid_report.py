"""The report of a claim that the grid judges, as Markdown, from the contents of results.json."""

from typing import Any

from launch.claims.grid_experiment import main_comparison
from launch.claims.report import ending
from launch.claims.statistics import FAILS, HOLDS

LEVEL = 0.0005  # what is written with three decimals as no difference
VERDICTS = """\
Differences are of the same cell in two arms, seed by seed: equal seeds see equal batches in equal order. Intervals are
Student's, 95 %. **At half depth and below**: the mean over these cells; it *holds* if the whole interval is above 0 and
no single cell is below 0 for sure, *does not hold* if the interval is at or below 0, and is *not decided* otherwise.
**At the top**, of all layers and coordinates: it *holds* if the whole interval is above -{cost:g}, and *does not hold*
if it is at or below that. One seed has no interval, and decides nothing. Scores are Spearman's correlation (STS) and
nDCG@10 (retrieval)."""


def card(results: dict[str, Any]) -> list[str]:
    """Return the lines of report.md."""
    return [
        f"# Claim: {results['method']}",
        "",
        f"> {' '.join(results['statement'].split())}",
        "",
        f"**{results['verdict']}**",
        "",
        *reading(results),
        "",
        VERDICTS.format(cost=results["highest_cost"]),
        *[line for name, part in results["parts"].items() for line in section(name, part, results)],
        "",
        *ending({**results, "runs": [run for part in results["parts"].values() for run in part["runs"]]}),
    ]


def reading(results: dict[str, Any]) -> list[str]:
    """Say in words what the numbers allow to be said."""
    lines = []
    for name, part in results["parts"].items():
        main = main_comparison(part)
        cells, names = main["cells_low"], f"{main['better']} minus {main['worse']}"
        if not main["seeds"]:
            lines.append(f"- {name}: {main['better']} and {main['worse']} share no seed, so nothing is decided.")
            continue
        lines.append(
            f"- {name}, at half depth and below: {names} {interval(main['low'])}: {main['verdict_low']}. Of "
            f"{cells['cells']} cells {cells['above']} are above 0 in the mean; one by one, {cells[HOLDS]} hold and "
            f"{cells[FAILS]} do not."
        )
        lines.append(f"- {name}, at the top: {names} {interval(main['top'])}: {main['verdict_top']}.")
        lines += [f"- {name}: {line}" for line in other_words(part, main)]
        lines += [f"- {name}: {line}" for line in separate_words(part, main["better"])]
        lines += [f"- {name}: {line}" for line in floor_words(part, results["floor"])]
    return [*lines, *[f"- {note}" for note in results["notes"]]]


def other_words(part: dict[str, Any], main: dict[str, Any]) -> list[str]:
    """Say what the other means of sets say by themselves, which the verdict is not of."""
    return [
        f"by {one['of']} alone, at half depth and below {interval(one['low'])}: {one['verdict_low']}; at the top "
        f"{interval(one['top'])}: {one['verdict_top']}."
        for one in part["comparisons"]
        if (one["better"], one["worse"]) == (main["better"], main["worse"])
        and one["of"] != main["of"]
        and one["of"].endswith("mean")
    ]


def separate_words(part: dict[str, Any], better: str) -> list[str]:
    """Say where a model that was trained at a cell's own size wins, and where it does not."""
    lines = []
    for one in part["separate"]:
        if (one["other"], one["of"]) != (better, part["headline"]):
            continue
        gap, count = one["separate"] - one["mean_other"], len(one["difference"]["differences"])
        if not count:
            lines.append(f"a separate model of {one['cell']} shares no seed with {better}, so they are not compared.")
            continue
        sign = "is level with" if abs(gap) < LEVEL else "wins against" if gap > 0 else "loses against"
        sure = {HOLDS: "surely", FAILS: "surely"}.get(one["verdict"], "not beyond the spread of the seeds")
        sure = sure if count > 1 else f"with {count} common seed, so without an interval"
        lines.append(
            f"a separate model of {one['cell']} {sign} that cell of {better}, {gap:+.3f} "
            f"({one['separate']:.3f} to {one['mean_other']:.3f}), {sure}."
        )
    return lines


def floor_words(part: dict[str, Any], floor: str) -> list[str]:
    """Say which arms learned nothing that counts, at half depth and below or at the top."""
    lines = []
    for where, cells in (("at half depth and below", part["low_cells"]), ("at the top", [part["top_cell"]])):
        if floor not in part["arms"] or not cells:
            continue
        level = {arm: average(part, arm, cells) for arm in part["arms"] if has(part, arm, cells)}
        low = [arm for arm, value in level.items() if arm != floor and value <= level[floor]]
        if low:
            lines.append(f"{', '.join(low)} score no better {where} than before the training ({level[floor]:.3f}).")
    return lines


def has(part: dict[str, Any], arm: str, cells: list[str]) -> bool:
    """Tell whether an arm has all cells; a model of a cell's own size has one."""
    return part["arms"][arm]["means"][part["headline"]].keys() >= {*cells}


def average(part: dict[str, Any], arm: str, cells: list[str]) -> float:
    """Return the mean over cells of what the verdict is of."""
    table = part["arms"][arm]["means"][part["headline"]]
    return sum(table[cell] for cell in cells) / len(cells)


def section(name: str, part: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """Return the section of one part."""
    better, worse, depth = results["better"], results["worse"], len(part["layers"])
    from_first = f", its first {part['encoder_layers']} layers" if part["encoder_layers"] else ""
    start = f"{part['encoder']}{from_first}" if part["encoder"] else "fresh weights"
    return [
        "",
        f"## {name}: {part['title']}",
        "",
        f"All arms: {part['base']} with the settings of the claim's file, {part['steps']:,} steps, learning rate "
        f"{part['learning_rate']:g} (warm-up {part['warmup_fraction']:.0%}, then to 0), from {start}. {depth} layers, "
        f"widths {', '.join(map(str, part['dims']))}; the verdict is of {part['headline']}.",
        "",
        "### Against the cut plain model",
        "",
        *difference_table([one for one in part["comparisons"] if one["worse"] == worse and one["better"] == better]),
        "",
        f"### {part['headline']}, {better} and beside it {worse} (difference)",
        "",
        *cell_table(part, better, worse),
        "",
        f"![cells]({name}_cells.png)",
        "",
        f"![differences]({name}_differences.png)",
        "",
        f"![over depth]({name}_depth.png)",
        "",
        "### All arms",
        "",
        *arm_table(part),
        "",
        f"{better} minus each, and each minus {worse}, by {part['headline']}:",
        "",
        *difference_table(
            [one for one in part["comparisons"] if one["of"] == part["headline"] and one is not main_comparison(part)]
        ),
        "",
        "### Models of a cell's own size",
        "",
        *separate_table(part),
    ]


def difference_table(comparisons: list[dict[str, Any]]) -> list[str]:
    """Return one row for each comparison."""
    rows = ["| comparison | by | seeds | half depth and below | verdict | top | verdict | all cells |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for one in comparisons:
        names = f"{one['better']} - {one['worse']}"
        cells = [names, one["of"], str(len(one["seeds"])), interval(one["low"]), one["verdict_low"]]
        cells += [interval(one["top"]), one["verdict_top"], interval(one["every"])]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def interval(part: dict[str, Any]) -> str:
    """Write a mean with its interval."""
    if not part["count"]:
        return "-"
    bounds = "" if part["low"] is None else f" [{part['low']:+.3f}, {part['high']:+.3f}]"
    return f"{part['mean']:+.3f}{bounds}"


def cell_table(part: dict[str, Any], better: str, worse: str) -> list[str]:
    """Return the scores of two arms, layers down and widths across; the deepest layer is on top."""
    ours, theirs = (part["arms"][arm]["means"][part["headline"]] for arm in (better, worse))
    rows = [f"| layers | {' | '.join(map(str, part['dims']))} |", f"|---{'|---' * len(part['dims'])}|"]
    for layer in reversed(part["layers"]):
        names = [f"{layer}x{dim}" for dim in part["dims"]]
        cells = [f"{ours[cell]:.3f} / {theirs[cell]:.3f} ({ours[cell] - theirs[cell]:+.3f})" for cell in names]
        rows.append(f"| {layer} | {' | '.join(cells)} |")
    return rows


def arm_table(part: dict[str, Any]) -> list[str]:
    """Return for each arm its mean scores at half depth and below, and at the top, with what a run took."""
    kinds = [kind for kind in next(iter(part["arms"].values()))["means"] if kind.endswith("mean")]
    head = [f"{kind}, {where}" for kind in kinds for where in ("low", "top")]
    rows = [f"| arm | group | seeds | {' | '.join(head)} | seconds a run |", f"|---|---|---|{'---|' * (len(head) + 1)}"]
    for arm, found in part["arms"].items():
        runs = [run for run in part["runs"] if run["arm"] == arm]
        if runs[0]["cell"]:
            continue
        cells = [arm, runs[0]["group"], ", ".join(map(str, found["seeds"]))]
        for kind in kinds:
            table = found["means"][kind]
            low = [table[cell] for cell in part["low_cells"]]
            cells += [f"{sum(low) / len(low):.3f}" if low else "-", f"{table[part['top_cell']]:.3f}"]
        cells.append(f"{sum(run['seconds'] for run in runs) / len(runs):.0f}")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def separate_table(part: dict[str, Any]) -> list[str]:
    """Return one row for each cell with a model of its own, arm and measure."""
    how = (
        "Each starts from the first layers of the encoder, and its loss sees the first coordinates alone."
        if part["encoder"]
        else "Each is a plain model of that depth and width with fresh weights, and heads of the same size."
    )
    rows = [how, "", "| cell | by | separate | cut from | its cell | separate - cut | verdict |"]
    rows.append("|---|---|---|---|---|---|---|")
    for one in part["separate"]:
        cells = [one["cell"], one["of"], f"{one['separate']:.3f}", one["other"], f"{one['mean_other']:.3f}"]
        rows.append(f"| {' | '.join([*cells, interval(one['difference']), one['verdict']])} |")
    return rows if part["separate"] else ["None was trained."]
