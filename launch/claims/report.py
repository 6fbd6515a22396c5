"""report.md of a claim: the statement, what was found with intervals, how, and what was not done."""

import textwrap
from typing import Any

from launch.claims.results import MEASURES
from launch.claims.statistics import t_interval

FORMULA = """
steps of an arm = floor(budget / operations per step), with a budget of {budget:.3g} operations. The operations of a
step are the method's own `flops`, averaged over the first {counted} real global batches: {operations}
The learning rate of each arm rises over the first {warmup:.0%} of its own steps and falls linearly to zero at its own
end. Corpus, tokenizer, batches and all other options are the same."""
VERDICTS = """
A comparison holds if the whole 95 % t-interval of the paired difference over seeds is above 0, does not hold if it is
at or below 0, and is not decided otherwise. Scores are in percent; the score of a run is the mean over tasks of the
mean of probe (on the mean of the hidden states) and fine-tuning."""
JUDGING = """
- Probe: logistic regression on the frozen last hidden states, on their mean over tokens or on that of [CLS], with up to
  {num_examples:,} training examples; C from {strengths} by {folds}-fold cross-validation on them, the same folds for
  all arms.
- Fine-tuning: the same examples, {epochs:g} epochs in batches of {batch_size}, learning rate {learning_rate:g}, layer
  decay {layer_decay:g}, one linear layer on [CLS]; seeds {seeds}, the same for all arms."""


def card(results: dict[str, Any]) -> list[str]:
    """Return the lines of report.md."""
    return [
        f"# Claim: {results['method']}",
        "",
        f"> {results['statement'].strip()}",
        "",
        f"**{results['verdict']}**",
        "",
        *reading(results),
        "",
        "## Differences, seed by seed",
        "",
        *difference_table(results["comparisons"]),
        "",
        VERDICTS.strip(),
        "",
        "## Scores",
        "",
        *score_table(results),
        "",
        "![scores](scores.png)",
        "",
        "## Equal compute",
        "",
        *arm_table(results),
        "",
        formula(results),
        "",
        "![curves](curves.png)",
        "",
        "## How it was judged",
        "",
        *judging(results),
        "",
        *ending(results),
    ]


def ending(results: dict[str, Any]) -> list[str]:
    """Say what was not done, and how the results were made."""
    return [
        "## What was not done",
        "",
        *[f"- {line}" for line in results["not_done"]],
        "",
        "## Made with",
        "",
        *made_with(results),
    ]


def reading(results: dict[str, Any]) -> list[str]:
    """Say in words what the numbers allow to be said."""
    lines = []
    for found in results["comparisons"]:
        names, interval = f"{found['better']} over {found['worse']}", found["score"]
        if interval["low"] is None:
            lines.append(
                f"- {names}: {len(found['seeds'])} common seed, so there is no interval and nothing is decided."
            )
            continue
        lines.append(
            f"- {names}: {interval['mean']:+.2f} points [{interval['low']:+.2f}, {interval['high']:+.2f}] over "
            f"{interval['count']} seeds: {found['verdict']}."
        )
        split = {name: found[name]["verdict"] for name in ("probe_mean", "finetune")}
        if set(split.values()) != {found["verdict"]}:
            lines.append(f"  By itself, the probe says: {split['probe_mean']}; fine-tuning says: {split['finetune']}.")
    for arm in results["collapsed"]:
        lines.append(
            f"- {arm}: fine-tuned, every run names the majority class. Its training collapsed at the learning rate "
            "that the shorter tuning runs chose; beating it shows nothing, and nothing is decided."
        )
    edge = (
        {results["learning_rates"][0], results["learning_rates"][-1]} if len(results["learning_rates"]) > 1 else set()
    )
    at_edge = [arm for arm, facts in results["arms"].items() if facts["learning_rate"] in edge]
    if at_edge:
        lines.append(
            f"- The best learning rate of {', '.join(at_edge)} lies at the edge of the grid: another may be better."
        )
    floor, runs = results["untrained"], [run for run in results["runs"] if run["scores"]]
    low = [r["arm"] for r in runs if floor and r["score"] <= floor["score"]]
    if low:
        lines.append(
            f"- Runs of {', '.join(sorted(set(low)))} score no better than an encoder with fresh weights "
            f"({floor['score']:.1f}): at this size pre-training has taught them little that these tasks need."
        )
    return [*lines, *[f"- {note}" for note in results["notes"]]]


def difference_table(comparisons: list[dict[str, Any]]) -> list[str]:
    """Return one row for each comparison and measure, then for each task."""
    rows = ["| comparison | on | seeds | difference | 95 % interval | verdict |", "|---|---|---|---|---|---|"]
    for found in comparisons:
        names = f"{found['better']} - {found['worse']}"
        parts = {f"**{title}**": found[measure] for measure, title in MEASURES.items()} | found["tasks"]
        for title, part in parts.items():
            decided = part["verdict"] if title.startswith("**") else ""
            rows.append(f"| {names} | {title} | {part['count']} | {part['mean']:+.2f} | {bounds(part)} | {decided} |")
    return rows


