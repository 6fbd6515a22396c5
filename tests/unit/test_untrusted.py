"""Nothing untrusted is executed: a class is of its sort before it is called, and a run from elsewhere is data."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from launch.__main__ import RUNS
from launch.cli import Cli
from launch.config.errors import ConfigError
from launch.config.resolved import resolve
from launch.config.sorts import BELOW, SORTS, is_a
from launch.registry import GROUPS
from launch.run import main as run_main
from lightning_modules.core.foreign import run_above, without_runs
from tests.cli.launching import ROOT, environment

TOY = ["--config", "tests/cli/toy.yaml"]
EVIL = (
    "import pathlib\npathlib.Path({!r}).touch()\n\nfrom lightning import Callback\n\nclass Evil(Callback):\n    pass\n"
)
CALLS = """from collections.abc import Callable
from lightning import Callback

class Calls(Callback):
    def __init__(self, setup: Callable | None = None) -> None:
        setup("touch PWNED")
"""
OPENS = """import pathlib
from torch import nn

class Opens(nn.Module):
    def __init__(self, path: str = "PWNED") -> None:
        pathlib.Path(path).touch()
"""
OTHER = "{a: {class_path: installed.Opens, init_args: {path: PWNED}}}"  # as SentenceTransformer opens code
OWN = "{{class: calling.Calls, setup: {}}}"
FIRST = {  # refused before anything is imported
    "strategy is a function": "strategy: {class: subprocess.getoutput, cmd: 'touch PWNED'}",
    "strategy is another class": "strategy: {class: subprocess.Popen, args: 'touch PWNED', shell: true}",
    "strategy is a function of ours": "strategy: {class: launch.classes.imported}",
    "logger": "loggers: {x: {class: subprocess.Popen, args: 'touch PWNED', shell: true}}",
    "logger is a function": "loggers: {x: {class: subprocess.getoutput, cmd: 'touch PWNED'}}",
    "callback": "callbacks: {x: {class: subprocess.Popen, args: 'touch PWNED', shell: true}}",
    "callback is a function": "callbacks: {x: {class: subprocess.check_output, args: 'touch PWNED'}}",
    "model": "model: {class: subprocess.Popen, args: 'touch PWNED', shell: true}",
    "data": "data: {class: subprocess.Popen, args: 'touch PWNED', shell: true}",
    "a logger as a callback": "callbacks: {x: {class: lightning.pytorch.loggers.CSVLogger, save_dir: x}}",
    "profiler": "trainer: {profiler: {class_path: subprocess.Popen, init_args: {args: 'touch PWNED', shell: true}}}",
    "accelerator": "trainer: {accelerator: {class_path: subprocess.Popen, init_args: {args: 'touch PWNED'}}}",
    "plugins": "trainer: {plugins: [{class_path: subprocess.Popen, init_args: {args: 'touch PWNED'}}]}",
    "inside of a profiler": "trainer: {profiler: {class_path: lightning.pytorch.profilers.SimpleProfiler, init_args: "
    "{dirpath: {class_path: subprocess.Popen, init_args: {args: 'touch PWNED', shell: true}}}}}",
    "inside of a list": "callbacks: {shout: {word: [{class_path: subprocess.Popen, init_args: {args: x}}]}}",
    "an optimizer of the model": "model: {weights: {class_path: subprocess.Popen, init_args: {args: 'touch PWNED'}}}",
    "a module of another package for a strategy": "strategy: {class: lightning.pytorch.strategies.DDPStrategy, "
    f"ddp_comm_state: {OTHER[4:-1]}}}",
    "a module of another package for a logger": "loggers: {x: {class: lightning.pytorch.loggers.MLFlowLogger, "
    f"tags: {OTHER}}}}}",
    "a module of another package for a callback": "callbacks: {x: {class: lightning.pytorch.callbacks.RichProgressBar, "
    f"console_kwargs: {OTHER}}}}}",
    "code of the run": "callbacks: {x: {class: downloaded.evil.Evil}}",
    "code of the run, below": "trainer: {profiler: {class_path: downloaded.evil.Evil}}",
    "code of the run, for a logger": "loggers: {x: {class: downloaded.evil.Evil}}",
}
SECOND = {  # where the annotation of the real class is needed
    "a callback that calls": f"callbacks: {{x: {OWN.format('subprocess.getoutput')}}}",
    "a callback that makes": f"callbacks: {{x: {OWN.format('{class_path: functools.partial, init_args: {func: os.system}}')}}}",  # noqa: E501
    "a hook of a strategy": "strategy: {class: lightning.pytorch.strategies.DDPStrategy, ddp_comm_hook: os.system}",
    "a function of the run": f"callbacks: {{x: {OWN.format('downloaded.evil.Evil')}}}",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run from elsewhere, with code in it that Python would find."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "outcome.json").write_text(json.dumps({"code": 0, "step": 6}))
    (folder / "evil.py").write_text(EVIL.format(str(tmp_path / "PWNED")))
    (folder / "rules.py").write_text(EVIL.format(str(tmp_path / "PWNED")))
    (tmp_path / "calling.py").write_text(CALLS)
    (tmp_path / "installed.py").write_text(OPENS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return folder


def configure(run: Path, words: str) -> None:
    """Give a run a configuration of a line of evil."""
    (run / "config.yaml").write_text(f"extends: {ROOT / TOY[1]}\n{words}\n")


COMMANDS = {
    "fit": ["--run.dir", "RUN"],
    "validate": ["--run.dir", "RUN"],
    "test": ["--run.dir", "RUN"],
    "predict": ["--run.dir", "RUN"],
    "config": ["--run.dir", "RUN"],
    "plan": ["--run.dir", "RUN"],
    "doctor": ["--run.dir", "RUN"],
    "scaling": ["--run.dir", "RUN"],
    "prepare": ["--run.dir", "RUN"],
    "slurm": ["--run.dir", "RUN", "--time", "1:00:00", "--tasks-per-node", "1"],
    "export": ["RUN", "--out", "OUT"],
}


@pytest.mark.parametrize("kind", FIRST)
def test_a_configuration_calls_nothing(kind: str, run: Path) -> None:
    configure(run, FIRST[kind])
    with pytest.raises(ConfigError) as caught:
        resolve(["--config", str(run / "config.yaml")])
    message = caught.value.problems[0]
    rules = ("not a Lightning ", "is a function", "is no class that", "in the folder of a run", "not set here")
    assert any(rule in message for rule in rules), message
    assert not (run.parent / "PWNED").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["strategy is a function", "logger", "code of the run", "inside of a profiler"])
def test_no_command_that_reads_a_run_executes_it(command: str, kind: str, run: Path) -> None:
    configure(run, FIRST[kind])
    words = [{"RUN": str(run), "OUT": str(run.parent / "out")}.get(word, word) for word in COMMANDS[command]]
    with pytest.raises(ConfigError):
        refusing(command, words)
    assert not (run.parent / "PWNED").exists()


def refusing(command: str, words: list[str]) -> None:
    """Run a command in this process, its refusal as an exception."""
    if command in RUNS:
        run_main(command, words)
    else:
        import_module("launch.config.resolved" if command == "config" else f"launch.{command}").main(words)


@pytest.mark.parametrize("kind", SECOND)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_the_real_classes_call_nothing_either(command: str, kind: str, run: Path) -> None:
    configure(run, SECOND[kind])
    with pytest.raises(ConfigError) as caught:
        Cli(command, resolve(["--config", str(run / "config.yaml")], command))
    message = str(caught.value)
    assert "may not be named here" in message or "no class that may be made" in message, message
    assert not (run.parent / "PWNED").exists()
    assert "downloaded.evil" not in sys.modules


def test_classes_that_fit_are_made(run: Path) -> None:
    """Of Lightning, of torch, and of one's own package; also where the annotation names the class itself."""
    lines = (
        "trainer: {profiler: {class_path: lightning.pytorch.profilers.SimpleProfiler, init_args: {filename: told}}}",
        "loggers: {csv: {class: lightning.pytorch.loggers.CSVLogger, save_dir: x}}",
        "strategy: {class: lightning.pytorch.strategies.SingleDeviceStrategy, device: cpu}",
        "model: {head: {width: 3}}",
    )
    configure(run, "\n".join(lines))
    cli = Cli("fit", resolve(["--config", str(run / "config.yaml")], "fit"))
    assert (type(cli.trainer.profiler).__name__, cli.trainer.profiler.filename) == ("SimpleProfiler", "told")
    assert type(cli.trainer.strategy).__name__ == "SingleDeviceStrategy"
    assert "CSVLogger" in [type(logger).__name__ for logger in cli.trainer.loggers]


