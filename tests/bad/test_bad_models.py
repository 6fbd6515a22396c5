"""Models and runs that are wrong, in the process of a server that has imported everything."""

import shutil
import time
from pathlib import Path

import pytest

from tests.bad.folders import RUNS, make
from tests.bad.models import MODELS
from tests.bad.trying import check, heavy, lay_out, state, timed, words_of
from tests.embedders import source
from tests.forked import server


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT, as Hugging Face writes it."""
    folder = tmp_path_factory.mktemp("encoder") / "enc"
    source("bert", folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_mistake_in_a_model_is_one_line(tmp_path: Path, encoder: Path, name: str) -> None:
    mistake, damage = MODELS[name]
    shutil.copytree(encoder, tmp_path / "enc")
    lay_out(tmp_path, mistake.files)
    damage(tmp_path)
    before, began = state(tmp_path), time.monotonic()
    ended = heavy(server(), words_of(mistake), tmp_path, mistake.env)
    timed(name, began)
    check(mistake, ended, tmp_path, before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and their data."""
    folder = tmp_path_factory.mktemp("runs")
    make(folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_mistake_in_a_run_is_one_line(tmp_path: Path, runs: Path, name: str) -> None:
    mistake, damage = RUNS[name]
    for inside in ("run", "other"):
        shutil.copytree(runs / inside, tmp_path / inside)
    shutil.copy(runs / "good.jsonl", tmp_path)
    damage(tmp_path)
    ledger = tmp_path / "run/ledger.jsonl"  # an attempt that fails once it has begun adds its line
    before, began = state(tmp_path), time.monotonic()
    attempts = ledger.read_bytes() if before.pop("run/ledger.jsonl", None) else b""
    ended = heavy(server(), words_of(mistake), tmp_path, mistake.env)
    timed(name, began)
    check(mistake, ended, tmp_path, before)
    assert not attempts or ledger.read_bytes().startswith(attempts)
