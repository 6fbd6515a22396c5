"""ELECTRA on two nodes, through `launch slurm` and a real SLURM."""

from pathlib import Path

import pytest

from tests.runs import launch, metrics
from tests.slurm.cluster import Cluster, log

pytestmark = pytest.mark.slurm
DEBUG = ["--config", "configs/electra/debug.yaml"]


def job(cluster: Cluster, run: Path, *words: str) -> str:
    """Write and submit a job of two nodes with one task each, and return its number."""
    size = ["--nodes", "2", "--tasks-per-node", "1", "--time", "5"]
    told = cluster.launch("slurm", *DEBUG, *size, "--run.dir", str(run), "--submit", *words)
    return told.split("submitted as job ")[1].split(";")[0]


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_electra_on_two_nodes(strategy: str, cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    number = job(cluster, run, "--config", f"configs/strategy/{strategy}.yaml")
    facts = cluster.wait(number)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), log(run)
    alone = tmp_path / "alone"
    launch("fit", *DEBUG, "--run.dir", str(alone))
    for ours, theirs in zip(metrics(run), metrics(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4), ours["step"]
