# ruff: noqa: E501
"""The real classes have the last word, in one line; and which checkpoint is meant."""

from pathlib import Path

import pytest

from launch.checkpoints import choose, step_of
from launch.cli import Cli, translated
from launch.config.errors import ConfigError, short
from launch.config.read import Entry
from launch.config.resolved import resolve
from launch.evaluate import check_prediction
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.yaml12 import read_options

TOY = ["--config", "tests/cli/toy.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.accelerator", "[1]"], "trainer.accelerator = [1] (--trainer.accelerator): expected str or Accelerator"),
        (["--trainer.profiler", "[1]"], "trainer.profiler = [1] (--trainer.profiler): expected Profiler or str or NoneType"),
        (["--trainer.accelerator", "abacus"], "trainer.accelerator = abacus (--trainer.accelerator): expected one of auto, cpu"),
        (["--model", "tests.cli.toy.Points", "--model.global_batch_size", "8"], "model.class = tests.cli.toy.Points (--model): not a Lightning LightningModule"),
        (["--callbacks.silent.class", "tests.cli.toy.Head", "--callbacks.silent.width", "1"],
         "callbacks.silent.class = tests.cli.toy.Head (--callbacks.silent.class): not a Lightning Callback"),
        (["--callbacks.silent.class", "lightning.pytorch.callbacks.ModelCheckpoint"],
         "callbacks.silent.class = lightning.pytorch.callbacks.ModelCheckpoint (--callbacks.silent.class): writes another form"),
        (["--callbacks.silent.class", "lightning.pytorch.callbacks.EarlyStopping", "--callbacks.silent.monitor", "val/a"],
         "callbacks.silent.class = lightning.pytorch.callbacks.EarlyStopping (--callbacks.silent.class): reads trainer.callback_m"),
        (["--callbacks.silent.class", "lightning.pytorch.callbacks.Timer"],
         "callbacks.silent.class = lightning.pytorch.callbacks.Timer (--callbacks.silent.class): ends the run as if it were done; use run.max"),
        (["--callbacks.silent.class", "tests.cli.toy.Open", "--callbacks.silent.loudnes", "1"],
         "callbacks.silent.loudnes = 1 (--callbacks.silent.loudnes): "),
    ],
)  # fmt: skip
def test_messages(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Cli("fit", resolve([*TOY, "--data.global_batch_size", "8", "--data.source", "x", *words], "fit"))
    (problem,) = caught.value.problems
    assert problem.startswith(message)
    assert "\n" not in problem


def test_an_open_constructor_takes_what_the_real_class_takes() -> None:
    cli = Cli(
        "fit", resolve([*TOY, "--callbacks.silent.class", "tests.cli.toy.Open", "--callbacks.silent.word", "hey"])
    )
    assert [callback.word for callback in cli.trainer.callbacks if type(callback).__name__ == "Open"] == ["hey"]


def test_the_trainer_is_ours(tmp_path: Path) -> None:
    cli = Cli("fit", resolve([*TOY, "--run.dir", str(tmp_path), "--seed", "11"], "fit"))
    trainer = cli.trainer
    assert (trainer.max_steps, trainer.max_epochs, trainer.accumulate_grad_batches) == (6, -1, 1)
    assert trainer.default_root_dir == str(tmp_path)
    assert [type(logger).__name__ for logger in trainer.loggers] == ["TensorBoard", "JsonLines"]
    assert trainer.loggers[1].path == tmp_path / "metrics.jsonl"
    names = [type(callback).__name__ for callback in trainer.callbacks]
    assert names[:2] == ["Guard", "Progress"]
    assert names[-5:] == ["Shout", "Silent", "RunRecord", "Begun", "Checkpoint"]
    assert not {"ModelSummary", "RichModelSummary", "TQDMProgressBar", "RichProgressBar"} & {*names}
    assert (cli.model.seed, cli.datamodule.seed) == (11, 11)
    assert cli.model.betas == (0.9, 0.999)
    evaluation = Cli("test", resolve([*TOY, "--run.dir", str(tmp_path)]))
    assert evaluation.trainer.loggers == []
    assert list(tmp_path.iterdir()) == [], "instantiating writes nothing"


@pytest.mark.parametrize(("key", "left"), [("loggers.tensorboard", ["JsonLines"]), ("loggers", [])])
def test_null_takes_loggers_out(key: str, left: list[str]) -> None:
    trainer = Cli("fit", resolve([*TOY, f"--{key}", "null"], "fit")).trainer
    assert [type(logger).__name__ for logger in trainer.loggers] == left


def test_patterns_of_the_parser_that_are_read() -> None:
    """Pinned to jsonargparse 4.53: a new version has to pass this."""
    table = {("a", "b"): Entry(3, "f.yaml:1")}
    assert translated('Parser key "a.b": Expected x', table) == "a.b = 3 (f.yaml:1): Expected x"
    assert translated('Key "a.b" is\n required', table) == "a.b = 3 (f.yaml:1): is required"
    assert translated("Group 'a' does not accept option 'b'", table) == "Group 'a' does not accept option 'b'"
    assert translated("nothing known", table) == "nothing known"


def test_which_checkpoint_is_meant(tmp_path: Path) -> None:
    assert choose(tmp_path / "checkpoints", None) is None
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step_00000004").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="every checkpoint is damaged; delete the folder to start at step 0"):
        choose(checkpoints, None)
    for wanted in (5, "5", "best", str(tmp_path / "gone"), "\u00b2", "9" * 4000, "9" * 19, 10**399):
        with pytest.raises(
            CheckpointError, match=f"run.checkpoint = {short(wanted)}: there is no .*; steps of this run: none"
        ):
            choose(checkpoints, wanted)
    with pytest.raises(CheckpointError, match="manifest"):
        choose(checkpoints, 4, reads=False)
    assert [step_of(path) for path in (None, Path("x/step_00000012"), Path("x/other"))] == [0, 12, 0]


def test_the_last_lines_name_no_checkpoint_that_nobody_saves(tmp_path: Path) -> None:
    for more, there in (([], True), (["--callbacks.checkpoint", "null"], False)):
        cli = Cli("fit", resolve([*TOY, "--run.dir", str(tmp_path), *more], "fit"))
        assert any("launch export" in line for line in cli.record.end_block(cli.trainer)) is there
        cli.record.stopped = True
        assert ("the same command goes on" in cli.record.end_block(cli.trainer)[0]) is there


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "configs/electra/debug.yaml"], "model.class = electra: gives no predictions"),
        (["--model", "finetune", "--data", "labelled", "--data.source", "x", "--model.init_from", "x",
          "--data.tokenizer", "x", "--data.global_batch_size", "8", "--data.micro_batch_size", "8"],
         "data.predict_source = null: there is nothing to predict; give --data.predict_source FILE"),
    ],
)  # fmt: skip
def test_nothing_to_predict(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_prediction(resolve(words, "predict"))


@pytest.mark.parametrize("name", ["2024", "1e3", "true", "null", "2024-01-01", "0x10", "12:30", "[a]"])
def test_a_name_that_looks_like_something_else_stays_a_name(name: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f'model: {{init_from: "{name}"}}\n')
    words = ["--model", "finetune", "--data", "labelled", "--data.source", "x", "--data.tokenizer", "y",
             "--data.global_batch_size", "8", "--data.micro_batch_size", "8", "--trainer.max_steps", "1"]  # fmt: skip
    for given in (["--config", str(file)], ["--model.init_from", f'"{name}"']):
        resolved = resolve([*words, *given], "fit")
        assert Cli("fit", resolved).model.init_from == name
    file.write_text(resolved.run_text())
    assert read_options(file)["model"]["init_from"] == name, "what a run hands on"
