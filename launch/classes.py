"""The classes that a configuration names, imported; what of them is not as their source said is refused here."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from importlib import import_module
from inspect import isroutine, signature
from typing import Any, get_args, get_type_hints

from jsonargparse import set_parsing_settings
from jsonargparse._util import get_import_path  # pinned in setup.cfg
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from launch.config.errors import ConfigError
from launch.config.parts import Parts
from launch.config.read import Key
from launch.registry import STRATEGIES

SORTS = {
    "model": LightningModule,
    "data": LightningDataModule,
    "strategy": Strategy,
    "callbacks": Callback,
    "loggers": Logger,
}


def imported(parts: Parts, part: Key) -> Any:
    """Return the class of a part, or a strategy's function of the registry; nothing of it is called.

    Raises:
        ConfigError: it cannot be imported, or is of another sort than its place needs.
    """
    path, key = parts.paths[part], ".".join((*part, "class"))
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key} = {path}: cannot be imported: {error}") from error
    if part == ("strategy",) and path in STRATEGIES.values():
        return found
    sort = SORTS[part[0]]
    if not (isinstance(found, type) and issubclass(found, sort)):
        raise ConfigError(f"{key} = {path}: not a Lightning {sort.__name__}")
    return found


def limit_imports(parts: Parts, kinds: Iterable[Any]) -> None:
    """Let jsonargparse import what the first pass has looked at, and nothing else that a value may name.

    It asks for the classes of annotations, and for defaults, by their names too; those are the code's, not a value's.
    """
    named = {
        path: getattr(import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in parts.importable
    }
    known = annotated([*kinds, *named.values()])
    set_parsing_settings(
        instantiate_subclass_spec_in_any=True, import_path_denylist=["*"], import_path_allowlist=[*named, *known]
    )


def annotated(kinds: Iterable[Any]) -> set[str]:
    """Return the names of what classes and functions are annotated with, or default to, and dataclasses among it."""
    found: set[str] = set()
    left, seen = list(kinds), set()
    while left:
        kind = left.pop()
        seen.add(kind)
        for hint in _hints(kind):
            names = {f"{hint.__module__}.{hint.__qualname__}", _importable_as(hint)}
            found |= {name for name in names if name and all(map(str.isidentifier, name.split(".")))}
            left += [hint] if is_dataclass(hint) and hint not in seen else []
    return found


def _hints(kind: Any) -> Iterator[Any]:
    """Yield the classes in annotations, and the classes and functions among the defaults, of a class with its bases."""
    for owner in getattr(kind, "__mro__", [kind]):
        function = owner.__init__ if isinstance(owner, type) else owner
        with suppress(NameError, TypeError, AttributeError):  # a name that is imported for checkers alone
            yield from (part for hint in get_type_hints(function).values() for part in _parts(hint))
        with suppress(ValueError, TypeError):  # written in C
            defaults = [argument.default for argument in signature(function).parameters.values()]
            yield from (it for it in defaults if isinstance(it, type) or isroutine(it))


def _importable_as(kind: Any) -> str | None:
    with suppress(ValueError, AttributeError):  # a function in a function
        return get_import_path(kind)
    return None


def _parts(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and hint.__module__ not in ("builtins", "jsonargparse"):
        yield hint
    for inner in get_args(hint):
        yield from _parts(inner) if not isinstance(inner, list) else ()
