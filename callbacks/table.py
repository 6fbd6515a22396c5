"""RUN/metrics.csv: what is logged as a table, for spreadsheets and pandas."""

import csv
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.papers import Papers
from datamodules.core.errors import DataError


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
        """Write the row of the current step, if there is one; a new column has the whole file written anew."""
        if not self._row:
            return
        row, self._row = self._row, {}
        if new := [name for name in row if name not in self._columns]:
            rows = _rows(self.path)
            self._columns += new
            self._write([*rows, row])
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, and one that was cut off, when a run goes on from a checkpoint."""
        self._row = {}
        rows = _rows(self.path)
        kept = [row for row in rows if int(row["step"]) <= step]
        self._columns = [*(rows[0] if rows else {})]
        if self.path.exists():
            self._write(kept)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        part = self.path.with_suffix(".part")
        with part.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, self._columns, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        part.replace(self.path)


def _rows(path: Path) -> list[dict[str, str]]:
    """Read the whole rows of a table; what is damaged is left out."""
    if not path.exists():
        return []
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    rows = csv.DictReader(line.decode("utf-8", "replace") for line in whole)
    return [row for row in rows if None not in row and None not in row.values() and (row.get("step") or "").isdecimal()]
