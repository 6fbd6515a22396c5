"""The files of a run's folder, damaged or out of reach: nothing of it is a traceback."""

import json
import os
import shutil
from pathlib import Path

import pytest

from launch.config.errors import ConfigError
from launch.config.resolved import resolve
from launch.run_folder import RunFolder
from tests.cli.launching import ROOT, TOY, errors, launch, light
from tests.cli.test_ends import finish

BINARY = b"\xff\x00\x80"


@pytest.mark.parametrize("damage", [b"[1]", b'{"code": 0}', b'{"code": 0, "step": "x"}', BINARY, b"[" * 5000, None])
def test_a_damaged_outcome_says_nothing(damage: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "outcome.json"
    file.mkdir() if damage is None else file.write_bytes(damage)
    assert RunFolder(tmp_path).finished_at() == 0


def test_an_attempt_starts_and_ends_among_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    resolved, folder = resolve(["--config", TOY]), RunFolder(tmp_path)
    (tmp_path / "run.json").write_bytes(BINARY)
    (tmp_path / "ledger.jsonl").write_bytes(b'5\n{"attempt": 3, "event": "start", "time": ""}\n' + BINARY + b"\n[1]\n")
    folder.enter(fresh=False)
    folder.start(resolved, "new")
    assert folder.attempt == 4
    assert [line["event"] for line in folder.ledger()] == ["start", "end", "start"]
    assert not (tmp_path / "config.yaml").exists(), "nothing was trained yet"
    folder.accept(resolved, data_fingerprint="one")
    assert (tmp_path / "config.yaml").read_text() == resolved.run_text()
    facts = json.loads((tmp_path / "run.json").read_text())
    assert (facts["config_sha256"], facts["data_fingerprint"]) == (resolved.digest(), "one")
    (tmp_path / "outcome.json").mkdir()
    folder.end(0, 6, "done")
    assert "outcome.json: cannot be written: " in capsys.readouterr().err
    assert (tmp_path / "lock").read_text() == ""


def test_what_never_trained_is_not_compared_with(tmp_path: Path) -> None:
    first, second, folder = resolve(["--config", TOY]), resolve(["--config", TOY, "--seed", "9"]), RunFolder(tmp_path)
    folder.start(first, "new")
    folder.accept(first)
    folder.start(second, "refused")
    folder.end(1, 0, "error")
    assert folder.differences(first) == {}
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.yaml",
        "ledger.jsonl",
        "outcome.json",
        "run.json",
    ]


def test_an_outcome_without_its_checkpoint_is_not_believed(tmp_path: Path) -> None:
    finish(tmp_path)
    words = ["fit", "--config", TOY, "--run.dir", str(tmp_path)]
    assert light(*words).stdout.endswith("trainer.max_steps is 6; raise it to go on\n")
    (tmp_path / "checkpoints" / "step_00000006" / "manifest.json").unlink()
    done = light(*words)  # goes on, to the imports that are not there
    assert (
        f"{tmp_path}/checkpoints: step 6, at which the run ended, is gone; going on from what there is" in done.stdout
    )
    assert "finished" not in done.stdout


def places(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0o500, exist_ok=True)
    return {
        "file": str(tmp_path / "file"),
        "below": str(tmp_path / "file" / "run"),
        "long": str(tmp_path / ("x" * 5000)),
        "nul": '"a\\0b"',
        "user": "~nosuchuser/run",
        "closed": str(tmp_path / "closed" / "run"),
    }


@pytest.mark.parametrize("kind", ["file", "below", "long", "nul", "user", "closed"])
def test_a_run_folder_that_cannot_be_used(kind: str, tmp_path: Path) -> None:
    if kind == "closed" and os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    for command in ("fit", "validate"):
        (line,) = errors(light(command, "--config", TOY, "--run.dir", places(tmp_path)[kind]))
        assert line.startswith("run.dir = ")
        assert len(line) < 400


def test_a_run_goes_on_with_the_default_of_its_beginning(tmp_path: Path) -> None:
    words = ["--config", "configs/electra/debug.yaml"]
    began, folder = resolve([*words, "--data.sentences", "split"]), RunFolder(tmp_path)
    folder.start(began, "new")
    folder.accept(began)
    now = resolve(words)
    assert now.get("data.sentences") == "unicode"
    (line,) = folder.keep_defaults(now)
    assert line == "data.sentences = split, as the run began; the default is unicode now"
    assert now.get("data.sentences") == "split" and folder.differences(now) == {}
    given = resolve([*words, "--data.sentences", "unicode"])
    assert folder.keep_defaults(given) == [] and given.get("data.sentences") == "unicode"


