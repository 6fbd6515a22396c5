"""What really goes over the wire between two hosts in a step is what `launch scaling` says."""

from pathlib import Path

import pytest

from launch.config.resolved import resolve
from launch.planning.scale import options_of, weights_of
from launch.planning.sizes import build
from launch.planning.traffic import CALLS, Step
from tests.network.hosts import Hosts

WORDS = ["--config", "configs/electra/debug.yaml", "--trainer.num_nodes=2", "--trainer.devices=1"]
QUIET = [f"--callbacks.{name}=null" for name in ("checkpoint", "validation", "electra_panel")]
FEW, MANY = 5, 105
OVERHEAD = 1.06  # of headers and acknowledgements of IP and TCP


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_the_counters_of_the_interfaces(strategy, hosts: Hosts, tmp_path: Path):
    words = [*WORDS, "--config", f"configs/strategy/{strategy}.yaml", "--trainer.log_every_n_steps=1000"]
    sent = []
    for steps in (FEW, MANY):
        before = [hosts.sent(index) for index in (0, 1)]
        for rank in hosts.both(
            "fit", *words, *QUIET, f"--trainer.max_steps={steps}", f"--run.dir={tmp_path / str(steps)}"
        ):
            code, text = rank.end(180)
            assert code == 0, text
        sent.append([hosts.sent(index) - before[index] for index in (0, 1)])
    resolved = resolve([*words, "--trainer.max_steps=1"], "fit")
    step = Step(weights_of(build(resolved, 1000)), 2, 2, **options_of(resolved, strategy))
    computed = sum(call.sent(2) for call in CALLS[strategy](step))
    for few, many in zip(*sent, strict=True):
        assert computed < (many - few) / (MANY - FEW) < OVERHEAD * computed
