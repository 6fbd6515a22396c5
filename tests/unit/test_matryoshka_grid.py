import io
import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning import LightningModule
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from callbacks.checkpoint import Checkpoint
from callbacks.grid import Grid as GridCallback
from callbacks.grid import write
from callbacks.loggers import JsonLines, TensorBoard
from callbacks.validation import Validation
from datamodules.core.loader import FromStep, loader
from datamodules.core.tasks import Task
from launch.strategies.replicas import single
from lightning_modules.core.base import Method
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.embedding_metrics import metrics_of
from lightning_modules.core.embedding_suite import VectorTable
from lightning_modules.core.terms import LossTerms, Term
from lightning_modules.matryoshka2d.grid import Cells, Choice, Costs, Grid, csv_of, measured, own_sizes, read_csv
from lightning_modules.matryoshka2d.grid_report import difference_map, headlines, heat_map, markdown, pixels
from tests.unit.test_embedding_metrics import TEXTS, WIDTH, every_task, layers

CELLS = Cells((0, 2, 3), (3, 8, WIDTH), (WIDTH,))


def made(scale: float = 1.0, costs: Costs | None = None) -> Grid:
    """2 layers x 3 widths, the best top right; one cell of a probe is missing."""
    cells = [(layer, dim) for layer in (3, 6) for dim in (8, 16, 32)]
    mean = {(layer, dim): scale * (0.1 * layer + 0.002 * dim) for layer, dim in cells}
    probed = {(layer, 32): scale * 0.1 * layer for layer in (3, 6)}
    values = {
        ("sts", "mean"): mean,
        ("topics", "accuracy"): probed,
        ("texts", "uniformity"): dict.fromkeys(cells, -2.5),
    }
    return Grid((3, 6), (8, 16, 32), values, costs or Costs())


COSTS = Costs({3: 1234.5, 6: 600.0}, {3: 1000000, 6: 2000000})


# Measuring


def test_each_cell_is_what_its_vectors_alone_are_worth():
    grid = measured(layers(), CELLS, every_task())
    assert (grid.layers, grid.dims) == ((0, 2, 3), (3, 8, WIDTH))
    for row, layer in enumerate(CELLS.layers):
        for dim in CELLS.dims:
            found = grid.cell(layer, dim)
            for task in every_task():
                if task.name == "topics" and dim != WIDTH:
                    assert "topics_accuracy" not in found
                    continue
                alone = metrics_of(task, layers()[row, :, :dim].clone())
                assert {name: found[f"{task.name}_{name}"] for name in alone} == alone
            assert found["sts_mean"] == np.mean([found["sts_b_spearman"], found["sick_spearman"]])
            assert {"sts_pooled", "texts_anisotropy", "texts_uniformity"} <= set(found)
    assert grid.largest() == grid.cell(3, WIDTH)


def test_a_layer_that_is_not_finite_has_nan_and_the_others_keep_their_values():
    vectors, whole = layers(), measured(layers(), CELLS, every_task())
    vectors[1, 7, 2] = math.nan
    vectors[1, 8, 0] = math.inf
    grid = measured(vectors, CELLS, every_task())
    assert set(grid.cell(2, 3)) == set(whole.cell(2, 3)) and all(map(math.isnan, grid.cell(2, 3).values()))
    assert grid.cell(0, 3) == whole.cell(0, 3) and grid.largest() == whole.largest()


def test_cells_by_default_and_by_choice():
    assert Choice().cells(3, 384, (8, 64, 384)) == Cells((1, 2, 3), (8, 64, 384), (384,))
    assert Choice().cells(1, 32) == Cells((1,), (32,), (32,))
    assert Choice([3, 0, 3], [64, 32], []).cells(3, 384) == Cells((0, 3), (32, 64), ())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(layers=[4]), r"callbacks.grid.layers: 4 is none of 0 to 3"),
        (Choice(layers=[]), r"callbacks.grid.layers = \[\]: give one at least, or null"),
        (Choice(dims=[0]), r"callbacks.grid.dims: 0 is none of 1 to 16"),
        (Choice(dims=[8, 32]), r"callbacks.grid.dims: 32 is none of 1 to 16"),
        (Choice(dims=[8, 16], probe_dims=[4]), r"callbacks.grid.probe_dims: 4 is none of 8, 16"),
    ],
)
def test_cells_that_the_model_has_not_are_refused(choice, message):
    with pytest.raises(CheckpointError, match=message):
        choice.cells(3, 16)


