"""Where logged values go: TensorBoard and one flat JSON object a line."""

import json
import logging
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.papers import Papers
from datamodules.core.errors import DataError

STEP = re.compile(rb'\{"step": (\d+)')
_log = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """Scalars, texts, images and histograms for TensorBoard, in the run's folder itself.

    `tensorboard --logdir` names a run by the folder of its files, so it has the run's own name. A run that began with
    them in RUN/tensorboard goes on there. The tab HPARAMS shows the configuration with the newest value of each
    scalar; the texts are the command, the commit and the configuration of every attempt.

    Args:
        folder: The run folder; the launcher fills it in.
        flush_seconds: How often what was logged is written out.

    Raises:
        DataError: RUN/tensorboard is there and no folder.
    """

    def __init__(self, folder: str | None = None, flush_seconds: int = 10) -> None:
        run = Path(folder or ".")
        earlier = run / "tensorboard"
        if os.path.lexists(earlier) and not earlier.is_dir():
            raise DataError(f"{earlier}: is not a folder; move it away")
        place = earlier if earlier.is_dir() else run
        super().__init__(save_dir=str(place), name="", version="", flush_secs=flush_seconds)
        self._opens = False

    @property
    def experiment(self) -> Any:
        """Return what writes; before there is anything to write, one that does nothing.

        Lightning asks for it before the data is there: a start that fails then would be a run to TensorBoard.
        """
        return super().experiment if self._opens else DummyExperiment()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write scalars."""
        self._opens = True
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_papers(self, papers: Papers, step: int) -> None:
        """Write the configuration for the tab HPARAMS, and texts under the first step that the attempt will make.

        The summary of the experiment, which would name columns, is left out: of several runs TensorBoard reads the
        first one's alone; without any it finds the columns by itself (tensorboard/plugins/hparams).
        """
        from torch.utils.tensorboard.summary import hparams  # with what writes: a second of imports

        self._opens = True
        _, session, _ = hparams(papers.values, {})
        self.experiment.file_writer.add_summary(session)
        for name, text in papers.texts().items():
            block = "".join(f"    {line}\n" for line in text.splitlines())
            self.experiment.add_text(f"run/{name}", block, step + 1)

    @rank_zero_only
    def save(self) -> None:
        """Write out what was logged."""
        if self._experiment is not None:
            self._experiment.flush()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Hide what an earlier attempt logged after `step`, so that no step shows twice.

        TensorBoard's `purge_step` hides all events of that step and later (tensorflow/tensorboard#3732).
        """
        if self._experiment is not None:  # opened without this step
            self._experiment.close()
            self._experiment = None
        self._kwargs["purge_step"] = step + 1
        self._opens = True


class JsonLines(Logger):
    """RUN/metrics.jsonl: one line for each logged step, its values by name.

    Values that several parts log under one step come to one line; it is written when the step is over.

    Args:
        folder: The run folder; the launcher fills it in.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.path = Path(folder or ".") / "metrics.jsonl"
        self._step = -1
        self._values: dict[str, float] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """One run, one file."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take in values of a step; a number that is not finite is written as null."""
        if step != self._step:
            self.save()
            self._step = int(step or 0)
        self._values.update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Write the line of the current step, if there is one."""
        if not self._values:
            return
        finite = {name: value if abs(value) < float("inf") else None for name, value in self._values.items()}
        append(self.path, json.dumps({"step": self._step, **finite}).encode() + b"\n")
        self._values = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, and those that are damaged, when a run goes on from a checkpoint.

        Raises:
            DataError: there is something of that name which is no file.
        """
        self._values = {}
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise DataError(f"{self.path}: is not a file; move it away")
        lines = self.path.read_bytes().splitlines(keepends=True)
        steps = [_step(line) for line in lines]
        if damaged := [line for line, found in zip(lines, steps, strict=True) if found is None]:
            steps_lost = ", ".join(found[1].decode() for line in damaged if (found := STEP.match(line)))
            of = f" (of step {steps_lost})" if steps_lost else ""
            _log.warning("%s: %d damaged lines are dropped%s", self.path, len(damaged), of)
        kept = [line for line, found in zip(lines, steps, strict=True) if found is not None and found <= step]
        if kept and not kept[-1].endswith(b"\n"):
            kept[-1] += b"\n"
        if b"".join(kept) != b"".join(lines):
            fresh = self.path.with_suffix(".part")
            fresh.write_bytes(b"".join(kept))
            fresh.replace(self.path)


def append(path: Path, line: bytes) -> None:
    """Write a line at the end of a file, or nothing of it: half of one would spoil the next.

    Raises:
        OSError: with the name of the file.
    """
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        try:
            while line:
                line = line[file.write(line) :]
        except OSError as error:
            file.truncate(start)
            raise OSError(error.errno, error.strerror, str(path)) from None


def _step(line: bytes) -> int | None:
    """Return the step of a whole line, None for a damaged one."""
    try:
        step = json.loads(line)["step"]  # the end of the last line may lack, and nothing else
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def steps_of(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Read the steps of a metrics.jsonl with their finite values; damaged lines are left out."""
    with path.open("rb") as file:
        for line in file:
            if _step(line) is not None:
                values = json.loads(line)
                yield values.pop("step"), {name: value for name, value in values.items() if value is not None}
