"""`validate`, `test` and `predict`: a checkpoint of a run, evaluated with the run's data. They lock nothing."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from datamodules.core.errors import DataError
from launch.causes import as_said, known_cause
from launch.checkpoints import choose, step_of
from launch.classes import imported
from launch.cli import Cli
from launch.config.errors import ConfigError, one_line
from launch.config.resolved import Resolved
from launch.leaving import leave
from launch.peers import Unreachable, watched
from launch.ranks import adopt_children, process_rank
from launch.run import DONE, ERROR
from launch.run_folder import RunFolder, write_json, write_whole
from lightning_modules.core.checkpoint.errors import CheckpointError

LIMITED = {"validate": "val", "test": "test", "predict": "predict"}


def evaluate(command: str, resolved: Resolved, folder: RunFolder) -> int:
    """Evaluate the chosen checkpoint, and write RUN/validate.json, RUN/test.json or RUN/predictions.jsonl.

    Raises:
        ConfigError: found with the real classes, or there is nothing to predict.
    """
    if command == "predict":
        check_prediction(resolved)
    try:
        checkpoint = choose(folder.checkpoints, resolved.get("run.checkpoint"))
        if checkpoint is None:
            raise CheckpointError(f"{folder.checkpoints}: no checkpoint; run `fit` first, or give --run.dir")
        cli = Cli(command, resolved, str(checkpoint))
        if command == "predict" and cli.trainer.world_size > 1:
            raise ConfigError("trainer.devices: predict keeps the order of its input on one rank only; give 1")
        adopt_children()
        with watched(cli.trainer, folder):
            found = cli.run()
    except Unreachable as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        leave(ERROR)
    except (DataError, CheckpointError) as error:
        print(f"error: {one_line(as_said(error))}", file=sys.stderr)
        return ERROR
    except (OSError, RuntimeError) as error:
        if (known := known_cause(error, folder.path)) is None:
            raise
        raise known from error
    if command != "predict":
        check_measured(command, found, cli)
    if process_rank() == 0:
        print("".join(f"data: {line}\n" for line in data_lines(command, cli)), end="")
        report = _predicted if command == "predict" else _measured
        try:
            report(command, found, cli, folder.path, checkpoint)
        except OSError as error:
            raise ConfigError(f"{error.filename or folder.path}: cannot be written: {error.strerror}") from None
    return DONE


def check_prediction(resolved: Resolved) -> None:
    """Refuse to predict, before a checkpoint is read, where nothing can come of it.

    Raises:
        ConfigError: the method gives no predictions, or no key of the data names what to predict.
    """
    model = imported(resolved.parts, ("model",))
    if getattr(model, "predict_step", None) is LightningModule.predict_step:
        raise ConfigError(f"model.class = {resolved.get('model.class')}: gives no predictions; it has no predict_step")
    named = [resolved.get(f"data.{key}") for key in ("predict_source", "test_source")]
    made = str(resolved.get("data.source")).startswith("embedded:")  # brings its test along
    if ("data", "predict_source") in resolved.table and not any(named) and not made:
        raise ConfigError("data.predict_source = null: there is nothing to predict; give --data.predict_source FILE")


def data_lines(command: str, cli: Cli) -> list[str]:
    """Return what the data says of the part that was read for a command."""
    parts = "predict|test" if command == "predict" else LIMITED[command]
    found = cli.datamodule.describe() if hasattr(cli.datamodule, "describe") else []
    return [line for line in found if re.match(rf"(warning: )?({parts})\b", line)]


def check_measured(command: str, found: Any, cli: Cli) -> None:
    """Refuse, on every rank, an evaluation in which nothing was judged.

    Raises:
        ConfigError: the key of the data that names what is to be judged.
    """
    if not any(found) and not cli.model.logged:
        part = {"validate": "validation"}.get(command, command)
        key = part if ("data", part) in cli.resolved.table else f"{part}_source"
        raise ConfigError(f"data.{key} = null: nothing was judged; name what is to be judged there")


def limit_of(command: str, cli: Cli) -> dict[str, Any]:
    """Say that only a part of the data was read, if so, and return what a report keeps of it."""
    key = f"trainer.limit_{LIMITED[command]}_batches"
    if (limit := cli.resolved.get(key)) in (None, 1.0):
        return {}
    print(f"{key} = {limit}: only a part of the data was read")
    return {key: limit}


def _measured(command: str, found: Any, cli: Cli, run: Path, checkpoint: Path) -> None:
    metrics = {name: value for part in found for name, value in part.items()} | cli.model.logged
    file = run / f"{command}.json"
    limit = limit_of(command, cli)
    write_json(file, {"checkpoint": str(checkpoint), "step": step_of(checkpoint), **limit, **metrics})
    print(*table(metrics, f"{command} of {checkpoint}"), f"written to {file}", sep="\n")


def _predicted(command: str, found: Any, cli: Cli, run: Path, checkpoint: Path) -> None:
    limit_of(command, cli)
    rows = [row for batch in found for row in (batch if isinstance(batch, list) else [batch])]
    file = run / "predictions.jsonl"
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} predictions of {checkpoint} written to {file}")


def table(metrics: dict[str, float], title: str) -> list[str]:
    """Return lines with a name and a number each."""
    width = max(map(len, metrics), default=0) + 2
    return [title, *(f"  {name:<{width}}{value:.6g}" for name, value in sorted(metrics.items()))]
