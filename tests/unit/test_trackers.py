"""W&B offline and MLflow on a store of files: what they are told, and how a run that goes on is cut back there."""

import json
import os
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from callbacks.loggers import JsonLines, TensorBoard
from callbacks.papers import Papers
from callbacks.run_record import RunRecord
from callbacks.trackers import MLflow, WeightsAndBiases
from datamodules.core.errors import DataError
from tests.forked import free_port, train

wandb = pytest.importorskip("wandb", reason="install the extra `trackers`")
pytest.importorskip("mlflow", reason="install the extra `trackers`")
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

PAPERS = Papers("own", "python -m launch fit", "abc", "seed: 1\n", {"seed": 1, "model.learning_rate": 1e-3})


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("WANDB_SILENT", "true")


def values_of(folder: Path, steps: range) -> None:
    """Write a metrics.jsonl."""
    lines = JsonLines(str(folder))
    for step in steps:
        lines.log_metrics({"train/loss": step / 10, "train/gap": float("nan")}, step)
    lines.save()


def attempt(logger: WeightsAndBiases | MLflow, start: int, end: int, papers: Papers = PAPERS) -> str:
    """Log the steps after `start` as a run does that goes on from there."""
    logger.log_papers(papers, start)
    name = logger.version
    for step in range(start + 1, end + 1):
        logger.log_metrics({"train/loss": step / 10}, step)
        logger.log_metrics({"perf/tokens_per_s": 5.0}, step)
    logger.finalize("success")
    return name


# Weights & Biases


def records(file: Path) -> Iterator:
    """Read W&B's own file of a run: records in blocks of 32 KiB, each piece with checksum, size and kind in front."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def written(folder: Path, name: str, attempts: int) -> list[list]:
    """Return the records of each attempt; W&B's own process goes on writing for a moment after the run is closed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [list(records(file)) for file in sorted(folder.glob(f"wandb/offline-run-*-{name}/*.wandb"))]
        if sum(record.HasField("exit") for attempt in found for record in attempt) == attempts:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{name}: {len(found)} files, not {attempts} closed ones")


def offline(folder: Path, name: str, attempts: int = 1) -> tuple[dict, dict[int, dict]]:
    """Return facts and configuration of a W&B run, and its values by step, over all attempts."""
    facts: dict = {}
    rows: dict[int, dict] = {}
    for of_attempt in written(folder, name, attempts):
        for record in of_attempt:
            if record.HasField("run"):
                facts |= {"name": record.run.display_name, "project": record.run.project}
            for config in (record.run.config, record.config):
                facts |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in config.update}
            if record.HasField("history"):
                row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                rows[row.pop("_step")] = {key: value for key, value in row.items() if not key.startswith("_")}
    return facts, rows


def test_wandb_gets_values_configuration_and_command(tmp_path):
    name = attempt(WeightsAndBiases(str(tmp_path), mode="offline", project="here"), 0, 2)
    facts, rows = offline(tmp_path, name)
    assert (facts["name"], facts["project"], facts["model.learning_rate"]) == ("own", "here", 1e-3)
    assert facts["run.command"] == "python -m launch fit" and facts["run.commit"] == "abc"
    assert rows == {step: {"train/loss": step / 10, "perf/tokens_per_s": 5.0} for step in (1, 2)}


def test_wandb_goes_on_in_its_run_with_what_is_configured_now(tmp_path):
    first = attempt(WeightsAndBiases(str(tmp_path), mode="offline"), 0, 2)
    written(tmp_path, first, 1)
    time.sleep(1.1)  # folders of attempts have names by the second
    changed = PAPERS._replace(values={"model.learning_rate": 2e-3})
    assert attempt(WeightsAndBiases(str(tmp_path), mode="offline"), 2, 3, changed) == first
    facts, rows = offline(tmp_path, first, attempts=2)
    assert sorted(rows) == [1, 2, 3] and facts["model.learning_rate"] == 2e-3


