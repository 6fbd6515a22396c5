"""Carrying out a claim that the grid judges: run all parts, read their grids, compare."""

from pathlib import Path
from typing import Any

from launch.claims.arms import Runner
from launch.claims.grid_arms import GridArms, Planned
from launch.claims.grid_judge import (
    MEANS,
    STS,
    Seeds,
    compared,
    low_cells,
    mean_grid,
    named,
    own_size,
    scored,
    top_cell,
)
from launch.claims.grid_plan import SEPARATE, GridClaim, GridSize, part_lacks, sets_at
from launch.claims.judge import quiet
from launch.claims.results import seconds
from launch.config.errors import ConfigError
from launch.run import DONE
from launch.run_folder import read_json
from lightning_modules.matryoshka2d.grid import Grid, Key, read_csv

ByArm = dict[str, Seeds]


def carried_out(
    claim: GridClaim, size: GridSize, root: Path | None, folder: Path
) -> tuple[dict[str, Any], dict[str, ByArm]]:
    """Run what is not finished, judge all parts, and return what was found, and the scored grids by part and arm.

    Raises:
        ConfigError: no part can be run, a run failed, or all runs of an arm that decides diverged.
    """
    quiet()
    sets, skipped = sets_at(claim, size, root)
    print(f"sets: {', '.join(sets)}")
    lacking = {name: part_lacks(claim.parts[name], root) for name in size.parts}
    left_out = {name: reason for name, reason in lacking.items() if reason}
    for name, reason in (skipped | left_out).items():
        print(f"  {name} is left out: {reason}")
    parts = [name for name in size.parts if name not in left_out]
    if not parts:
        raise ConfigError(f"claim {claim.method}: no part can be run: {'; '.join(left_out.values())}")
    planned = {name: GridArms(claim, size, name, sets, root, folder).planned() for name in parts}
    every = [one.run for runs in planned.values() for one in runs]
    print(f"{len(every)} runs; after Ctrl-C the same command goes on", flush=True)
    codes = Runner(size.processes, size.threads).run(every)
    grids, found = {}, {}
    for name, runs in planned.items():
        good = [one for one in runs if codes[one.run] == DONE]
        grids[name] = gridded(good)
        found[name] = judged(claim, size, name, runs, good, grids[name])
    return {"parts": found, "sets": list(sets), "skipped_sets": skipped, "skipped_parts": left_out}, grids


def gridded(good: list[Planned]) -> ByArm:
    """Read the grid that each run wrote after its last step."""
    found: dict[str, dict[int, Grid]] = {}
    for one in good:
        file = one.run.folder / "grid" / f"step_{one.run.steps:08d}.csv"
        found.setdefault(one.arm, {})[one.run.seed] = scored(read_csv(file))
    return found


def judged(
    claim: GridClaim, size: GridSize, name: str, runs: list[Planned], good: list[Planned], grids: ByArm
) -> dict[str, Any]:
    """Compare the arms of one part, as plain values."""
    if lost := [arm for arm in (claim.better, claim.worse) if arm not in grids]:
        raise ConfigError(f"{name}: every run of {lost[0]} diverged; give the claim a lower learning rate")
    part, how = claim.parts[name], size.parts[name]
    first = next(iter(grids[claim.better].values()))
    whole = {one.arm: grids[one.arm] for one in good if one.group != SEPARATE}
    keys = list(first.values)
    pairs = [(claim.better, claim.worse)]
    pairs += [(claim.better, arm) for arm in whole if arm not in pairs[0]]
    pairs += [(arm, claim.worse) for arm in whole if arm not in pairs[0]]
    return {
        "title": part.title,
        "base": part.base,
        "encoder": part.encoder,
        "encoder_layers": how.encoder_layers,
        "steps": how.steps,
        "learning_rate": how.learning_rate,
        "warmup_fraction": how.warmup_fraction,
        "settings": {"part": part.settings, "size": how.settings},
        "layers": list(first.layers),
        "dims": list(first.dims),
        "low_cells": list(map(named, low_cells(first))),
        "top_cell": named(top_cell(first)),
        "headline": words(headline(first)),
        "comparisons": [
            {"better": a, "worse": b, "of": words(key), **compared(whole[a], whole[b], key, claim.highest_cost)}
            for a, b in pairs
            for key in (keys if (a, b) == pairs[0] else [headline(first)])
        ],
        "separate": [
            {"arm": arm, "other": other, "of": words(key), **own_size(grids[arm], grids[other], cell, key)}
            for arm, cell in {one.arm: one.cell for one in good if one.cell}.items()
            for other in (claim.better, claim.worse)
            for key in MEANS
            if key in first.values
        ],
        "arms": {arm: means(seeds) for arm, seeds in grids.items()},
        "runs": [record(one, one in good) for one in runs],
    }


def headline(grid: Grid) -> Key:
    """Return what the verdict is of: the mean over the sets of STS, or over all where none is there."""
    return STS if STS in grid.values else MEANS[0]


def words(key: Key) -> str:
    """Write a set and its metric."""
    return " ".join(key)


def means(seeds: Seeds) -> dict[str, Any]:
    """Write the mean over seeds of each cell."""
    grid = mean_grid(seeds)
    table = {words(key): {named(cell): round(v, 5) for cell, v in row.items()} for key, row in grid.values.items()}
    return {"seeds": sorted(seeds), "means": table}


def record(one: Planned, good: bool) -> dict[str, Any]:
    """Describe a run."""
    facts = read_json(one.run.folder / "run.json") or {}
    return {
        "arm": one.arm,
        "group": one.group,
        "seed": one.run.seed,
        "cell": one.cell,
        "steps": one.run.steps,
        "folder": f"{one.run.folder.parent.name}/{one.run.folder.name}",
        "diverged": not good,
        "seconds": seconds(one.run.folder),
        **{name: facts.get(name) for name in ("config_sha256", "data_fingerprint", "commit")},
    }


def overall(claim: GridClaim, size: str, found: dict[str, Any]) -> str:
    """Return the verdict in one line: for each part both halves of the statement, at which size and on what."""
    lines = []
    for name, part in found["parts"].items():
        main = main_comparison(part)
        lines.append(
            f"{name}: {claim.better} above {claim.worse}, cut, at half depth and below: {main['verdict_low']}; at most "
            f"{claim.highest_cost:g} lost at the top: {main['verdict_top']}"
        )
    lines += [f"{name}: not run" for name in found["skipped_parts"]]
    return f"{'. '.join(lines)} (size {size}; {', '.join(sorted({p['headline'] for p in found['parts'].values()}))})"


def main_comparison(part: dict[str, Any]) -> dict[str, Any]:
    """Return the comparison that the verdict is of: the first pair of arms, by the headline."""
    first = part["comparisons"][0]
    return next(
        one
        for one in part["comparisons"]
        if (one["better"], one["worse"], one["of"]) == (first["better"], first["worse"], part["headline"])
    )


def not_done(size: GridSize, found: dict[str, Any]) -> list[str]:
    """Say what a reader might expect and will not find."""
    lines = [f"{name}: {reason}." for name, reason in {**found["skipped_parts"], **found["skipped_sets"]}.items()]
    runs = [run for part in found["parts"].values() for run in part["runs"]]
    lines += [f"{run['folder']} diverged, and is in no comparison." for run in runs if run["diverged"]]
    lines.append("The learning rate was not tuned; all arms of a part have the same.")
    few = {group: len(seeds) for group, seeds in size.seeds.items() if len(seeds) < 3}
    lines += [f"The arms of {group} have {count} seed{'s' * (count > 1)} only." for group, count in few.items()]
    return lines
