"""The bytes of `launch scaling` are those that real processes hand to their collective calls in a step."""

import json
from collections import Counter

import pytest

from launch.config.resolved import resolve
from launch.planning.scale import options_of, weights_of
from launch.planning.sizes import build
from launch.planning.traffic import CALLS, GATHER, REDUCE, SCATTER, Step
from tests.forked import train
from tests.multiproc.count_calls import FILE

NAMES = {"allreduce": REDUCE, "all_reduce": REDUCE, "allgather_base": GATHER, "reduce_scatter_base": SCATTER}
SMALL = 1024  # bytes of sums that are left out: counts of targets, votes, norms, flags
CONFIG = ["--config", "configs/electra/debug.yaml"]
QUIET = [f"--callbacks.{name}=null" for name in ("checkpoint", "validation", "electra_panel")]
COUNT = ["--callbacks.count.class=tests.multiproc.count_calls.Count", "--trainer.log_every_n_steps=1000"]
VOCABULARY = 1000
CASES = [
    ("zero3", 2, 1, "32-true"),
    *(
        pytest.param(strategy, 2, passes, "32-true", marks=pytest.mark.slow)
        for strategy in CALLS
        for passes in (1, 4)
        if (strategy, passes) != ("zero3", 1)
    ),
    pytest.param("zero3", 4, 2, "32-true", marks=pytest.mark.slow),
    pytest.param("fsdp", 4, 2, "32-true", marks=pytest.mark.slow),
    pytest.param("zero2", 4, 1, "32-true", marks=pytest.mark.slow),
    pytest.param("zero2", 2, 2, "bf16-true", marks=pytest.mark.slow),
    pytest.param("fsdp", 2, 2, "bf16-mixed", marks=pytest.mark.slow),
    pytest.param("ddp", 2, 2, "64-true", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("strategy", "ranks", "passes", "precision"), CASES)
def test_a_step_moves_what_was_computed(strategy, ranks, passes, precision, tmp_path):
    words = [*CONFIG, "--config", f"configs/strategy/{strategy}.yaml", f"--trainer.devices={ranks}"]
    words += [f"--trainer.precision={precision}", f"--data.micro_batch_size={8 // ranks // passes}"]
    words += ["--strategy.persistence_threshold=1000"] if strategy == "zero3" else []
    train(tmp_path, ranks, *words, *QUIET, *COUNT, "--trainer.max_steps=7")
    steps = [json.loads((tmp_path / FILE.format(rank=rank)).read_text()) for rank in range(ranks)]
    assert all(steps[0] == of_a_rank for of_a_rank in steps), "every rank makes the same calls"
    assert steps[0][0] == steps[0][1] == steps[0][2], "and in every step"

    counted, small = Counter(), 0
    for name, size in steps[0][2]:  # the last step measures its loss, as those that are logged
        if NAMES[name] == REDUCE and size < SMALL:
            small += size
        else:
            counted[NAMES[name]] += size
    resolved = resolve([*words, "--trainer.max_steps=6"], "fit")
    step = Step(weights_of(build(resolved, VOCABULARY)), ranks, passes, **options_of(resolved, strategy))
    computed = Counter()
    for call in CALLS[strategy](step):
        computed[call.operation] += call.bytes
    assert counted == computed
    assert 0 < small < SMALL
