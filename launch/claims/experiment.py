"""Carrying out a claim: tune, run, judge, compare."""

from collections.abc import Callable
from functools import partial
from typing import Any

from launch.claims.arms import COUNTED_STEPS, Arms, Run, Runner
from launch.claims.judge import Judge, Wanted, judged, quiet
from launch.claims.plan import Claim, Size, Task
from launch.claims.results import Scores, collapsed, comparison, record, score
from launch.config.errors import ConfigError
from launch.run import DONE


def carried_out(
    claim: Claim, size: Size, tasks: dict[str, Task], arms: Arms, trainer: dict[str, Any]
) -> dict[str, Any]:
    """Tune, run and judge all arms, and compare them."""
    quiet()
    for arm in claim.arms:
        print(f"{arm}: {arms.cost(arm).operations:.4g} operations a step", flush=True)
    runner = Runner(size.processes, size.threads)
    judges = partial(judged, judging=size.judging, tasks=tasks, trainer=trainer, processes=size.processes)
    rates, tuning = tuned(claim, size, arms, runner, judges)
    codes = runner.run([arms.run(arm, seed, rates[arm]) for arm in claim.arms for seed in size.seeds[arm]])
    good = [run for run, code in codes.items() if code == DONE]
    if not good:
        raise ConfigError(f"{arms.folder}: every run diverged; give the claim lower learning rates")
    print("judging", flush=True)
    first = good[0]
    wanted = [Wanted(run.folder, run.steps) for run in good]
    *scores, fresh = judges([*wanted, Wanted(first.folder, first.steps, trained=False)])
    by_run = dict(zip(good, scores, strict=True))
    records = [record(run, code, by_run.get(run)) for run, code in codes.items()]
    judge = Judge(size.judging, tasks, trainer)
    about = {name: described(judge, name, first) for name in tasks}
    lost = collapsed(records, {name: facts["majority"] for name, facts in about.items()})
    return {
        "comparisons": [comparison(records, a, b, lost) for a, others in claim.comparisons.items() for b in others],
        "collapsed": lost,
        "arms": {arm: {"learning_rate": rates[arm], **costs(arms, arm)} for arm in claim.arms},
        "runs": records,
        "untrained": {"scores": fresh, "score": score(fresh)},
        "tasks": about,
        "tuning": tuning,
        "learning_rates": size.learning_rates,
        "tuning_fraction": size.tuning_fraction,
        "warmup_fraction": size.warmup_fraction,
        "counted_steps": COUNTED_STEPS,
        "budget": size.budget,
        "settings": size.settings,
        "judging": vars(size.judging),
    }


def overall(size: str, found: dict[str, Any]) -> str:
    """Return the verdict in one line: for each comparison, at which size and on what."""
    parts = [f"{one['better']} over {one['worse']}: {one['verdict']}" for one in found["comparisons"]]
    return f"{'; '.join(parts)} (size {size}; {', '.join(found['tasks'])})"


def tuned(
    claim: Claim, size: Size, arms: Arms, runner: Runner, judges: Callable[[list[Wanted]], list[Scores]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Choose each arm's learning rate out of the grid by probes on the training examples alone."""
    if len(size.learning_rates) == 1:
        return dict.fromkeys(claim.arms, size.learning_rates[0]), []
    planned = [arms.run(arm, size.tuning_seed, rate, tuning=True) for arm in claim.arms for rate in size.learning_rates]
    codes = runner.run(planned)
    good = [run for run, code in codes.items() if code == DONE]
    found = judges([Wanted(run.folder, run.steps, ("probe",)) for run in good])
    values = {run: score(scores, "probe_mean_cv") for run, scores in zip(good, found, strict=True)}
    tried = [
        {"arm": run.arm, "learning_rate": run.learning_rate, "steps": run.steps, "cv": values.get(run)} for run in codes
    ]
    rates = {}
    for arm in claim.arms:
        own = [one for one in tried if one["arm"] == arm and one["cv"] is not None]
        rates[arm] = max(own, key=lambda one: one["cv"])["learning_rate"] if own else size.learning_rates[0]
        print(f"{arm}: learning rate {rates[arm]:g}", flush=True)
    return rates, tried


def costs(arms: Arms, arm: str) -> dict[str, float]:
    """Return what a step of an arm costs."""
    return {"operations_per_step": arms.cost(arm).operations, "tokens_per_step": arms.cost(arm).tokens}


def described(judge: Judge, name: str, run: Run) -> dict[str, Any]:
    """Describe a task by its metric, sizes and what its majority class scores."""
    splits = judge.data_of(run.folder, name).splits
    sizes = {"train": len(splits["train"]), "test": len(splits["test"])}
    return {"metric": judge.tasks[name].metric, **sizes, "majority": judge.majority(run.folder, name)}
