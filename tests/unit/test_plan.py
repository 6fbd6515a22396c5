"""The plan: counts against networks that are built, activations against what autograd keeps, words and mistakes."""

import json
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from launch.config.errors import ConfigError
from launch.config.resolved import resolve
from launch.plan import Plan, measured_speed, plan_of
from launch.planning import sizes
from launch.planning.activations import Pass, kept
from launch.planning.memory import GIB, Setting, lines_of, peak
from launch.planning.report import report
from lightning_modules.core.terms import LossTerms
from lightning_modules.electra.module import Electra
from lightning_modules.finetune.module import Finetune
from tests.text import text_batch, word_tokenizer

SEVEN_BILLION = ["--config", "configs/electra/base.yaml", "--config", "configs/trainer/gpu.yaml"]
SEVEN_BILLION += ["--model.num_layers", "32", "--model.hidden_size", "4096", "--model.num_heads", "64"]
SEVEN_BILLION += ["--model.embedding_size", "4096", "--model.generator_width", "0.25"]
SMALL = ["--config", "configs/electra/small.yaml", "--trainer.accelerator", "cpu"]


def plan(words: list[str], **more: int) -> Plan:
    return plan_of(resolve(words, "fit"), **more)


def method(embedding_size: int = 32, **options: object) -> Electra:
    sizes = {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "max_positions": 64}
    return Electra(embedding_size=embedding_size, **sizes, **options)


