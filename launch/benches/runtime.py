"""Two ranks on one machine: steps, saves, loads and starts of every strategy against the same strategy used by hand.

| system | what it is |
|---|---|
| fit | `launch fit` on two processes: Lightning's loop, our strategy, callbacks and loggers |
| bare | a loop written by hand around the same networks and objective: torch's DDP, DeepSpeed's engine, FSDP2 |
| slices | our checkpoint of all ranks, from the call until it is published: hashed, synced, renamed |
| deepspeed, dcp | the engine's own save, torch.distributed.checkpoint; synced too, nothing is hashed |
| blocked | the part of our save that the training waits for |
| copy | a copy of this rank's part of the state into new memory |

Speeds are ratios of one over time: a save in at most 1.2 times DeepSpeed's time is a ratio of at least 0.83.
"""

import time
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from launch.benches import pair, saves
from launch.benches.electra import fit_words, prepare
from launch.benches.ratios import Goal, compared
from launch.benches.rounds import Spec, System, alternate, records_of, running, speeds_of

if TYPE_CHECKING:
    from launch.bench import Options

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp")
SAVED = {"zero2": "deepspeed", "zero3": "deepspeed", "fsdp": "dcp"}
STARTED = ("ddp", "zero2", "fsdp")
STARTS = 5
ABOUT = [__doc__.strip(), "One thread a rank. Speed counts the real tokens of the first rank."]
THIRTY_MILLION = {"model.hidden_size": 384, "model.num_heads": 6}  # parameters, of the small configuration


def run(options: "Options") -> dict[str, Any]:
    """Measure and return the results."""
    size = options.sizes[0]
    found: dict[str, Any] = {"about": ABOUT, "settings": [], "comparisons": [], "sections": []}
    prepare(fit_words(size, "fp32", "cpu"))
    for strategy in STRATEGIES if not options.quick else ("ddp", "zero3"):
        measure_steps(options, size, strategy, found)
    timed = {name: measure_saves(options, size, name, found) for name in (SAVED if not options.quick else ("fsdp",))}
    found["sections"] += saves.table(timed)
    found["sections"] += measure_starts(options, size)
    return found


def specs(options: "Options", size: str, strategy: str) -> list[Spec]:
    """Return both systems of a strategy."""
    words = pair.words(fit_words(size, "fp32", "cpu"), strategy)
    systems = []
    for name in ("fit", "bare"):
        folder = options.folder / f"{strategy}_{name}"
        folder.mkdir(exist_ok=True)
        own = {"system": name, "strategy": strategy, "words": [*words, "--run.dir", str(folder)]}
        systems.append(Spec(name, pair.start, own))
    return systems


def measure_steps(options: "Options", size: str, strategy: str, found: dict[str, Any]) -> None:
    """Let `fit` and the loop written by hand take turns, and add what was found."""
    options.tell(f"{strategy}, two ranks")
    with running(specs(options, size, strategy), 1, "cpu", options.folder) as systems:
        rounds = alternate(systems, options.rounds, options.steps, options.tell)
    speeds = speeds_of(rounds)
    speed = {name: median(values) for name, values in speeds.items()}
    found["settings"].append({"name": f"{strategy}, {size}", "tokens_per_s": speed, "rounds": records_of(rounds)})
    found["comparisons"].append(compared(Goal("fit", "bare", None if options.quick else 0.95), speeds, strategy))


def measure_saves(options: "Options", size: str, strategy: str, found: dict[str, Any]) -> dict[str, Any]:
    """Time saves and loads in one pair of processes; returns seconds by what was done."""
    options.tell(f"{strategy}: saves and loads")
    peer, words = SAVED[strategy], pair.words(fit_words(size, "fp32", "cpu"), strategy)
    if not options.quick:
        words += [word for key, value in THIRTY_MILLION.items() for word in (f"--{key}", str(value))]
    folder = options.folder / f"{strategy}_saves"
    folder.mkdir()
    own = {"system": "saves", "strategy": strategy, "words": [*words, "--run.dir", str(folder)]}
    with running([Spec("saves", pair.start, own, lead_in=0)], 1, "cpu", options.folder) as (system,):
        system.take_turn(2)
        turns = [system.take_turn(1).counts for _ in range(options.rounds)]
    seconds = {name: [turn[name] for turn in turns] for name in saves.TIMED}
    speeds = {
        "slices": [1 / s for s in seconds["save"]],
        peer: [1 / s for s in seconds["peer_save"]],
        "blocked": [1 / s for s in seconds["blocked"]],
        "copy": [1 / s for s in seconds["copy"]],
        "slices, loading": [1 / s for s in seconds["load"]],
        f"{peer}, loading": [1 / s for s in seconds["peer_load"]],
    }
    goals = [
        Goal("slices", peer, 1 / 1.2 if peer == "deepspeed" else 1 / 0.6),
        Goal("blocked", "copy", 1 / 1.5),
        Goal("slices, loading", f"{peer}, loading", 1 / 1.8),
    ]
    for goal in goals:
        goal = goal._replace(least=None) if options.quick else goal
        found["comparisons"].append(compared(goal, speeds, strategy))
    return {"peer": peer, "mebibytes": turns[-1]["mebibytes"], "seconds": seconds}


def measure_starts(options: "Options", size: str) -> list[str]:
    """Time from the start of the processes to the end of the first step; returns the lines of a table."""
    lines = ["", "## From the start of two processes to the end of the first step", ""]
    lines += ["| strategy | fit | bare | starts |", "|---|---|---|---|"]
    count = 1 if options.quick else STARTS
    for strategy in STARTED if not options.quick else ("ddp",):
        options.tell(f"{strategy}: starts")
        seconds: dict[str, list[float]] = {"fit": [], "bare": []}
        for number in range(count):
            both = [replace(spec, lead_in=0) for spec in specs(options, size, strategy)]
            for spec in both if number % 2 == 0 else both[::-1]:
                began = time.perf_counter()
                system = System(spec, 1, "cpu", options.folder)
                try:
                    system.take_turn(1)
                    seconds[spec.name].append(time.perf_counter() - began)
                finally:
                    system.end()
        shown = (f"{median(values):.1f} s ({min(values):.1f} to {max(values):.1f})" for values in seconds.values())
        lines.append(f"| {strategy} | {' | '.join(shown)} | {count} |")
    return lines
