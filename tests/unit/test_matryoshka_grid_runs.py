"""The grid in a run: written at each validation and test, shown beside baselines."""

import io
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning import LightningModule
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from callbacks.checkpoint import Checkpoint, KeepBest
from callbacks.grid import Grid as GridCallback
from callbacks.grid import write
from callbacks.loggers import JsonLines, TensorBoard
from callbacks.validation import Validation
from datamodules.core.loader import FromStep, loader
from datamodules.core.tasks import Task
from launch.strategies.replicas import single
from lightning_modules.core.base import Method
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.embedding_suite import VectorTable, value_names
from lightning_modules.core.terms import LossTerms, Term
from lightning_modules.matryoshka2d.grid import Grid, csv_of, measured, read_csv
from lightning_modules.matryoshka2d.grid_report import headlines, markdown
from tests.unit.test_embedding_metrics import TEXTS, WIDTH, every_task, layers


class Toy(Method):
    """Learns a vector for each text; its lower layer is the tanh of it."""

    def __init__(self) -> None:
        super().__init__()
        self.optimization("adamw", 0.1, 0.0, 1e-8, "constant", 0, 1.0)
        self.grid_choice, self.measures_costs, self.grid = None, False, None

    def configure_model(self) -> None:
        if self.model is None:
            self.model = nn.Embedding(TEXTS, WIDTH)
            self.model.weight.data = layers()[0]

    def target_counts(self, batch: dict) -> dict[str, int]:
        return {"square": len(batch["sample_B"])}

    def objective(self, batch: dict, key: int, measures: bool) -> LossTerms:
        return LossTerms({"square": Term((self.model(batch["sample_B"]) ** 2).sum(), len(batch["sample_B"]))}, {})

    def start_evaluation(self) -> None:
        self.table = VectorTable(2, TEXTS, WIDTH)

    def evaluate(self, batch: dict) -> None:
        vectors_BD = self.model(batch["sample_B"])
        self.table.add(batch["sample_B"], torch.stack([vectors_BD.tanh(), vectors_BD]))

    def value_names(self, prefix: str) -> set[str]:
        return {f"{prefix}/{'_'.join(key)}" for key in value_names(self.trainer.datamodule.tasks(prefix))}

    def end_evaluation(self, prefix: str) -> dict[str, float]:
        cells = self.grid_choice.cells(2, WIDTH)
        self.grid = measured(self.table.join(), cells, self.trainer.datamodule.tasks(prefix))
        return {f"{prefix}/{name}": value for name, value in self.grid.largest().items()}


class Texts(pl.LightningDataModule):
    def tasks(self, split: str) -> list[Task]:
        return every_task()[:3] if split == "val" else every_task()[:1]

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return loader(batches() * 10, 0, FromStep(lambda: self.trainer.global_step))

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        return loader(batches(), 0)

    test_dataloader = val_dataloader


def batches() -> list[list[dict]]:
    return [[{"sample_B": part, "position": int(part[0])}] for part in torch.arange(TEXTS).split(16)]


def trainer_of(
    folder: Path, callback: GridCallback, checkpoint: Checkpoint | None = None, **options: object
) -> pl.Trainer:
    usual = {"limit_val_batches": 0, "log_every_n_steps": 1, "max_steps": 4}
    return pl.Trainer(
        accelerator="cpu",
        strategy=single(),
        callbacks=[checkpoint or Checkpoint(every_n_steps=2), Validation(every_n_steps=2), callback],
        logger=[TensorBoard(str(folder)), JsonLines(str(folder))],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **usual | options,
    )


def trained(folder: Path, **options: object) -> pl.Trainer:
    trainer = trainer_of(folder, GridCallback(dims=[4, WIDTH], **options))
    trainer.fit(Toy(), datamodule=Texts())
    return trainer


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "grid").iterdir())


def test_a_run_writes_a_grid_at_each_validation_and_shows_it_in_tensorboard(tmp_path):
    trainer = trained(tmp_path)
    names = [f"step_0000000{step}.{kind}" for step in (2, 4) for kind in ("csv", "md", "png")]
    assert written(tmp_path) == names
    grid, last = trainer.lightning_module.grid, read_csv(tmp_path / "grid" / "step_00000004.csv")
    assert last == grid and (last.layers, last.dims) == ((1, 2), (4, WIDTH))
    assert {f"val/{name}": value for name, value in last.largest().items()} == trainer.callbacks[0].last
    assert read_csv(tmp_path / "grid" / "step_00000002.csv") != last
    assert (tmp_path / "grid" / "step_00000004.md").read_text() == markdown(grid, headlines(grid))
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in board.Images("grid/cells")] == [2, 4]
    shown = imread(io.BytesIO(board.Images("grid/cells")[1].encoded_image_string), "png")
    file = imread(tmp_path / "grid" / "step_00000004.png")
    assert np.array_equal(shown[..., :3], file[..., :3]) and file.std() > 0.05