def bounds(part: dict[str, Any]) -> str:
    """Write an interval."""
    return "none" if part["low"] is None else f"[{part['low']:+.2f}, {part['high']:+.2f}]"


def score_table(results: dict[str, Any]) -> list[str]:
    """Return means over seeds by arm, task and measure, with half the width of their own 95 % interval."""
    tasks = list(results["tasks"])
    rows = [f"| | | {' | '.join(tasks)} | mean |", f"|---|---|{'---|' * (len(tasks) + 1)}"]
    for arm in results["arms"]:
        found = [run["scores"] for run in results["runs"] if run["arm"] == arm and run["scores"]]
        for measure, title in (
            ("probe_mean", "probe, mean"),
            ("probe_cls", "probe, [CLS]"),
            ("finetune", "fine-tuned"),
        ):
            columns = [[scores[task][measure] for scores in found] for task in tasks]
            columns.append([sum(values) / len(values) for values in zip(*columns, strict=True)])
            rows.append(f"| {arm} | {title} | {' | '.join(map(with_half, columns))} |")
    if floor := results["untrained"]:
        for measure, title in (("probe_mean", "probe, mean"), ("finetune", "fine-tuned")):
            values = [floor["scores"][task][measure] for task in tasks]
            cells = [f"{value:.1f}" for value in [*values, sum(values) / len(values)]]
            rows.append(f"| fresh weights | {title} | {' | '.join(cells)} |")
    values = [results["tasks"][task]["majority"] for task in tasks]
    rows.append(f"| majority class | | {' | '.join(f'{v:.1f}' for v in [*values, sum(values) / len(values)])} |")
    return rows


def with_half(values: list[float]) -> str:
    """Write a mean and half the width of its interval."""
    interval = t_interval(values)
    if not values:
        return ""
    return f"{interval.mean:.1f}" + ("" if interval.low is None else f" +- {interval.mean - interval.low:.1f}")


def arm_table(results: dict[str, Any]) -> list[str]:
    """Return what each arm cost."""
    rows = ["| arm | operations per step | steps | operations | tokens read | learning rate | seeds | seconds a run |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for arm, found in results["arms"].items():
        runs = [run for run in results["runs"] if run["arm"] == arm]
        steps, lasted = runs[0]["steps"], sum(run["seconds"] for run in runs) / len(runs)
        cells = [
            arm,
            f"{found['operations_per_step']:.4g}",
            f"{steps:,}",
            f"{steps * found['operations_per_step']:.4g}",
            f"{steps * found['tokens_per_step']:,.0f}",
            f"{found['learning_rate']:g}",
            ", ".join(str(run["seed"]) for run in runs),
            f"{lasted:.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def formula(results: dict[str, Any]) -> str:
    """Say how long each arm is."""
    text = FORMULA.format(
        budget=results["budget"],
        counted=results["counted_steps"],
        operations=results["operations"],
        warmup=results["warmup_fraction"],
    )
    return textwrap.fill(" ".join(text.split()), 118)


def judging(results: dict[str, Any]) -> list[str]:
    """Say how the tasks were used and how learning rates were chosen."""
    how, rates = results["judging"], results["learning_rates"]
    lines = [
        JUDGING.strip().format(**how),
        *(
            f"- {name}: {task['metric']}, {task['train']:,} examples to train, {task['test']:,} to test"
            for name, task in results["tasks"].items()
        ),
    ]
    if len(rates) == 1:
        return [*lines, f"- Learning rate: {rates[0]:g} for all arms; it was not tuned for any."]
    lines.append(
        f"- Learning rate: each arm its best of {rates}, by the cross-validated score of the probe on the training "
        f"examples, from runs of {results['tuning_fraction']:.0%} of the budget with a seed that is not judged."
    )
    return [*lines, *[f"  - {t['arm']}, {t['learning_rate']:g}: {told(t['cv'])}" for t in results["tuning"]]]


def told(value: float | None) -> str:
    """Write a score, or that there is none."""
    return "diverged" if value is None else f"{value:.2f}"


def made_with(results: dict[str, Any]) -> list[str]:
    """Say what produced this report."""
    there = results["machine"]
    changed = f" with {len(there['changed_files'])} changed files" if there["changed_files"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in there["versions"].items() if version)
    hashes = ", ".join(f"{run['folder']} {(run['config_sha256'] or '')[:12]}" for run in results["runs"])
    return [
        f"`{results['command']}` in {results['minutes']:.1f} minutes (runs that were finished before take none); "
        f"{there['time']}, commit {(there['commit'] or 'unknown')[:12]}{changed}.",
        "",
        f"{there.get('gpu', there['cpu'])}, {there['cores']} cores, load {there['load']:.1f} at the start.",
        "",
        f"Python {there['python']}, {versions}.",
        "",
        f"Configurations (sha256): {hashes}.",
    ]
