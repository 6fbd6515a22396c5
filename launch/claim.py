"""`python -m launch claim METHOD`: a method against its baselines at equal compute, over seeds."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.claims.arms import Arms, Stopped
from launch.claims.grid_plan import GridClaim, GridSize, grid_claim
from launch.claims.plan import Claim, Size, claim_file, probe_claim, tasks_at
from launch.config.errors import ConfigError, meant
from launch.config.numbers import is_whole
from launch.config.overlay import expanded
from launch.config.resolved import command_shown, with_values
from launch.run import DONE, STOPPED
from launch.run_folder import read_json, write_json, write_whole

USAGE = """usage: python -m launch claim METHOD [--size quick|cpu|gpu] [--key value ...]

Runs the arms of configs/claims/METHOD.yaml (or of another claim's FILE.yaml) over seeds: at equal compute, judged by
frozen probes and fine-tuning (electra), or in equal steps, judged by the grid of layers and widths (matryoshka2d). A
run that is finished is not run again, so the same command goes on after a stop. The exit code is 0 whatever was found.

  --size NAME         quick: 3 minutes on two cores; cpu: an hour on two cores, 80 minutes of matryoshka2d (default);
                      gpu: meant for half an hour on one card, and not run yet
  --data.root FOLDER  folder with the sets that the claim names; without it, tasks made from the embedded articles; of
                      matryoshka2d then the part from scratch alone, judged by titles that look for articles
  --out FOLDER        for results.json, report.md and plots, by default benchmarks/METHOD/claim: curves.png, scores.png;
                      by the grid PART_cells.png, PART_differences.png and PART_depth.png
  --seeds 1,2,3       these seeds for every arm, instead of those of the size
  --runs FOLDER       where the runs live; by default runs/claims/METHOD/SIZE
"""
FLAGS = ("size", "data.root", "out", "seeds", "runs")


def main(words: list[str]) -> int:
    """Run one claim; return 0 whatever was found, or 75 when it was stopped and can go on.

    Raises:
        ConfigError: the words or the claim's file are no good, or a run failed.
    """
    if not words or "--help" in words or "-h" in words:
        print(USAGE, end="")
        return DONE
    name, rest = (words[0], words[1:]) if not words[0].startswith("--") else (None, words)
    given = with_values(rest)
    name = name or given.pop("config", None)
    if name is None:
        raise ConfigError("claim: name a method, as `python -m launch claim electra`")
    if unknown := [key for key in given if key not in FLAGS]:
        raise ConfigError(f"--{unknown[0]}: unknown flag{meant(unknown[0], [*FLAGS], '--')}")
    claim = any_claim(name)
    command = command_shown("claim", words, given.get("data.root"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the runs are asked to save, as on Ctrl-C
    try:
        return (run_grid_claim if isinstance(claim, GridClaim) else run_claim)(claim, given, command)
    except (KeyboardInterrupt, Stopped):
        print("stopped; the same command goes on from here", flush=True)
        return STOPPED


def any_claim(name: str) -> Claim | GridClaim:
    """Read a claim by the name of its method or its file; `judged_by: grid` tells the two kinds apart.

    Raises:
        ConfigError: there is none, or it is not written as it must be.
    """
    raw, where = claim_file(name)
    judged_by = raw.pop("judged_by", "probes")
    if judged_by not in ("probes", "grid"):
        raise ConfigError(f"{where}: judged_by = {judged_by}: must be probes or grid")
    return (grid_claim if judged_by == "grid" else probe_claim)(raw, where)


def run_grid_claim(claim: GridClaim, given: dict[str, str], command: str) -> int:
    """Run all parts of a claim that the grid judges, and write the folder."""
    size_name, size, root = size_of(claim, given)
    runs = Path(given.get("runs") or Path("runs", "claims", claim.method, size_name))
    out = out_folder(claim, size_name, given)
    print(f"claim: {' '.join(claim.statement.split())}", f"size {size_name}", sep="\n", flush=True)
    began = time.perf_counter()
    from launch.benches.report import machine

    used = [part.settings.get("trainer", {}).get("accelerator") for part in size.parts.values()]
    facts = machine("cuda" if "gpu" in used else "cpu")
    from launch.claims import grid_experiment, grid_plots, grid_report

    found, grids = grid_experiment.carried_out(claim, size, root, runs)
    results = {
        "method": claim.method,
        "statement": claim.statement,
        **{name: getattr(claim, name) for name in ("better", "worse", "highest_cost", "floor")},
        "size": size_name,
        "verdict": grid_experiment.overall(claim, size_name, found),
        "command": command,
        "machine": facts,
        "minutes": (time.perf_counter() - began) / 60,
        "not_done": grid_experiment.not_done(size, found),
        "notes": [*claim.notes, *size.notes],
        **found,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, part in found["parts"].items():
        grid_plots.drawn(part, grids[name], claim.better, claim.worse, out, name)
    finish(results, grid_report.card(results), grid_report.reading(results), out)
    return DONE


def run_claim(claim: Claim, given: dict[str, str], command: str) -> int:
    """Run all arms, judge them and write the folder."""
    size_name, size, root = size_of(claim, given)
    tasks, skipped = tasks_at(claim, size, root)
    runs = Path(given.get("runs") or Path("runs", "claims", claim.method, size_name))
    out = out_folder(claim, size_name, given)
    print(f"claim: {' '.join(claim.statement.split())}", f"size {size_name}; tasks: {', '.join(tasks)}", sep="\n")
    for name, reason in skipped.items():
        print(f"  {name} is left out: {reason}")
    sys.stdout.flush()
    began = time.perf_counter()
    from launch.benches.report import machine

    trainer = {key: size.settings.get("trainer", {}).get(key) for key in ("accelerator", "devices", "precision")}
    facts = machine("cuda" if trainer["accelerator"] == "gpu" else "cpu")
    arms = Arms(claim, size, root, runs)
    if size.corpus and arms.corpus is None:
        print("  the corpus of this size is left out, the embedded one takes its place: it is not under the data root")
    if size.threads:
        os.environ["OMP_NUM_THREADS"] = str(size.threads)  # read when torch is imported, and by the processes
    from launch.claims.experiment import carried_out, overall

    found = carried_out(claim, size, tasks, arms, trainer)
    results = {
        "method": claim.method,
        "statement": claim.statement,
        "operations": claim.operations,
        "size": size_name,
        "verdict": overall(size_name, found),
        "command": command,
        "machine": facts,
        "minutes": (time.perf_counter() - began) / 60,
        "not_done": not_done(size, skipped, found["runs"], arms),
        "notes": [*claim.notes, *size.notes],
        **found,
    }
    write(results, arms.folder, out)
    return DONE


def size_of(claim: Claim | GridClaim, given: dict[str, str]) -> tuple[str, Size | GridSize, Path | None]:
    """Choose the size, with the seeds of the command line, and the data root.

    Raises:
        ConfigError: there is no such size, a seed is no number, or the root is no folder.
    """
    name = given.get("size", "cpu")
    if name not in claim.sizes:
        raise ConfigError(
            f"--size {name}: no such size{meant(name, [*claim.sizes])}; there are {', '.join(claim.sizes)}"
        )
    size = claim.sizes[name]
    if "seeds" in given:
        words = given["seeds"].split(",")
        if not all(is_whole(word.strip()) for word in words):
            raise ConfigError(f"--seeds {given['seeds']}: must be whole numbers with commas, as 1,2,3")
        size = replace(size, seeds={arm: [int(word) for word in words] for arm in size.seeds})
    root = expanded(given["data.root"], "--data.root").resolve() if "data.root" in given else None
    if root is not None and not root.is_dir():
        raise ConfigError(f"--data.root {root}: is no folder; give the one with the sets, or leave it out")
    return name, size, root


def out_folder(claim: Claim | GridClaim, size: str, given: dict[str, str]) -> Path:
    """Choose where the report goes; one of another size is not written over unless the user says so."""
    if "out" in given:
        return expanded(given["out"], "--out")
    usual = Path("benchmarks", claim.method, "claim")
    there = (read_json(usual / "results.json") or {}).get("size", size)
    return usual if there == size else usual.with_name(f"claim_{size}")


def not_done(size: Size, skipped: dict[str, str], runs: list[dict[str, Any]], arms: Arms) -> list[str]:
    """Say what a reader might expect and will not find."""
    lines = [f"{name}: {reason}." for name, reason in skipped.items()]
    if size.corpus and arms.corpus is None:
        lines.append(f"{size.corpus['source']} is not under the data root: the embedded corpus was used.")
    lines += [f"{run['folder']} diverged, and is in no comparison." for run in runs if run["diverged"]]
    if len(size.learning_rates) == 1:
        lines.append("The learning rate was not tuned; all arms have the same.")
    few = {arm: len(seeds) for arm, seeds in size.seeds.items() if len(seeds) < 3}
    lines += [f"{arm} has {count} seed{'s' * (count > 1)} only." for arm, count in few.items()]
    return lines


def write(results: dict[str, Any], runs: Path, out: Path) -> None:
    """Write results.json, report.md and the two plots, and print where and what."""
    from launch.claims import plots, report

    out.mkdir(parents=True, exist_ok=True)
    plots.curves(results, runs, out / "curves.png")
    plots.scores(results, out / "scores.png")
    finish(results, report.card(results), report.reading(results), out)


def finish(results: dict[str, Any], card: list[str], reading: list[str], out: Path) -> None:
    """Write results.json and report.md, and print where and what."""
    write_whole(out / "report.md", "\n".join(card) + "\n")
    write_json(out / "results.json", results)
    print(*reading, "", results["verdict"], f"written to {out}", sep="\n")
