# ruff: noqa: E501
"""Types, names and rules of the first pass, on classes of the tests."""

from pathlib import Path
from typing import Any

import pytest

from launch.config.defaults import start_table
from launch.config.errors import ConfigError
from launch.config.kinds import ANY, Kind, fits, union
from launch.config.read import read_text
from launch.config.resolved import Resolved, check_ranks, resolve
from launch.config.rules import batch_divides, known_devices
from launch.config.show import scalar
from launch.config.wall_time import seconds_of

TOY = ["--config", "tests/cli/toy.yaml"]


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve([*TOY, *words], "fit")
    return list(caught.value.problems)


INT, FLOAT, STR, BOOL, NONE = (Kind(name) for name in ("int", "float", "str", "bool", "none"))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (INT, [1, -3], [1.0, True, "1", None, [1]]),
        (FLOAT, [1, 0.5, float("inf")], [True, "1.0", None]),
        (STR, ["a", ""], [1, None, True]),
        (BOOL, [True, False], [0, 1, "yes", None]),
        (union(INT, NONE), [1, None], ["a", 1.5]),
        (Kind("literal", ("a", 1, None)), ["a", 1, None], ["b", True, 1.0]),
        (Kind("list", (INT,)), [[], [1, 2]], [1, ["a"], {}]),
        (Kind("tuple", (FLOAT, STR)), [[1, "a"]], [[1], [1, 2], [1, "a", "b"]]),
        (Kind("dict", (FLOAT,)), [{}, {"a": 1}], [{"a": "b"}, [1]]),
        (union(INT, ANY), ["anything", None, 1.5], []),
    ],
)
def test_what_fits(kind: Kind, good: list, bad: list) -> None:
    assert [value for value in good if not fits(kind, value)] == []
    assert [value for value in bad if fits(kind, value)] == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--model.hidden_size=1e2", "model.hidden_size = 100.0 (--model.hidden_size): expected int; write 100"),
        ("--model.hidden_size=null", "model.hidden_size = null (--model.hidden_size): expected int"),
        ("--model.hidden_size={a: 1}", "model.hidden_size.a = 1 (--model.hidden_size): model.hidden_size is no mapping, expected int"),
        ("--model.betas=[0.9]", "model.betas = [0.9] (--model.betas): expected tuple of float, float"),
        ("--model.weights={a: x}", "model.weights = {a: x} (--model.weights): expected mapping of float or null"),
        ("--model.head={}", "model.head.width: required, expected int; give it in a YAML file or as --model.head.width VALUE"),
        ("--model.head={width: 1, kind: cnn}", "model.head.kind = cnn (--model.head): expected one of linear, mlp"),
        ("--model.head.widht=1", "model.head.widht = 1 (--model.head.widht): not an option of model.head; did you mean model.head.width?"),
        ("--trainer.enable_progress_bar=no", "trainer.enable_progress_bar = no (--trainer.enable_progress_bar): expected bool or null; write false"),
        ("--trainer.max_epochs=3", "trainer.max_epochs = 3 (--trainer.max_epochs): not set here: it is trainer.max_steps; the data has no end"),
        ("--trainer.strategy=ddp", "trainer.strategy = ddp (--trainer.strategy): not set here: it is the key `strategy` at the top level"),
        ("--trainer.devices=2", "strategy.class = single (launch default): runs on one device; use --config configs/strategy/ddp.yaml [trainer.devices = 2 (--trainer.devices)]"),
        ("--seed=x", "seed = x (--seed): expected int"),
        ("--model=5", "model = 5 (--model): expected a mapping"),
        ("--callbacks=[]", "callbacks = [] (--callbacks): expected a mapping: a name for each, and its options"),
        ("--callbacks.my-own.class=tests.cli.toy.Silent", "callbacks.my-own.class"),
        ("--callbacks.progres=null", "callbacks.progres = null (--callbacks.progres): nothing to take out; did you mean progress?"),
        ("--strategy=dpp", "strategy.class = dpp (--strategy): unknown name; known: single, ddp, zero1, zero2, zero3, fsdp, or a dotted path to a class of your own; did you mean ddp?"),
        ("--model=tests.cli.toy.Tov", "model.class = tests.cli.toy.Tov (--model): module tests.cli.toy has no class Tov; did you mean Toy?"),
        ("--model=tests.cli.gone.Toy", "model.class = tests.cli.gone.Toy (--model): there is no module tests.cli.gone on the Python path"),
        ("--data.sequence_length=65", "data.sequence_length = 65 (--data.sequence_length): is over the model's 64 positions; lower it or raise model.max_positions [model.max_positions = 64 (default)]"),
        ("--ckpt_path=x", "ckpt_path = x (--ckpt_path): unknown key; did you mean run.checkpoint?"),
        ("--model.lr=1e-3", "model.lr = 0.001 (--model.lr): not an option of Toy; did you mean model.learning_rate?"),
        ("--seed_everything=1", "seed_everything = 1 (--seed_everything): unknown key; did you mean seed?"),
        ("--run.max_wall_time=1:30", "run.max_wall_time = \"1:30\" (--run.max_wall_time): must be above 0, in seconds or as \"h:mm:ss\" or \"d-hh:mm:ss\""),
        ("--run.max_wall_time=0", "run.max_wall_time = 0 (--run.max_wall_time): must be above 0"),
        ("--run.max_wall_time=1.5", "run.max_wall_time = \"1.5\" (--run.max_wall_time): must be above 0"),
        ("--trainer.max_time=0:12:00", "trainer.max_time = \"0:12:00\" (--trainer.max_time): not set here: it is run.max_wall_time"),
        ("--run.dri=x", "run.dri = x (--run.dri): not an option of Run; did you mean run.dir?"),
    ],
)  # fmt: skip
def test_messages(word: str, message: str) -> None:
    assert [problem for problem in problems(word) if problem.startswith(message)], problems(word)


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("--model.language=5", "model.language", "5"),
        ("--model.language=no", "model.language", "no"),
        ("--model.language=1.10", "model.language", "1.10"),
        ("--data.tokenizer.name=null", "data.tokenizer.name", ...),
        ("--trainer.precision=32", "trainer.precision", 32),
        ("--trainer.precision=bf16-mixed", "trainer.precision", "bf16-mixed"),
        ("--trainer.limit_test_batches=0.5", "trainer.limit_test_batches", 0.5),
        ("--run.fresh", "run.fresh", True),
        ("--run.checkpoint=500", "run.checkpoint", 500),
        ("--model.betas=[1, 0.5]", "model.betas", [1, 0.5]),
    ],
)
def test_flags_become_what_is_wanted(word: str, key: str, value: Any) -> None:
    if value is ...:
        assert problems(word)[0].startswith("data.tokenizer.name = null"), "Points takes a plain string"
    else:
        found = resolve([*TOY, word]).get(key)
        assert (found, type(found)) == (value, type(value))