def test_sorts_are_seen_in_source() -> None:
    for group, sort in SORTS.items():
        for path in GROUPS[group].values():
            assert is_a(path, (sort,)) or group == "strategy", path
    assert is_a("torch.optim.AdamW", BELOW)
    assert is_a("torch.nn.Linear", BELOW)
    assert is_a("subprocess.Popen", BELOW) is False
    assert is_a("no.such", BELOW) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DeepSpeedStrategy", "give zero1"),
        ("FSDPStrategy", "give fsdp"),
        ("Strategy", "is abstract"),
        ("DDPStrategy", ""),
    ],
)
def test_strategies_of_lightning(name: str, reason: str) -> None:
    words = [*TOY, "--strategy.class", f"lightning.pytorch.strategies.{name}"]
    if not reason:
        assert resolve(words).get("strategy.class").endswith(name)
        return
    with pytest.raises(ConfigError, match=f"^strategy.class = lightning.*{name} .*{reason}"):
        resolve(words)


def test_a_strategy_that_cannot_be_made_is_named() -> None:
    words = [*TOY, "--strategy.class", "lightning.pytorch.strategies.XLAStrategy"]
    with pytest.raises(ConfigError, match=r"cannot be made: .*torch_xla"):
        Cli("fit", resolve(words, "fit"))


