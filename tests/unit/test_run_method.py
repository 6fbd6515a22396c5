"""A run as the source of an encoder: which class its method has, and what it was begun with."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoder_sources import encoder_config
from lightning_modules.core.run_method import kind_of_run, method_of_run
from lightning_modules.electra.module import Electra
from tests.text import word_tokenizer

OWN = """
from lightning_modules.electra.module import Electra
class Mine(Electra):
    def __init__(self, hidden_size: int = 32, init_from: str | None = None) -> None:
        super().__init__(hidden_size=hidden_size, num_layers=1, init_from=init_from)
class Other: pass
def function(): pass
"""


def run_of(folder: Path, kind: str, **options: object) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"class": kind, **options}, "data": {}}))
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "of_a_user"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("of_a_user")]:
        del sys.modules[name]


def test_a_run_of_a_users_own_class_gives_its_encoder(package: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "of_a_user.mine.Mine", hidden_size=64)
    assert issubclass(kind_of_run(run), Electra) and kind_of_run(run).__name__ == "Mine"
    (run / "checkpoints").mkdir()
    assert method_of_run(run).encoder_config(word_tokenizer()).hidden_size == 64
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        encoder_config(str(run), word_tokenizer())


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("of_a_user.mine.Gone", "mine.py has no class Gone"),
        ("of_a_user.nowhere.Mine", "there is no module of_a_user.nowhere on the Python path"),
        ("not_there.mine.Mine", "there is no module not_there.mine on the Python path"),
        ("of_a_user.mine.function", "mine.py has no class function"),
        ("of_a_user.mine.Other", "which is no Method; no encoder can be taken of it"),
        ("of a user.mine.Mine", "there is no module of a user.mine"),
        ("nothing", "is a run of nothing, of which no encoder can be taken"),
        ("core", "of which no encoder can be taken"),
    ],
)
def test_what_is_no_method_is_named(kind: str, problem: str, package: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", kind)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(run))}: .*{re.escape(problem)}"):
        method_of_run(run)


def test_code_inside_of_a_run_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run", "inside_a_run.Mine")
    (run / "inside_a_run.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{OWN}")
    monkeypatch.syspath_prepend(run)
    with pytest.raises(CheckpointError, match="which lies in the run itself; code in a run is not used"):
        method_of_run(run)
    assert not (tmp_path / "ran").exists()


def test_a_class_that_has_changed_since_is_named(package: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "of_a_user.mine.Mine", width=3)
    with pytest.raises(CheckpointError, match=r"Mine takes other options than those of its config.yaml: .*width"):
        method_of_run(run)


def test_strings_and_numbers_of_a_run_stay_what_they_were(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "electra")
    (run / "config.yaml").write_text('model: {class: electra, init_from: "2024", adam_epsilon: 1e-07, num_layers: 2}\n')
    method = method_of_run(run)
    assert (method.init_from, method.adam_epsilon, method.num_layers) == ("2024", 1e-7, 2)


@pytest.mark.parametrize("text", ["", "- 1", "model: 3", "model: {x: 1}", "{", "\x00"])
def test_a_configuration_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "electra")
    (run / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.yaml: is not the configuration of a run \("):
        kind_of_run(run)