def test_lengths_of_time() -> None:
    given = [90, "0:01:30", "1:00:00", "24:00:00", "1-00:00:00", "2-01:00:09", "1:30", "1:60:00", "1h", "-1:00:00", ""]
    assert [seconds_of(word) for word in given] == [90, 90, 3600, 86400, 86400, 176409, *[None] * 5]


def test_no_class_twice_and_no_option_of_a_class_that_is_gone() -> None:
    resolved = resolve([*TOY, "--callbacks.shout", "null", "--loggers", "null"])
    out = ("callbacks.throughput", "callbacks.validation")  # by the file
    ours = [".".join(key) for key in start_table() if key[0] == "callbacks" and ".".join(key) not in out]
    assert [".".join(part) for part in resolved.parts.paths] == [
        "trainer", "run", "model", "data", "strategy", *ours, "callbacks.silent",
    ]  # fmt: skip
    assert resolved.values["loggers"] == {"tensorboard": None, "jsonl": None}


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "words"),
    [
        (24, 8, 2, "must be a multiple of micro_batch_size x ranks = 8 x 2 = 16; nearest: 16 or 32, or micro_batch_size 6"),
        (4, 8, 1, "must be a multiple of micro_batch_size x ranks = 8 x 1 = 8; nearest: 8, or micro_batch_size 4"),
        (9, 2, 2, "must be a multiple of micro_batch_size x ranks = 2 x 2 = 4; nearest: 8 or 12"),
        (16, 8, 2, None),
        (16, 1, 16, None),
    ],
)  # fmt: skip
def test_batch_divides(batch: int, micro: int, ranks: int, words: str | None) -> None:
    assert batch_divides(batch, micro, ranks) == words


