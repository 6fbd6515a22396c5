"""The grid of layers and widths, written and shown after each evaluation."""

import io
import os
from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from matplotlib.figure import Figure
from matplotlib.image import imsave

from callbacks.checkpoint import Validated
from lightning_modules.core.base import Method
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.publish import temporary
from lightning_modules.matryoshka2d import grid as grids
from lightning_modules.matryoshka2d.grid_report import difference_map, headlines, heat_map, markdown, pixels

FOLDER = "grid"


@runtime_checkable
class Gridded(Protocol):
    """A model that measures a grid at each of its evaluations.

    Attributes:
        grid_choice: which cells are wanted.
        measures_costs: whether the cells' speed and size are.
        grid: the newest result.
    """

    grid_choice: grids.Choice | None
    measures_costs: bool
    grid: grids.Grid | None


class Grid(Callback):
    """Writes the grid after each evaluation, and shows it in TensorBoard; says to the model which cells it is of.

    Written to RUN/grid, from `launch test` with test_ before the name: step_00001000.csv with all values,
    step_00001000.md with the tables of a model card, step_00001000.png with a heat map, and, where there are baselines,
    step_00001000_differences.png. Logged to TensorBoard: the images `grid/cells` and `grid/differences`. Rank 0 draws,
    for a second or so; the other ranks go on meanwhile, to where the next step needs rank 0.

    Args:
        layers: Layers of the grid, 0 for the output of the embeddings; null for 1 to the last.
        dims: Widths of the grid; null for 8, 16, 32, ..., the full one, and those that are trained.
        probe_dims: Widths at which classes are probed, which takes long; null for the widest alone.
        shown: Metrics that are drawn, as sts_mean, where they are measured; null for one of each kind.
        baselines: By name what is shown beside, a CSV or the folder of a run, whose newest grid is taken; a list stands
            for models trained each at its own size, of which the largest cell is taken.
        costs: Measure in `launch test` how many texts a second each depth encodes, and count parameters; under the
            strategy single alone.

    Raises:
        CheckpointError: the model has no grid, a baseline has none, or a metric to be shown will not be measured in the
            validation.
    """

    def __init__(
        self,
        layers: list[int] | None = None,
        dims: list[int] | None = None,
        probe_dims: list[int] | None = None,
        shown: list[str] | None = None,
        baselines: dict[str, str | list[str]] | None = None,
        costs: bool = True,
    ) -> None:
        self.choice = grids.Choice(layers, dims, probe_dims)
        self.shown, self.baselines, self.costs = shown, baselines or {}, costs
        self.beside: dict[str, grids.Grid] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Tell the model which cells are wanted, and read the baselines."""
        if not isinstance(module, Gridded):
            raise CheckpointError(
                f"callbacks.grid: {type(module).__name__} measures no grid; take the callback out with "
                "--callbacks.grid null"
            )
        module.grid_choice = self.choice
        alone = isinstance(trainer.strategy, SingleDeviceStrategy)  # others may hold weights in parts
        module.measures_costs = self.costs and stage == "test" and alone
        self.folder, self.prefix = Path(trainer.default_root_dir) / FOLDER, "test_" if stage == "test" else ""
        self.beside = {name: baseline(name, given, self.prefix) for name, given in self.baselines.items()}
        if trainer.is_global_zero and stage in ("fit", "test"):
            for left in self.folder.glob(f".{self.prefix}step_*.tmp"):  # by a process that was killed
                left.unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse metrics that will not be measured."""
        values = module.value_names("val") if isinstance(module, Method) else None
        known = {value.removeprefix("val/") for value in values or ()}
        wrong = [name for name in self.shown or () if name not in known]
        if known and wrong:
            raise CheckpointError(f"callbacks.grid.shown: no metric {wrong[0]}; there are {', '.join(sorted(known))}")

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Show the grid of this step, if the validation has just measured one."""
        newest = (callback.last_step for callback in trainer.callbacks if isinstance(callback, Validated))
        if trainer.global_step in newest:
            self.show(trainer, module, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the grid of `launch validate`."""
        self.show(trainer, module, step_of(trainer))

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the grid of `launch test`."""
        self.show(trainer, module, step_of(trainer))

    def show(self, trainer: Trainer, module: Gridded, step: int) -> None:
        """Write the newest grid of the model, and log it; rank 0 alone."""
        grid = module.grid
        if grid is None or not trainer.is_global_zero:
            return
        shown = headlines(grid, self.shown)
        file = self.folder / f"{self.prefix}step_{step:08d}"
        write(file.with_suffix(".csv"), grids.csv_of(grid).encode())
        write(file.with_suffix(".md"), markdown(grid, shown, self.beside).encode())
        self._draw(trainer, heat_map(grid, shown, self.beside), file.with_suffix(".png"), "grid/cells", step)
        if self.beside:
            drawn = difference_map(grid, shown, self.beside)
            self._draw(trainer, drawn, file.with_name(f"{file.name}_differences.png"), "grid/differences", step)

    def _draw(self, trainer: Trainer, figure: Figure, file: Path, tag: str, step: int) -> None:
        image, png = pixels(figure), io.BytesIO()
        imsave(png, image, format="png")
        write(file, png.getvalue())
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(tag, image[..., :3], step, dataformats="HWC")


def baseline(name: str, given: str | list[str], prefix: str) -> grids.Grid:
    """Read a baseline.

    Raises:
        CheckpointError: there is no grid.
    """
    if isinstance(given, list):
        return grids.own_sizes([baseline(name, one, prefix) for one in given])
    path = Path(given)
    if path.is_dir():
        found = sorted((path / FOLDER).glob(f"{prefix}step_*.csv"))
        if not found:
            raise CheckpointError(
                f"callbacks.grid.baselines.{name} = {given}: holds no {FOLDER}/{prefix}step_*.csv; run "
                f"`{'test' if prefix else 'fit'}` with callbacks.grid there first"
            )
        path = found[-1]
    return grids.read_csv(path)


def step_of(trainer: Trainer) -> int:
    """Return the step of the checkpoint that is evaluated: its folder's name ends with it."""
    digits = Path(trainer.ckpt_path or "").resolve().name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else trainer.global_step


def write(file: Path, data: bytes) -> None:
    """Write a file that is never seen half-written.

    Raises:
        CheckpointError: the disk is full, or the like.
    """
    part = temporary(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"{file}: could not be written ({error.strerror})") from error
