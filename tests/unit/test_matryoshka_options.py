"""Options of the loss and of the objective: what reaches the loss, what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch

from launch.config import resolve
from launch.config.errors import ConfigError
from lightning_modules.core.base_loss import LossOptions
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.pair_losses import Pairs, info_nce
from lightning_modules.matryoshka2d.modeling import LearntScale
from lightning_modules.matryoshka2d.modes import ANGLE_AS_RELEASED, settings
from tests.embedders import method_of

# Options of the loss


def bound(options: LossOptions, mode: str | None) -> dict[str, object]:
    """Return the arguments that reach the loss; of a mode's released code, or of none."""
    given = options.bound(Pairs(slice(0, 1)), None, ANGLE_AS_RELEASED.get(mode)).keywords
    return {name: value for name, value in given.items() if name != "pairs"}


def test_what_is_given_goes_before_what_was_released_and_that_before_the_default():
    default = bound(LossOptions("angle"), None)
    assert not {"angle_tau", "integer_labels", "ibn_w"} & {*default}, "the function's own: 20, no and 30"
    assert bound(LossOptions("angle"), "paper")["angle_tau"] == 1.0
    assert bound(LossOptions("angle"), "improved")["angle_tau"] == 20.0
    espresso = bound(LossOptions("angle"), "espresso")
    assert [espresso[name] for name in ("ibn_w", "cln_w", "angle_w", "angle_tau")] == [1.0, 1.0, 0.02, 20.0]
    given = bound(LossOptions("angle", angle_scale=5.0, integer_labels=False), "paper")
    assert given == {**default, "angle_tau": 5.0, "integer_labels": False}
    assert "angle_tau" not in bound(LossOptions("info_nce"), "paper"), "no option of another loss"


def test_the_overlay_of_the_released_code_reaches_the_loss_of_the_recipe():
    for mode, tau in (("paper", 1.0), ("improved", 20.0), ("espresso", 20.0)):
        files = ["base", "as_released"]
        found = resolve(
            [*(w for f in files for w in ("--config", f"configs/matryoshka2d/{f}.yaml")), "--model.mode", mode]
        )
        options = LossOptions(**found.values["model"]["loss"])
        assert found.get("model.as_released") is True and bound(options, mode)["angle_tau"] == tau
        assert bound(options, mode).get("angle_w", 1.0) == (0.02 if mode == "espresso" else 1.0)


@pytest.mark.parametrize(
    ("options", "columns", "label_range", "widths", "problem"),
    [
        (LossOptions(), 2, None, {7}, None),
        (LossOptions(), 2, (0, 0.5), {8}, "has labels other than 1"),
        (LossOptions("cosent"), 2, None, {8}, "has no scores or labels"),
        (LossOptions("cosent"), 3, None, {8}, None),
        (LossOptions("triplet"), 2, None, {8}, "has no hard negatives"),
        (LossOptions("triplet"), 3, (0, 0.5), {8}, "has labels beside hard negatives"),
        (LossOptions("angle"), 3, (0, 0.5), {8}, "has labels beside hard negatives"),
        (LossOptions("angle"), 2, (0, 0.5), {8, 16}, None),
        (LossOptions("angle"), 2, (0, 0.5), {8, 15, 16}, "is compared at width 15"),
        (LossOptions("angle"), 3, None, {15}, "is compared at width 15"),
        (LossOptions("angle"), 2, None, {15}, None),
        (LossOptions("angle", angle_weight=0.0), 2, (0, 0.5), {15}, None),
        (LossOptions("cosine_regression"), 2, (-1, 1), {8}, None),
        (LossOptions("cosine_regression"), 2, (0, 5), {8}, "has labels from 0 to 5"),
        (LossOptions("cosent"), 2, (0, 5), {8}, None),
        (LossOptions("cosent"), 3, (0, 5), {8}, "has labels from 0 to 5, and hard negatives get 1 - label"),
        (LossOptions("cosine_regression"), 3, (-1, 1), {8}, "has labels from -1 to 1, and hard negatives"),
        (LossOptions("angle"), 2, (0, 5), {8}, "has labels from 0 to 5, and model.loss.name = angle weighs"),
        (LossOptions("angle", in_batch_weight=0.0), 2, (0, 5), {8}, None),
        (LossOptions("angle", integer_labels=True), 2, (0, 5), {8}, None),
    ],
)
def test_data_that_a_loss_cannot_compare(options, columns, label_range, widths, problem):
    found = options.misfit(columns, label_range, widths)
    assert found is None if problem is None else found.startswith(problem)
    if options.name == "angle":
        assert options.misfit(2, (0, 5), {8}, {"integer_labels": True}) is None, "as the authors' code takes them"


