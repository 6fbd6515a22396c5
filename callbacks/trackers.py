"""Services that track runs: Weights & Biases and MLflow.

They take values and cannot forget them. A run that goes on from a step before the newest that was sent begins anew
there, under the same name, with the values up to that step, which are read from RUN/metrics.jsonl.
"""

import json
import logging
import os
import time
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from callbacks.loggers import steps_of
from callbacks.papers import Papers
from datamodules.core.errors import DataError

_log = logging.getLogger(__name__)
Line = tuple[int, dict[str, float]]  # a step and its values
AT_ONCE = 100  # lines of an earlier attempt that are sent together


class Tracker(Logger):
    """What services have in common; a subclass gives `begin`, `describe`, `send` and `end`.

    RUN/<service>.json keeps the service's name of the run and the newest step that may have been sent.

    Raises:
        DataError: the service's package is not installed.
    """

    service = package = advice = ""
    may_refuse = True  # so it is asked before others write anything
    lacks_newest = False  # the newest values of an attempt that was killed may be missing

    def __init__(self, folder: str | None) -> None:
        super().__init__()
        self.folder = Path(folder or ".")
        self.file, self.values = self.folder / f"{self.service}.json", self.folder / "metrics.jsonl"
        self.id: str | None = None
        self.sent = 0
        self._lost = False
        if find_spec(self.service) is None:
            raise DataError(
                f"loggers.{self.service}: needs the package {self.package}; install it, or remove the logger with null"
            )

    def _tell_unread(self, **options: tuple[str, str | None]) -> None:
        """Name the variables of the environment that a service's users set, and that are not read here."""
        for variable, (option, value) in options.items():
            if (found := os.environ.get(variable)) and found != value:
                rank_zero_warn(
                    f"{variable} = {found} (environment): is not read, as a run that goes on may not have it; give "
                    f"loggers.{self.service}.{option}"
                )

    # What a service gives

    @abstractmethod
    def begin(self, name: str, known: str | None) -> str:
        """Open the run of that name, or go on with a known one; returns what the service calls it."""

    @abstractmethod
    def describe(self, papers: Papers, step: int) -> None:
        """Hand over configuration and command."""

    @abstractmethod
    def send(self, lines: Iterable[Line]) -> None:
        """Hand over the values of some steps."""

    def end(self, status: str) -> None:
        """Close the run."""

    # Lightning's side

    @property
    def name(self) -> str:
        """Name of the logger."""
        return self.service

    @property
    def version(self) -> str:
        """What the service calls the run."""
        return self.id or ""

    @rank_zero_only
    def log_papers(self, papers: Papers, step: int) -> None:
        """Open the service's run, cut back to `step`, and hand over configuration and command.

        Raises:
            DataError: the service cannot be reached or does not take the run, or what it holds of the run is to be
                written anew and there are no values to do that from.
        """
        known, sent = self._known()
        goes_on = known is not None and sent <= step
        if known is not None and not goes_on:
            self._refuse_without_values(known, sent, step)
        try:
            self.id = self.begin(papers.name, known if goes_on else None)
            self.describe(papers, step)
            earlier = self._earlier(self.lacks_newest * step if goes_on else 1, step)
            while lines := list(islice(earlier, AT_ONCE)):
                self.send(lines)
        except Exception as error:  # of the service's own kinds, and of the libraries that it calls
            raise DataError(f"loggers.{self.service}: {_first_line(error)}; {self.advice}") from error
        if known is not None and not goes_on:
            _log.warning("loggers.%s: %s holds later steps and stays as it is; %s has those up to step %d and goes on",
                         self.service, known, self.id, step)  # fmt: skip
        self._note(step)

    def _refuse_without_values(self, known: str, sent: int, step: int) -> None:
        if step and not self.values.is_file():
            raise DataError(
                f"loggers.{self.service}: the run goes on after step {step}, {known} holds later ones, which it cannot "
                f"forget, and there is no {self.values} to write it anew; delete {self.file} to begin one at this step"
            )

    def _earlier(self, first: int, last: int) -> Iterator[Line]:
        """Yield the lines of some steps of earlier attempts; none from step 0 on."""
        if first and self.values.is_file():
            yield from (line for line in steps_of(self.values) if first <= line[0] <= last)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `log_papers` hands over the whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Send the values of a step; a service that fails is told once, and does not end the run."""
        if self._lost or self.id is None:
            return
        try:
            self._note(int(step or 0))
            self.send([(self.sent, dict(metrics))])
        except Exception as error:  # whatever a connection can raise
            self._lost = True
            self._note(2**53)  # nobody knows what has arrived: the next attempt writes it anew
            _log.warning("loggers.%s: no more values are sent: %s", self.service, _first_line(error))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the service's run."""
        if self.id is not None and not self._lost:
            self.end(status)
            self.id = None

    def _known(self) -> tuple[str | None, int]:
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            return str(kept["id"]), int(kept["step"])
        except (OSError, ValueError, TypeError, KeyError):
            return None, 0

    def _note(self, step: int) -> None:
        """Keep the step before it is sent, so that what is kept is never less than what was sent."""
        if step != self.sent or not self.file.exists():
            self.sent = step
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps({"id": self.id, "step": step}), encoding="utf-8")
            part.replace(self.file)