def test_rules_wait_for_the_ranks() -> None:
    words = [*TOY, "--strategy", "ddp", "--trainer.devices", "auto"]
    resolved = resolve(words, "fit")
    check_ranks(resolved, 2)
    with pytest.raises(ConfigError, match="4 x 3 = 12; nearest: 12 "):
        check_ranks(resolved, 3)
    with pytest.raises(ConfigError, match=r"4 x 6 = 24.*ranks = 6 \(--trainer.devices, --trainer.num_nodes\)"):
        resolve([*words, "--trainer.devices", "3", "--trainer.num_nodes", "2"])


def test_a_method_brings_its_own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_method"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a package is never imported for its rules')\n")
    (package / "module.py").write_text(
        "from lightning import LightningModule\n"
        "class Own(LightningModule):\n    def __init__(self, a: int = 1, b: int = 2): ...\n"
    )
    (package / "rules.py").write_text(
        "RULES = [(('model.a', 'model.b'), lambda a, b: None if a < b else f'must be below {b}'),\n"
        "         (('model.none', 'model.b'), lambda a, b: 'never asked')]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve([*TOY, "--model", "own_method.module.Own"]).get("model.a") == 1
    assert problems("--model", "own_method.module.Own", "--model.a", "3") == [
        "model.a = 3 (--model.a): must be below 2 [model.b = 2 (default)]"
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (True, "true"), (5e-4, "0.0005"), (1e-5, "1e-05"), (1e22, "1e+22"), (float("-inf"), "-.inf"),
        ("abc", "abc"), ("a b", "a b"), ("5", '"5"'), ("1e5", '"1e5"'), ("no", "no"), ("null", '"null"'), ("", '""'),
        ("a: b", '"a: b"'), ("a #b", '"a #b"'), ("- a", '"- a"'), ("{x}", '"{x}"'), ("ä\n", '"ä\\n"'), ("a,b", '"a,b"'),
        ([1, "x", None], "[1, x, null]"), ({"a": [1.0]}, "{a: [1.0]}"), ("a ", '"a "'), (".inf", '".inf"'), ("*x", '"*x"'),
    ],
)  # fmt: skip
def test_values_are_written_so_that_they_read_back(value: Any, text: str) -> None:
    assert scalar(value) == text
    assert read_text(f"a: [{text}]\n", "f")[("a",)].value == [value]
    if not isinstance(value, dict):
        assert read_text(f"a: {text}\n", "f")[("a",)].value == value


def test_the_run_folder_of_a_configuration(tmp_path: Path) -> None:
    assert resolve(TOY).run_dir == Path("runs/cli/toy")
    assert resolve([*TOY, "--run.dir", "x/y"]).run_dir == Path("x/y")
    stored = tmp_path / "config.yaml"
    stored.write_text(resolve(TOY).run_text())
    assert resolve(["--config", str(stored)]).run_dir == Path("runs", tmp_path.name, "config")
    (tmp_path / "run.json").write_text("{}")
    assert resolve(["--config", str(stored)]).run_dir == tmp_path, "a run's own file means that run"


def test_the_hash_is_of_the_values_alone(tmp_path: Path) -> None:
    def digest(*words: str) -> str:
        return resolve([*TOY, *words]).digest()

    assert digest() == digest("--run.dir", "elsewhere", "--model.hidden_size", "4")
    assert digest() != digest("--model.hidden_size", "5")
    stored = tmp_path / "stored.yaml"
    stored.write_text(resolve(TOY).run_text())
    again: Resolved = resolve(["--config", str(stored)])
    assert again.digest() == digest()
    assert again.run_text().count("stored.yaml") > 10


