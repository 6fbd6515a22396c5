"""Where logged values go: TensorBoard and one flat JSON object a line."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Scalars, texts and histograms for TensorBoard, in RUN/tensorboard.

    Args:
        folder: The run folder; the launcher fills it in.
        flush_seconds: How often what was logged is written out.
    """

    def __init__(self, folder: str | None = None, flush_seconds: int = 10) -> None:
        super().__init__(save_dir=folder or ".", name="tensorboard", version="", flush_secs=flush_seconds)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Hide what an earlier attempt logged after `step`, so that no step shows twice.

        TensorBoard's `purge_step` hides all events of that step and later (tensorflow/tensorboard#3732).
        """
        if self._experiment is not None:  # Lightning opens it for hyper-parameters before the training starts
            self._experiment.close()
            self._experiment = None
        self._kwargs["purge_step"] = step + 1


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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self._step, **finite}) + "\n")
        self._values = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, and a last line that was cut off, when a run goes on from a checkpoint."""
        self._values = {}
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if len(kept) < len(lines):
            fresh = self.path.with_suffix(".part")
            fresh.write_text("".join(kept), encoding="utf-8")
            fresh.replace(self.path)
