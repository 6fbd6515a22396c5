"""A checkpoint whose counters and states were changed and sealed again does not become a run's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.launching import TOY
from tests.forked import train
from tests.unit.test_checkpoint_files import reseal

LOOP = "epoch_loop.manual_optimization.optim_step_progress"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(folder, 1, "--config", TOY, "--trainer.max_steps=4")
    return folder


def further(state: dict) -> None:
    state["loops"]["fit_loop"][LOOP]["total"]["completed"] = 3


CHANGES = {
    "loops = None": lambda state: state.pop("loops"),
    "loops = {": lambda state: state["loops"].pop("fit_loop"),
    "fit_loop.epoch_loop.batch_progress = ": lambda state: state["loops"]["fit_loop"]["epoch_loop.batch_progress"].pop(
        "total"
    ),
    "fit_loop.epoch_progress = 'x'": lambda state: state["loops"]["fit_loop"].update(epoch_progress="x"),
    "pytorch-lightning_version = None": lambda state: state.pop("pytorch-lightning_version"),
    "lr_schedulers = 5": lambda state: state.update(lr_schedulers=5),
    "is of step 2, the manifest of step 4": lambda state: state.update(global_step=2),
    "best_step = [1]": lambda state: state["callbacks"]["Checkpoint"].update(best_step=[1]),
    "callbacks.Divergence = 3": lambda state: state["callbacks"].update(Divergence=3),
    "its loops stand at step 3": further,
}


@pytest.mark.parametrize("message", CHANGES)
def test_it_is_refused_in_one_line_and_changes_no_papers(run: Path, tmp_path: Path, message: str) -> None:
    change: Callable[[dict], object] = CHANGES[message]
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    folder = copy / "checkpoints/step_00000004"
    whole = torch.load(folder / "trainer.pt", weights_only=True)
    change(whole["lightning"])
    torch.save(whole, folder / "trainer.pt")
    reseal(folder, "trainer.pt")
    before = {name: (copy / name).read_bytes() for name in ("run.json", "outcome.json", "config.yaml")}
    said = train(copy, 1, "--config", TOY, "--trainer.max_steps=6", code=1)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in said
    assert {name: (copy / name).read_bytes() for name in before} == before


def test_one_of_before_that_names_no_run_is_taken_with_a_line(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    for manifest in (copy / "checkpoints").glob("step_*/manifest.json"):
        facts = json.loads(manifest.read_text())
        del facts["run"]
        manifest.write_text(json.dumps(facts))
        reseal(manifest.parent, "trainer.pt")
    said = train(copy, 1, "--config", TOY, "--trainer.max_steps=6")
    assert "does not say of which run it is, as checkpoints of before" in said and "going on after step 4" in said


def test_one_of_a_run_on_other_data_is_refused(tmp_path: Path) -> None:
    """Its seed and sizes are the same, so that only the data tells them apart."""

    def fit(name: str, steps: int, code: int = 0) -> str:
        source = ["--config", "configs/finetune/debug.yaml", f"--data.source={tmp_path / name}.csv"]
        place = [f"--data.cache_dir={tmp_path / 'cache'}", "--callbacks.validation=null"]
        return train(tmp_path / name, 1, *source, *place, f"--trainer.max_steps={steps}", code=code)

    for name in ("mine", "other"):
        rows = "".join(f"{name} word {row},{row % 2}\n" for row in range(32))
        (tmp_path / f"{name}.csv").write_text("text,label\n" + rows)
        fit(name, 2)
    step = Path("checkpoints/step_00000002")
    shutil.rmtree(tmp_path / "mine" / step)
    shutil.copytree(tmp_path / "other" / step, tmp_path / "mine" / step)
    said = fit("mine", 4, code=1)
    assert f"the run whose checkpoint {tmp_path / 'mine' / step} is began with" in said and "Traceback" not in said