@pytest.mark.parametrize("command", ["fit", "validate", "config"])
def test_a_mistyped_run_is_said_to_be_none(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lacks = "is not the folder of a run, it lacks run.json or config.yaml"
    for folder, problem in {"none": "no such folder", "file": lacks, ".": lacks}.items():
        with pytest.raises(ConfigError) as caught:
            resolve(["--run.dir", str(tmp_path / folder)], command)
        fix = "give the folder of a run, or --config FILE to begin one"
        assert caught.value.problems == (f"run.dir = {tmp_path / folder} (--run.dir): {problem}; {fix}",)
    assert resolve([*TOY, "--run.dir", str(tmp_path / "new")], command).run_dir == tmp_path / "new"


BAD = {
    "--trainer.devices=lots": "expected how many, from 1 to 4096",
    "--trainer.devices=-3": "expected how many, from 1 to 4096",
    "--trainer.devices=0": "expected how many, from 1 to 4096",
    "--trainer.devices=[]": "expected how many, from 1 to 4096",
    "--trainer.devices=[0, 0]": "expected how many, from 1 to 4096",
    "--trainer.devices=1,1": "expected how many, from 1 to 4096",
    "--trainer.devices=[0]": "names devices, and a CPU has none; write how many processes, as 2",
    "--trainer.devices=99999999": "expected how many, from 1 to 4096",
    "--trainer.num_nodes=0": "must be at least 1",
    "--trainer.max_steps=99999999999999999999": "must be at most 9,007,199,254,740,992",
    "--data.global_batch_size=1000000000000": "must be at most 16,777,216",
    "--model.hidden_size=0": "must be at least 1",
    "--model.hidden_size=10000000": "must be at most 1,048,576",
}


@pytest.mark.parametrize("word", BAD)
def test_counts_have_bounds(word: str) -> None:
    key = word[2:].partition("=")[0]
    found = [line for line in problems("--strategy", "ddp", word) if line.startswith(f"{key} = ")]
    assert [BAD[word] in line for line in found] == [True]


def test_ways_to_name_devices() -> None:
    for devices in (1, 4096, -1, "auto", "-1", "2", "0,1", "0, 3", [0, 3]):
        assert known_devices(devices) is None, devices
    for devices in ("", ",", "1,", "a,b", "\u0663", [-1], "5000", 5000):
        assert known_devices(devices), devices


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("--trainer.accelerator=nosuch", "expected one of auto, cpu, cuda, gpu, mps, tpu"),
        ("--trainer.profiler=nosuch", "expected one of simple, advanced, pytorch, xla, or a class_path"),
        ("--trainer.model_registry=x", "not set here: it is not supported; no model is uploaded"),
        ("--run.dir=runs/$NAME", "holds a $, and variables are not filled in here; write the folder out"),
        ('--run.dir=""', "is empty; give a name, or null"),
        ('--data.source=""', "is empty; give a name, or null"),
        ("--run.checkpoint=-5", "must be at least 0"),
        ("--callbacks.checkpoint.every_n_steps=0", "must be at least 1"),
        ("--callbacks.checkpoint.keep_last=0", "must be at least 1"),
        ("--callbacks.progress.every_n_seconds=.nan", "must be above 0 and finite"),
    ],
)
def test_options_of_launch_are_checked_without_their_classes(word: str, rule: str) -> None:
    key = word[2:].partition("=")[0]
    assert [line.startswith(f"{key} = ") and line.endswith(rule) for line in problems(word)] == [True]


def test_a_rule_is_not_about_options_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from lightning import LightningModule\nclass Own(LightningModule):\n    def __init__(self, {}=None): ...\n"
    (tmp_path / "of_another_kind.py").write_text(
        text.format("=None, ".join(["hidden_size", "learning_rate", "num_layers"]))
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = ["--model.hidden_size", "[64, 32]", "--model.learning_rate", "{a: -1}", "--model.num_layers", "many"]
    assert resolve([*TOY, "--model", "of_another_kind.Own", *given]).get("model.hidden_size") == [64, 32]
