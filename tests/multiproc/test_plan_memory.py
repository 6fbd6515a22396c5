"""The plan's memory against what real runs hold: the product itself, models of at least 1 GiB of state, on CPUs."""

import json
from pathlib import Path

import pytest

from launch.benches.report import lacks_bf16
from launch.config.resolved import resolve
from launch.plan import plan_of
from launch.planning.memory import GIB, Line, peak
from tests.cli.launching import launch

SHARE = 0.15
STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp")
SHAPE = {
    "model.hidden_size": 1024,
    "model.num_layers": 5,
    "model.num_heads": 16,
    "model.embedding_size": 1024,
    "model.generator_width": 0.25,
    "model.max_positions": 128,
    "trainer.max_steps": 4,
    "callbacks.checkpoint.every_n_steps": 2,
    "callbacks.validation": "null",
    "callbacks.electra_panel": "null",
}
RETURNS_WHAT_IS_FREED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # glibc: see docs/planning.md
MEMORY = "tests.multiproc.memory_toy.Memory"


def words_of(strategy: str, run: Path, cache: Path, **more: object) -> list[str]:
    devices = 1 if strategy == "single" else 2
    values = {**SHAPE, "run.dir": run, "data.cache_dir": cache, "trainer.devices": devices, **more}
    flags = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    return ["--config", "configs/electra/debug.yaml", "--config", f"configs/strategy/{strategy}.yaml", *flags]


def without_copy(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.name != "copy that is saved"]


def compare(strategy: str, tmp_path: Path, cache: Path, **more: object) -> dict[str, tuple[float, float]]:
    """Run, and return what was planned and what was measured, the largest of the ranks, in GiB."""
    words = words_of(strategy, tmp_path / "run", cache, **more)
    plan = plan_of(resolve(words, "fit"))
    assert 16 * plan.sizes.trained >= GIB, "weights, gradients and two moments"
    allocator = {} if strategy in ("single", "ddp") else RETURNS_WHAT_IS_FREED
    done = launch("fit", *words, "--callbacks.memory.class", MEMORY, "--callbacks.memory.holds", "2", **allocator)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads(file.read_text()) for file in sorted((tmp_path / "run").glob("memory_*.json"))]
    assert len(ranks) == (1 if strategy == "single" else 2)
    lines = plan.memory[strategy]
    planned = {"steps": peak(without_copy(lines)), "steps beside a save": peak(lines)}
    found = {name: (planned[name] / GIB, max(rank[name] for rank in ranks) / GIB) for name in planned}
    print(
        strategy, more, {name: f"planned {p:.2f}, measured {m:.2f}, {p / m - 1:+.0%}" for name, (p, m) in found.items()}
    )
    folder = next((tmp_path / "run" / "checkpoints").glob("step_*"))
    written = sum(file.stat().st_size for file in folder.iterdir())
    assert written == pytest.approx(plan.checkpoint_bytes, rel=0.01)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_peak_is_as_planned(strategy: str, tmp_path: Path, cache: Path) -> None:
    for name, (planned, measured) in compare(strategy, tmp_path, cache).items():
        assert planned == pytest.approx(measured, rel=SHARE), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_peak_with_one_pass_a_step(strategy: str, tmp_path: Path, cache: Path) -> None:
    one = {"data.micro_batch_size": 8 if strategy == "single" else 4}
    for name, (planned, measured) in compare(strategy, tmp_path, cache, **one).items():
        assert planned == pytest.approx(measured, rel=SHARE), name


LONG = {"data.sequence_length": 128, "data.micro_batch_size": 8, "data.global_batch_size": 16}
OTHERS = {
    "buckets smaller than the model": ("zero2", {"strategy.reduce_bucket_size": 10_000_000}),
    "pieces smaller than the model": (
        "zero3",
        {"strategy.reduce_bucket_size": 10_000_000, "strategy.prefetch_bucket_size": 5_000_000},
    ),
    "activations": ("single", LONG),
    "activations in bfloat16": ("ddp", {**LONG, "trainer.precision": "bf16-mixed"}),
    "activations made twice": ("fsdp", {**LONG, "trainer.activation_checkpointing": "true"}),
    "an optimizer with scratch": ("single", {"model.optimizer": "as_released"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OTHERS))
def test_peak_where_something_else_is_large(name: str, tmp_path: Path, cache: Path) -> None:
    strategy, more = OTHERS[name]
    if more.get("trainer.precision") == "bf16-mixed" and lacks_bf16():
        pytest.skip("this processor has no instructions for bf16: the run takes ten times as long")
    for phase, (planned, measured) in compare(strategy, tmp_path, cache, **more).items():
        assert planned == pytest.approx(measured, rel=SHARE), phase