def test_wandb_is_cut_back_by_a_new_run_with_the_values_before(tmp_path, caplog):
    first = attempt(WeightsAndBiases(str(tmp_path), mode="offline"), 0, 5)
    values_of(tmp_path, range(1, 4))
    second = attempt(WeightsAndBiases(str(tmp_path), mode="offline"), 3, 4)
    assert second != first and f"{first} holds later steps" in caplog.text
    assert offline(tmp_path, second)[1] == {
        **{step: {"train/loss": step / 10} for step in (1, 2, 3)},
        4: {"train/loss": 0.4, "perf/tokens_per_s": 5.0},
    }
    assert sorted(offline(tmp_path, first)[1]) == [1, 2, 3, 4, 5], "nothing is lost"


# MLflow


def store(folder: Path) -> str:
    """Return the server of TOKAMAK_MLFLOW, where one is named, or a store of files."""
    return os.environ.get("TOKAMAK_MLFLOW") or f"file:{folder / 'mlruns'}"


def run_of(folder: Path, name: str) -> Run:
    return MlflowClient(store(folder)).get_run(name)


def steps_of(folder: Path, name: str, key: str = "train/loss") -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in MlflowClient(store(folder)).get_metric_history(name, key))


def test_mlflow_gets_values_configuration_and_command(tmp_path):
    name = attempt(MLflow(str(tmp_path), store(tmp_path), tags={"who": "me"}), 0, 2)
    data = run_of(tmp_path, name).data
    assert data.params == {"seed": "1", "model.learning_rate": "0.001"}
    assert data.tags["command"] == "python -m launch fit" and data.tags["who"] == "me"
    assert run_of(tmp_path, name).info.run_name == "own" and run_of(tmp_path, name).info.status == "FINISHED"
    assert steps_of(tmp_path, name) == [(1, 0.1), (2, 0.2)]


def test_mlflow_goes_on_in_its_run_and_names_what_has_changed(tmp_path):
    first = attempt(MLflow(str(tmp_path), store(tmp_path)), 0, 2)
    changed = PAPERS._replace(values={"seed": 1, "model.learning_rate": 2e-3, "trainer.max_steps": 9})
    assert attempt(MLflow(str(tmp_path), store(tmp_path)), 2, 3, changed) == first
    data = run_of(tmp_path, first).data
    assert data.params == {"seed": "1", "model.learning_rate": "0.001", "trainer.max_steps": "9"}
    assert data.tags["model.learning_rate"] == "0.002 from step 3 on" and "seed" not in data.tags
    assert [step for step, _ in steps_of(tmp_path, first)] == [1, 2, 3]


def test_mlflow_is_cut_back_by_a_new_run_with_the_values_before(tmp_path):
    first = attempt(MLflow(str(tmp_path), store(tmp_path)), 0, 5)
    values_of(tmp_path, range(1, 204))
    second = attempt(MLflow(str(tmp_path), store(tmp_path)), 3, 4)
    assert second != first and steps_of(tmp_path, second) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    third = attempt(MLflow(str(tmp_path), store(tmp_path)), 0, 1)
    assert steps_of(tmp_path, third) == [(1, 0.1)], "from the start there is nothing to keep"


def test_a_tracker_that_joins_later_gets_the_values_before(tmp_path):
    values_of(tmp_path, range(1, 301))
    name = attempt(MLflow(str(tmp_path), store(tmp_path)), 250, 251)
    assert [step for step, _ in steps_of(tmp_path, name)] == [*range(1, 252)]
    assert steps_of(tmp_path, name, "perf/tokens_per_s") == [(251, 5.0)]


# What goes wrong


@pytest.mark.parametrize("kind", [MLflow, WeightsAndBiases])
def test_without_the_values_a_cut_is_refused_by_name(kind, tmp_path):
    options = {"tracking_uri": store(tmp_path)} if kind is MLflow else {"mode": "offline"}
    first = attempt(kind(str(tmp_path), **options), 0, 5)
    with pytest.raises(DataError, match=rf"^loggers.{kind.service}: the run goes on after step 3, {first} holds later"):
        attempt(kind(str(tmp_path), **options), 3, 4)
    (tmp_path / f"{kind.service}.json").unlink()  # as the message says
    assert attempt(kind(str(tmp_path), **options), 3, 4) != first


