"""The parts of a claim: intervals, equal compute, probes, which tasks are there, what a claim's file must say."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from launch import bench, claim
from launch.claim import out_folder, size_of
from launch.claims import arms as arms_module
from launch.claims.arms import Arms, Cost, Run, Runner, merged, steps_for
from launch.claims.judge import Wanted, probed
from launch.claims.plan import Judging, Task, read_claim, tasks_at
from launch.claims.results import collapsed, comparison, score
from launch.claims.statistics import FAILS, HOLDS, OPEN, Interval, t_interval, verdict
from launch.config.errors import ConfigError
from launch.config.resolved import resolve

ELECTRA = read_claim("electra")


def test_the_paired_interval_is_that_of_scipy():
    ours, theirs = [71.2, 69.9, 73.0, 70.4], [70.1, 70.2, 71.1, 69.0]
    found = t_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    peer = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (found.low, found.high, found.count) == (pytest.approx(peer.low), pytest.approx(peer.high), 4)


def test_one_seed_has_no_interval_and_decides_nothing():
    assert t_interval([3.0]) == Interval(3.0, None, None, 1)
    assert verdict(t_interval([3.0])) == OPEN == verdict(t_interval([]))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 2.0, HOLDS), (-2.0, -0.1, FAILS), (-1.0, 0.0, FAILS), (-1.0, 1.0, OPEN), (0, 1, OPEN)],
)
def test_a_verdict_needs_the_whole_interval(low, high, expected):
    assert verdict(Interval((low + high) / 2, low, high, 3)) == expected


def test_steps_spend_the_budget_and_not_more():
    assert steps_for(1e12, 3e9) == 333 and steps_for(1e12, 1e12) == 1 == steps_for(1.0, 5.0)
    for operations in (1.23e9, 7e8, 3.3e10):
        steps = steps_for(1e12, operations)
        assert steps * operations <= 1e12 < (steps + 1) * operations


def planned(tmp_path: Path, costs: dict[str, float]) -> Arms:
    arms = Arms(ELECTRA, ELECTRA.sizes["cpu"], None, tmp_path)
    arms.costs = {arm: Cost(operations, 1.0) for arm, operations in costs.items()}
    return arms


def test_arms_differ_by_their_task_and_their_length_alone(tmp_path):
    arms = planned(tmp_path, {"electra": 2e9, "mlm": 1e9, "masked_only": 2e9})
    runs = {arm: arms.run(arm, 3, 1e-3) for arm in ELECTRA.arms}
    assert runs["electra"].steps == 7000 and runs["mlm"].steps == 14000
    found = {arm: resolve(list(run.words), "fit") for arm, run in runs.items()}
    keys = {
        ".".join(key)
        for key in found["mlm"].table
        if found["mlm"].table[key].value != found["electra"].get(".".join(key))
    }
    assert keys == {
        "model.task",
        "model.warmup_steps",
        "trainer.max_steps",
        "trainer.log_every_n_steps",
        "callbacks.validation.every_n_steps",
        "callbacks.checkpoint.every_n_steps",
    }
    assert found["electra"].get("model.warmup_steps") == 700 and found["mlm"].get("model.warmup_steps") == 1400
    same = found["electra"].values, found["masked_only"].values
    same[0]["model"]["task"] = "electra_masked_only"
    assert same[0] == same[1]


def test_operations_are_counted_over_real_batches_by_the_method_itself(tmp_path):
    arms = Arms(ELECTRA, ELECTRA.sizes["quick"], None, tmp_path)
    electra, mlm = arms.cost("electra"), arms.cost("mlm")
    assert electra.tokens == mlm.tokens <= 16 * 64  # the same data
    settings = ELECTRA.sizes["quick"].settings["model"]
    width, layers = settings["hidden_size"], settings["num_layers"]
    dense = 6 * layers * (4 * width**2 + 2 * width * 4 * width) * mlm.tokens
    assert dense < mlm.operations < 2.5 * dense  # attention and the head come on top
    assert mlm.operations < electra.operations < 2 * mlm.operations


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path):
    arms = planned(tmp_path, {"electra": 2e9})
    run = arms.run("electra", 3, 1e-3)
    run.folder.mkdir()
    (run.folder / "run.json").write_text(json.dumps({"config_sha256": resolve(list(run.words), "fit").digest()}))
    assert arms.run("electra", 3, 1e-3) == run
    with pytest.raises(ConfigError, match="holds a run with other settings; delete it, or give --runs"):
        arms.run("electra", 3, 2e-3)


def test_finished_and_diverged_runs_are_not_run_again(tmp_path, monkeypatch):
    runs = [Run("a", seed, 1e-3, 10, tmp_path / f"a{seed}", ()) for seed in range(4)]
    ends = [{"code": 0, "step": 10}, {"code": 3, "step": 4}, {"code": 0, "step": 9}, {"code": 75, "step": 5}]
    for run, outcome in zip(runs, ends, strict=True):
        run.folder.mkdir()
        (run.folder / "outcome.json").write_text(json.dumps(outcome))
    started = []
    monkeypatch.setattr(arms_module.Runner, "fit", lambda self, run: started.append(run.seed) or 0)
    codes = Runner(2, None).run(runs)
    assert sorted(started) == [2, 3] and [codes[run] for run in runs] == [0, 3, 0, 0]


def test_a_failed_run_ends_the_claim_with_its_last_line(tmp_path):
    run = Run("a", 1, 1e-3, 10, tmp_path / "a", ("--config", "nothing.yaml"))
    with pytest.raises(
        ConfigError, match=r"fit ended with code 1: error: --config nothing\.yaml: no such file.*a\.log"
    ):
        Runner(1, 1).run([run])


def test_options_are_merged_by_key():
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}, "e": {}}) == {"a": {"b": 5, "c": 2}, "d": 3, "e": {}}


def one(arm: str, seed: int, probe: float, tuned: float, task: str = "t") -> dict:
    scores = {task: {"probe_mean": probe, "probe_cls": 0.0, "finetune": tuned}}
    return {"arm": arm, "seed": seed, "scores": scores, "score": score(scores)}


def test_a_comparison_pairs_seeds_and_leaves_out_those_without_a_partner():
    records = [one("a", 1, 60, 80), one("a", 2, 62, 84), one("a", 9, 0, 0), one("b", 2, 61, 81), one("b", 1, 60, 78)]
    records.append({"arm": "b", "seed": 9, "scores": None, "score": None})  # diverged
    found = comparison(records, "a", "b")
    assert found["seeds"] == [1, 2]
    assert found["score"]["differences"] == [1.0, 2.0] and found["probe_mean"]["differences"] == [0.0, 1.0]
    assert found["finetune"]["differences"] == [2.0, 3.0] and found["tasks"]["t"]["mean"] == 1.5
    peer = stats.ttest_1samp([1.0, 2.0], 0).confidence_interval(0.95)
    assert found["score"]["low"] == pytest.approx(peer.low) and found["verdict"] == OPEN


def test_the_score_is_the_mean_over_tasks_of_probe_and_fine_tuning():
    assert score({"x": {"probe_mean": 10, "finetune": 20}, "y": {"probe_mean": 30, "finetune": 60}}) == 30
    assert score({"x": {"probe_mean": 10}, "y": {"probe_mean": 30}}, "probe_mean") == 20


def test_a_probe_chooses_its_strength_by_cross_validation_on_the_training_examples():
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(120, 8)), generator.normal(size=(200, 8))
    labels = [(x[:, 0] + 0.3 * generator.normal(size=len(x)) > 0).astype(int) for x in (train, test)]
    judging = Judging(
        num_examples=120, sequence_length=8, epochs=1, batch_size=8, learning_rate=1e-3, strengths=[1e-6, 1.0]
    )
    found = probed((train, labels[0]), (test, labels[1]), "accuracy", judging)
    mean, std = train.mean(0), train.std(0)
    peer = LogisticRegression(C=1.0).fit((train - mean) / std, labels[0]).predict((test - mean) / std)
    assert found[""] == pytest.approx(100 * (peer == labels[1]).mean()) and found[""] > 85 < found["_cv"]


def test_tasks_come_from_the_root_or_from_the_embedded_articles(tmp_path):
    size = ELECTRA.sizes["cpu"]
    found, skipped = tasks_at(ELECTRA, size, None)
    assert found == ELECTRA.embedded_tasks and set(skipped) == set(ELECTRA.tasks)
    (tmp_path / "trec_qc").mkdir()
    for name in ("train", "test"):
        (tmp_path / "trec_qc" / f"{name}.jsonl.gz").touch()
    found, skipped = tasks_at(ELECTRA, size, tmp_path)
    assert list(found) == ["trec_qc"] and found["trec_qc"].source == str(tmp_path / "trec_qc" / "train.jsonl.gz")
    assert skipped["glue_cola"] == "glue_cola/train.jsonl.gz is not under the data root"


def test_no_set_below_the_root_favours_detection_by_its_labels():
    assert set(ELECTRA.tasks) == {"glue_sst2", "glue_mrpc", "glue_cola", "trec_qc"}
    assert all(isinstance(task, Task) and task.test_source for task in ELECTRA.tasks.values())


def test_flags(tmp_path, monkeypatch):
    _, size, root = size_of(ELECTRA, {"size": "quick", "seeds": "4,5", "data.root": str(tmp_path)})
    assert size.seeds == {"electra": [4, 5], "mlm": [4, 5], "masked_only": [4, 5]} and root == tmp_path
    for given, message in (
        ({"size": "gpus"}, "--size gpus: no such size; did you mean gpu"),
        ({"seeds": "1,b"}, "--seeds 1,b: must be whole numbers"),
        ({"data.root": str(tmp_path / "no")}, "is no folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            size_of(ELECTRA, given)
    monkeypatch.chdir(tmp_path)
    assert out_folder(ELECTRA, "quick", {}) == Path("benchmarks/electra/claim")
    usual = tmp_path / "benchmarks/electra/claim"
    usual.mkdir(parents=True)
    (usual / "results.json").write_text('{"size": "cpu"}')
    assert out_folder(ELECTRA, "cpu", {}) == Path("benchmarks/electra/claim")
    assert out_folder(ELECTRA, "quick", {}) == Path("benchmarks/electra/claim_quick")  # the larger one is kept
    assert out_folder(ELECTRA, "quick", {"out": "x"}) == Path("x")


def test_a_claim_that_is_not_written_as_it_must_be(tmp_path):
    text = Path("configs/claims/electra.yaml").read_text()
    for old, new, message in (
        ("electra: [mlm, masked_only]", "electra: [mml]", "comparisons name mml, which is no arm; did you mean mlm"),
        ("metric: mcc", "metric: mce", r"glue_cola\.metric = mce: must be one of accuracy, mcc, f1"),
        ("tasks: [glue_sst2,", "tasks: [glue_sst,", r"sizes\.quick\.tasks names glue_sst, which is no task"),
        ("statement: >", "statment: >", "unknown key statment; did you mean statement"),
        ("budget: 1.4e+13", "budget: 0", r"sizes\.cpu needs a positive budget"),
    ):
        assert old in text
        (tmp_path / "c.yaml").write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=message):
            read_claim(str(tmp_path / "c.yaml"))
    with pytest.raises(ConfigError, match="claim elektra: no such claim; did you mean electra"):
        read_claim("elektra")


def test_what_is_judged_by_default_is_all():
    assert Wanted(Path("x"), 1).measures == ("probe", "finetune") and Wanted(Path("x"), 1).trained


def test_beating_an_arm_that_collapsed_shows_nothing():
    def run(arm: str, seed: int, points: float) -> dict:
        scores = {"probe_mean": points, "probe_cls": points, "finetune": points}
        return {"arm": arm, "seed": seed, "scores": {"one": scores, "two": scores}}

    records = [run("good", seed, 60.0 + seed) for seed in (1, 2, 3)] + [run("lost", seed, 40.2) for seed in (1, 2, 3)]
    lost = collapsed(records, {"one": 30.0, "two": 50.0})
    assert lost == ["lost"] and collapsed(records, {"one": 30.0, "two": 40.0}) == []
    assert comparison(records, "good", "lost")["verdict"] == HOLDS
    assert comparison(records, "good", "lost", lost)["verdict"] == OPEN


def test_a_flag_without_its_value_starts_nothing() -> None:
    for command, words in ((claim.main, ["electra", "--out"]), (bench.main, ["electra", "--steps", "--quick"])):
        with pytest.raises(ConfigError, match=r"^--(out|steps): give a value$"):
            command(words)
