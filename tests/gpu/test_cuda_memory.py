"""The plan of a GPU's memory against what CUDA's allocator has held, for a model of more than 1 GiB of state."""

import pytest

from tests.gpu.needed import torch  # skips this file where something is lacking

# isort: split

from lightning.fabric.utilities.apply_func import move_data_to_device

from launch.config.resolved import resolve
from launch.plan import plan_of
from launch.planning.memory import GIB, peak
from lightning_modules.core.optim import build_optimizer
from lightning_modules.electra.module import Electra
from tests.text import text_batch, word_tokenizer

pytestmark = pytest.mark.gpu
SHAPE = {"hidden_size": 1024, "num_layers": 5, "num_heads": 16, "embedding_size": 1024, "generator_width": 0.25}
WORDS = ["--config", "configs/electra/debug.yaml", "--trainer.accelerator", "gpu", "--model.max_positions", "128"]
WORDS += ["--data.sequence_length", "128", "--data.micro_batch_size", "32", "--data.global_batch_size", "64"]
WORDS += [word for key, value in SHAPE.items() for word in (f"--model.{key}", str(value))]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_peak_of_one_gpu_is_as_planned(precision):
    plan = plan_of(resolve([*WORDS, "--trainer.precision", precision], "fit"))
    assert 16 * plan.sizes.trained >= GIB
    module = Electra(max_positions=128, **SHAPE)
    module.build(word_tokenizer(plan.vocab_size), 128)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    module.to("cuda")
    optimizer = build_optimizer("adamw", [{"params": list(module.parameters())}], 1e-4, 1e-6)
    for step in range(2):
        for index in range(2):
            batch = text_batch([128] * 32, plan.vocab_size, seed=2 * step + index)
            counts = {name: float(count) for name, count in module.target_counts(batch).items()}
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
                terms = module.objective(move_data_to_device(batch, torch.device("cuda")), step, False)
            terms.total(counts).backward()
        optimizer.step()
        optimizer.zero_grad()
    held = torch.cuda.max_memory_allocated() - before
    assert peak(plan.memory["single"], on_host=False) == pytest.approx(held, rel=0.15)