def bytes_kept(module: torch.nn.Module, loss_of: object) -> int:
    """Count what autograd keeps for the backward pass, every storage once, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    found: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that its address is not used again
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of()
    return sum(found.values())


def total(terms: LossTerms) -> torch.Tensor:
    return sum(term.sum for term in terms.terms.values())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("dropout", "attention_dropout"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.1)])
@pytest.mark.parametrize("task", ["electra", "mlm"])
def test_activations_are_what_autograd_keeps(task: str, dropout: float, attention_dropout: float, mixed: bool) -> None:
    # a projection of the embeddings comes out in bfloat16, and on a CPU all that is added to it stays so
    options = {"embedding_size": 64 if mixed else 32, "generator_width": 1.0 if mixed else 0.5}
    module = method(task=task, dropout=dropout, attention_dropout=attention_dropout, **options)
    module.build(word_tokenizer(200), 64)
    batch, run = text_batch([64] * 8, 200), Pass(8, 64, mixed=mixed)

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            total(module.objective(batch, 1, False))

    passing = ("gradients that pass through",)
    planned = sum(part.bytes for part in kept(module, run) if part.name not in passing)
    if mixed:
        planned += 2 * sizes.measure(module).matrices
    assert planned == pytest.approx(bytes_kept(module, forward), rel=0.1)


def test_recomputed_layers_keep_their_inputs() -> None:
    module = method()
    module.build(word_tokenizer(200), 64)
    plain, recomputed = (sum(p.bytes for p in kept(module, Pass(8, 64, recompute=flag))) for flag in (False, True))
    assert recomputed < plain / 2


@pytest.mark.parametrize("tying", ["embeddings", "none"])
def test_parameters_are_those_of_the_networks(tying: str) -> None:
    module = method(tying=tying)
    module.build(word_tokenizer(200), 64)
    module.model.discriminator.network.electra.embeddings.position_embeddings.requires_grad_(False)
    found = sizes.measure(module)
    assert found.frozen == 64 * 32
    assert found.trained == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert found.layer == sum(
        p.numel() for p in module.model.discriminator.network.electra.encoder.layer[0].parameters()
    )


def test_seven_billion_parameters() -> None:
    found = plan([*SEVEN_BILLION, "--config", "configs/strategy/zero3.yaml"], ranks=8)
    assert found.sizes.trained == 6_999_583_547
    assert all(p.is_meta for p in sizes.build(found.resolved, 30522).parameters())
    lines = {line.name: line.bytes for line in found.memory["zero3"]}
    assert lines["weights"] == 4 * found.sizes.trained / 8
    assert lines["optimizer state"] == 8 * found.sizes.trained / 8
    single, pieces = (peak(found.memory[name], on_host=False) for name in ("single", "zero3"))
    assert pieces < single - 5 * 4 * found.sizes.trained * 7 / 8 / 2
    assert found.checkpoint_bytes == 12 * found.sizes.trained
    text = report(found, 50_000.0, "given")
    assert "electra: 6,999,583,547 parameters; a vocabulary of 30,522" in text
    assert "time: 23.2 days at 50,000 tokens/s (given)" in text
    assert "disk: 782.26 GiB for 10 checkpoints" in text


def test_lines_are_sums_of_their_formulas() -> None:
    count = sizes.Sizes(trained=1000, frozen=0, largest=100, layer=300, rest=100, matrices=900, buffers=0)
    options = {
        "zero1": {"reduce_bucket_size": 50, "overlap_comm": True},
        "zero2": {"reduce_bucket_size": 50, "overlap_comm": True},
        "zero3": {"reduce_bucket_size": 50, "prefetch_bucket_size": 20},
    }
    options["zero3_offload"] = options["zero3"]
    setting = Setting(count, 4, 2, 4, False, True, 7000, False, False, False, options)
    backward = {
        "single": 4000 + 4000 + 8000 + 7000 + 400,
        "ddp": 4000 + 4000 + 4000 + 8000 + 7000 + 400,
        "zero1": 4000 + 1000 + 2000 + 4000 + 7000 + 400,
        "zero2": 4000 + 1000 + 2000 + 4000 + 7000 + 400,
        "zero3": 1000 + 2000 + 2000 + 200 + 4000 + 80 + 4000 + 7000 + 400,
        "zero3_offload": 200 + 4000 + 80 + 4000 + 7000 + 400,
        "fsdp": 1000 + 2000 + 4000 + 4000 + 7000 + 400,
    }
    assert {name: peak(lines_of(name, setting), on_host=False) for name in backward} == backward
    assert peak(lines_of("zero3_offload", setting), on_host=True) == 1000 + 1000 + 2000 + 2000


def test_saves_take_host_memory_while_they_are_written() -> None:
    def copies(*words: str) -> dict[str, float]:
        lines = plan([*SMALL, *words]).memory["single"]
        return {phase: line.bytes for line in lines if line.name == "copy that is saved" for phase in line.phases}

    weights = 12 * plan(SMALL).sizes.trained
    assert copies() == dict.fromkeys(("backward", "exchange", "update", "between"), weights)
    assert copies("--trainer.max_steps", "10") == {"between": weights}, "only at the end"
    assert copies("--callbacks.checkpoint", "null") == {}


def test_steps_tokens_and_disk() -> None:
    found = plan(["--config", "configs/electra/debug.yaml"])
    assert (found.tokens_per_step, found.kept_checkpoints) == (8 * 32, 3)
    best = plan(["--config", "configs/electra/demo.yaml"])
    assert best.kept_checkpoints == 4
    assert plan(SMALL).kept_checkpoints == 3 + 10
    assert plan([*SMALL, "--callbacks.checkpoint", "null"]).kept_checkpoints == 0
    assert "time: give --tokens-per-second X" in report(found, None, "")


def test_fine_tuning_is_planned_where_its_encoder_is_described() -> None:
    found = plan(["--config", "configs/finetune/debug.yaml"])
    module = Finetune(
        untrained={"hidden_size": 32, "num_layers": 2, "num_heads": 2, "embedding_size": 32, "max_positions": 64},
        head="hugging_face",
    )
    module.label_names = ["a", "b"]
    module.build(word_tokenizer(1000), 64)
    assert found.sizes.trained == sum(p.numel() for p in module.parameters())


def test_graphs_of_all_micro_batches_are_kept_unless_gradients_are_cached() -> None:
    words = ["--config", "configs/matryoshka2d/small.yaml", "--trainer.accelerator", "cpu"]
    (kept_lines, kept_plan), (cached_lines, cached) = (
        ({line.name: line.bytes for line in found.memory["single"]}, found)
        for found in (plan(words), plan([*words, "--model.cached_gradients=true"]))
    )
    assert kept_lines["activations"] == 4 * cached_lines["activations"], "four micro-batches"
    assert kept_plan.tokens_per_step == cached.tokens_per_step == 128 * 2 * 128, "an example has two texts"
    assert "step: 128 examples of 2 texts or more = 1 ranks x 4 micro-batches x 32" in report(cached, None, "")


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (
            [*SMALL, "--data.tokenizer", "google/electra-small-discriminator", "--data.tokenizer.train", "null"],
            {},
            "data.tokenizer.name = google/electra-small-discriminator (--data.tokenizer): no folder with a "
            "tokenizer.json that opens, and a plan fetches nothing; state the size of the vocabulary as --vocab-size N",
        ),
        (
            ["--config", "configs/electra/debug.yaml", "--config", "configs/strategy/ddp.yaml"],
            {},
            "trainer.devices = auto (configs/strategy/ddp.yaml:2): give the number of processes as --ranks N",
        ),
        (
            ["--config", "configs/electra/debug.yaml", "--config", "configs/strategy/ddp.yaml"],
            {"ranks": 3},
            "data.global_batch_size = 8 (configs/electra/debug.yaml:",
        ),
    ],
)
def test_what_a_plan_cannot_know(words: list[str], more: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(words, **more)
    assert str(error.value).startswith(message)


def test_a_tokenizer_that_is_here_is_counted(tmp_path: Path) -> None:
    words = [
        "--config",
        "configs/electra/debug.yaml",
        "--data.tokenizer",
        str(tmp_path),
        "--data.tokenizer.train",
        "null",
    ]
    word_tokenizer(123).save_pretrained(tmp_path)
    assert plan(words).vocab_size == 123
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no folder with a tokenizer\.json that opens"):
        plan(words)


def test_an_encoder_that_is_here_is_looked_at_and_no_other(tmp_path: Path) -> None:
    words = ["--config", "configs/finetune/electra_small.yaml", "--model.init_from", str(tmp_path / "encoder")]
    with pytest.raises(ConfigError, match=r"model.init_from = .*: not on this machine, and a plan fetches nothing"):
        plan(words, vocab_size=200)
    module = method(generator_width=0.5)
    module.build(word_tokenizer(200), 64)
    module.export(tmp_path / "encoder", word_tokenizer(200))
    found = plan([*words, "--data.sequence_length", "64"], vocab_size=200)
    encoder = sum(p.numel() for p in module.model.discriminator.network.electra.parameters())
    assert found.sizes.trained == encoder + 64 * 64 + 64 + 2 * 64 + 2


def test_speed_is_measured_from_a_run(tmp_path: Path) -> None:
    speeds = [10.0, 100.0, 300.0, 200.0]
    lines = [{"step": step, "perf/tokens_per_s": speed} for step, speed in enumerate(speeds)] + [{"step": 9}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert measured_speed(tmp_path) == (200.0, f"median of 3 measurements in {tmp_path}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match=r"holds no perf/tokens_per_s"):
        measured_speed(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be read"):
        measured_speed(tmp_path / "none")


def test_bf16_true_keeps_masters_apart() -> None:
    words = [*SEVEN_BILLION, "--trainer.precision", "bf16-true", "--config", "configs/strategy/zero2.yaml"]
    found = plan(words, ranks=8)
    lines = {line.name: line.bytes / found.sizes.trained for line in found.memory["zero2"]}
    assert (lines["weights"], lines["master weights"], lines["optimizer state"], lines["gradients"]) == (2, 0.5, 1, 2)
    assert found.checkpoint_bytes == 12 * found.sizes.trained
    assert set(found.memory) == {"zero1", "zero2", "zero3", "zero3_offload"}
    assert peak(found.memory["zero2"]) > 40 * GIB