def test_an_option_that_is_new_is_no_difference(tmp_path: Path) -> None:
    resolved, folder = resolve(["--config", "configs/electra/debug.yaml"]), RunFolder(tmp_path)
    folder.start(resolved, "new")
    folder.accept(resolved)
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    (tmp_path / "config.yaml").write_text("\n".join(line for line in lines if not line.startswith("  accept:")))
    assert folder.differences(resolve(["--config", "configs/electra/debug.yaml"])) == {}


def test_the_first_source_of_a_value_is_told_after_any_number_of_starts(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", RunFolder(tmp_path / "run")
    run.mkdir()
    first = resolve(["--config", TOY, "--run.dir", str(run), "--model.hidden_size", "6"])
    folder.start(first, "new")
    folder.accept(first)
    for steps in ("20", "30"):
        again = resolve(["--run.dir", str(run), "--trainer.max_steps", steps])
        folder.start(again, "resumed")
        folder.accept(again)
        shown = resolve(["--run.dir", str(run)]).text()
        assert "# --model.hidden_size" in shown and f"{TOY}:" in shown and "config.yaml:" not in shown
        assert "# --trainer.max_steps" in shown
    commands = [line["command"] for line in folder.ledger() if line["event"] == "start"]
    assert len(commands) == 3 and all("versions" in line for line in folder.ledger() if line["event"] == "start")


def test_a_refused_start_changes_no_papers(tmp_path: Path) -> None:
    good, folder = resolve(["--config", TOY]), RunFolder(tmp_path)
    folder.start(good, "new")
    folder.accept(good, data_fingerprint="one")
    folder.end(0, 8, "done")
    before = {name: (tmp_path / name).read_bytes() for name in ("run.json", "outcome.json", "config.yaml")}
    refused = RunFolder(tmp_path)
    refused.start(resolve(["--config", TOY, "--seed", "9"]), "resumed after step 8")
    refused.end(1, 8, "error: another tokenizer")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert refused.finished_at() == 8 and refused.ledger()[-1]["reason"] == "error: another tokenizer"


def test_a_torn_ledger_is_closed_and_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    resolved, folder = resolve(["--config", TOY]), RunFolder(tmp_path)
    folder.start(resolved, "new")
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"attempt": 1, "event": "en')
    folder.start(resolved, "new")
    assert "ledger.jsonl: its last line was cut off" in capsys.readouterr().out
    assert [line["event"] for line in folder.ledger()] == ["start", "end", "start"]


@pytest.mark.parametrize("name", ["tensorboard", "tokenizer", "checkpoints"])
def test_a_file_where_a_folder_belongs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError, match=rf"{name}: is no folder, and the run keeps one there; move it away"):
        RunFolder(tmp_path).enter(fresh=False)


def test_a_configuration_that_is_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").symlink_to(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: is not a regular file"):
        RunFolder(tmp_path).differences(resolve(["--config", TOY]))


