"""The grid: cells, files, pictures."""

import math

import numpy as np
import pytest

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.embedding_metrics import metrics_of
from lightning_modules.core.embedding_suite import value_names
from lightning_modules.matryoshka2d.grid import Cells, Choice, Costs, Grid, csv_of, measured, own_sizes, read_csv
from lightning_modules.matryoshka2d.grid_report import difference_map, headlines, heat_map, markdown, pixels
from tests.unit.test_embedding_metrics import WIDTH, every_task, layers

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
    assert set(grid.values) == value_names(every_task())


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
    assert headlines(made(), ["of_another_set", "texts_uniformity"]) == [("texts", "uniformity")]
    assert headlines(made(), ["of_another_set"]) == headlines(made())


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


def test_cells_are_vectors_of_the_layers_asked_for():
    with pytest.raises(AssertionError, match="3 tables for 2 layers"):
        measured(layers(), Cells((1, 2), (4,), ()), every_task())


def test_a_suite_without_tasks_still_says_how_the_vectors_lie():
    grid = measured(layers()[:1], Cells((1,), (WIDTH,), ()), [])
    assert set(grid.largest()) == {"texts_anisotropy", "texts_uniformity"}
