"""RUN/metrics.csv: what is logged as a table, for spreadsheets and pandas."""

import csv
import io
import logging
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.loggers import append
from callbacks.papers import Papers
from datamodules.core.errors import DataError

_log = logging.getLogger(__name__)


class Csv(Logger):
    """RUN/metrics.csv: one row for each logged step, one column for each value; RUN/hparams.yaml: what was started.

    A value that comes later than others gets a column of its own, empty before; so is what is not finite.

    Args:
        folder: The run folder; the launcher fills it in.

    Raises:
        DataError: there is something of that name which is no file.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.folder = Path(folder or ".")
        self.path = self.folder / "metrics.csv"
        if self.path.exists() and not self.path.is_file():
            raise DataError(f"{self.path}: is not a file; move it away")
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """One run, one file."""
        return ""

    @rank_zero_only
    def log_papers(self, papers: Papers, step: int) -> None:
        """Write command, commit and configuration of the attempt."""
        origin = f"# {papers.command}\n# commit: {papers.commit}\n"
        (self.folder / "hparams.yaml").write_text(origin + papers.config, encoding="utf-8")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `log_papers` writes the whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take in values of a step; its row is written when the step is over."""
        if self._row.get("step") != step:
            self.save()
            self._row = {"step": int(step or 0)}
        self._row.update({name: value if math.isfinite(value) else "" for name, value in metrics.items()})

    @rank_zero_only
    def save(self) -> None:
        """Write the row of the current step, if there is one; a new column writes the whole file anew."""
        if not self._row:
            return
        if new := [name for name in self._row if name not in self._columns]:
            columns = [*self._columns, *new]
            write_whole(self.path, _text(columns, [*_rows(self.path)[0], self._row]))
            self._columns = columns
        else:
            append(self.path, _text(self._columns, [self._row], header=False))
        self._row = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, and one that was cut off, when a run goes on from a checkpoint."""
        self._row = {}
        if not self.path.exists():
            return
        rows, damaged = _rows(self.path)
        if damaged:
            _log.warning("%s: %d damaged rows are dropped", self.path, damaged)
        self._columns = [*(rows[0] if rows else {})]
        write_whole(self.path, _text(self._columns, [row for row in rows if int(row["step"]) <= step]))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is never seen half-written."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)


def _text(columns: list[str], rows: list[dict[str, Any]], header: bool = True) -> bytes:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def _rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """Read the whole rows of a table, and count those that are damaged or cut off."""
    if not path.exists():
        return [], 0
    lines = path.read_bytes().splitlines(keepends=True)
    rows = [*csv.DictReader(line.decode("utf-8", "replace") for line in lines if line.endswith(b"\n"))]
    whole = [
        row for row in rows if None not in row and None not in row.values() and (row.get("step") or "").isdecimal()
    ]
    return whole, len(lines) - 1 - len(whole)