@pytest.mark.parametrize("kind", [MLflow, WeightsAndBiases])
def test_a_package_that_is_not_there_is_named(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("callbacks.trackers.find_spec", lambda name: None)
    with pytest.raises(DataError, match=f"^loggers.{kind.service}: needs the package {kind.package}; "):
        kind(str(tmp_path))


def test_a_server_that_is_not_there_ends_the_start_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"^loggers.mlflow: .*; check loggers.mlflow.tracking_uri") as found:
        attempt(MLflow(str(tmp_path), f"http://127.0.0.1:{free_port()}"), 0, 1)
    assert "\n" not in str(found.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(DataError, match="tracking_uri: not set, and MLFLOW_TRACKING_URI neither"):
        MLflow(str(tmp_path))


@pytest.mark.skipif("TOKAMAK_MLFLOW" in os.environ, reason="moves the store of files away")
def test_a_server_that_goes_away_is_told_once_and_written_anew_later(tmp_path, caplog):
    logger = MLflow(str(tmp_path), store(tmp_path))
    logger.log_papers(PAPERS, 0)
    first = logger.version
    (tmp_path / "mlruns").rename(tmp_path / "away")
    for step in (1, 2):
        logger.log_metrics({"train/loss": step / 10}, step)
    logger.finalize("success")
    (tmp_path / "away").rename(tmp_path / "mlruns")
    assert caplog.text.count("loggers.mlflow: no more values are sent: ") == 1
    values_of(tmp_path, range(1, 3))
    second = attempt(MLflow(str(tmp_path), store(tmp_path)), 2, 3)
    assert second != first and steps_of(tmp_path, second) == [(1, 0.1), (2, 0.2), (3, 0.3)]


# All of them in a run


def test_a_start_that_a_server_refuses_leaves_no_run_in_tensorboard(tmp_path):
    trainer = SimpleNamespace(
        loggers=[TensorBoard(str(tmp_path)), MLflow(str(tmp_path), f"http://127.0.0.1:{free_port()}")], global_step=0
    )
    with pytest.raises(DataError, match=r"loggers\.mlflow: "):
        RunRecord(PAPERS).on_train_start(trainer, None)
    assert not list(tmp_path.glob("events*"))


def test_a_run_that_goes_back_ends_with_the_same_steps_everywhere(tmp_path):
    run = tmp_path / "own"
    words = ["--config", "configs/electra/debug.yaml", "--callbacks.checkpoint.every_n_steps", "2"]
    words += ["--callbacks.checkpoint.save_last", "false", "--loggers.csv", "csv"]
    words += ["--loggers.wandb.mode", "offline", "--loggers.mlflow.tracking_uri", store(tmp_path)]
    train(run, 1, *words, "--trainer.max_steps", "5")
    train(run, 1, *words, "--trainer.max_steps", "6")
    expected = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["train/loss"] for line in expected}
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    table = [row.split(",") for row in (run / "metrics.csv").read_text().splitlines()]
    loss = table[0].index("train/loss")
    assert {int(row[0]): float(row[loss]) for row in table[1:]} == losses
    ids = {kind: json.loads((run / f"{kind}.json").read_text()) for kind in ("wandb", "mlflow")}
    assert [ids[kind]["step"] for kind in ids] == [6, 6]
    facts, rows = offline(run, ids["wandb"]["id"])
    assert {step: row["train/loss"] for step, row in rows.items()} == losses
    assert facts["name"] == "own" and facts["trainer.max_steps"] == 6 and "launch fit --config" in facts["run.command"]
    assert dict(steps_of(tmp_path, ids["mlflow"]["id"])) == losses
    assert run_of(tmp_path, ids["mlflow"]["id"]).data.params["model.class"] == "electra"
    log = (tmp_path / "own_out_0.txt").read_text()
    assert "loggers.wandb: " in log and "holds later steps" in log


def test_variables_that_are_not_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with pytest.warns(
        UserWarning, match=r"WANDB_PROJECT = mine \(environment\): is not read, .*loggers\.wandb\.project"
    ):
        WeightsAndBiases(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WeightsAndBiases(str(tmp_path), project="mine")