# Files


@pytest.mark.parametrize("costs", [Costs(), COSTS, Costs(parameters={6: 5})])
def test_a_grid_is_read_back_from_its_csv_exactly(tmp_path, costs):
    grid = made(1 / 3, costs)
    grid.values["sts", "mean"][3, 8] = math.nan
    file = tmp_path / "grid.csv"
    file.write_text(csv_of(grid))
    found = read_csv(file)
    assert math.isnan(found.values["sts", "mean"].pop((3, 8)) + grid.values["sts", "mean"].pop((3, 8)))
    assert found == grid


def test_a_csv_says_layer_dim_set_metric_value_and_costs_where_they_are_known():
    assert csv_of(made()).splitlines()[:2] == ["layer,dim,set,metric,value", f"3,8,sts,mean,{0.1 * 3 + 0.002 * 8!r}"]
    lines = csv_of(made(costs=COSTS)).splitlines()
    assert lines[0] == "layer,dim,set,metric,value,sentences_per_second,parameters,bytes_per_vector"
    assert lines[1].endswith(",1234.5,1000000,32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"grid.csv: cannot be read \(No such file"),
        ("", "grid.csv: holds no value"),
        ("layer,dim\n1,2\n", "grid.csv: is no grid; its columns must be layer, dim, set, metric, value"),
        ("layer,dim,set,metric,value\n1,x,a,b,2\n", "is no grid"),
        ("layer,dim,set,metric,value\n1,2,a\n", "is no grid"),
    ],
)
def test_a_csv_that_is_no_grid_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "grid.csv").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_csv(tmp_path / "grid.csv")


def test_models_of_their_own_size_give_their_largest_cells():
    small = Grid((1, 2), (4, 8), {("sts", "mean"): {(1, 4): 0.1, (2, 8): 0.5}})
    found = own_sizes([small, made()])
    assert found.values["sts", "mean"] == {(2, 8): 0.5, (6, 32): made().values["sts", "mean"][6, 32]}
    assert (found.layers, found.dims) == ((2, 6), (8, 32))


# What is seen


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_a_heat_map_has_a_panel_for_each_metric_with_the_values_in_the_cells():
    grid = made(costs=COSTS)
    figure = heat_map(grid, headlines(grid))
    pixels(figure)
    sts, topics = figure.axes[:2]
    assert [sts.get_title(), topics.get_title()] == ["sts mean", "topics accuracy"]
    assert texts(sts) == [".316", ".332", ".364", ".616", ".632", ".664"]
    assert texts(topics) == ["-", "-", ".300", "-", "-", ".600"]
    assert [tick.get_text() for tick in sts.get_yticklabels()] == ["3 (1,234/s)", "6 (600/s)"]
    assert [tick.get_text() for tick in sts.get_xticklabels()] == ["8", "16", "32"]
    assert sts.images[0].origin == "lower"


def test_baselines_are_drawn_in_the_same_colours_and_as_differences():
    grid, shown = made(), [("sts", "mean")]
    plain = Grid((3,), (8, 32), {("sts", "mean"): {(3, 8): 0.416, (3, 32): 0.164}})
    axes = heat_map(grid, shown, {"plain, cut": plain}).axes
    assert [axis.get_title() for axis in axes] == ["sts mean", "plain, cut: sts mean"]
    assert texts(axes[1]) == [".416", "-", ".164", "-", "-", "-"]
    shades = [np.asarray(axis.images[0].get_array()) for axis in axes]
    assert not np.allclose(shades[0][0, 0], shades[1][0, 0])  # .316 and .416, on one scale
    (axis,) = difference_map(grid, shown, {"plain, cut": plain}).axes
    assert axis.get_title() == "sts mean minus plain, cut"
    assert texts(axis) == ["-.100", "-", "+.200", "-", "-", "-"]
    assert texts(heat_map(grid, [("topics", "accuracy")], {"plain, cut": plain}).axes[1]) == ["not measured"]


