"""`launch export`: every refusal is one line and exit code 1."""

from pathlib import Path

import pytest

from launch.config.errors import ConfigError
from launch.config.resolved import resolve
from launch.export import build, check_out
from tests.cli.launching import TOY, errors, launch, light


def test_words_that_are_missing() -> None:
    assert errors(light("export")) == [
        "export: the following arguments are required: RUN, --out; see python -m launch export --help"
    ]
    assert errors(light("export", "~nosuchuser", "--out", "x"))[0].startswith("export = ~nosuchuser: there is no such")
    assert errors(light("export", "x" * 5000, "--out", "x"))[0].endswith("(it holds no config.yaml)")


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place, reason in [
        (".", "exists"), ("../file", "exists"), ("..", "exists"), ("../file/x", "cannot be written: "),
        ("x" * 5000, "cannot be written: File name too long"), ("../file/x/y", "cannot be written: Not a directory"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"--out .*: {reason}.*; give another folder"):
            check_out(Path(place))
    check_out(Path("new/deeper"))


def test_a_method_without_export(tmp_path: Path) -> None:
    resolved = resolve(["--config", TOY])
    with pytest.raises(
        ConfigError, match=r"model.class = tests.cli.toy.Toy: cannot be exported, it gives no export\(\)"
    ):
        build(resolved, tmp_path, None, {})


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert launch("fit", "--config", TOY, "--run.dir", str(run)).returncode == 0
    assert errors(launch("export", str(run), "--out", str(tmp_path / "hf"))) == [
        f"{run}/tokenizer: is missing; the run keeps its tokenizer there"
    ]
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "tokenizer.json").write_text("{")
    (line,) = errors(launch("export", str(run), "--out", str(tmp_path / "hf")))
    assert "cannot be opened" in line
    assert not (tmp_path / "hf").exists()
