# ruff: noqa: E501
"""Keys inside a mapping of named options are checked before anything is imported, and rules see the mapping whole."""

import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.core.pair_options import Columns, EvaluationSet, PairSource
from launch.config.errors import ConfigError
from launch.config.resolved import Resolved, resolve
from launch.prepare import instantiate

CONFIG = """
seed: 1
model: {class: tests.cli.toy.Toy}
data:
  class: datamodules.pairs.TextPairs
  tokenizer: {train: {vocab_size: 300}}
  sequence_length: 64
  global_batch_size: 8
  micro_batch_size: 4
  sources:
    nli: {path: nli.jsonl, labels: {entailment: 1, neutral: null}, columns: {negatives: [n1, n2]}, weight: 2}
    qa: {path: qa.csv, weight: 1}
  validation:
    stsb: {task: sts, path: dev.jsonl}
trainer: {accelerator: cpu, max_steps: 6}
"""


def resolved(folder: Path, *flags: str) -> Resolved:
    (folder / "c.yaml").write_text(CONFIG)
    return resolve(["--config", str(folder / "c.yaml"), *flags])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("sources.nli.pth=x", "sources.nli.pth = x (--data.sources.nli.pth): not an option of data.sources.nli; did you mean data.sources.nli.path?"),
        ("sources.nli.columns.anchr=x", "sources.nli.columns.anchr = x (--data.sources.nli.columns.anchr): not an option of data.sources.nli.columns; did you mean data.sources.nli.columns.anchor?"),
        ("sources.new.weight=1", "sources.new.path: required, expected str; give it in a YAML file or as --data.sources.new.path VALUE"),
        ("sources.nli.weight=x", "sources.nli.weight = x (--data.sources.nli.weight): expected float or null"),
        ("sources.nli.labels.neutral=x", "sources.nli.labels = {entailment: 1, neutral: x}"),
        ("sources.qa=[1]", "sources.qa = [1] (--data.sources.qa): expected str or a mapping of path, "),
        ("sources=5", "sources = 5 (--data.sources): expected mapping of str or a mapping of path, "),
        ("validation.stsb.tsk=sts", "validation.stsb.tsk = sts (--data.validation.stsb.tsk): not an option of data.validation.stsb; did you mean data.validation.stsb.task?"),
        ("validation.stsb.task=stss", "validation.stsb.task = stss (--data.validation.stsb.task): expected one of sts, retrieval, pair_classification, classification"),
        ("validation.x.path=a.csv", "validation.x.task: required, expected one of sts, "),
        ("validation.x=a.csv", "validation.x = a.csv (--data.validation.x): expected a mapping of task, path, "),
        ("validation.x.task=classification", "validation = {stsb: {task: sts, path: dev.jsonl}, x: {task: classification}} ("),
        ("source=embedded", "source = embedded (--data.source): is given beside data.sources; take one out, as with --data.source null ["),
        ("source.pth=x", "source.pth = x (--data.source.pth): not an option of data.source; did you mean data.source.path?"),
        ("sources.new=x.csv", "sources = {nli: {path: nli.jsonl, labels: {entailment: 1, neutral: null}, "),
        ("sources.nli.query_tokens=65", "sources = {nli: {path: nli.jsonl, labels: {entailment: 1, neutral: null}, "),
    ],
)  # fmt: skip
def test_mistakes_inside_named_options(tmp_path: Path, flag: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path, f"--data.{flag}")
    assert caught.value.problems[0].startswith(f"data.{message}"), caught.value.problems


def test_a_rule_waits_for_good_values_inside(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path, "--data.sources.nli.query_tokens=many", "--data.sources.qa.weight=null")
    assert len(caught.value.problems) == 1, "the rules on sources would have to compare a word with a number"


def test_the_light_layer_imports_no_torch_for_them(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    script = (
        "import sys\nfrom launch.config.resolved import resolve\n"
        f"resolve(['--config', {str(tmp_path / 'c.yaml')!r}])\n"
        "print([name for name in ('torch', 'numpy', 'transformers', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_named_options_become_the_real_classes(tmp_path: Path) -> None:
    found = resolved(
        tmp_path, "--data.sources.qa=null", "--data.validation.b.task=retrieval", "--data.validation.b.path=b"
    )
    again = tmp_path / "again.yaml"
    again.write_text(found.text())
    for one in (found, resolve(["--config", str(again)])):
        made = instantiate(one)
        columns = Columns(negatives=["n1", "n2"])
        assert made.sources == {"nli": PairSource("nli.jsonl", columns, {"entailment": 1, "neutral": None}, weight=2)}
        stsb, other = EvaluationSet("sts", "dev.jsonl"), EvaluationSet("retrieval", "b")
        assert made.preparation.sets["val"] == {"stsb": stsb, "b": other}
    flags = ("--data.sources=null", "--data.source={path: p.csv, columns: {anchor: q}}", "--data.validation=null")
    made = instantiate(resolved(tmp_path, *flags))
    assert made.sources == {"train": PairSource("p.csv", Columns("q"))} and made.preparation.sets["val"] is None
    flags = ("--data.sources=null", "--data.source=p.csv")
    assert instantiate(resolved(tmp_path, *flags)).sources == {"train": PairSource("p.csv")}