def test_a_grid_of_one_cell_without_a_number_and_one_of_equal_numbers_are_drawn():
    one = Grid((6,), (32,), {("sts", "mean"): {(6, 32): math.nan}})
    for figure in (heat_map(one, [("sts", "mean")]), heat_map(made(), [("texts", "uniformity")])):
        assert pixels(figure).std() > 0
    assert texts(heat_map(made(), [("texts", "uniformity")]).axes[0])[0] == "-2.500"


def test_what_is_shown_is_chosen_by_name():
    assert headlines(made()) == [("sts", "mean"), ("topics", "accuracy")]
    assert headlines(made(), ["texts_uniformity"]) == [("texts", "uniformity")]
    assert headlines(Grid((6,), (32,), {("texts", "uniformity"): {}})) == [("texts", "uniformity")]
    with pytest.raises(CheckpointError, match=r"callbacks.grid.shown: no metric sts_max; there are sts_mean, texts_"):
        headlines(made(), ["sts_max"])


def test_markdown_has_layers_down_widths_across_and_differences():
    grid = made(costs=Costs({6: 600.0}, COSTS.parameters))
    plain = Grid((3,), (8,), {("sts", "mean"): {(3, 8): 0.3}})
    assert markdown(grid, [("sts", "mean")], {"plain, cut": plain}) == (
        "**sts mean**\n\n"
        "| layers | parameters | sentences/s | 8 (32 B) | 16 (64 B) | 32 (128 B) |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 6 | 2,000,000 | 600 | 0.6160 | 0.6320 | 0.6640 |\n"
        "| 3 | 1,000,000 |  | 0.3160 | 0.3320 | 0.3640 |\n"
        "\n"
        "**sts mean**, plain, cut (this model minus it)\n\n"
        "| layers | parameters | sentences/s | 8 (32 B) | 16 (64 B) | 32 (128 B) |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 6 | 2,000,000 | 600 | - | - | - |\n"
        "| 3 | 1,000,000 |  | 0.3000 (+0.0160) | - | - |\n"
    )


# In a run


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


def trainer_of(folder: Path, callback: GridCallback, **options: object) -> pl.Trainer:
    usual = {"limit_val_batches": 0, "log_every_n_steps": 1, "max_steps": 4}
    return pl.Trainer(
        accelerator="cpu",
        strategy=single(),
        callbacks=[Checkpoint(every_n_steps=2), Validation(every_n_steps=2), callback],
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
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
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
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in board.Images("grid/differences")] == [2, 4]


def test_a_baseline_without_a_grid_is_refused_before_the_training(tmp_path):
    with pytest.raises(CheckpointError, match=r"callbacks.grid.baselines.plain = .*: holds no grid/step_\*.csv; run"):
        trained(tmp_path / "run", baselines={"plain": str(tmp_path)})
    with pytest.raises(CheckpointError, match=r"gone.csv: cannot be read"):
        trained(tmp_path / "run", baselines={"plain": [str(tmp_path / "gone.csv")]})


def test_a_model_without_a_grid_is_refused():
    with pytest.raises(CheckpointError, match=r"callbacks.grid: LightningModule measures no grid; take the callback"):
        GridCallback().setup(None, LightningModule(), "fit")


def test_a_name_that_is_not_measured_is_refused_at_the_first_validation(tmp_path):
    with pytest.raises(CheckpointError, match=r"callbacks.grid.shown: no metric sts_max"):
        trained(tmp_path, shown=["sts_max"])


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(CheckpointError, match=r"a.csv: could not be written \(Is a directory\)"):
        write(tmp_path / "a.csv", b"text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_cells_are_vectors_of_the_layers_asked_for():
    with pytest.raises(AssertionError, match="3 tables for 2 layers"):
        measured(layers(), Cells((1, 2), (4,), ()), every_task())


def test_a_suite_without_tasks_still_says_how_the_vectors_lie():
    grid = measured(layers()[:1], Cells((1,), (WIDTH,), ()), [])
    assert set(grid.largest()) == {"texts_anisotropy", "texts_uniformity"}
