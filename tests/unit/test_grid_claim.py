"""A claim that the grid judges: what is compared, when it holds, what its file must say, how runs are planned."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from launch.claims.grid_arms import GridArms
from launch.claims.grid_experiment import judged, main_comparison, means, overall
from launch.claims.grid_judge import ALL, RETRIEVAL, STS, compared, low_cells, mean_grid, own_size, scored, top_cell
from launch.claims.grid_plan import GridClaim, PartSize, grid_claim, part_lacks, sets_at
from launch.claims.grid_report import card, reading
from launch.claims.plan import claim_file
from launch.claims.statistics import FAILS, HOLDS, OPEN, t_interval
from launch.config.errors import ConfigError
from launch.config.resolved import resolve
from lightning_modules.matryoshka2d.grid import Grid

LAYERS, DIMS = (1, 2, 3, 4), (8, 16)
CELLS = [(layer, dim) for layer in LAYERS for dim in DIMS]


def read() -> GridClaim:
    raw, where = claim_file("matryoshka2d")
    assert raw.pop("judged_by") == "grid"
    return grid_claim(raw, where)


CLAIM = read()


def grid(value) -> Grid:
    """Two sets of STS, one of retrieval; `value` is a function of the cell."""
    table = {cell: float(value(*cell)) for cell in CELLS}
    other = {("x", "pearson"): table, ("texts", "anisotropy"): table}
    shifted = {cell: number + 0.1 for cell, number in table.items()}
    return Grid(LAYERS, DIMS, {("x", "spearman"): table, ("y", "spearman"): shifted, ("z", "ndcg@10"): shifted} | other)


def arm(low: float, top: float, noise=(0.0, 0.01, -0.01)) -> dict[int, Grid]:
    """Grids of seeds: one level at half depth and below, another above it."""
    return {
        seed: scored(grid(lambda layer, _, n=n: (low if layer <= 2 else top) + n)) for seed, n in enumerate(noise, 1)
    }


def test_of_each_set_one_metric_counts_and_means_are_of_the_kinds():
    found = scored(grid(lambda layer, dim: layer / 10 + dim / 1000))
    base = 0.3 + 0.016
    assert set(found.values) == {("x", "spearman"), ("y", "spearman"), ("z", "ndcg@10"), ALL, STS, RETRIEVAL}
    assert found.values[STS][3, 16] == pytest.approx(base + 0.05)
    assert found.values[RETRIEVAL][3, 16] == pytest.approx(base + 0.1)
    assert found.values[ALL][3, 16] == pytest.approx(base + 0.2 / 3)


def test_cells_at_half_depth_and_the_top():
    found = grid(lambda *_: 0)
    assert low_cells(found) == [(1, 8), (1, 16), (2, 8), (2, 16)] and top_cell(found) == (4, 16)
    odd = Grid((0, 1, 2, 3), (8,), {})
    assert low_cells(odd) == [(1, 8)]  # neither the output of the embeddings, nor two layers of three


def test_the_mean_over_seeds():
    found = mean_grid(arm(0.4, 0.6, (0.0, 0.02, 0.04)))
    assert found.values["x", "spearman"][1, 8] == pytest.approx(0.42)


def test_both_halves_hold():
    ours, theirs = arm(0.5, 0.69), arm(0.4, 0.7, (0.0, 0.012, -0.009))
    found = compared(ours, theirs, STS, 0.02)
    assert (found["verdict_low"], found["verdict_top"]) == (HOLDS, HOLDS) and found["seeds"] == [1, 2, 3]
    assert found["cells_low"] == {"cells": 4, "above": 4, HOLDS: 4, FAILS: 0, OPEN: 0}
    differences = [0.1, 0.1 - 0.002, 0.1 - 0.001]
    peer = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found["low"]["differences"] == pytest.approx(differences)
    assert (found["low"]["low"], found["low"]["high"]) == (pytest.approx(peer.low), pytest.approx(peer.high))
    assert found["cells"]["4x16"]["mean"] == pytest.approx(-0.01 - 0.001) and found["cells"]["4x16"]["verdict"] == FAILS


def test_neither_half_holds():
    found = compared(arm(0.4, 0.6), arm(0.5, 0.7, (0.001, 0.011, -0.011)), STS, 0.02)
    assert (found["verdict_low"], found["verdict_top"]) == (FAILS, FAILS)
    assert found["cells_low"][FAILS] == 4 and found["cells_low"]["above"] == 0


def test_what_the_seeds_do_not_tell_apart_is_not_decided():
    found = compared(arm(0.45, 0.69, (0.1, -0.1, 0.0)), arm(0.4, 0.7, (-0.1, 0.1, 0.0)), STS, 0.02)
    assert (found["verdict_low"], found["verdict_top"]) == (OPEN, OPEN)


def test_one_cell_that_is_worse_for_sure_keeps_the_statement_open():
    ours = {
        seed: scored(grid(lambda layer, dim, n=seed: (0.2 if (layer, dim) == (1, 8) else 0.9) + n / 1000))
        for seed in (1, 2, 3)
    }
    found = compared(ours, arm(0.4, 0.7, (0.0, 0.001, 0.003)), STS, 0.02)
    assert found["low"]["low"] > 0 and found["cells_low"][FAILS] == 1 and found["verdict_low"] == OPEN


def test_one_seed_decides_nothing_and_seeds_are_paired():
    one = compared(arm(0.9, 0.9, (0.0,)), arm(0.1, 0.1), STS, 0.02)
    assert (
        one["seeds"] == [1] and one["low"]["low"] is None and (one["verdict_low"], one["verdict_top"]) == (OPEN, OPEN)
    )
    none = compared({7: next(iter(arm(0.9, 0.9).values()))}, arm(0.1, 0.1), STS, 0.02)
    assert none["seeds"] == [] and (none["verdict_low"], none["verdict_top"]) == (OPEN, OPEN)
    wild = (0.0, 0.2, -0.2)  # the spread of both arms is the same, that of the differences is 0
    paired = compared(arm(0.41, 0.7, wild), arm(0.4, 0.7, wild), STS, 0.02)
    assert paired["low"]["low"] == pytest.approx(0.01) and paired["verdict_low"] == HOLDS


def test_a_score_that_is_no_number_decides_nothing():
    ours = arm(0.5, 0.7)
    ours[2].values[STS][1, 8] = math.nan
    found = compared(ours, arm(0.4, 0.7), STS, 0.02)
    assert (
        found["verdict_low"] == OPEN and found["cells"]["1x8"]["verdict"] == OPEN and found["cells"]["2x8"]["mean"] > 0
    )


def own(values: list[float]) -> dict[int, Grid]:
    return {
        seed: scored(Grid((2,), (8,), {("x", "spearman"): {(2, 8): value}, ("z", "ndcg@10"): {(2, 8): value}}))
        for seed, value in enumerate(values, 1)
    }


@pytest.mark.parametrize(("own_score", "expected"), [(0.8, HOLDS), (0.2, FAILS)])
def test_models_of_a_cells_own_size(own_score, expected):
    found = own_size(own([own_score, own_score + 0.012, own_score - 0.009]), arm(0.45, 0.7), (2, 8), ("x", "spearman"))
    assert found["separate"] == pytest.approx(own_score + 0.001) and found["mean_other"] == pytest.approx(0.45)
    assert found["difference"]["mean"] == pytest.approx(own_score - 0.45 + 0.001) and found["verdict"] == expected
    single = own_size(own([own_score]), arm(0.45, 0.7), (2, 8), ("x", "spearman"))
    assert single["verdict"] == OPEN and single["difference"]["low"] is None
    second = own_size({2: own([0.0, own_score])[2]}, arm(0.45, 0.7), (2, 8), ("x", "spearman"))
    assert second["mean_other"] == pytest.approx(0.46) and second["difference"]["mean"] == pytest.approx(
        own_score - 0.46
    )


def results(ours: dict[int, Grid], theirs: dict[int, Grid], separate: dict[int, Grid]) -> dict:
    """What a claim of one part finds, with runs that never were."""
    from launch.claims.arms import Run
    from launch.claims.grid_arms import Planned

    grids = {"plain": theirs, "paper": ours, "not_trained": arm(0.45, 0.3, (0.0,)), "separate_2x8": separate}
    runs = [
        Planned(Run(arm, seed, 1e-3, 5, Path("none", arm), ()), group, arm, cell)
        for arm, group, cell in (
            ("plain", "judged", None),
            ("paper", "judged", None),
            ("not_trained", "beside", None),
            ("separate_2x8", "separate", (2, 8)),
        )
        for seed in grids[arm]
    ]
    found = {"parts": {"scratch": judged(CLAIM, CLAIM.sizes["quick"], "scratch", runs, runs, grids)}}
    found |= {"skipped_parts": {"minilm": "no --data.root was given"}, "skipped_sets": {}, "sets": ["x", "y", "z"]}
    machine = {"changed_files": [], "versions": {}, "time": "now", "commit": None, "cpu": "a", "cores": 2, "load": 0.0}
    about = {
        "method": "m",
        "statement": "s",
        "better": "paper",
        "worse": "plain",
        "highest_cost": 0.02,
        "size": "cpu",
        "floor": "not_trained",
    }
    rest = {"machine": {**machine, "python": "3"}, "command": "c", "minutes": 1.0, "not_done": ["n."], "notes": ["o."]}
    return {**found, **about, **rest, "verdict": overall(CLAIM, "cpu", found)}


def test_the_report_says_what_was_found_and_where_separate_models_win():
    found = results(arm(0.5, 0.69), arm(0.4, 0.7, (0.0, 0.012, -0.009)), own([0.9]))
    assert found["verdict"] == (
        "scratch: paper above plain, cut, at half depth and below: holds; at most 0.02 lost at the top: holds. "
        "minilm: not run (size cpu; sts mean)"
    )
    text = "\n".join(card(found))
    assert "a separate model of 2x8 wins against that cell of paper, +0.350 (0.900 to 0.550)" in text
    assert "with 1 common seed, so without an interval" in text and "| 4 | 0.740" in text and "- n." in text
    lost = results(arm(0.4, 0.6), arm(0.5, 0.7, (0.001, 0.011, -0.011)), own([0.1, 0.11, 0.09]))
    assert "below: does not hold; at most 0.02 lost at the top: does not hold" in lost["verdict"]
    assert "- scratch: paper score no better at half depth and below than before the training (0.500)." in reading(lost)
    assert any("by retrieval mean alone, at half depth and below" in line for line in reading(lost))
    assert any("2x8 loses" in line and "surely" in line for line in reading(lost))
    assert main_comparison(lost["parts"]["scratch"])["of"] == "sts mean"


def test_means_are_written_by_cell():
    found = means(arm(0.4, 0.6, (0.0, 0.02)))
    assert found["seeds"] == [1, 2] and found["means"]["x spearman"]["2x8"] == pytest.approx(0.41)


def test_sets_and_parts_that_are_not_there_are_told(tmp_path):
    found, skipped = sets_at(CLAIM, CLAIM.sizes["cpu"], None)
    assert set(found) == {"wikipedia"} and skipped["sick"] == "no --data.root was given"
    (tmp_path / "cranfield").mkdir()
    found, skipped = sets_at(CLAIM, CLAIM.sizes["cpu"], tmp_path)
    assert (
        set(found) == {"cranfield", "wikipedia"}
        and skipped["stsb_dev"] == "stsb/dev.jsonl.gz is not under the data root"
    )
    assert part_lacks(CLAIM.parts["scratch"], None) is None
    assert part_lacks(CLAIM.parts["minilm"], tmp_path) == "nli_triplets/train.jsonl.gz is not under the data root"


def planned(size: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GridArms:
    monkeypatch.setattr(GridArms, "cut", lambda self, layers: f"cut/{layers}")
    return GridArms(CLAIM, CLAIM.sizes[size], part, {"wikipedia": CLAIM.sets["wikipedia"]}, None, tmp_path)


def test_arms_differ_by_their_objective_alone(tmp_path, monkeypatch):
    runs = planned("cpu", "scratch", tmp_path, monkeypatch).planned()
    count = 4 * 3 + 3 + 4 + 2
    assert len(runs) == count == len({one.run.folder for one in runs})
    found = {one.arm: resolve(list(one.run.words), "fit") for one in runs if one.run.seed == 1}
    plain = found["plain"]
    for arm, other in found.items():
        keys = {".".join(key) for key in plain.table if plain.table[key].value != other.get(".".join(key))}
        if arm == "not_trained":
            assert keys == {"model.learning_rate", "model.warmup_steps", "trainer.max_steps"}
        elif arm.startswith("separate"):
            assert (
                {"model.untrained.num_layers"}
                <= keys
                <= {f"model.untrained.{name}" for name in ("num_layers", "hidden_size", "num_heads")}
                | {"callbacks.grid.layers", "callbacks.grid.dims"}
            )
        else:
            assert keys <= {"model.mode", "model.objective"} | {
                key for key in keys if key.startswith("model.objective.")
            }
    small = found["separate_2x32"]
    assert [small.get(f"model.untrained.{name}") for name in ("num_layers", "hidden_size", "num_heads")] == [2, 32, 1]
    assert found["teacher_detached"].get("model.objective.detach_teacher") is True
    assert found["paper"].get("callbacks.validation.every_n_steps") == found["paper"].get("trainer.max_steps") == 300


def test_every_arm_of_a_pretrained_encoder_starts_from_it(tmp_path, monkeypatch):
    runs = planned("quick", "minilm", tmp_path, monkeypatch).planned()
    found = {one.arm: resolve(list(one.run.words), "fit").values["model"] for one in runs}
    assert {model["init_from"] for arm, model in found.items() if not arm.startswith("separate")} == {"cut/2"}
    own = found["separate_1x96"]
    assert (own["init_from"], own["mode"], own["objective"]["widths"]) == ("cut/1", "matryoshka_1d", [96])


def test_the_first_layers_of_an_encoder_become_a_folder(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from tests.text import word_tokenizer

    source = tmp_path / "whole"
    tokenizer = word_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    network = transformers.BertModel(config, add_pooling_layer=False)
    network.save_pretrained(source)
    tokenizer.save_pretrained(source)
    arms = GridArms(CLAIM, CLAIM.sizes["quick"], "minilm", {}, None, tmp_path)
    arms.part = type(arms.part)(**{**vars(arms.part), "encoder": str(source)})
    shallow = transformers.AutoModel.from_pretrained(arms.cut(2), add_pooling_layer=False)
    assert shallow.config.num_hidden_layers == 2
    for name, weight in shallow.state_dict().items():
        assert torch.equal(weight, network.state_dict()[name])
    with pytest.raises(ConfigError, match="layers = 4: the network has layers 1 to 3"):
        arms.cut(4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("better: paper", "better: papers", "papers is no arm of judged; did you mean paper"),
        ("sets: [sts13,", "sets: [sts31,", r"sizes\.quick\.sets names sts31, which is no set"),
        ("separate: [[1, 16]", "separate: [[1, 17]", r"\[1, 17\] is no \[layers, width\] of the grid"),
        ("steps: 20\n", "steps: 0\n", "needs at least one step"),
        ("encoder_layers: 2", "encoder_layer: 2", "unknown key encoder_layer; did you mean encoder_layers"),
        ("seeds: {judged: [1], beside", "seeds: {beside", r"sizes\.quick\.seeds must name judged"),
    ],
)
def test_a_claim_that_is_not_written_as_it_must_be(old, new, message):
    text = Path("configs/claims/matryoshka2d.yaml").read_text()
    assert old in text
    raw = yaml.safe_load(text.replace(old, new, 1))
    raw.pop("judged_by")
    with pytest.raises(ConfigError, match=message):
        grid_claim(raw, "c.yaml")


def test_sizes_and_seeds_are_those_that_were_said():
    assert set(CLAIM.sizes) == {"quick", "cpu", "gpu"} and set(CLAIM.sizes["cpu"].parts) == {"scratch", "minilm"}
    assert isinstance(CLAIM.sizes["cpu"].parts["minilm"], PartSize)
    assert CLAIM.sizes["gpu"].seeds["separate"] == [1, 2, 3] and CLAIM.sizes["cpu"].seeds["beside"] == [1]
    assert np.isnan(t_interval([math.nan, 1.0]).mean)
