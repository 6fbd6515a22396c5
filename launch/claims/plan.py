"""What a claim is: configs/claims/<method>.yaml, read and checked."""

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from launch.config.errors import ConfigError, meant
from launch.config.overlay import find_file, nested, shown
from launch.config.read import read_file

METRICS = ("accuracy", "mcc", "f1")


@dataclass(frozen=True)
class Task:
    """A labelled set on which encoders are judged; `source` and `test_source` are below the data root, or made ones."""

    source: str
    test_source: str | None = None
    text_field: str = "text"
    pair_field: str | None = None
    label_field: str = "label"
    metric: str = "accuracy"


@dataclass(frozen=True)
class Judging:
    """How an encoder is judged on a task, the same for all arms."""

    num_examples: int  # training examples, drawn once
    sequence_length: int
    epochs: float  # of fine-tuning
    batch_size: int
    learning_rate: float
    layer_decay: float = 0.8
    warmup_fraction: float = 0.1
    seeds: list[int] = field(default_factory=lambda: [1])
    strengths: list[float] = field(default_factory=lambda: [0.001, 0.01, 0.1, 1.0])  # C of the logistic regression
    folds: int = 5


@dataclass(frozen=True)
class Size:
    """How much is run."""

    budget: float  # operations of one run
    seeds: dict[str, list[int]]  # by arm
    learning_rates: list[float]  # the grid, the same for all arms
    judging: Judging
    settings: dict[str, Any]  # laid over the base configuration
    warmup_fraction: float = 0.1
    tuning_fraction: float = 1.0  # of the budget, for each run of the grid
    tuning_seed: int = 1000
    processes: int = 1  # runs at once
    threads: int | None = None  # of one run
    corpus: dict[str, Any] | None = None  # data.* options where the data root is given; sources are below it
    tasks: list[str] | None = None  # of those below; null for all
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """A statement, the arms that are compared, and the tasks that judge them."""

    method: str
    statement: str
    operations: str  # in words, what the method's `flops` counts
    base: str
    arms: dict[str, dict[str, Any]]
    comparisons: dict[str, list[str]]  # an arm -> the arms that it should beat
    tasks: dict[str, Task]
    embedded_tasks: dict[str, Task]  # where no set of the above is there
    sizes: dict[str, Size]
    notes: list[str] = field(default_factory=list)


def claim_file(name: str) -> tuple[dict[str, Any], str]:
    """Read the file of a claim by the name of its method or by its own; return what it says and how it is called.

    Raises:
        ConfigError: there is none, or it is no YAML.
    """
    known = sorted(path.stem for path in find_file("configs/claims").glob("*.yaml"))
    if "/" not in name and not name.endswith(".yaml"):
        if name not in known:
            raise ConfigError(f"claim {name}: no such claim{meant(name, known)}; there are {', '.join(known)}")
        name = f"configs/claims/{name}.yaml"
    path = find_file(name)
    return nested(read_file(path, shown(path))), shown(path)


def read_claim(name: str) -> Claim:
    """Read a claim that probes and fine-tuning judge.

    Raises:
        ConfigError: there is none, or it is not written as it must be.
    """
    return probe_claim(*claim_file(name))


def probe_claim(raw: dict[str, Any], where: str) -> Claim:
    """Make a claim from its file's contents.

    Raises:
        ConfigError: it is not written as it must be.
    """
    claim = made(Claim, raw, where)
    tasks = {kind: {n: made(Task, t, f"{where}: {kind}.{n}") for n, t in getattr(claim, kind).items()}
             for kind in ("tasks", "embedded_tasks")}  # fmt: skip
    sizes = {name: size_of(value, f"{where}: sizes.{name}") for name, value in claim.sizes.items()}
    found = Claim(**{**vars(claim), **tasks, "sizes": sizes})
    if problems := mistakes(found, where):
        raise ConfigError(*problems)
    return found


def size_of(raw: dict[str, Any], where: str) -> Size:
    """Make a size with its judging."""
    size = made(Size, raw, where)
    return Size(**{**vars(size), "judging": made(Judging, size.judging, f"{where}.judging")})


def made(kind: type, raw: Any, where: str) -> Any:
    """Fill a dataclass from a mapping.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected a mapping")
    names = [item.name for item in fields(kind)]
    needed = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    problems = [f"{where}: unknown key {name}{meant(name, names)}" for name in raw if name not in names]
    problems += [f"{where}: {name} is missing" for name in needed if name not in raw]
    if problems:
        raise ConfigError(*problems)
    return kind(**raw)


def mistakes(claim: Claim, where: str) -> list[str]:
    """Return what does not fit together."""
    problems = []
    for arm in [*claim.comparisons, *(other for others in claim.comparisons.values() for other in others)]:
        if arm not in claim.arms:
            problems.append(f"{where}: comparisons name {arm}, which is no arm{meant(arm, [*claim.arms])}")
    every = claim.tasks | claim.embedded_tasks
    for name, task in every.items():
        if task.metric not in METRICS:
            problems.append(f"{where}: {name}.metric = {task.metric}: must be one of {', '.join(METRICS)}")
    for name, size in claim.sizes.items():
        for task in size.tasks or []:
            if task not in every:
                problems.append(f"{where}: sizes.{name}.tasks names {task}, which is no task{meant(task, [*every])}")
        if set(size.seeds) != set(claim.arms):
            problems.append(f"{where}: sizes.{name}.seeds must name the arms {', '.join(claim.arms)}")
        if size.budget <= 0 or not size.learning_rates:
            problems.append(f"{where}: sizes.{name} needs a positive budget and at least one learning rate")
    return problems


def tasks_at(claim: Claim, size: Size, root: Path | None) -> tuple[dict[str, Task], dict[str, str]]:
    """Return the tasks that can be judged, with their files, and why the others cannot.

    The sets below the data root are used where there is one; the embedded tasks where there is none.
    """
    wanted = {name: task for name, task in claim.tasks.items() if size.tasks is None or name in size.tasks}
    found, skipped = {}, {}
    for name, task in wanted.items():
        if root is None:
            skipped[name] = "no --data.root was given"
            continue
        paths = {key: root / getattr(task, key) for key in ("source", "test_source")}
        absent = [path for path in paths.values() if not path.exists()]
        if absent:
            skipped[name] = f"{absent[0].relative_to(root)} is not under the data root"
        else:
            found[name] = Task(**{**vars(task), **{key: str(path) for key, path in paths.items()}})
    if not found:
        embedded = claim.embedded_tasks.items()
        found = {name: task for name, task in embedded if size.tasks is None or name in size.tasks}
    return found, skipped