class WeightsAndBiases(Tracker):
    """Weights & Biases: values, the configuration, command and commit; needs the package `wandb`.

    Args:
        folder: The run folder; the launcher fills it in.
        project: Project of the run.
        entity: User or team; by default the one that is logged in.
        name: Name of the run; by default that of its folder.
        group: Group of runs.
        tags: Tags of the run.
        mode: `offline` keeps everything in RUN/wandb, for `wandb sync`; by default as WANDB_MODE says, or online.
    """

    service = package = "wandb"
    lacks_newest = True  # a row is written when the next one begins
    advice = "log in with `wandb login`, or take loggers.wandb.mode: offline"

    def __init__(
        self,
        folder: str | None = None,
        project: str = "tokamak",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        mode: Literal["online", "offline"] | None = None,
    ) -> None:
        super().__init__(folder)
        self.options = {"project": project, "entity": entity, "group": group, "tags": tags, "mode": mode}
        self.run_name = name
        self._run: Any = None
        self._tell_unread(WANDB_PROJECT=("project", project), WANDB_NAME=("name", name))

    def begin(self, name: str, known: str | None) -> str:
        """Open a run; its console is not captured, as standard output belongs to the run's user."""
        import wandb

        self._run = wandb.init(
            **self.options,
            name=self.run_name or name,
            id=known,
            resume="allow",
            dir=str(self.folder),
            settings=wandb.Settings(console="off", init_timeout=30),
        )
        return self._run.id

    def describe(self, papers: Papers, step: int) -> None:
        """Update the configuration, which may have changed since the attempt before."""
        origin = {"run.command": papers.command, "run.commit": papers.commit}
        self._run.config.update({**papers.values, **origin}, allow_val_change=True)
        self._run.notes = papers.command

    def send(self, lines: Iterable[Line]) -> None:
        """Log under the number of completed optimizer steps."""
        for step, values in lines:
            self._run.log(values, step=step)

    def end(self, status: str) -> None:
        """Close the run, and wait until what was logged is written."""
        self._run.finish(exit_code=0 if status == "success" else 1)


class MLflow(Tracker):
    """MLflow: values, the configuration as parameters, command and commit as tags; needs the package `mlflow-skinny`.

    A parameter cannot be changed once it is there: what a later attempt has otherwise is a tag of its name.

    Args:
        folder: The run folder; the launcher fills it in.
        tracking_uri: Address of the server, as http://localhost:5000; by default MLFLOW_TRACKING_URI.
        experiment: Name of the experiment, made if there is none.
        name: Name of the run; by default that of its folder.
        tags: Tags of the run.

    Raises:
        DataError: there is no tracking_uri.
    """

    service, package = "mlflow", "mlflow-skinny"
    advice = "check loggers.mlflow.tracking_uri and that the server is up"

    def __init__(
        self,
        folder: str | None = None,
        tracking_uri: str | None = None,
        experiment: str = "tokamak",
        name: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not self.tracking_uri:
            raise DataError(
                "loggers.mlflow.tracking_uri: not set, and MLFLOW_TRACKING_URI neither; give the address of a server, "
                "as http://localhost:5000"
            )
        self.experiment_name, self.run_name, self.tags = experiment, name, tags or {}
        self._client: Any = None
        self._tell_unread(MLFLOW_EXPERIMENT_NAME=("experiment", experiment), MLFLOW_RUN_NAME=("name", name))

    def begin(self, name: str, known: str | None) -> str:
        """Open a run, or a known one again."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 of them take minutes
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(self.tracking_uri)
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            return known
        found = self._client.get_experiment_by_name(self.experiment_name)
        place = found.experiment_id if found else self._client.create_experiment(self.experiment_name)
        return self._client.create_run(place, run_name=self.run_name or name, tags=self.tags).info.run_id

    def describe(self, papers: Papers, step: int) -> None:
        """Hand over the parameters that are new, and as tags those that are others now."""
        from mlflow.entities import Param, RunTag

        given = {key: str(value)[:500] for key, value in papers.values.items()}
        there = self._client.get_run(self.id).data.params
        new = [Param(key, value) for key, value in given.items() if key not in there]
        for start in range(0, len(new), 100):  # as many as a server takes at once
            self._client.log_batch(self.id, params=new[start : start + 100])
        changed = {
            key: f"{value} from step {step + 1} on" for key, value in given.items() if there.get(key, value) != value
        }
        texts = {"command": papers.command, "commit": papers.commit, "mlflow.note.content": papers.command, **changed}
        self._client.log_batch(self.id, tags=[RunTag(key, text[:5000]) for key, text in texts.items()])

    def send(self, lines: Iterable[Line]) -> None:
        """Log under the number of completed optimizer steps, as many values at once as a server takes."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for step, values in lines for key, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.id, metrics=metrics[start : start + 1000])

    def end(self, status: str) -> None:
        """Close the run."""
        self._client.set_terminated(self.id, "FINISHED" if status == "success" else "FAILED")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
