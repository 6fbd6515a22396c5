"""What a claim found, as plain values: the contents of results.json."""

from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.claims.arms import Run
from launch.claims.statistics import OPEN, t_interval, verdict
from launch.run_folder import RunFolder, read_json

SCORED = ("probe_mean", "finetune")  # what counts; the probe on [CLS] is reported beside
COLLAPSED_POINTS = 0.5  # so near to naming the majority class everywhere, an arm has learned nothing
MEASURES = {"score": "all", "probe_mean": "probes", "finetune": "fine-tuning"}

Scores = dict[str, dict[str, float]]  # task -> measure -> 0 to 100


def score(scores: Scores, measure: str = "score") -> float:
    """Return the mean over tasks of one measure, or of the mean of those that count."""
    wanted = SCORED if measure == "score" else (measure,)
    values = [sum(found[name] for name in wanted) / len(wanted) for found in scores.values()]
    return sum(values) / len(values)


def record(run: Run, code: int, scores: Scores | None) -> dict[str, Any]:
    """Describe a run and what it scored; a run that diverged has no scores."""
    facts = read_json(run.folder / "run.json") or {}
    return {
        "arm": run.arm,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
        "steps": run.steps,
        "folder": run.folder.name,
        "diverged": code != 0,
        "config_sha256": facts.get("config_sha256"),
        "data_fingerprint": facts.get("data_fingerprint"),
        "commit": facts.get("commit"),
        "seconds": seconds(run.folder),
        "scores": scores,
        "score": None if scores is None else score(scores),
    }


def seconds(folder: Path) -> float:
    """Add up how long the attempts of a run took, by its ledger."""
    total, start = 0.0, None
    for line in RunFolder(folder).ledger():
        now = datetime.fromisoformat(line["time"]).timestamp()
        if line["event"] == "start":
            start = now
        elif start is not None:
            total, start = total + now - start, None
    return total


def collapsed(records: list[dict[str, Any]], majority: dict[str, float]) -> list[str]:
    """Return the arms of which every run, fine-tuned, does no better than naming the majority class of each task.

    Their training went wrong, so that beating them shows nothing.
    """
    by_arm: dict[str, list[float]] = {}
    for found in records:
        if found["scores"]:
            by_arm.setdefault(found["arm"], []).append(score(found["scores"], "finetune"))
    floor = sum(majority.values()) / len(majority)
    return [arm for arm, values in by_arm.items() if max(values) < floor + COLLAPSED_POINTS]


def comparison(records: list[dict[str, Any]], better: str, worse: str, lost: Collection[str] = ()) -> dict[str, Any]:
    """Compare two arms seed by seed, over all that counts and by each measure; one that is `lost` decides nothing."""
    by_arm = {arm: {r["seed"]: r for r in records if r["arm"] == arm and r["scores"]} for arm in (better, worse)}
    seeds = sorted(by_arm[better].keys() & by_arm[worse].keys())
    pairs = [(by_arm[better][seed]["scores"], by_arm[worse][seed]["scores"]) for seed in seeds]
    found: dict[str, Any] = {"better": better, "worse": worse, "seeds": seeds}
    for measure in MEASURES:
        differences = [score(ours, measure) - score(theirs, measure) for ours, theirs in pairs]
        found[measure] = {"differences": differences, **_told(differences)}
    tasks = pairs[0][0] if pairs else {}
    found["tasks"] = {
        task: _told([score({task: ours[task]}) - score({task: theirs[task]}) for ours, theirs in pairs])
        for task in tasks
    }
    return {**found, "verdict": OPEN if {better, worse} & set(lost) else found["score"]["verdict"]}


def _told(differences: list[float]) -> dict[str, Any]:
    interval = t_interval(differences)
    return {**interval._asdict(), "verdict": verdict(interval) if differences else OPEN}
