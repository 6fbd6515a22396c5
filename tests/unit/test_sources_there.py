"""A data file that is not there is told before anything heavy is imported."""

from pathlib import Path

import pytest

from launch.config.errors import ConfigError
from launch.config.resolved import look_for_sources, resolve
from tests.cli.launching import errors, light

ELECTRA, PAIRS, LABELS = (f"configs/{name}/debug.yaml" for name in ("electra", "matryoshka2d", "finetune"))


def complaints(config: str, *words: str) -> list[str]:
    try:
        look_for_sources(resolve(["--config", config, *words], "fit"))
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("config", "key", "value", "name"),
    [
        (ELECTRA, "data.source", "gone.txt", "gone.txt"),
        (ELECTRA, "data.source", "gone/*.jsonl", "gone/*.jsonl"),
        (ELECTRA, "data.source", "./gone", "./gone"),
        (ELECTRA, "data.validation_source", "gone.txt", "gone.txt"),
        (LABELS, "data.source", "gone.csv", "gone.csv"),
        (LABELS, "data.test_source", "gone.csv", "gone.csv"),
        (LABELS, "data.predict_source", "gone.csv", "gone.csv"),
        (PAIRS, "data.source", "gone.csv", "gone.csv"),
        (PAIRS, "data.source", "{path: gone.csv}", "gone.csv"),
        (PAIRS, "data.validation", "{a: {task: sts, path: gone.tsv}}", "gone.tsv"),
        (PAIRS, "data.test", "{a: {task: classification, path: here.csv, train: gone.csv}}", "gone.csv"),
    ],
)
def test_a_file_that_is_gone(
    config: str, key: str, value: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.csv").touch()
    (line,) = complaints(config, f"--{key}", value)
    assert line.startswith(f"{key} = ")
    assert f": {name}: no such file (seen from {tmp_path}); correct the path" in line
    resolve(["--config", config, f"--{key}", value], "fit")  # a plan or a job may be made where the data is not


def test_what_is_there_or_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").touch()
    (tmp_path / "here.csv").touch()
    for config, key, value in (
        (ELECTRA, "data.source", "here.txt"),
        (ELECTRA, "data.source", "*.txt"),
        (ELECTRA, "data.source", "owner/name:config:train"),
        (ELECTRA, "data.source", "embedded"),
        (PAIRS, "data.source", f"{tmp_path}/here.csv"),
        (PAIRS, "data.sources", "null"),
    ):
        assert complaints(config, f"--{key}", value) == []
    assert complaints(PAIRS, "--data.source", "here.csv", "--data.root", str(tmp_path)) == []
    mixed = [
        "--data.source",
        "null",
        "--data.sources",
        "{a: {path: here.csv, weight: 1.0}, b: {path: gone.csv, weight: 1.0}}",
    ]
    (line,) = complaints(PAIRS, *mixed)
    assert "gone.csv: no such file" in line


def test_fit_and_prepare_say_so_at_once_and_leave_nothing(tmp_path: Path) -> None:
    words = ["--config", ELECTRA, "--data.source", "gone.txt"]
    for command in (["fit", "--run.dir", str(tmp_path / "run")], ["prepare"]):
        (line,) = errors(light(command[0], *words, *command[1:]))
        assert line.startswith("data.source = gone.txt (--data.source): gone.txt: no such file")
    assert list(tmp_path.iterdir()) == []