def test_a_run_that_goes_on_writes_later_steps_over_what_was_rolled_back(tmp_path):
    trained(tmp_path)
    folder = tmp_path / "grid"
    kept = (folder / "step_00000004.csv").read_text()
    (folder / "step_00000004.csv").write_text("of another try")
    (folder / ".step_00000004.png.1-1.tmp").write_text("left by a killed process")
    again = trainer_of(tmp_path, GridCallback(dims=[4, WIDTH]))
    again.fit(Toy(), datamodule=Texts(), ckpt_path=str(tmp_path / "checkpoints" / "step_00000002"))
    assert (folder / "step_00000004.csv").read_text() == kept
    assert not list(folder.glob(".*"))


def test_validate_and_test_write_the_grid_of_the_checkpoint(tmp_path):
    trained(tmp_path)
    (tmp_path / "grid" / "step_00000002.csv").rename(tmp_path / "first.csv")
    checkpoint = str(tmp_path / "checkpoints" / "step_00000002")
    (tmp_path / "grid" / ".test_step_00000002.csv.1-1.tmp").write_text("left by a killed test")
    (tmp_path / "grid" / ".step_00000004.csv.1-1.tmp").write_text("of a training that may be alive")
    for command in ("validate", "test"):
        trainer = trainer_of(tmp_path, GridCallback(dims=[4, WIDTH]), limit_val_batches=1.0, max_steps=-1)
        getattr(trainer, command)(Toy(), datamodule=Texts(), ckpt_path=checkpoint, verbose=False)
    found = read_csv(tmp_path / "grid" / "step_00000002.csv")
    assert found == read_csv(tmp_path / "first.csv")
    tested = read_csv(tmp_path / "grid" / "test_step_00000002.csv")
    assert tested.values["sts_b", "spearman"] == found.values["sts_b", "spearman"]
    assert ("search", "mrr") in found.values and ("search", "mrr") not in tested.values
    assert [file.name for file in (tmp_path / "grid").glob(".*")] == [".step_00000004.csv.1-1.tmp"]


def test_baselines_are_runs_files_or_models_of_their_own_size(tmp_path):
    plain, small = tmp_path / "plain", tmp_path / "small.csv"
    trained(plain)
    small.write_text(csv_of(Grid((1,), (4,), {("sts", "mean"): {(1, 4): 0.9}})))
    baselines = {"plain, cut": str(plain), "separate": [str(small), str(plain)]}
    trainer = trained(tmp_path / "run", baselines=baselines)
    beside = trainer.callbacks[1].beside
    assert beside["plain, cut"] == read_csv(plain / "grid" / "step_00000004.csv")
    table = beside["separate"].values["sts", "mean"]
    assert table == {(1, 4): 0.9, (2, WIDTH): beside["plain, cut"].values["sts", "mean"][2, WIDTH]}
    assert "step_00000004_differences.png" in written(tmp_path / "run")
    text = (tmp_path / "run" / "grid" / "step_00000004.md").read_text()
    assert "**sts mean**, separate (this model minus it)" in text and "0.9000 (" in text
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in board.Images("grid/differences")] == [2, 4]


def test_a_baseline_without_a_grid_is_refused_before_the_training(tmp_path):
    with pytest.raises(CheckpointError, match=r"callbacks.grid.baselines.plain = .*: holds no grid/step_\*.csv; run"):
        trained(tmp_path / "run", baselines={"plain": str(tmp_path)})
    with pytest.raises(CheckpointError, match=r"gone.csv: cannot be read"):
        trained(tmp_path / "run", baselines={"plain": [str(tmp_path / "gone.csv")]})


def test_a_model_without_a_grid_is_refused():
    with pytest.raises(CheckpointError, match=r"callbacks.grid: LightningModule measures no grid; take the callback"):
        GridCallback().setup(None, LightningModule(), "fit")


def test_a_name_that_will_not_be_measured_is_refused_before_the_first_step(tmp_path):
    known = "search_mrr, .*, sts_b_spearman, sts_mean, sts_pooled, texts_anisotropy, texts_uniformity"
    with pytest.raises(CheckpointError, match=rf"callbacks.grid.shown: no metric sts_max; there are {known}"):
        trained(tmp_path, shown=["sts_max"])
    best = Checkpoint(keep_best=KeepBest("val/sts_max"))
    trainer = trainer_of(tmp_path, GridCallback(), checkpoint=best)
    with pytest.raises(CheckpointError, match=r"keep_best.metric: no value val/sts_max; there are: val/search_mrr"):
        trainer.fit(Toy(), datamodule=Texts())
    assert trainer.global_step == 0 and not (tmp_path / "grid").exists()


def test_a_test_of_other_sets_shows_what_they_have(tmp_path):
    trainer = trained(tmp_path, shown=["search_mrr"])
    assert "**search mrr**" in (tmp_path / "grid" / "step_00000004.md").read_text()
    trainer.test(Toy(), datamodule=Texts(), verbose=False)
    assert "**sts mean**" in (tmp_path / "grid" / "test_step_00000004.md").read_text()


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(CheckpointError, match=r"a.csv: could not be written \(Is a directory\)"):
        write(tmp_path / "a.csv", b"text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
