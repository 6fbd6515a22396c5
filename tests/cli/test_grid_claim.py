"""A claim that the grid judges, from the command line: tiny arms, judged by cells, reported, and not run again."""

import json
import subprocess
from pathlib import Path

import pytest

from lightning_modules.matryoshka2d.grid import read_csv
from tests.cli.launching import launch

MICRO = """
method: micro
judged_by: grid
statement: Two dimensions beat one.
better: paper
worse: plain
highest_cost: 0.02
floor: not_trained
parts:
  scratch: {title: fresh weights, base: configs/matryoshka2d/debug.yaml}
  tuned: {title: on a file, base: configs/matryoshka2d/debug.yaml, settings: {data: {source: pairs/train.csv}}}
arms:
  judged:
    plain: {model: {mode: plain}}
    paper: {model: {mode: paper}}
  beside:
    not_trained: {model: {mode: plain, learning_rate: 0.0, warmup_steps: 0}, trainer: {max_steps: 1}}
sets:
  small: {task: sts, path: small/dev.csv}
  absent: {task: sts, path: absent/dev.csv}
sizes:
  quick:
    seeds: {judged: [1], beside: [1], separate: [1]}
    processes: 2
    threads: 1
    parts:
      scratch:
        steps: 3
        learning_rate: 1.0e-3
        separate: [[1, 16]]
        settings:
          model: {untrained: {hidden_size: 32, num_layers: 2, num_heads: 2, max_positions: 64}}
          trainer: {accelerator: cpu, devices: 1, precision: 32-true}
          callbacks: {checkpoint: null, grid: {dims: [16, 32]}}
      tuned: {steps: 3, learning_rate: 1.0e-3}
"""


def claim(folder: Path, *words: str) -> subprocess.CompletedProcess:
    places = ["--out", str(folder / "out"), "--runs", str(folder / "runs")]
    return launch("claim", str(folder / "micro.yaml"), "--size", "quick", *words, *places)


def test_a_claim_end_to_end_and_its_second_call_runs_nothing(tmp_path):
    (tmp_path / "micro.yaml").write_text(MICRO)
    (tmp_path / "root" / "small").mkdir(parents=True)
    rows = [f"a cat {'sat ' * (n % 4)}here,a dog {'sat ' * (n % 3)}there,{n % 5}" for n in range(20)]
    (tmp_path / "root" / "small" / "dev.csv").write_text("sentence1,sentence2,score\n" + "\n".join(rows) + "\n")
    done = claim(tmp_path, "--data.root", str(tmp_path / "root"))
    assert done.returncode == 0, done.stderr
    assert "absent is left out: absent/dev.csv is not under the data root" in done.stdout
    assert "tuned is left out: pairs/train.csv is not under the data root" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["verdict"].startswith("scratch: paper above plain, cut, at half depth and below: not decided")
    assert results["verdict"].endswith("tuned: not run (size quick; sts mean)")
    part = results["parts"]["scratch"]
    assert [run["steps"] for run in part["runs"]] == [3, 3, 1, 3] and part["low_cells"] == ["1x16", "1x32"]
    for arm in ("plain", "paper"):
        grid = read_csv(tmp_path / "runs" / "scratch" / f"{arm}_seed1" / "grid" / "step_00000003.csv")
        for cell, value in part["arms"][arm]["means"]["small spearman"].items():
            layer, dim = map(int, cell.split("x"))
            assert value == pytest.approx(grid.values["small", "spearman"][layer, dim], abs=1e-5)
    assert len({run["data_fingerprint"] for run in part["runs"]}) == 1  # equal data
    assert [one["cell"] for one in part["separate"]] == ["1x16"] * len(part["separate"]) and part["separate"]
    report = (tmp_path / "out" / "report.md").read_text()
    for words in (
        "Two dimensions beat one.",
        "a separate model of 1x16",
        "was not tuned",
        "| 2 |",
        "- absent: absent/dev",
    ):
        assert words in report
    pictures = {f"scratch_{name}.png" for name in ("cells", "differences", "depth")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "report.md", *pictures}

    ledgers = [file.read_text() for file in sorted((tmp_path / "runs").glob("*/*/ledger.jsonl"))]
    again = claim(tmp_path, "--data.root", str(tmp_path / "root"))
    assert again.returncode == 0 and "4 of 4 runs are finished already" in again.stdout
    assert [file.read_text() for file in sorted((tmp_path / "runs").glob("*/*/ledger.jsonl"))] == ledgers
    assert json.loads((tmp_path / "out" / "results.json").read_text())["parts"] == results["parts"]


def test_mistakes_are_told_in_one_line(tmp_path):
    for old, new, message in (
        ("judged_by: grid", "judged_by: grids", "judged_by = grids: must be probes or grid"),
        ("floor: not_trained", "floor: untrained", "floor = untrained: is no arm"),
    ):
        (tmp_path / "micro.yaml").write_text(MICRO.replace(old, new))
        done = claim(tmp_path)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    (tmp_path / "micro.yaml").write_text(MICRO.replace("scratch: {title", "other: {title"))
    done = claim(tmp_path)
    assert done.returncode == 1 and "sizes.quick.parts names scratch, which is no part" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_claim_of_matryoshka2d(tmp_path):
    places = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    done = launch("claim", "matryoshka2d", "--size", "quick", *places, seconds=800)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["skipped_parts"] == {"minilm": "no --data.root was given"} and results["sets"] == ["wikipedia"]
    assert len(results["parts"]["scratch"]["runs"]) == 13
    assert not any(run["diverged"] for run in results["parts"]["scratch"]["runs"])
