"""ELECTRA's pre-training step: `fit` against a bare PyTorch loop and against the Hugging Face Trainer.

| system | what it is |
|---|---|
| fit | `launch fit`: Lightning's loop, our callbacks and loggers, the datamodule |
| bare | a loop written by hand around the same networks, objective and flat batches |
| trainer | transformers.Trainer, padded batches, vocabulary logits at all positions |
| careful | the same with vocabulary logits at the masked positions only |
| loader | the datamodule's training loader alone |

All read the same examples in the same steps.
"""

import importlib.util
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from launch.benches.ratios import Goal, compared
from launch.benches.rounds import Gate, Spec, Turn, alternate, records_of, running, speeds_of
from launch.config.resolved import resolve

if TYPE_CHECKING:
    from datamodules.core.loader import Steps
    from launch.bench import Options
    from launch.cli import Cli

NEVER = 1_000_000
LOADER_PACE = 50
PROFILED_STEPS = 2
PRECISIONS = {"fp32": ("32-true", "float32"), "bf16": ("bf16-mixed", "bfloat16")}
USUAL = {("fp32", 1): 2.0, ("bf16", 1): 2.2, ("fp32", 2): 1.8, ("bf16", 2): 1.8}  # fit / trainer, on the CPU
SYSTEMS = ("fit", "bare", "trainer", "careful", "loader")
ABOUT = [__doc__.strip(), "Speed counts real tokens. Dropout is 0.1 everywhere; the examples are ELECTRA's segments."]


class Size(NamedTuple):
    """A configuration and the sequences of one step."""

    config: str
    batch: int
    batch_on_gpu: int


SIZES = {
    "debug": Size("configs/electra/debug.yaml", 8, 8),
    "small": Size("configs/electra/small.yaml", 16, 128),
    "base": Size("configs/electra/base.yaml", 4, 32),
}


def run(options: "Options") -> dict[str, Any]:
    """Measure every size, number of threads and precision, and return the results."""
    found: dict[str, Any] = {"about": ABOUT, "settings": [], "comparisons": []}
    for size in options.sizes:
        for threads in options.threads:
            for precision in options.precisions:
                measure(options, size, threads, precision, found)
    return found


def measure(options: "Options", size: str, threads: int, precision: str, found: dict[str, Any]) -> None:
    """Measure one setting and add what was found."""
    label = f"{size}, {precision}, " + (f"{threads} thread{'s' * (threads > 1)}" if options.device == "cpu" else "GPU")
    options.tell(label)
    words = fit_words(size, precision, options.device)
    prepare(words)
    with running(specs(words, options), threads, options.device, options.folder) as systems:
        rounds = alternate(systems, options.rounds, options.steps, options.tell)
        same_batches(rounds)
        dtype = PRECISIONS[precision][1]
        profiles = {
            system.name: system.take_turn(PROFILED_STEPS, dtype) for system in systems if system.name != "loader"
        }
    speeds = speeds_of(rounds)
    found["settings"].append(
        {
            "name": label,
            "words": words,
            "tokens_per_s": {name: median(values) for name, values in speeds.items()},
            "pad_fraction": pad_fraction(rounds),
            "time": {name: time_of(name, turn, rounds) for name, turn in profiles.items()},
            "rounds": records_of(rounds),
        }
    )
    found["comparisons"] += [
        compared(goal, speeds, label)
        for goal in goals(size, precision, threads, options)
        if goal.above in speeds and goal.below in speeds
    ]


def goals(size: str, precision: str, threads: int, options: "Options") -> list[Goal]:
    """Return what is compared; goals were set for the small size on a CPU."""
    aims = size == "small" and options.device == "cpu" and not options.quick
    return [
        Goal("fit", "bare", 0.97 if aims else None),
        Goal("fit", "trainer", USUAL.get((precision, threads)) if aims else None),
        Goal("fit", "careful", 1.3 if aims else None),
        Goal("loader", "fit", 20.0 if aims else None),
    ]


def fit_words(size: str, precision: str, device: str) -> list[str]:
    """Return the words of the `launch fit` that is measured; nothing is saved or evaluated in a turn."""
    config, batch, batch_on_gpu = SIZES[size]
    batch = batch if device == "cpu" else batch_on_gpu
    values = {
        "data.global_batch_size": batch,
        "data.micro_batch_size": batch,
        "trainer.max_steps": NEVER,
        "trainer.accelerator": device,
        "trainer.precision": PRECISIONS[precision][0],
        **{f"callbacks.{name}.every_n_steps": NEVER for name in ("validation", "checkpoint", "electra_panel")},
    }
    return ["--config", config, *(w for key, value in values.items() for w in (f"--{key}", str(value)))]


def prepare(words: list[str]) -> None:
    """Tokenise the corpus, if it has not been, so that the systems only open it."""
    from launch.prepare import instantiate

    instantiate(resolve(words)).prepare_data()


def specs(words: list[str], options: "Options") -> list[Spec]:
    """Return the systems that can run here; the Trainer needs accelerate."""
    has_trainer = importlib.util.find_spec("accelerate") is not None
    if not has_trainer:
        options.tell("accelerate is not installed: the Hugging Face Trainer is left out")
    steps = (options.rounds + 3) * (options.steps + 4)  # more than all turns take
    found = []
    for name in SYSTEMS:
        if has_trainer or name not in ("trainer", "careful"):
            run_dir = options.folder / f"{name}_run"
            run_dir.mkdir(exist_ok=True)
            own = {"system": name, "words": [*words, "--run.dir", str(run_dir)], "steps": steps}
            found.append(Spec(name, start, own, LOADER_PACE if name == "loader" else 1))
    return found


