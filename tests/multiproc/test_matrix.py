"""Every strategy, interrupted in every way and then once more, ends as if nothing had been; and goes on elsewhere."""

import dataclasses
import signal
from pathlib import Path

import pytest

from lightning_modules.core.stop import RESUMABLE
from tests.multiproc.checkpoint_toy import Run, output, resume, start
from tests.multiproc.matrix import PAGE, Case, Crossing, cases, crossings, page
from tests.multiproc.strategies_toy import assert_same, logged, saved

STEPS, EVERY = 16, 4
KILLED = -signal.SIGKILL
SHORT = [  # in `make test` too
    Case("ddp", "KILL shard", 4, "first", 0, "TERM step"),
    Case("zero2", "TERM published", 2, "first", 2, "TERM step"),
    Case("zero3", "KILL write", 2, "all", 0, "TERM step"),
    Case("fsdp", "TERM write", 2, "last", 0, "KILL shard"),
    Crossing("zero3", 2, "ddp", 2, "TERM step"),
    Crossing("fsdp", 1, "zero2", 2, "KILL step"),
]
MOMENTS = {"first": ("backward", 0), "step": ("step", 9), "backward": ("backward", 9)}
EXISTS = ("renamed", "published", "end")  # from these points on the step that is saved stands
OPEN = ("marker", "step", "backward")  # a thread may be faster or slower than the death


def listed(items: list) -> list:
    """Mark what is too long for `make test`."""
    return [pytest.param(*item, id="-".join(map(str, item)), marks=_marks(item)) for item in items]


def _marks(item: tuple) -> list:
    return [] if item in SHORT else [pytest.mark.matrix]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Undisturbed runs by strategy and number of ranks, each made once."""
    made, folder = {}, tmp_path_factory.mktemp("straight")

    def get(strategy: str, ranks: int) -> Run:
        if (strategy, ranks) not in made:
            made[strategy, ranks] = finished(toy(folder / f"{strategy}{ranks}", strategy, ranks))
        return made[strategy, ranks]

    return get


def toy(folder: Path, strategy: str, ranks: int, workers: int = 0) -> Run:
    return Run(folder, ranks, STEPS, EVERY, strategy=strategy, width=24, num_workers=workers)


def finished(run: Run) -> Run:
    assert start(run) == [0] * run.world_size, output(run)
    return run


def reached(run: Run) -> int:
    """Return the step that a restart goes on from."""
    folder = resume(run)
    return 0 if folder is None else int(folder.name[5:])


def interrupted(run: Run, cause: str, victim: str, moment: tuple[str, int]) -> Run:
    """Interrupt a run, require that its ranks end as they should, and return how it goes on."""
    number = signal.SIGKILL if cause.startswith("KILL") else signal.SIGTERM
    last = run.world_size - 1
    rank = {"first": 0, "last": last, "all": last if number == signal.SIGKILL else None}[victim]
    if victim == "all" and cause.split()[1] in ("begun", "trainer", "manifest", "synced", *EXISTS):
        rank = 0  # the others do not come by that point; they are killed when it is dead
    alone = victim != "all" and run.world_size > 1
    codes = start(dataclasses.replace(run, kill=moment, kill_rank=rank, signal=number, leaves_others=alone))
    if number == signal.SIGTERM:
        assert codes in ([RESUMABLE] * run.world_size, [0] * run.world_size), output(run)
        assert codes[0] == RESUMABLE or reached(run) == STEPS, "it was asked too late"
    else:
        assert codes[rank] == KILLED, (codes, output(run))
        # of three survivors one may wait in gloo for the dead one; a run's launcher ends it, and so does the harness
        assert all(code in (1, KILLED) for code in codes) and (codes.count(1) or not alone), (codes, output(run))
    return dataclasses.replace(run, resume=resume(run))


@pytest.mark.parametrize(Case._fields, listed(cases()))
def test_interrupted_twice_and_bit_identical(straight, tmp_path, strategy, cause, ranks, victim, workers, then):
    run, point = toy(tmp_path / "run", strategy, ranks, workers), cause.split()[1]
    run = interrupted(run, cause, victim, MOMENTS.get(point, (point, 1)))
    if cause.startswith("KILL"):
        assert reached(run) in ((4, 8) if point in OPEN else (8,) if point in EXISTS else (4,)), output(run)
    else:
        asked = 1 if point == "first" else 8
        assert asked <= reached(run) <= (3 if point == "first" else STEPS)
    if (stands := reached(run)) < STEPS - 2:
        moment = ("shard", 0) if then == "KILL shard" else ("step", stands + 1)
        run = interrupted(run, then, {"KILL step": "all", "KILL shard": "last", "TERM step": "first"}[then], moment)
        assert reached(run) >= stands, "what was saved stays"
    finished(run)
    undisturbed = straight(strategy, ranks)
    assert logged(run) == logged(undisturbed)
    assert saved(run) == saved(undisturbed)
    assert all(path.name.startswith("step_") for path in run.checkpoints.iterdir()), "nothing is left lying about"


@pytest.mark.parametrize(Crossing._fields, listed(crossings()))
def test_moved(straight, tmp_path, first, ranks, second, others, cause):
    moment = ("shard", 1) if cause == "KILL shard" else ("step", 6)
    run = interrupted(toy(tmp_path / "run", first, ranks), cause, "all", moment)
    assert 4 <= reached(run) <= 8
    run = finished(dataclasses.replace(run, strategy=second, world_size=others))
    assert_same(run, straight("single", 1))


def test_the_page_says_what_is_tried() -> None:
    assert set(SHORT) <= {*cases(), *crossings()}, "a short one is not among them any more; choose another"
    assert PAGE.read_text() == page(PAGE.read_text()), "run: python -m tests.multiproc.matrix"