def test_a_learnt_scale_ends_at_100_and_comes_back():
    scale = LearntScale(20.0)
    scale.bias.data.fill_(math.log(100.0) + 0.5)
    assert scale().item() == pytest.approx(100.0)
    scale().sum().backward()
    assert scale.bias.grad.item() == pytest.approx(100.0), "it is not stuck"


# What is refused

ANGLE, TRIPLETS = ["--model.loss.name=angle"], ["--model.loss.name=triplet"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--model.loss.learn_scale=true", "--model.loss.scale=101"], "must be at most 100 where it is learnt"),
        (["--model.fixed_teacher=x", "--model.mode=plain"], "which mode plain has not"),
        (["--model.fixed_teacher=x", "--model.mode=espresso"], "which mode espresso has not"),
        (["--model.fixed_teacher=x", "--model.objective.kl_temperature=0"], "which mode paper has not"),
        (["--model.objective.pairs=[[1, 8]]"], "pairs: has no meaning in mode paper"),
        (["--model.mode=starbucks", "--model.objective.widths=[8]"], "widths: has no meaning in mode starbucks"),
        (["--model.mode=plain", "--model.objective.alignment=exact"], "alignment: has no effect, as no cut width is"),
        (
            ["--model.mode=matryoshka_1d", "--model.objective.kl_weight=1"],
            "kl_weight: has no effect, as no layer below",
        ),
        (["--model.objective.alignment_temperature=2"], "alignment_temperature: has no effect, as alignment is none"),
        (
            ["--model.objective.widths_per_step=0", "--model.objective.kl_width=drawn"],
            "kl_width: has no effect, as no cut width is trained",
        ),
        (
            ["--model.fixed_teacher=x", "--model.objective.detach_teacher=true"],
            "detach_teacher: has no effect beside model.fixed_teacher",
        ),
        (["--model.objective.normalise=true"], "normalise: has no effect on model.loss.name info_nce"),
        (
            ["--model.mode=starbucks", "--model.objective.normalise=false", *TRIPLETS, "--model.loss.distance=cosine"],
            "normalise: has no effect on model.loss.name triplet by cosine",
        ),
        ([*ANGLE, "--model.loss.cosine_scale=10"], "cosine_scale has no effect, as cosine_weight is 0; take it out"),
        (
            [*ANGLE, "--model.loss.angle_weight=0", "--model.loss.angle_scale=1"],
            "angle_scale has no effect, as angle_weight is 0",
        ),
        (
            [*ANGLE, "--model.loss.in_batch_weight=0", "--model.loss.integer_labels=true"],
            "integer_labels has no effect, as in_batch_weight is 0",
        ),
        (["--model.objective.kl_weight=-1"], "kl_weight = -1: must be finite and not negative"),
        (["--model.mode=plain", "--model.objective.full_width=none"], "full_width none and widths_per_step 0 leave no"),
        (["--model.objective.widths=[8]", "--model.objective.width_weights=[-1]"], "width_weights = .*not negative"),
        (["--model.mode=starbucks", "--model.objective.pairs=[[1]]"], "pairs: each must be a layer and a width"),
        (["--model.untrained.num_layers=0"], "must be at least 1"),
        (["--callbacks.validation.max_batches=1"], "must be null: sets of texts are judged on all of their texts"),
        (["--model.loss.margin=2"], "margin is for triplet, and info_nce does not look at it; take it out"),
        (["--model.loss.name=angle", "--model.loss.scale=50"], "scale is for info_nce and cosent, and angle does not"),
        (["--model.loss.name=triplet", "--model.loss.margin=-1"], "must be finite and not negative"),
        (
            ["--model.loss.name=angle", "--model.loss.in_batch_weight=0", "--model.loss.angle_weight=0"],
            "leaves every term of angle without a weight",
        ),
    ],
)
def test_options_that_would_do_nothing(flags, problem):
    with pytest.raises(ConfigError, match=problem):
        resolve(["--config", "configs/matryoshka2d/debug.yaml", *flags])


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.fixed_teacher=x", "--model.mode=sentence_transformers"],  # the mode's own
        [*TRIPLETS, "--model.objective.normalise=true"],
        [*ANGLE, "--model.loss.cosine_weight=1", "--model.loss.cosine_scale=10"],
        [*ANGLE, "--model.loss.angle_scale=1", "--model.loss.integer_labels=true"],
    ],
)
def test_options_that_act(flags):
    assert resolve(["--config", "configs/matryoshka2d/debug.yaml", *flags])


