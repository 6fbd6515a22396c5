"""One run's folder from its first step to its last: records, resume, refusals, evaluation."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.cli.launching import TOY, errors, json_lines, launch, light


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "toy"


@pytest.fixture(scope="module")
def first(run: Path) -> CompletedProcess:
    """Four steps."""
    return launch("fit", "--config", TOY, "--run.dir", str(run), "--trainer.max_steps", "4")


@pytest.fixture(scope="module")
def second(run: Path, first: CompletedProcess) -> CompletedProcess:
    """Two more steps in the same folder."""
    words = ["--run.dir", str(run), "--model.language", "de", "--callbacks.shout.word", "went", "--data.judged", "two"]
    return launch("fit", "--config", TOY, *words)


def test_a_run_says_what_it_does_and_where_it_is(run: Path, first: CompletedProcess) -> None:
    assert (first.returncode, first.stderr) == (0, "")
    assert re.search(r"^step 1/4 loss \d\S+ left \d\d:\d\d$", first.stdout, re.M), first.stdout
    assert [re.sub(r" loss \d\S+( left .*)?", "", line) for line in first.stdout.splitlines()] == [
        "method: Toy, 5 parameters, 5 of them trained",
        "batch: 8 = 1 rank x 2 micro-batches of 4, up to 128 tokens a step",
        "data: points from embedded, without end",
        f"run: {run}, 4 steps",
        *("step 1/4", "step 1", "step 2", "step 3", "step 4/4", "step 4"),
        f"step 4 of 4; everything is in {run}",
        f"curves: tensorboard --logdir {run}",
        f"next: python -m launch export {run} --out FOLDER",
    ]


def test_the_folder_keeps_the_configuration_and_the_facts(run: Path, second: CompletedProcess) -> None:
    words = ["--config", TOY, "--model.language", "de", "--callbacks.shout.word", "went", "--data.judged", "two"]
    text = light("config", *words).stdout
    assert (run / "config.yaml").read_text() == text.partition("\nrun:\n")[0]
    facts = json.loads((run / "run.json").read_text())
    assert facts["command"] == f"python -m launch fit --config {TOY} --run.dir {run} " + " ".join(words[2:])
    assert facts["versions"]["lightning"]
    assert (facts["data_fingerprint"], facts["validation_fingerprint"]) == ("one", "two")
    assert len(facts["config_sha256"]) == 64
    assert len(facts["commit"] or "") in (0, 40)
    assert (run / "lock").read_text() == "", "nobody is in the folder"


def test_a_run_goes_on_from_its_newest_checkpoint(run: Path, second: CompletedProcess) -> None:
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[:5] == [
        f"{run} was started with other values:",
        "  model.language: en -> de  # --model.language",
        "  data.judged: one -> two  # --data.judged",
        "  trainer.max_steps: 4 -> 6  # tests/cli/toy.yaml:8",
        "  callbacks.shout.word: step -> went  # --callbacks.shout.word",
    ]
    assert f"run: {run}, 6 steps, going on after step 4" in second.stdout
    assert "data.validation: the sets are not those that the run was judged by before" in second.stderr
    assert [line for line in second.stdout.splitlines() if line.startswith("went")] == ["went 5", "went 6"]
    steps = [line["step"] for line in json_lines(run / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6], "one line for each logged step"
    ledger = [(line["attempt"], line["event"], line["reason"]) for line in json_lines(run / "ledger.jsonl")]
    assert ledger == [
        (1, "start", "new"), (1, "end", "done"), (2, "start", "resumed after step 4"), (2, "end", "done"),
    ]  # fmt: skip
    outcome = json.loads((run / "outcome.json").read_text())
    assert (outcome["attempt"], outcome["step"], outcome["code"]) == (2, 6, 0)


def test_a_finished_run_says_so_without_torch(run: Path, second: CompletedProcess) -> None:
    before = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    done = light("fit", "--config", str(run / "config.yaml"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{run}: finished at step 6, trainer.max_steps is 6; raise it to go on\n"
    assert {file: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_what_a_resumed_run_may_not_change(run: Path, second: CompletedProcess) -> None:
    words = ["--seed=4", "--data.global_batch_size=16", "--data.sequence_length=8",
             "--trainer.max_steps=9", "--model.language=fr"]  # fmt: skip
    stay = f"the run in {run} has"
    assert errors(light("fit", "--config", str(run / "config.yaml"), *words)) == [
        f"seed = 4 (--seed): {stay} 3; keep that, or give another --run.dir",
        f"data.global_batch_size = 16 (--data.global_batch_size): {stay} 8; keep that, or give another --run.dir",
        f"data.sequence_length = 8 (--data.sequence_length): {stay} 16; keep that, or give another --run.dir",
    ]
    other = ["--model", "electra", "--model.max_positions", "32"]
    assert errors(light("fit", "--config", str(run / "config.yaml"), *other))[0].startswith(
        f"model.class = electra (--model): {stay} tests.cli.toy.Toy; keep that"
    )


def test_a_fresh_run_never_overwrites(run: Path, second: CompletedProcess) -> None:
    assert errors(light("fit", "--config", TOY, "--run.dir", str(run), "--run.fresh", "true")) == [
        f"run.fresh = true: {run} exists; give another --run.dir, or delete the folder"
    ]


def test_other_data_is_refused_once_it_is_known_and_nothing_of_it_stays(run: Path, second: CompletedProcess) -> None:
    stored, digest = (run / "config.yaml").read_text(), json.loads((run / "run.json").read_text())["config_sha256"]
    done = launch("fit", "--config", str(run / "config.yaml"), "--data.tag", "two", "--trainer.max_steps", "8")
    assert errors(done) == [
        f"data: its fingerprint is two, the run in {run} began with one; give the same files and tokenizer, or another "
        "--run.dir"
    ]
    assert (run / "config.yaml").read_text() == stored
    assert json.loads((run / "run.json").read_text())["config_sha256"] == digest
    assert not (run / "config.next.yaml").exists()


def test_what_a_constructor_refuses_is_no_attempt(tmp_path: Path) -> None:
    done = launch("fit", "--config", TOY, "--run.dir", str(tmp_path), "--callbacks.shout.word", "silence")
    assert errors(done) == ["callbacks.shout.word: silence is no word"]
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_validate_uses_the_newest_checkpoint_and_locks_nothing(
    run: Path, second: CompletedProcess, tmp_path: Path
) -> None:
    (run / "lock").write_text('{"host": "elsewhere", "pid": 1, "time": "now"}')
    done = launch("validate", "--config", str(run / "config.yaml"), cwd=tmp_path)
    (run / "lock").write_text("")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((run / "validate.json").read_text())
    assert found["checkpoint"] == str(run / "checkpoints" / "step_00000006")
    assert found["step"] == 6
    assert done.stdout.splitlines() == [
        f"validate of {run}/checkpoints/step_00000006",
        f"  val/loss  {found['val/loss']:.6g}",
        "  val/step  0",
        f"written to {run}/validate.json",
    ]


def test_test_takes_a_step_and_predict_keeps_the_order(run: Path, second: CompletedProcess) -> None:
    words = ["--config", TOY, "--run.dir", str(run), "--model.language", "de"]
    done = launch("test", *words, "--run.checkpoint", "4")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "test.json").read_text())["step"] == 4
    done = launch("predict", *words)
    assert done.stdout == f"16 predictions of {run}/checkpoints/step_00000006 written to {run}/predictions.jsonl\n"
    assert [row["sample"] for row in json_lines(run / "predictions.jsonl")] == [0] * 8 + [1] * 8
