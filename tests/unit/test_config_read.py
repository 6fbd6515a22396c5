# ruff: noqa: E501
"""YAML 1.2 and no more: what the values are, and that whatever is not supported is refused with its place."""

import math
import time
from pathlib import Path
from typing import Any

import pytest

from launch.config.errors import ConfigError
from launch.config.read import Entry, read_file, read_text
from launch.config.resolved import resolve


def value(text: str) -> Any:
    return read_text(f"a: {text}\n", "f.yaml")[("a",)].value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5e-4", 5e-4), ("1e5", 1e5), ("1E5", 1e5), ("-3", -3), ("+3", 3), ("010", 10), (".5", 0.5), ("1.", 1.0),
        ("1.10", 1.1), ("-.inf", -math.inf), (".INF", math.inf), ("true", True), ("False", False), ("null", None),
        ("~", None), ("", None), ("no", "no"), ("on", "on"), ("yes", "yes"), ("1:30", "1:30"), ("0x1f", "0x1f"),
        ("1_000", "1_000"), ("2020-01-01", "2020-01-01"), ("'5'", "5"), ('"null"', "null"), ("e5", "e5"),
        ("[1, a, [2.5, null]]", [1, "a", [2.5, None]]), ("{}", {}), ("9" * 5000, "9" * 5000), ("1e", "1e"), (".", "."),
    ],
)  # fmt: skip
def test_scalars_are_yaml_1_2(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_not_a_number() -> None:
    assert math.isnan(value(".nan"))


def test_leaves_carry_file_and_line() -> None:
    text = "\ufeffa:\n  b: 1\n  c: {d: x, e: [1, {f: 2}]}\ng.h: 3\ni: {}\n".encode()
    file = Path("f.yaml")
    table = read_text(text.decode("utf-8-sig"), str(file))
    assert table == {
        ("a", "b"): Entry(1, "f.yaml:2"),
        ("a", "c", "d"): Entry("x", "f.yaml:3"),
        ("a", "c", "e"): Entry([1, {"f": 2}], "f.yaml:3"),
        ("g", "h"): Entry(3, "f.yaml:4"),
        ("i",): Entry({}, "f.yaml:5"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "a (f.yaml:3): given twice, first at f.yaml:1; keep one"),
        ("a: {b: 1}\na.b: 2\n", "a.b (f.yaml:2): given twice, first at f.yaml:1; keep one"),
        ("a: {b: 1}\na: {c: 2}\n", "a (f.yaml:2): given twice, first at f.yaml:1; keep one"),
        ("a.b: 1\na: 2\n", "a (f.yaml:2): given twice, first at f.yaml:1; keep one"),
        ("a: [{b: 1, b: 2}]\n", "f.yaml:1: keys are plain names, each given once"),
        ("a:\n\tb: 1\n", "f.yaml:2: not YAML: found character"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: a second document (---); one to a file, to build on another use `extends`"),
        ("a: b: c\n", "f.yaml:1: not YAML: mapping values are not allowed"),
        ("a: 1\nb: \x00\n", "f.yaml:2: control character '\\x00'; this is not a text file"),
        ("", "f.yaml: empty; take the file off the command line or write a key into it"),
        ("# only this\n", "f.yaml: empty; take the file off the command line or write a key into it"),
        ("- 1\n", "f.yaml:1: the top of the file must be `key: value` lines"),
        ("word\n", "f.yaml:1: the top of the file must be `key: value` lines"),
        ("a: &x 1\n", "f.yaml:1: anchors and aliases (&x, *x) are not supported; write the values out, or use `extends`"),
        ("a: *x\n", "f.yaml:1: anchors and aliases (&x, *x) are not supported; write the values out, or use `extends`"),
        ("a: !own 1\n", "f.yaml:1: tags are not supported (!own); write the plain value"),
        (
            "a: !!python/object:os.system x\n",
            "f.yaml:1: tags are not supported (tag:yaml.org,2002:python/object:os.system); write the plain value",
        ),
        ("a: ${b}\n", "f.yaml:1: '${b}': there is no ${...}; write the value itself"),
        ("<<: {a: 1}\n", "f.yaml:1: keys are plain names; to build on another file use `extends`"),
        ("? [a]\n: 1\n", "f.yaml:1: keys are plain names; to build on another file use `extends`"),
        ("a: " + "[" * 3000, "f.yaml:1: more than 20 levels"),
        ("[" * 200_000, "f.yaml:1: more than 20 levels"),
        ("a: " + "{b: " * 30, "f.yaml:1: more than 20 levels"),
    ],
)  # fmt: skip
def test_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(text, "f.yaml")
    (problem,) = caught.value.problems
    assert problem == message or ("not YAML" in message and problem.startswith(message)), problem
    assert ("\t" in text) == problem.endswith("; indent with spaces, not tabs")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    for data, message in [
        (b"a: 1\nb: \xff\n", "f:2: not UTF-8 text; save the file as UTF-8"),
        (b"\xfe\xffa", "f:1: not UTF-8 text; save the file as UTF-8"),
    ]:
        file.write_bytes(data)
        with pytest.raises(ConfigError, match="not UTF-8") as caught:
            read_file(file, "f")
        assert caught.value.problems == (message,)
    file.write_bytes("\ufeffa: ä\n".encode())
    assert read_file(file, "f") == {("a",): Entry("ä", "f:1")}
    with pytest.raises(ConfigError, match="is a folder"):
        read_file(tmp_path, "f")


def test_all_mistakes_of_a_file_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_text("a: 1\na: 2\nb: ${x}\nc: 1\nc: 2\n", "f.yaml")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(("count", "reason"), [(2_500, "more than 2,000 keys"), (200_000, "more than 100,000 words")])
@pytest.mark.parametrize("form", ["k{}: 1", "model.k{}: 1", "callbacks.k{}: {{a: 1}}"])
def test_a_file_of_too_many_keys_is_refused_at_once(form: str, count: int, reason: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError, match=rf"^f:\d+: {reason}; this is no configuration$"):
        read_text("".join(f"{form.format(number)}\n" for number in range(count)), "f")
    assert time.process_time() - began < 10


def test_two_files_are_too_many_keys_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("".join(f"{name}{number}: 1\n" for number in range(1_500)))
    with pytest.raises(ConfigError, match=r"1,500 more keys beside 1,5[0-9]+; a configuration has at most 2,000"):
        resolve(["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")])


def test_a_file_without_an_end_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_bytes(b"#" * (17 << 20))
    with pytest.raises(ConfigError, match=r"^long.yaml: is over 16 MiB, which is no configuration$"):
        read_file(tmp_path / "long.yaml", "long.yaml")