@pytest.mark.parametrize("changed", [{"cosine_weight": 1.0}, {"in_batch_weight": 1.0}, {"angle_scale": 1.0}])
def test_angle_over_pairs_without_labels_is_info_nce_alone(changed):
    options = LossOptions("angle", **changed)
    problem = f"model.loss.{next(iter(changed))} is not looked at: no source has labels or hard negatives"
    assert options.unread([(2, False), (2, False)]).startswith(problem)
    assert options.unread([(2, False), (3, False)]) is options.unread([(2, True)]) is None
    table = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(options.bound(Pairs(slice(0, 4)))(table), info_nce(table, Pairs(slice(0, 4))))


@pytest.mark.parametrize(
    ("options", "sources", "lacking"),
    [
        ({"hard_weight": 1.0}, [(2, True), (2, False)], "hard negatives"),
        ({"hard_weight": 1.0}, [(2, True), (4, False)], None),
        ({"integer_labels": True}, [(3, False)], "labels"),
        ({"integer_labels": True}, [(3, False), (2, True)], None),
        ({"in_batch_scale": 5.0}, [(2, False)], None),
    ],
)
def test_options_of_angle_that_no_source_needs(options, sources, lacking):
    problem = LossOptions("angle", **options).unread(sources)
    assert problem is None if lacking is None else problem.endswith(f"no source has {lacking}; take it out")


def test_a_run_says_which_option_of_its_loss_its_sources_do_not_need(tmp_path):
    method, _ = method_of("bert", tmp_path, loss=LossOptions("angle", angle_weight=2.0))
    parts = [SimpleNamespace(name="train", num_columns=2, label_range=None)]
    data = SimpleNamespace(parts=parts, tasks=lambda split: [])
    method._trainer = SimpleNamespace(global_step=0, datamodule=data)
    with pytest.raises(CheckpointError, match=r"^model\.loss\.angle_weight is not looked at: no source has labels or"):
        method.on_fit_start()


def test_an_objective_of_nothing_is_named(tmp_path):
    nothing = {"last_weight": 0, "student_weight": 0}
    for more in ({"kl_weight": 0}, {"kl_temperature": 0}, {"layers_per_step": 0}):
        with pytest.raises(ValueError, match="every term has weight 0, so nothing would be trained"):
            settings("paper", **nothing, **more)
    with pytest.raises(ValueError, match="every term has weight 0"):
        settings("matryoshka_1d", widths=[8, 32], width_weights=[0, 0])
    method_of("bert", tmp_path / "b", objective=nothing)  # a student of its teacher alone
