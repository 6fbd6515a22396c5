# ruff: noqa: E501
"""Merging from left to right: what a later file or flag changes, removes, brings back and replaces."""

import os
from pathlib import Path

import pytest

from launch.config.errors import ConfigError
from launch.config.overlay import MAX_FILES, apply_file, apply_flag, find_file, nested
from launch.config.read import read_text
from launch.config.resolved import command_shown, flags, merge, resolve


def merged(*steps: str, tmp_path: Path) -> dict:
    """Merge YAML texts and `--flag=value` words; return nested values."""
    table: dict = {}
    for number, step in enumerate(steps):
        if step.startswith("--"):
            ((name, word),) = flags([step])
            apply_flag(table, name, word, [])
        else:
            file = tmp_path / f"{number}.yaml"
            file.write_text(step)
            apply_file(table, file, [])
    return nested(table)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["a: {b: 1, c: 2}", "a: {c: 3}"], {"a": {"b": 1, "c": 3}}),
        (["a: {b: [1, 2]}", "a: {b: [3]}"], {"a": {"b": [3]}}),
        (["a: {b: {c: 1}}", "a: {b: 5}"], {"a": {"b": 5}}),
        (["a: {b: 5}", "a: {b: {c: 1}}"], {"a": {"b": {"c": 1}}}),
        (["a: {b: 1}", "a: {}"], {"a": {"b": 1}}),
        (["a: {b: 1}", "--a.b=2"], {"a": {"b": 2}}),
        (["--a.b=2", "a: {b: 1}"], {"a": {"b": 1}}),
        (["--a={b: 1, c: [2]}"], {"a": {"b": 1, "c": [2]}}),
        (["--a='1'"], {"a": "1"}),
        (["--a=b: c # d"], {"a": "b: c # d"}),
        (["model: electra"], {"model": {"class": "electra"}}),
        (["--model=electra", "--data=text"], {"model": {"class": "electra"}, "data": {"class": "text"}}),
        (["data: {tokenizer: x}"], {"data": {"tokenizer": {"name": "x"}}}),
        (["data: {tokenizer: null}"], {"data": {"tokenizer": None}}),
        (["callbacks: {mine: my.Class}"], {"callbacks": {"mine": {"class": "my.Class"}}}),
        (["model: {class: a, x: 1}", "model: {class: a, y: 2}"], {"model": {"class": "a", "x": 1, "y": 2}}),
        (["model: {class: a, x: 1}", "model: {y: 2, class: b}"], {"model": {"class": "b", "y": 2}}),
        (["callbacks: {progress: {n: 1}}", "callbacks: {progress: my.Own}"], {"callbacks": {"progress": {"class": "my.Own"}}}),
        (["callbacks: {p: {n: 1}}", "callbacks: {p: null}"], {"callbacks": {"p": None}}),
        (["callbacks: {p: {n: 1}}", "callbacks: {p: null}", "callbacks: {p: {m: 2}}"], {"callbacks": {"p": {"m": 2}}}),
        (["callbacks: {p: {n: 1}}", "callbacks: {p: null}", "callbacks: {p: {}}"], {"callbacks": {"p": {}}}),
        (["callbacks: {p: {n: 1}}", "callbacks: null"], {"callbacks": None}),
        (["callbacks: {p: {n: 1}}", "callbacks: null", "callbacks: {q: {}}"], {"callbacks": {"q": {}}}),
    ],
)  # fmt: skip
def test_later_changes_earlier(steps: list[str], expected: dict, tmp_path: Path) -> None:
    assert merged(*steps, tmp_path=tmp_path) == expected


A = "callbacks: {p: {n: 1, k: 5}, q: {n: 2}}\n"
NULL = "callbacks: {p: null}\n"
B = "callbacks: {p: {n: 3}}\nmodel: electra\n"


@pytest.mark.parametrize("through", ["files", "extends", "nested extends"])
def test_null_counts_wherever_it_stands(through: str, tmp_path: Path) -> None:
    texts = {"a": A, "null": NULL, "b": B, "all": "extends: [a.yaml, null.yaml, b.yaml]\nseed: 4\n",
             "deep": "extends: [null.yaml, b.yaml]\n", "top": "extends: [a.yaml, sub/../deep.yaml]\nseed: 4\n"}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "sub").mkdir()
    words = {"files": ["a", "null", "b"], "extends": ["all"], "nested extends": ["top"]}[through]
    table, _, _ = merge([w for name in words for w in ("--config", str(tmp_path / f"{name}.yaml"))])
    values = nested(table)
    assert values["callbacks"]["p"] == {"n": 3}
    assert values["callbacks"]["q"] == {"n": 2}
    assert values["model"] == {"class": "electra"}
    assert "extends" not in values


