"""A claim from the command line: two tiny arms, judged, reported, and not run again."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.launching import json_lines, launch

MICRO = """
method: micro
statement: Detection beats prediction.
operations: three times the forward pass.
base: configs/electra/debug.yaml
arms:
  electra: {model: {task: electra}}
  mlm: {model: {task: mlm}}
comparisons: {electra: [mlm]}
tasks:
  rhymes: {source: rhymes/train.jsonl, test_source: rhymes/test.jsonl}
embedded_tasks:
  topic: {source: "embedded:topic"}
sizes:
  quick:
    budget: 3.0e+8
    seeds: {electra: [1], mlm: [1]}
    learning_rates: [1.0e-3]
    processes: 2
    threads: 1
    settings:
      trainer: {accelerator: cpu, devices: 1, precision: 32-true}
      callbacks: {validation: {max_batches: 1}, electra_panel: null}
    judging:
      num_examples: 60
      sequence_length: 32
      epochs: 1
      batch_size: 20
      learning_rate: 1.0e-3
      folds: 2
      strengths: [0.1]
"""


def claim(folder: Path, *words: str) -> subprocess.CompletedProcess:
    places = ["--out", str(folder / "out"), "--runs", str(folder / "runs")]
    return launch("claim", str(folder / "micro.yaml"), "--size", "quick", *words, *places)


@pytest.mark.slow
def test_a_claim_end_to_end_and_its_second_call_runs_nothing(tmp_path):
    (tmp_path / "micro.yaml").write_text(MICRO)
    (tmp_path / "root" / "rhymes").mkdir(parents=True)
    for name, count in (("train", 90), ("test", 30)):
        rows = [
            {"text": ("the cat " * (n % 5 + 1), "a dog and ")[n % 2], "label": ["ct", "dg"][n % 2]}
            for n in range(count)
        ]
        (tmp_path / "root" / "rhymes" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = claim(tmp_path, "--data.root", str(tmp_path / "root"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["verdict"] == "electra over mlm: not decided (size quick; rhymes)"
    runs = {run["arm"]: run for run in results["runs"]}
    for arm, run in runs.items():
        cost = results["arms"][arm]["operations_per_step"]
        assert run["steps"] * cost <= 3e8 < (run["steps"] + 1) * cost
        lines = json_lines(tmp_path / "runs" / f"{arm}_seed1" / "metrics.jsonl")
        assert lines[-1]["step"] == run["steps"]
        assert run["scores"]["rhymes"]["probe_mean"] > 90  # two words tell the label, whatever the encoder
        assert results["machine"]["versions"]["torch"] and run["config_sha256"]
    assert runs["electra"]["data_fingerprint"] == runs["mlm"]["data_fingerprint"]
    assert results["tasks"]["rhymes"] == {"metric": "accuracy", "train": 60, "test": 30, "majority": 50.0}
    report = (tmp_path / "out" / "report.md").read_text()
    for words in (
        "Detection beats prediction.",
        "| majority class |",
        "electra - mlm",
        "was not tuned",
        "three times the",
    ):
        assert words in report
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".md", ".png"}

    ledgers = [file.read_text() for file in sorted((tmp_path / "runs").glob("*/ledger.jsonl"))]
    again = claim(tmp_path, "--data.root", str(tmp_path / "root"))
    assert again.returncode == 0 and "2 of 2 runs are finished already" in again.stdout
    assert [file.read_text() for file in sorted((tmp_path / "runs").glob("*/ledger.jsonl"))] == ledgers
    assert json.loads((tmp_path / "out" / "results.json").read_text())["runs"] == results["runs"]


def test_mistakes_are_told_in_one_line(tmp_path):
    (tmp_path / "micro.yaml").write_text(MICRO.replace("budget", "bugdet"))
    done = claim(tmp_path)
    assert done.returncode == 1 and "sizes.quick: unknown key bugdet; did you mean budget?" in done.stderr
    (tmp_path / "micro.yaml").write_text(MICRO)
    done = claim(tmp_path, "--sizes", "quick")
    assert done.returncode == 1 and done.stderr == "error: --sizes: unknown flag; did you mean --size?\n"