def same_batches(rounds: list[dict[str, Turn]]) -> None:
    """Make sure that the systems saw the same tokens."""
    for turns in rounds:
        seen = {name: turn.counts["tokens"] for name, turn in turns.items() if name != "loader"}
        assert len(set(seen.values())) == 1, f"not the same batches: {seen}"


def pad_fraction(rounds: list[dict[str, Turn]]) -> float:
    """Return the share of padding in the batches when they are padded to their longest sequence."""
    tokens, padded = (sum(turns["fit"].counts[name] for turns in rounds) for name in ("tokens", "padded"))
    return 1 - tokens / padded


def time_of(name: str, profiled: Turn, rounds: list[dict[str, Turn]]) -> dict[str, Any]:
    """Return where a system's time goes, and the share of the speed that its matrix multiplications alone allow."""
    limit = profiled.counts["tokens"] / profiled.profile["matmul_seconds"]
    reached = median(turns[name].tokens_per_s for turns in rounds)
    found = {"shares": profiled.profile["shares"], "limit_tokens_per_s": limit, "share_of_limit": reached / limit}
    if operations := sum(turns[name].counts.get("operations", 0.0) for turns in rounds):
        per_token = operations / sum(turns[name].counts["tokens"] for turns in rounds)
        found |= {"operations_per_token": per_token, "gflops": per_token * reached / 1e9}
    return found


# What runs in the systems' processes


def start(gate: Gate, options: dict[str, Any]) -> None:
    """Build everything as `fit` does, and run one system."""
    from launch.cli import Cli

    cli = Cli("fit", resolve(options["words"], "fit"))
    if options["system"] == "fit":
        run_fit(cli, gate)
        return
    cli.datamodule.setup()
    if options["system"] == "loader":
        for micro_batches in cli.datamodule.train_dataloader():
            gate.step(tokens=sum(sum(batch["lens"]) for batch in micro_batches))
    elif options["system"] == "bare":
        run_bare(cli, gate)
    else:
        run_trainer(cli, gate, options["system"] == "careful", options["steps"])


def run_fit(cli: "Cli", gate: Gate) -> None:
    """Run Lightning's loop; a callback waits at the beginning of each step."""
    from lightning import Callback, LightningModule, Trainer

    class Wait(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: list, *_: object) -> None:
            gate.step(
                tokens=sum(sum(micro["lens"]) for micro in batch),
                padded=sum(len(micro["lens"]) * micro["lens"][0] for micro in batch),
                operations=sum(module.flops(micro) for micro in batch),
            )

    cli.trainer.callbacks.append(Wait())
    cli.run()


def run_bare(cli: "Cli", gate: Gate) -> None:
    """Run the loop written by hand."""
    from benchmarks.peers.bare_loop import train

    cli.model.build(cli.datamodule.tokenizer, cli.datamodule.sequence_length)
    half = cli.resolved.get("trainer.precision") == PRECISIONS["bf16"][0]
    train(cli.model, cli.datamodule.train_dataloader(), NEVER, half, gate.device, gate.step)


def run_trainer(cli: "Cli", gate: Gate, careful: bool, steps: int) -> None:
    """Run the Hugging Face Trainer with the options of our method."""
    from benchmarks.peers.electra_padded import PaddedPair, trainer
    from lightning_modules.electra.modeling import generator_config

    method, data = cli.model, cli.datamodule
    config = method.encoder_config(data.tokenizer)
    pair = PaddedPair(config, generator_config(config, method.generator_width, method.generator_depth), careful)
    examples = in_order(data.train_dataloader().dataset, steps * data.global_batch_size)
    peer = trainer(
        pair,
        examples,
        data.tokenizer,
        str(cli.resolved.run_dir),
        **trainer_arguments(cli, gate),
    )
    peer.tick = gate.step
    peer.train()


def trainer_arguments(cli: "Cli", gate: Gate) -> dict[str, Any]:
    """Return the options of our method as those of a transformers.Trainer."""
    method = cli.model
    return {
        "per_device_train_batch_size": cli.datamodule.global_batch_size,
        "max_steps": NEVER,
        "learning_rate": method.learning_rate,
        "warmup_steps": method.warmup_steps,
        "weight_decay": method.weight_decay,
        "adam_epsilon": method.adam_epsilon,
        "max_grad_norm": method.clip_norm,
        "bf16": cli.resolved.get("trainer.precision") == PRECISIONS["bf16"][0],
        "use_cpu": gate.device == "cpu",
    }


def in_order(steps: "Steps", count: int) -> list[dict[str, list[int]]]:
    """Return the first examples of the training order as lists, as a tokenised data set holds them."""
    import numpy as np

    from datamodules.core.order import sample_at

    found = []
    for sample in sample_at(np.arange(count), len(steps.examples), steps.seed):
        ids, (second,) = steps.examples.gather(np.array([sample]))
        found.append(
            {
                "input_ids": ids.tolist(),
                "token_type_ids": (np.arange(len(ids)) >= second).astype(int).tolist(),
                "special_tokens_mask": steps.is_special[ids].astype(int).tolist(),
            }
        )
    return found