def test_what_lies_in_a_run(tmp_path: Path) -> None:
    run, beside = tmp_path / "run", tmp_path / "beside"
    run.mkdir()
    beside.mkdir()
    assert run_above(run / "a.py") is None
    assert run_above(run / "a" / "b.py", run) == str(run)
    (run / "ledger.jsonl").touch()
    assert run_above(run / "a" / "b.py") == str(run)
    copied = tmp_path / "copied"
    (copied / "checkpoints/step_00000003").mkdir(parents=True)
    (copied / "config.yaml").touch()
    assert run_above(copied / "a.py") is None
    (copied / "checkpoints/step_00000003/manifest.json").touch()
    assert run_above(copied / "a.py") == str(copied), "its papers were left out"
    (beside / "link").symlink_to(run)
    assert run_above(beside / "link" / "a.py") == str(beside / "link")
    assert run_above(beside / "a.py") is None
    assert run_above(ROOT / "launch" / "cli.py", ROOT) is None
    assert run_above(subprocess.__file__, Path("/")) is None


def test_places_of_modules_that_lie_in_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "run.json").touch()
    monkeypatch.chdir(tmp_path / "run")
    places = ["", ".", "deep", "..", str(tmp_path), str(tmp_path / "run"), os.path.relpath(ROOT), str(ROOT), "/usr/lib"]
    assert without_runs(places) == ["..", str(tmp_path), os.path.relpath(ROOT), str(ROOT), "/usr/lib"]


def test_python_does_not_look_in_the_folder_of_a_run(tmp_path: Path) -> None:
    for module in ("yaml", "signal", "difflib", "tempfile"):
        (tmp_path / f"{module}.py").write_text("print('PWNED', flush=True)\n")
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    (tmp_path / "run.json").write_text("{}")
    words = [
        sys.executable,
        "-m",
        "launch",
        "config",
        "--config",
        str(ROOT / TOY[1]),
        "--callbacks.x.class",
        "mine.Mine",
    ]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "callbacks.x.class = mine.Mine" in done.stderr
    assert f"there is no module of that name outside of {tmp_path}, the folder of a run" in done.stderr


OWN_MODEL = """
from collections.abc import Callable
from typing import Any
import lightning
import torch
from lightning.pytorch.cli import OptimizerCallable

class Head:
    def __init__(self, width: int = 3) -> None:
        self.width = width

class Deep(Head):
    def __init__(self, inner: Head | None = None) -> None:
        self.inner = inner

class Model(lightning.LightningModule):
    def __init__(self, head: Head | None = None, optimizer: OptimizerCallable = torch.optim.Adam,
                 act: Callable = torch.nn.ReLU(), kind: type[torch.nn.Module] = torch.nn.ReLU, other: Any = None):
        super().__init__()
        self.found = {"head": head, "optimizer": optimizer, "act": act, "kind": kind, "other": other}
"""
DEEP = "{class_path: own_model.Deep, init_args: {inner: {class_path: own_model.Head, init_args: {width: 9}}}}"


@pytest.mark.parametrize(
    ("option", "value", "seen"),
    [
        ("head", "{width: 5}", lambda it: it.width == 5),
        ("head", DEEP, lambda it: it.inner.width == 9),
        ("optimizer", "torch.optim.SGD", lambda it: it.args[-1].__name__ == "SGD"),
        ("optimizer", "{class_path: torch.optim.SGD, init_args: {lr: 0.5}}", lambda it: it.keywords["lr"] == 0.5),
        ("act", "torch.nn.GELU", lambda it: type(it).__name__ == "GELU"),
        ("act", "torch.nn.functional.gelu", None),
        ("act", "subprocess.getoutput", None),
        ("act", "{class_path: functools.partial, init_args: {func: subprocess.getoutput}}", None),
        ("kind", "torch.nn.GELU", lambda it: it.__name__ == "GELU"),
        ("kind", "subprocess.Popen", None),
        ("optimizer", "subprocess.Popen", None),
        ("optimizer", "{class_path: torch.nn.ReLU}", None),
        ("other", "subprocess.getoutput", lambda it: it == "subprocess.getoutput"),
        (
            "other",
            "'{class_path: subprocess.Popen, init_args: {args: x}}'",
            lambda it: "Popen" not in type(it).__name__,
        ),
        ("other", "{class_path: subprocess.Popen, init_args: {args: x}}", None),
    ],
)
def test_options_of_a_class_of_ones_own(
    option: str, value: str, seen: Callable | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_model.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [*TOY, "--model", "own_model.Model", f"--model.{option}", value]
    if seen is None:
        with pytest.raises(ConfigError, match=f"^model.{option}"):
            Cli("fit", resolve(words, "fit"))
    else:
        assert seen(Cli("fit", resolve(words, "fit")).model.found[option])
    assert Cli("fit", resolve(words[:-2], "fit")).model.found["kind"].__name__ == "ReLU", "defaults are the code's"