def test_a_run_is_finished_by_its_checkpoints(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints/step_00000012"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (tmp_path / "outcome.json").write_text('{"code": 1, "step": 12}')
    assert RunFolder(tmp_path).finished_at() == 12


@pytest.mark.parametrize("name", ["lock", "ledger.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_what_is_no_file_where_the_run_writes_on_one(tmp_path: Path, name: str, kind: str) -> None:
    put(tmp_path / name, kind)
    with pytest.raises(ConfigError, match=rf"{name}: is no file, and the run keeps one there; move it away"):
        RunFolder(tmp_path).enter(fresh=False)


@pytest.mark.parametrize("name", ["lock", "ledger.jsonl", "metrics.jsonl"])
def test_a_run_writes_through_no_link(tmp_path: Path, name: str) -> None:
    """A run's folder from elsewhere may lead to any file."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match=rf"{name}: is a link, and the run writes on there; put a file in its place"):
        folder.enter(fresh=False)
    folder.leave()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_configuration_of_ones_own_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# notes\nseed: 1\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: is not a run's, which would replace it"):
        RunFolder(tmp_path).enter(fresh=False)
    assert (tmp_path / "config.yaml").read_text() == "# notes\nseed: 1\n"
    (tmp_path / "ledger.jsonl").touch()
    RunFolder(tmp_path).enter(fresh=False)


def test_a_configuration_that_was_edited_or_cut_off_is_told(tmp_path: Path) -> None:
    resolved, folder = resolve(["--config", TOY]), RunFolder(tmp_path)
    folder.start(resolved, "new")
    assert not folder.is_changed()
    folder.accept(resolved)
    assert not folder.is_changed()
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text[: len(text) // 2])
    assert folder.is_changed()


@pytest.mark.parametrize("kind", ["pipe", "loop"])
def test_papers_that_are_no_files_say_nothing_and_are_replaced(tmp_path: Path, kind: str) -> None:
    for name in ("outcome.json", "run.json", "config.next.yaml"):
        put(tmp_path / name, kind)
    resolved, folder = resolve(["--config", TOY]), RunFolder(tmp_path)
    assert folder.finished_at() == 0
    folder.enter(fresh=False)
    folder.start(resolved, "new")
    folder.accept(resolved)
    folder.end(0, 5, "done")
    assert folder.finished_at() == 5 and "config_sha256" in json.loads((tmp_path / "run.json").read_text())


def put(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)


def test_embeddings_are_judged_without_the_pairs_that_they_were_trained_on(tmp_path: Path) -> None:
    pairs = [{"anchor": f"question {n} of many", "positive": f"answer {n} to it"} for n in range(20)]
    judged = [{"sentence1": f"question {n}", "sentence2": f"answer {n}", "score": n % 6} for n in range(12)]
    for name, rows in (("pairs", pairs), ("sts", judged)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = "{mine: {task: sts, path: sts.jsonl}}"
    words = ["--config", "configs/matryoshka2d/debug.yaml", "--run.dir", "run", "--data.source", "pairs.jsonl",
             "--data.validation", sets, "--data.test", sets, "--trainer.max_steps", "1", "--data.accept", "[unknown]",
             "--callbacks.grid", "null", "--data.cache_dir", "cache"]  # fmt: skip
    trained = launch("fit", *words, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "pairs.jsonl").unlink()
    shutil.rmtree(tmp_path / "cache")
    for command in ("validate", "test"):
        done = launch(command, "--config", "run/config.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        part = {"validate": "val"}.get(command, command)
        assert f"data: {part} mine: 12 records read, 12 used" in done.stdout
        assert "mine_spearman" in (tmp_path / f"run/{command}.json").read_text()
    again = launch("fit", "--config", "run/config.yaml", "--trainer.max_steps", "2", cwd=tmp_path)
    assert "pairs.jsonl: no such file" in errors(again)[0]


def test_a_stream_whose_files_have_changed_is_refused(tmp_path: Path) -> None:
    words = [f"a line of text with the number {n} in it" for n in range(400)]
    (tmp_path / "a.txt").write_text("\n\n".join(words))
    flags = ["--config", "configs/electra/debug.yaml", "--run.dir", "run", "--data.source", "a.txt", "--data.streaming",
             "true", "--data.examples", "packed", "--data.cache_dir", "cache", "--trainer.max_steps"]  # fmt: skip
    assert launch("fit", *flags, "1", cwd=tmp_path).returncode == 0
    assert launch("fit", *flags, "2", cwd=tmp_path).returncode == 0
    (tmp_path / "a.txt").write_text("\n\n".join(words[::-1]))
    (line,) = errors(launch("fit", *flags, "3", cwd=tmp_path))
    assert "data.source = a.txt: is not the text that the run began with" in line


def test_a_start_that_a_callback_refuses_changes_no_papers(tmp_path: Path) -> None:
    """As a tracker does that is not reached."""
    (tmp_path / "refusing.py").write_text(
        "from lightning import Callback\nfrom datamodules.core.errors import DataError\n\nclass No(Callback):\n"
        "    def on_train_start(self, *_):\n        raise DataError('not reached')\n"
    )
    words = ["fit", "--config", TOY, "--run.dir", str(tmp_path / "run"), "--trainer.max_steps"]
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    assert launch(*words, "2", PYTHONPATH=path).returncode == 0
    papers = {name: (tmp_path / "run" / name).read_bytes() for name in ("config.yaml", "run.json", "outcome.json")}
    refused = launch(*words, "4", "--callbacks.x.class", "refusing.No", PYTHONPATH=path)
    assert errors(refused) == ["not reached"]
    assert papers == {name: (tmp_path / "run" / name).read_bytes() for name in papers}
