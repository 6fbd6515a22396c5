"""A claim that the grid of layers and widths judges: configs/claims/<method>.yaml with `judged_by: grid`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.core.packaged import SHIPPED, shipped
from launch.claims.plan import made
from launch.config.errors import ConfigError, meant

GROUPS = ("judged", "beside", "ablations")
SEPARATE = "separate"  # models trained each at a cell's own size; they have seeds of their own
EMBEDDED = "embedded"
FILES = ("path", "train", "corpus", "queries", "qrels")


@dataclass(frozen=True)
class Part:
    """One setting in which the statement is tried."""

    title: str
    base: str
    settings: dict[str, Any] = field(default_factory=dict)  # laid over the base, at every size
    encoder: str | None = None  # pretrained one that all arms start from; null: fresh weights


@dataclass(frozen=True)
class PartSize:
    """How much of a part is run."""

    steps: int
    learning_rate: float  # of all arms
    settings: dict[str, Any] = field(default_factory=dict)
    separate: list[list[int]] = field(default_factory=list)  # cells [layers, width] with a model of their own
    encoder_layers: int | None = None  # start from the first layers of the pretrained encoder alone
    warmup_fraction: float = 0.1


@dataclass(frozen=True)
class GridSize:
    """How much is run."""

    seeds: dict[str, list[int]]  # by group
    parts: dict[str, PartSize]
    processes: int = 1  # runs at once
    threads: int | None = None  # of one run
    sets: list[str] | None = None  # of those below; null for all
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GridClaim:
    """A statement on two arms, what is run beside them, and the sets that judge each cell."""

    method: str
    statement: str
    better: str  # above `worse` at half depth and below
    worse: str
    highest_cost: float  # what `better` may lose to `worse` at the top
    floor: str  # the arm that was not trained
    parts: dict[str, Part]
    arms: dict[str, dict[str, dict[str, Any]]]  # group -> arm -> overlay
    sets: dict[str, dict[str, Any]]  # options of data.validation; files are below the data root
    sizes: dict[str, GridSize]
    notes: list[str] = field(default_factory=list)

    def group(self, arm: str) -> str:
        """Return the group of an arm."""
        return next(group for group, arms in self.arms.items() if arm in arms)


def grid_claim(raw: dict[str, Any], where: str) -> GridClaim:
    """Make a claim from its file's contents.

    Raises:
        ConfigError: it is not written as it must be.
    """
    claim = made(GridClaim, raw, where)
    parts = {name: made(Part, part, f"{where}: parts.{name}") for name, part in claim.parts.items()}
    sizes = {name: _size(size, f"{where}: sizes.{name}") for name, size in claim.sizes.items()}
    found = GridClaim(**{**vars(claim), "parts": parts, "sizes": sizes})
    if problems := [f"{where}: {problem}" for problem in _mistakes(found)]:
        raise ConfigError(*problems)
    return found


def _size(raw: dict[str, Any], where: str) -> GridSize:
    size = made(GridSize, raw, where)
    parts = {name: made(PartSize, part, f"{where}.parts.{name}") for name, part in size.parts.items()}
    return GridSize(**{**vars(size), "parts": parts})


def _mistakes(claim: GridClaim) -> Iterator[str]:
    names = [arm for arms in claim.arms.values() for arm in arms]
    yield from (f"arms: {group} is none of {', '.join(GROUPS)}" for group in claim.arms if group not in GROUPS)
    yield from (f"arms: {name} stands there twice" for name in {name for name in names if names.count(name) > 1})
    for arm in (claim.better, claim.worse):
        if arm not in claim.arms.get(GROUPS[0], {}):
            yield f"{arm} is no arm of {GROUPS[0]}{meant(arm, names)}"
    if claim.floor not in names:
        yield f"floor = {claim.floor}: is no arm{meant(claim.floor, names)}"
    for name, size in claim.sizes.items():
        if set(size.seeds) != {*claim.arms, SEPARATE}:
            yield f"sizes.{name}.seeds must name {', '.join([*claim.arms, SEPARATE])}"
        for one in size.sets or []:
            if one not in claim.sets:
                yield f"sizes.{name}.sets names {one}, which is no set{meant(one, [*claim.sets])}"
        for part, found in size.parts.items():
            if part not in claim.parts:
                yield f"sizes.{name}.parts names {part}, which is no part{meant(part, [*claim.parts])}"
            if found.steps < 1 or found.learning_rate <= 0:
                yield f"sizes.{name}.parts.{part} needs at least one step and a positive learning rate"
            dims = found.settings.get("callbacks", {}).get("grid", {}).get("dims")
            for cell in found.separate:
                if len(cell) != 2 or (dims and cell[1] not in dims):
                    yield f"sizes.{name}.parts.{part}.separate: {cell} is no [layers, width] of the grid"


def sets_at(claim: GridClaim, size: GridSize, root: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the sets that can be judged, and why the others cannot."""
    found, skipped = {}, {}
    for name, options in claim.sets.items():
        if size.sets is not None and name not in size.sets:
            continue
        if reason := _lacking([str(options[key]) for key in FILES if key in options], root):
            skipped[name] = reason
        else:
            found[name] = options
    return found, skipped


def part_lacks(part: Part, root: Path | None) -> str | None:
    """Say why a part cannot be run: its pairs or its encoder are not there."""
    data = part.settings.get("data", {})
    sources = [data.get("source"), *(data.get("sources") or {}).values()]
    paths = [source["path"] if isinstance(source, dict) else source for source in sources if source]
    if reason := _lacking(paths, root):
        return reason
    if part.encoder in SHIPPED:
        try:
            shipped(part.encoder)
        except FileNotFoundError as error:
            return f"{part.encoder}: {error}"
    return None


def _lacking(paths: list[str], root: Path | None) -> str | None:
    wanted = [path for path in paths if path.partition(":")[0] != EMBEDDED]
    if wanted and root is None:
        return "no --data.root was given"
    absent = [path for path in wanted if not (root / path).exists()]
    return f"{absent[0]} is not under the data root" if absent else None
