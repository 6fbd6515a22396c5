"""What a run's folder tells of a trained encoder: its options, prompts, newest grid."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.publish import temporary
from lightning_modules.core.run_prompts import prompts_of, sources_of
from lightning_modules.core.sentence_form import Form
from lightning_modules.core.yaml12 import read_options
from lightning_modules.matryoshka2d.grid import Costs, Grid, csv_of, read_csv

GRIDS = "grid"  # the folder in which callbacks/grid.py writes
PREFIXES = ("test_step_", "step_")  # of a step measured twice, the test comes first


class Measured(NamedTuple):
    """A grid that was written, where, on which split, and at which step."""

    file: Path
    split: str  # test or validation
    step: int

    def grid(self) -> Grid:
        """Read it."""
        return read_csv(self.file)


class Record(NamedTuple):
    """A run, the step of one of its checkpoints, and its configuration."""

    folder: Path
    step: int
    options: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        """The options of the data."""
        return self.options["data"]

    @property
    def max_tokens(self) -> int:
        """Longest text that was trained on, in tokens."""
        return self.data["sequence_length"]

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """The sources of pairs by name, each with its path; one alone has the name ''."""
        return sources_of(self.data)

    @property
    def prompts(self) -> dict[str, str]:
        """What stood in front of queries and documents; where sources differ, the name of each stands before."""
        return prompts_of(self.data)

    def handed_on(self, form: Form) -> Form:
        """Return how the run's vectors are made, with its prompts, and as long texts as it read or could before."""
        longest = max(self.max_tokens, form.max_tokens or 0)
        return form._replace(prompts=form.prompts | self.prompts, max_tokens=longest)

    def grids(self) -> list[Measured]:
        """Return the grids of the run, the one to be shown first: of the own step, then of later ones first."""
        found = [
            Measured(file, "test" if prefix.startswith("test") else "validation", int(digits))
            for prefix in PREFIXES
            for file in (self.folder / GRIDS).glob(f"{prefix}*.csv")
            if (digits := file.stem.removeprefix(prefix)).isdecimal()
        ]
        return sorted(found, key=lambda it: (it.step != self.step, -it.step, it.split))


def record_of(run: Path, step: int) -> Record:
    """Read what a run's folder tells.

    Raises:
        CheckpointError: it holds no configuration of a run with data.
    """
    try:
        options = read_options(run / "config.yaml")
        return Record(run, step, {**options, "data": {**options["data"]}})
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError) as error:
        known = "; from_folder opens an exported one" if (run / "modules.json").is_file() else ""
        problem = f"is not the whole folder of a run ({error}){known}" if run.is_dir() else "there is no such folder"
        raise CheckpointError(f"{run}: {problem}") from None


def add_costs(run: str | Path, costs: Costs) -> list[Path]:
    """Put speed and size of the layers beside the metrics of a run's grids; returns the CSV files.

    Raises:
        CheckpointError: the run has no grid, or one cannot be read or written.
    """
    files = [measured.file for measured in Record(Path(run), 0, {}).grids()]
    if not files:
        raise CheckpointError(f"{Path(run) / GRIDS}: holds no grid; run `test` with callbacks.grid there first")
    for file in files:
        part = temporary(file)
        try:
            part.write_text(csv_of(replace(read_csv(file), costs=costs)), encoding="utf-8")
            os.replace(part, file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise CheckpointError(f"{file}: could not be written ({error.strerror})") from error
    return files
