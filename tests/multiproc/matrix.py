"""What `test_matrix` tries: every strategy with every interruption, and all other pairs of choices at least once.

`python -m tests.multiproc.matrix` writes the tables into docs/reliability.md; a test requires that they stand there.
"""

import itertools
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
STRATEGIES = ["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp"]
FIRST_RANK = ["begun", "trainer", "manifest", "synced", "renamed", "published", "end"]  # does these points of a save
CAUSES = {
    "KILL begun": "SIGKILL in a save: the temporary folder is there",
    "KILL write": "SIGKILL in a save: inside the write of a file",
    "KILL shard": "SIGKILL in a save: a shard is written",
    "KILL marker": "SIGKILL in a save: a rank has announced its shard",
    "KILL trainer": "SIGKILL in a save: the first rank's files are written",
    "KILL manifest": "SIGKILL in a save: the manifest is written",
    "KILL synced": "SIGKILL in a save: the folder is synced, between manifest and rename",
    "KILL renamed": "SIGKILL in a save: the folder has its name",
    "KILL published": "SIGKILL in a save: the name is synced",
    "KILL end": "SIGKILL in a save: old checkpoints are deleted",
    "KILL step": "SIGKILL between two steps",
    "KILL backward": "SIGKILL inside a backward pass",
    "TERM first": "SIGTERM in the backward pass of the first step",
    "TERM step": "SIGTERM between two steps",
    "TERM backward": "SIGTERM inside a backward pass",
    "TERM write": "SIGTERM while a thread writes a checkpoint",
    "TERM published": "SIGTERM while a thread has just published a checkpoint",
}
THEN = {
    "KILL step": "SIGKILL of all ranks between two steps",
    "TERM step": "SIGTERM to the first rank",
    "KILL shard": "SIGKILL of the last rank in the next save",
}


class Case(NamedTuple):
    """One run: how it is interrupted, by whose end, and how the attempt after that is interrupted."""

    strategy: str
    cause: str
    ranks: int
    victim: str  # "first" or "last": that rank alone, "all": all of them
    workers: int
    then: str

    @property
    def point(self) -> str:
        return self.cause.split()[1]

    @property
    def is_possible(self) -> bool:
        """Tell whether these choices go together."""
        if (self.strategy == "single") != (self.ranks == 1) or (self.ranks == 1 and self.victim != "all"):
            return False
        if self.point == "marker":  # of all ranks but the first
            return self.ranks > 1 and self.victim != "first"
        if self.point in FIRST_RANK:
            return self.victim == "first" or (self.victim == "all" and (self.cause[:4] == "KILL" or self.ranks == 1))
        return True

    def pairs(self) -> set[tuple]:
        """Return all pairs of its choices."""
        return set(itertools.combinations(enumerate(self), 2))


class Crossing(NamedTuple):
    """A run that goes on under another strategy, or on another number of ranks."""

    first: str
    ranks: int
    second: str
    others: int
    cause: str


def cases() -> list[Case]:
    """Choose a case for each strategy and cause, then what is missing of all pairs of choices.

    Each time it is the one whose pairs were chosen least so far; four ranks take longer, and are chosen less.
    """
    choices = itertools.product(STRATEGIES, CAUSES, (2, 4, 1), ("first", "last", "all"), (0, 2), THEN)
    possible = [case for case in map(Case._make, choices) if case.is_possible]
    missing = set().union(*(case.pairs() for case in possible))
    used, found = Counter(), []

    def take(among: list[Case]) -> None:
        found.append(min(among, key=lambda case: sum(used[pair] for pair in case.pairs()) + case.ranks))
        missing.difference_update(found[-1].pairs())
        used.update(found[-1].pairs())

    for _, group in itertools.groupby(possible, lambda case: (case.strategy, case.cause)):
        take(list(group))
    while missing:
        take([case for case in possible if case.pairs() & missing])
    return found


def crossings() -> list[Crossing]:
    """List all ordered pairs of strategies, numbers of ranks and causes in turn; and each with fewer and more ranks."""
    causes = itertools.cycle(["KILL step", "TERM step", "KILL shard"])
    counts = itertools.cycle([(2, 2), (2, 4), (4, 2), (2, 1), (1, 2)])
    found = []
    for first, second in itertools.permutations(STRATEGIES, 2):
        ranks, others = next(counts)
        ranks, others = 1 if first == "single" else ranks, 1 if second == "single" else others
        found.append(Crossing(first, ranks, second, others, next(causes)))
    for name, (ranks, others) in itertools.product(STRATEGIES[1:], [(2, 1), (1, 2)]):
        found.append(Crossing(name, ranks, name, others, next(causes)))
    return found


def tables() -> str:
    """Return the tables of docs/reliability.md."""
    all_cases, all_crossings = cases(), crossings()
    lines = [f"| interruption | {' | '.join(STRATEGIES)} |", "|---" * (len(STRATEGIES) + 1) + "|"]
    for cause, words in CAUSES.items():
        cells = [
            _cell([case for case in all_cases if (case.strategy, case.cause) == (name, cause)]) for name in STRATEGIES
        ]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{len(all_cases)} runs: ranks, whose end it is, and `w` with two loader workers. The second interruption:",
    ]
    for then, words in THEN.items():
        lines.append(f"{words}, {sum(case.then == then for case in all_cases)};")
    lines[-1] = lines[-1][:-1] + "."
    lines += ["", f"| from, to | {' | '.join(STRATEGIES)} |", "|---" * (len(STRATEGIES) + 1) + "|"]
    for first in STRATEGIES:
        cells = []
        for second in STRATEGIES:
            both = [c for c in all_crossings if (c.first, c.second) == (first, second)]
            cells.append(", ".join(f"{c.ranks}-{c.others}" for c in both))
        lines.append(f"| {first} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(found: list[Case]) -> str:
    return ", ".join(f"{case.ranks} {case.victim}{' w' * bool(case.workers)}" for case in found)


def page(text: str) -> str:
    """Return a page with the tables between its two marks."""
    begin, end = "<!-- tables of tests/multiproc/matrix.py -->\n", "<!-- end of tables -->"
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{tables()}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(tables(), end="")
    else:
        PAGE.write_text(page(PAGE.read_text()))
