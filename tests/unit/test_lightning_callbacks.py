"""Each callback that Lightning ships works in a run, or is refused with the reason and the way."""

import inspect
from pathlib import Path

import pytest
from lightning.pytorch import callbacks

from launch.cli import Cli
from launch.config.callbacks import refusal
from launch.config.errors import ConfigError
from launch.config.resolved import resolve
from launch.registry import CALLBACKS

SHIPPED = [
    name for name, kind in vars(callbacks).items() if isinstance(kind, type) and issubclass(kind, callbacks.Callback)
]
WORKS = {  # with what it needs, and what one sees of it
    "BasePredictionWriter": "",
    "DeviceStatsMonitor": "",
    "ModelSummary": "Total params",
    "RichModelSummary": "Total params",
    "RichProgressBar": "",
    "TQDMProgressBar": "3/3",
}
NEEDS_BAR = ("RichProgressBar", "TQDMProgressBar")
REASONS = {
    "BackboneFinetuning": "there are none: the data has no end",
    "BaseFinetuning": "there are none: the data has no end",
    "BatchSizeFinder": "see launch plan",
    "Callback": "does nothing by itself",
    "Checkpoint": "does nothing by itself",
    "EMAWeightAveraging": "not averaged here",
    "EarlyStopping": "give trainer.max_steps",
    "GradientAccumulationScheduler": "follows from data.global_batch_size",
    "LambdaCallback": "class of your own",
    "LearningRateFinder": "slurm --array",
    "LearningRateMonitor": "opt/lr",
    "ModelCheckpoint": "use callbacks.checkpoint",
    "ModelPruning": "there are none: the data has no end",
    "OnExceptionCheckpoint": "use callbacks.checkpoint",
    "ProgressBar": "enable_progress_bar=False",
    "SpikeDetection": "use callbacks.divergence",
    "StochasticWeightAveraging": "not averaged here",
    "ThroughputMonitor": "use callbacks.throughput",
    "Timer": "use run.max_wall_time",
    "WeightAveraging": "not averaged here",
}


def words_for(name: str, run: Path) -> list[str]:
    """Return the words of a run with a callback, its required options given."""
    arguments = inspect.signature(getattr(callbacks, name).__init__).parameters.values()
    required = [it.name for it in arguments if it.default is it.empty and it.kind is it.POSITIONAL_OR_KEYWORD]
    given = {option: "batch" if option == "write_interval" else "1" for option in required[1:]}
    options = [word for option, value in given.items() for word in (f"--callbacks.x.{option}", value)]
    bar = ["--trainer.enable_progress_bar", "true"] if name in NEEDS_BAR else []
    kind = ["--callbacks.x.class", f"lightning.pytorch.callbacks.{name}"]
    where = ["--trainer.max_steps", "3", "--run.dir", str(run), "--loggers.tensorboard", "null"]
    return ["--config", "tests/cli/toy.yaml", *kind, *options, *bar, *where]


@pytest.mark.parametrize("name", SHIPPED)
def test_it_works_or_is_refused(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    words = words_for(name, tmp_path)
    if name in WORKS:
        cli = Cli("fit", resolve(words, "fit"))
        cli.run()
        assert cli.trainer.global_step == 3
        said = capfd.readouterr()
        assert WORKS[name] in said.out + said.err + caplog.text
        return
    with pytest.raises(ConfigError) as caught:
        Cli("fit", resolve(words, "fit"))
    assert REASONS[name] in str(caught.value), caught.value
    assert name in str(caught.value)
    if name != "ProgressBar":
        assert "--callbacks.x null" in str(caught.value)


OWN = """
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer, TQDMProgressBar

class AtEpochs(Callback):
    def on_train_epoch_end(self, trainer, module): ...

class Below(AtEpochs):
    def on_train_start(self, trainer, module): ...

class Clock(Timer): ...

class Bar(TQDMProgressBar):
    def on_train_epoch_end(self, *_): ...

class AtSteps(Callback):
    def on_train_batch_end(self, *_): ...
    def on_test_end(self, *_): ...

class AtValidation(AtSteps):
    def on_validation_end(self, *_): ...
"""


def test_callbacks_of_ones_own_are_judged_by_their_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_callbacks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    epochs = "acts at epochs (on_train_epoch_end), and there are none"
    for name, reason in {"AtEpochs": epochs, "Below": epochs, "Clock": "ends the run as if it were done"}.items():
        assert refusal(f"own_callbacks.{name}").startswith(reason)
    assert refusal("own_callbacks.AtValidation").startswith(
        "acts at Lightning's validation (on_validation_end), which a"
    )
    for name in ("Bar", "AtSteps"):
        assert refusal(f"own_callbacks.{name}") is None
    words = ["--config", "tests/cli/toy.yaml", "--callbacks.x.class", "own_callbacks.AtEpochs"]
    assert resolve(words, "validate").get("callbacks.x.class") == "own_callbacks.AtEpochs", "only fit depends on it"


def test_those_of_the_registry_depend_on_nothing_that_a_run_does_not_do() -> None:
    assert {name: refusal(path) for name, path in CALLBACKS.items()} == dict.fromkeys(CALLBACKS)
