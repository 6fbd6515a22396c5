import importlib.util

import pytest

from launch.config.errors import ConfigError
from launch.config.resolved import resolve

DEBUG = ["--config", "configs/electra/debug.yaml"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--loggers.wandb", "wandb"], "(--loggers.wandb): needs the package wandb; install it"),
        (["--loggers.mlflow.tracking_uri", "http://localhost:5000"], "needs the package mlflow-skinny; install it"),
    ],
)
def test_a_tracker_whose_package_is_missing_is_found_before_anything_is_imported(words, problem, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("wandb", "mlflow") else there(name))
    with pytest.raises(ConfigError, match="needs the package ") as found:
        resolve([*DEBUG, *words], "fit")
    assert problem in str(found.value) and "\n" not in str(found.value)


def test_a_server_without_an_address_is_refused(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, there=importlib.util.find_spec: there("json"))
    with pytest.raises(ConfigError, match=r"^loggers.mlflow.tracking_uri = null .*: give the address of a server"):
        resolve([*DEBUG, "--loggers.mlflow", "mlflow"], "fit")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert resolve([*DEBUG, "--loggers.mlflow", "mlflow"], "fit").get("loggers.mlflow.experiment") == "tokamak"


@pytest.mark.parametrize("words", [["--loggers.csv", "csv"], ["--loggers.csv", "{}"]])
def test_a_logger_is_taken_by_name_and_given_back_with_null(words):
    assert resolve([*DEBUG, *words], "fit").values["loggers"]["csv"].get("folder", 0) is None
    assert resolve([*DEBUG, *words, "--loggers.csv", "null"], "fit").values["loggers"]["csv"] is None