def test_extends_is_relative_and_own_keys_win(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "x.yaml").write_text("extends: ../root.yaml\na: {b: 2, c: 2}\n")
    (tmp_path / "root.yaml").write_text("a: {b: 1, c: 1, d: 1}\n")
    (tmp_path / "top.yaml").write_text("a: {c: 3}\nextends: [base/x.yaml]\n")
    table: dict = {}
    apply_file(table, tmp_path / "top.yaml", [])
    assert nested(table) == {"a": {"b": 2, "c": 3, "d": 1}}
    assert table[("a", "b")].source == f"{tmp_path}/base/x.yaml:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: gone.yaml\nextends2: 1\n", "no such file as"),
        ("extends: me.yaml\n", "the file extends itself"),
        ("extends: other.yaml\n", "the file extends itself"),
        ("extends: [1]\n", "expected a list of files"),
        ("extends: ~nosuchuser/x.yaml\n", "there is no such user"),
        ("extends: s3://bucket/x.yaml\n", r"s3://bucket/x.yaml: is an address \(s3://\), and only local paths"),
        (f"extends: {'x' * 5000}\n", "no such file as"),
        ('extends: "a\\0b"\n', r"no such file as .*a\\x00b"),
    ],
)
def test_extends_mistakes(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "me.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("extends: me.yaml\n")
    with pytest.raises(ConfigError, match=message):
        apply_file({}, tmp_path / "me.yaml", [])


def test_words_of_a_command_line() -> None:
    assert flags(["-c", "a.yaml", "--config=b.yaml", "--x", "--y", "-1", "--z=", "--w", "a=b"]) == [
        ("config", "a.yaml"), ("config", "b.yaml"), ("x", "true"), ("y", "-1"), ("z", ""), ("w", "a=b"),
    ]  # fmt: skip


def test_files_that_extend_each_other_twice_end(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number}.yaml").write_text(f"extends: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (tmp_path / "25.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError) as caught:
        apply_file({}, tmp_path / "0.yaml", [])
    assert caught.value.problems == (
        f"{tmp_path}/0.yaml: extends more than {MAX_FILES} files, counting each time that one is named",
    )
    table: dict = {}
    apply_file(table, tmp_path / "21.yaml", [])
    assert table[("seed",)].value == 1


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for file in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is not a regular file; save the configuration in one"):
            apply_file({}, file, [])


@pytest.mark.parametrize("path", ["~nosuchuser/x.yaml", "x" * 5000, "a\0b", "a\nb", "configs/**x"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_file(path)
    (line,) = caught.value.problems
    assert line.isprintable() and len(line) < 400 and line.startswith("--config ")


def test_sources_stay_on_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a\nseed: 9 # \x1b.yaml"
    file.write_text("seed: 5\n")
    text = resolve(["--config", "tests/cli/toy.yaml", "--config", str(file), "--data.tag", "\x7f\n"]).text()
    again = read_text(text, "again")
    assert again[("seed",)].value == 5
    assert again[("data", "tag")].value == "\x7f\n"


def test_many_keys_take_no_time_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix check against all other keys made this a matter of minutes."""
    monkeypatch.setattr("launch.config.read.MAX_KEYS", 20_001)
    text = "a:\n" + "".join(f"  k{number}: {number}\n" for number in range(20_000))
    assert len(read_text(text, "f")) == 20_000


def test_a_run_brings_its_own_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(resolve(["--config", "tests/cli/toy.yaml", "--seed", "8"]).run_text())
    with pytest.raises(ConfigError, match=r"is not the folder of a run, it lacks run\.json or config\.yaml"):
        resolve(["--run.dir", str(tmp_path)])
    (tmp_path / "run.json").write_text("{}")
    found = resolve(["--data.tag", "two", "--run.dir", str(tmp_path)])
    assert (found.get("seed"), found.get("data.tag"), found.run_dir) == (8, "two", tmp_path)
    assert resolve(["--config", "tests/cli/toy.yaml", "--run.dir", str(tmp_path)]).get("seed") == 3


@pytest.mark.parametrize("words", [["--data.root", "/own/sets"], ["--data.root=/own/sets"]])
def test_a_report_shows_the_command_without_its_data_root(words):
    told = command_shown("claim", ["electra", *words], "/own/sets")
    assert told.replace("=", " ") == "python -m launch claim electra --data.root FOLDER"
    assert command_shown("bench", ["data", "--quick"], None) == "python -m launch bench data --quick"


def test_the_folder_of_a_run_among_the_words_is_answered_with_its_flag(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"not a flag; a run is given as --run.dir {tmp_path}"):
        flags([str(tmp_path)])
