"""What a class that a configuration names must be, seen in its source: nothing is imported to find out.

A part is of the sort that its place needs. Classes below a part (`class_path`) are Lightning's and torch's, ours, or of
the part's own package; which of them fits is for the second pass. A function is never called by its name, save the
strategies of the registry. No module lies in a run's folder.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from launch import LEFT_OUT
from launch.config.errors import short
from launch.config.read import Entry, Key, Table
from launch.config.source import Module, NotFound, definition, lookup, source_file
from launch.registry import GROUPS
from lightning_modules.core.foreign import run_above

SORTS = {
    "model": "lightning.pytorch.LightningModule",
    "data": "lightning.pytorch.LightningDataModule",
    "strategy": "lightning.pytorch.strategies.Strategy",
    "callbacks": "lightning.pytorch.Callback",
    "loggers": "lightning.pytorch.loggers.Logger",
}
BELOW = (
    *SORTS.values(),
    "lightning.pytorch.accelerators.Accelerator",
    "lightning.pytorch.profilers.Profiler",
    "torch.nn.Module",
    "torch.optim.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
)
# Where such a class must be defined: those of other packages may open files with code of their own, or run it.
HOMES = ("torch.nn", "torch.optim", "lightning", "lightning_modules", "datamodules", "callbacks")
FIX = "which is data: no code is imported from it; if the code is yours, move it to another folder"
# Classes of Lightning whose gradients and checkpoints are not handled as they come, or that nobody can make.
OTHERS = {
    "DeepSpeedStrategy": "is not used as it is; give zero1, zero2 or zero3",
    "FSDPStrategy": "is not used as it is; give fsdp",
    "ModelParallelStrategy": "is not used as it is; give fsdp",
    "ParallelStrategy": "is abstract; give ddp, fsdp, or a class that is derived from it",
    "Strategy": "is abstract; give one of the names, or a class that is derived from it",
}
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
DOTTED_LENGTH = 200


def check_part(part: Key, path: str, runs: list[str]) -> None:
    """Check the class of a part.

    Raises:
        NotFound: there is none, it is of another sort, or its code lies in a run's folder.
    """
    check_place(path, runs)
    sort = SORTS[part[0]]
    if path in GROUPS[part[0]].values():
        return
    node, _ = definition(path)
    if isinstance(node, ast.FunctionDef):
        raise NotFound(f"is a function, and none is called by its name; {_wanted(part[0])}")
    if is_a(path, (sort,)) is False:
        raise NotFound(f"not a Lightning {sort.rpartition('.')[2]}; {_wanted(part[0])}")
    for name, reason in OTHERS.items() if part[0] == "strategy" else ():
        if _full(lookup(path)) == _full(lookup(f"lightning.pytorch.strategies.{name}")):
            raise NotFound(reason)


def _wanted(group: str) -> str:
    return f"give one of {', '.join(GROUPS[group])}, or a dotted path to a class of that sort"


def check_place(path: str, runs: list[str]) -> None:
    """Refuse a dotted path that would import, or run the rules of, a module in a run's folder.

    Raises:
        NotFound: naming the folder.
    """
    found = lookup(path)
    for name in {path.rpartition(".")[0], *([found[1].name] if found else [])}:
        pieces = name.split(".")
        modules = [".".join(pieces[:length]) for length in range(1, len(pieces) + 1)]
        for module in [*modules, f"{name.rpartition('.')[0] or name}.rules"]:
            file = source_file(module)
            if file and (run := run_above(file, *runs)):
                raise NotFound(f"its code is {short(file)}, in the folder of a run ({short(run)}), {FIX}")
    if not found and LEFT_OUT:
        raise NotFound(f"there is no module of that name outside of {short(LEFT_OUT[0])}, the folder of a run, {FIX}")


def is_a(path: str, sorts: tuple[str, ...], seen: tuple[str, ...] = ()) -> bool | None:
    """Tell whether a class descends from one of some classes; None where one of its bases has no source to look at."""
    found = lookup(path)
    if path in seen or not found or not isinstance(found[0], ast.ClassDef):
        return None
    if _full(found) in {_full(origin) for sort in sorts if (origin := lookup(sort))}:
        return True
    answers = [_base_is_a(base, found[1], sorts, (*seen, path)) for base in found[0].bases]
    return True if True in answers else None if None in answers else False


def _base_is_a(base: ast.expr, module: Module, sorts: tuple[str, ...], seen: tuple[str, ...]) -> bool | None:
    base = base.value if isinstance(base, ast.Subscript) else base
    if target := module.target(base):
        return is_a(target, sorts, seen)
    return False if isinstance(base, ast.Name) and hasattr(builtins, base.id) else None


def _full(found: tuple[ast.AST, Module]) -> str:
    return f"{found[1].name}.{getattr(found[0], 'name', '')}"


def check_below(part: str, path: Any, runs: list[str]) -> None:
    """Check a class path below a part, of the class `part`.

    Raises:
        NotFound: it is none, no class, of no sort that may be made, or its code lies in a run's folder.
    """
    if not isinstance(path, str) or "." not in path:
        raise NotFound("expected a dotted path to a class")
    check_place(path, runs)
    node, module = definition(path)
    if isinstance(node, ast.FunctionDef):
        raise NotFound("is a function, and none is called by its name; give a class")
    same = module.name.partition(".")[0] == part.partition(".")[0]
    at_home = any(f"{module.name}.".startswith(f"{home}.") for home in HOMES)
    if not same and not (at_home and is_a(path, BELOW)):
        known = ", ".join(sort.rpartition(".")[2] for sort in BELOW)
        raise NotFound(
            f"is no class that may be made here: those are {known} of {', '.join(HOMES[:3])}, and classes of the "
            f"package of {part}"
        )


def class_paths(part: Key, table: Table) -> Iterator[tuple[Key, Entry, Any]]:
    """Yield what stands under `class_path`, at any depth below a part, with its key and entry."""
    for key, entry in table.items():
        if key[: len(part)] == part and len(key) > len(part):
            yield from ((key, entry, value) for name, value in _words(key[-1], entry.value) if name == "class_path")


def importable(part: str, table: Table, runs: list[str]) -> set[str]:
    """Return all words below the parts of a table that name classes which may be made, and where those are defined."""
    found: set[str] = set()
    for key, entry in table.items():
        for name, word in _words(key[-1], entry.value):
            if name != "class" and isinstance(word, str) and DOTTED.fullmatch(word) and len(word) <= DOTTED_LENGTH:
                with suppress(NotFound, SyntaxError):
                    check_below(part, word, runs)
                    found |= {word, _full(lookup(word))}
    return found


def _words(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values inside a value, each with the nearest name above it."""
    if isinstance(value, dict) and name != "class_path":
        for inner, item in value.items():
            yield from _words(inner, item)
    elif isinstance(value, list) and name != "class_path":
        for item in value:
            yield from _words(name, item)
    else:
        yield name, value
