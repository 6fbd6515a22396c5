"""`python -m launch bench`: measure the speed against bare PyTorch and other trainers."""

import importlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from launch.benches import report
from launch.config.errors import ConfigError, meant
from launch.config.numbers import is_whole
from launch.config.overlay import expanded
from launch.config.resolved import command_shown, with_values

BENCHES = {
    "electra": "launch.benches.electra",
    "data": "launch.benches.data",
    "matryoshka2d": "launch.benches.matryoshka2d",
    "runtime": "launch.benches.runtime",
}
FOLDERS = {
    "electra": "benchmarks/electra/bench",
    "data": "benchmarks/data",
    "matryoshka2d": "benchmarks/matryoshka2d/bench",
    "runtime": "benchmarks/runtime",
}
USAGE = """usage: python -m launch bench {electra,data,matryoshka2d,runtime} [--key value ...]

electra: tokens a second of `fit` against a bare PyTorch loop and the Hugging Face Trainer, in the same process tree
data: tokens a second of `prepare` against the bare tokenizer
matryoshka2d: pairs a second of `fit` against SentenceTransformerTrainer, and what modes, cached gradients, the grid and
  cut models cost
runtime: two ranks; steps, saves, loads and starts of each strategy against the same strategy used by hand

  --out FOLDER        for results.json, report.md and ratios.png; by default benchmarks/electra/bench, benchmarks/data,
                      benchmarks/matryoshka2d/bench, benchmarks/runtime
  --data.root FOLDER  matryoshka2d only; holds nli_triplets and stsb; else the embedded pairs are taken
  --device cpu|cuda   electra and matryoshka2d; on a GPU in bf16, electra in sizes small and base
  --size NAMES        small, base, debug; several with commas
  --threads NUMBERS   threads of each system, by default 1,2
  --precision NAMES   fp32, bf16; by default both on a CPU that computes in bf16
  --rounds N          turns of each system, by default 20
  --steps N           training steps of a turn, by default 2 (20 on a GPU)
  --quick             two rounds of a tiny model: shows that it works and measures nothing; into runs/bench
"""


@dataclass(frozen=True)
class Options:
    """How a bench is run; `folder` is for what it needs meanwhile."""

    folder: Path
    quick: bool
    device: str
    sizes: tuple[str, ...]
    threads: tuple[int, ...]
    precisions: tuple[str, ...]
    rounds: int
    steps: int
    root: str | None = None

    def tell(self, line: str) -> None:
        """Print where the bench stands."""
        print(line, flush=True)


def main(words: list[str]) -> int:
    """Run one bench; return 0 whatever was measured, and 1 if a system failed.

    Raises:
        ConfigError: the words name no bench, or ask for what is not there.
    """
    if not words or "--help" in words or "-h" in words:
        print(USAGE, end="")
        return 0
    name, *rest = words
    if name not in BENCHES:
        raise ConfigError(f"bench {name}: no such bench{meant(name, [*BENCHES])}")
    given = with_values(rest, ("quick",))
    quick = given.get("quick") == "true"
    usual = f"runs/bench/{name}" if quick else FOLDERS[name]
    out = expanded(given.pop("out", usual), "--out")
    from launch.benches.rounds import SystemFailed

    with tempfile.TemporaryDirectory(prefix="tokamak_bench_") as folder:
        options = options_of(given, Path(folder))
        machine, began = report.machine(options.device), time.perf_counter()
        if machine["load"] > report.BUSY_LOAD:
            options.tell(f"this machine is busy (load {machine['load']:.1f}): the times will not mean much")
        try:
            found = importlib.import_module(BENCHES[name]).run(options)
        except SystemFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    minutes = (time.perf_counter() - began) / 60
    command = command_shown("bench", words, options.root)
    title = f"{name}, a quick run that measures nothing" if quick else name
    report.write(out, {"bench": title, "command": command, "minutes": minutes, "machine": machine, **found})
    options.tell(f"{out / 'report.md'}, results.json, ratios.png")
    return 0


def options_of(given: dict[str, str], folder: Path) -> Options:
    """Turn the flags into options; what is not given follows from the device and from --quick.

    Raises:
        ConfigError: a flag that does not exist, or a value that it cannot have.
    """
    known = ("device", "size", "threads", "precision", "rounds", "steps", "quick", "data.root")
    problems = [f"--{key}: no such flag of bench{meant(key, [*known, 'out'])}" for key in given if key not in known]
    quick, device = given.get("quick", "false") == "true", given.get("device", "cpu")
    on_gpu = device == "cuda"
    cores = len(os.sched_getaffinity(0))
    threads = listed(given.get("threads", "1" if quick or on_gpu or cores == 1 else "1,2"))
    usual = "bf16" if on_gpu else "fp32" if quick or report.lacks_bf16() else "fp32,bf16"
    precisions = listed(given.get("precision", usual))
    sizes = listed(given.get("size", "debug" if quick else "small,base" if on_gpu else "small"))
    numbers = {
        "rounds": given.get("rounds", "2" if quick else "20"),
        "steps": given.get("steps", "20" if on_gpu and not quick else "2"),
    }
    problems += [
        f"--{key} {value}: must be a whole number of 1 or more"
        for key, value in [*numbers.items(), *(("threads", value) for value in threads)]
        if not is_whole(value) or value == "0"
    ]
    allowed = {"device": ("cpu", "cuda"), "size": ("small", "base", "debug"), "precision": ("fp32", "bf16")}
    chosen = {"device": (device,), "size": sizes, "precision": precisions}
    problems += [
        f"--{key} {value}: must be one of {', '.join(allowed[key])}"
        for key, values in chosen.items()
        for value in values
        if value not in allowed[key]
    ]
    if problems:
        raise ConfigError(*problems)
    if on_gpu:
        check_gpu()
    return Options(
        folder,
        quick,
        device,
        sizes,
        tuple(map(int, threads)),
        precisions,
        int(numbers["rounds"]),
        int(numbers["steps"]),
        given.get("data.root"),
    )


def listed(value: str) -> tuple[str, ...]:
    """Split a value at its commas."""
    return tuple(part.strip() for part in value.split(","))


def check_gpu() -> None:
    """Refuse a GPU that is not there.

    Raises:
        ConfigError: PyTorch sees none.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no GPU here; leave --device out, or install a build with CUDA")
