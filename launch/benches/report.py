"""What a bench writes: results.json with every round, report.md, and a plot of the ratios."""

import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

from launch.benches.ratios import LEAST_ROUNDS
from launch.run_folder import surroundings, write_json, write_whole

BUSY_LOAD = 0.5  # on top of what the bench itself adds


def machine(device: str) -> dict[str, Any]:
    """Describe where and with what the bench runs; `load` is the machine's load before it."""
    found = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    if device == "cpu" and lacks_bf16():
        found["lacks"] = "bf16"
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    # a report has its command beside this, without the data root, which is the machine's own
    return {**found, **{name: fact for name, fact in surroundings().items() if name != "command"}}


def cpu_name() -> str:
    """Return the processor's name as the kernel tells it."""
    facts, names = cpu_facts(), ("model name", "cpu family", "model")
    known = ", ".join(
        f"{name} {facts[name]}" if name != "model name" else facts[name] for name in names if name in facts
    )
    return known or platform.processor() or platform.machine()


def cpu_facts() -> dict[str, str]:
    """Return what Linux says of the last processor; nothing elsewhere."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return dict(tuple(part.strip() for part in line.split(":", 1)) for line in lines if ":" in line)


def lacks_bf16() -> bool:
    """Whether the processor is known to have no instructions for bf16: a step takes ten times as long as in fp32."""
    known = cpu_facts().get("flags", "").split()
    return "avx2" in known and not {"avx512_bf16", "avx_ne_convert", "amx_bf16"} & {*known}


def write(out: Path, results: dict[str, Any]) -> None:
    """Write the three files."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", results)
    plot(out / "ratios.png", results)
    write_whole(out / "report.md", "\n".join(card(results)) + "\n")


def card(results: dict[str, Any]) -> list[str]:
    """Return the lines of report.md."""
    there = results["machine"]
    commit = (there["commit"] or "unknown")[:12]
    versions = ", ".join(f"{name} {version}" for name, version in there["versions"].items() if version)
    changed = f" with {len(there['changed_files'])} changed files" if there["changed_files"] else ""
    busy = f" Others were using it: load {there['load']:.1f} at the start." if there["load"] > BUSY_LOAD else ""
    lacking = f", without {there['lacks']}" if "lacks" in there else ""
    return [
        f"# Bench: {results['bench']}",
        "",
        *comparison_table(results["comparisons"]),
        "",
        "Medians of the ratios within a round, with their 95 % interval by order statistics. All systems take turns, "
        "in an order that is reversed from round to round. A goal is met if the interval reaches it; with fewer than "
        f"{LEAST_ROUNDS} rounds nothing is said.",
        "",
        "![ratios](ratios.png)",
        "",
        "## What is compared",
        "",
        *results["about"],
        "",
        f"## Speed, in {results.get('unit', 'tokens')} a second",
        "",
        *speed_table(results["settings"], f"{results.get('unit', 'tokens')}_per_s"),
        *(
            ["", "## Where the time goes", "", *time_table(results["settings"])]
            if "time" in results["settings"][0]
            else []
        ),
        *results.get("sections", []),
        "",
        "## Made with",
        "",
        f"`{results['command']}` in {results['minutes']:.0f} minutes, {there['time']}, commit {commit}{changed}.",
        "",
        f"{there.get('gpu', there['cpu'])}, {there['cores']} cores{lacking}.{busy}",
        "",
        f"Python {there['python']}, {versions}.",
    ]


def comparison_table(comparisons: list[dict[str, Any]]) -> list[str]:
    """Return goal, measured, interval and verdict of each comparison."""
    lines = ["| setting | ratio | goal | measured | interval | rounds | met |", "|---|---|---|---|---|---|---|"]
    for found in comparisons:
        low, high = found["interval"]
        goal = "-" if found["goal"] is None else f"{found['goal']:g}"
        met = {None: "-", True: "yes", False: "**no**"}[found["met"]]
        lines.append(
            f"| {found['setting']} | {found['comparison']} | {goal} | {found['median']:.3g} | {low:.3g} to {high:.3g} "
            f"| {found['rounds']} | {met} |"
        )
    return lines


def speed_table(settings: list[dict[str, Any]], key: str) -> list[str]:
    """Return the median speed of each system, one column for each that is in any setting."""
    names = list(dict.fromkeys(name for found in settings for name in found[key]))
    lines = ["| setting | padding | cores | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    for found in settings:
        padding = f"{found['pad_fraction']:.2f}" if "pad_fraction" in found else "-"
        speeds = " | ".join(
            f"{found[key][name]:{',.0f' if found[key][name] >= 100 else '.3g'}}" if name in found[key] else "-"
            for name in names
        )
        lines.append(f"| {found['name']} | {padding} | {cores_in_use(found, key):.2f} | {speeds} |")
    return [
        *lines,
        "",
        "Cores: how many the first system kept busy; on a machine that others use, fewer than its threads.",
    ]


def cores_in_use(setting: dict[str, Any], key: str) -> float:
    """Return the median of processor seconds a second in the turns of the first system."""
    first = next(iter(setting[key]))
    return median(turns[first]["cpu_seconds"] / turns[first]["seconds"] for turns in setting["rounds"])


def time_table(settings: list[dict[str, Any]]) -> list[str]:
    """Return the shares of a step by kind of operation, and how near it is to its matrix multiplications alone."""
    groups = list(dict.fromkeys(group for s in settings for found in s["time"].values() for group in found["shares"]))
    names = ["setting", "system", *groups, "share of the limit", "GFLOP/s"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for setting in settings:
        for name, found in setting["time"].items():
            shares = [f"{found['shares'].get(group, 0):.0%}" for group in groups]
            gflops = f"{found['gflops']:,.0f}" if "gflops" in found else "-"
            cells = [setting["name"], name, *shares, f"{found['share_of_limit']:.0%}", gflops]
            lines.append("| " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "The limit is the speed at which the step would run if it took no longer than its own matrix multiplications, "
        "each timed alone with `torch.mm` or `torch.bmm` in the same process. GFLOP/s by the method's formula.",
    ]


def plot(path: Path, results: dict[str, Any]) -> None:
    """Draw every comparison as a point with its interval, and its goal as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = results["comparisons"][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.4 * len(shown)))
    for row, found in enumerate(shown):
        low, high = found["interval"]
        color = {None: "tab:gray", True: "tab:green", False: "tab:red"}[found["met"]]
        axes.plot([low, high], [row, row], color=color, linewidth=3, solid_capstyle="butt")
        axes.plot(found["median"], row, "o", color=color)
        if found["goal"] is not None:
            axes.plot([found["goal"]] * 2, [row - 0.35, row + 0.35], color="black")
    axes.set_yticks(range(len(shown)), [f"{found['comparison']}   {found['setting']}" for found in shown])
    axes.set_xscale("log")
    axes.set_xlabel("ratio of speeds: median and 95 % interval; black: goal")
    axes.grid(axis="x", which="both", alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
