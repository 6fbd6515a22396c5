"""The method of a run, from what its config.yaml says: one of ours, or a class of a user's own by its dotted path."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.foreign import run_above
from lightning_modules.core.yaml12 import read_options

if TYPE_CHECKING:
    from lightning_modules.core.base import Method


def options_of_run(run: Path) -> dict[str, Any]:
    """Read a run's configuration.

    Raises:
        CheckpointError: it is missing, or is not one.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{file}: is missing; model.init_from needs the whole folder of a run")
    try:
        options = read_options(file)
        return options if options["model"]["class"] else {}
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: is not the configuration of a run ({' '.join(str(error).split())})") from None


def method_of_run(run: Path) -> "Method":
    """Build the method of a run from its config.yaml, without networks.

    Raises:
        CheckpointError: no encoder can be taken of it, or its class does not take what the run was begun with.
    """
    kind = kind_of_run(run)
    if not kind.encoder_prefixes:
        raise CheckpointError(f"{run}: is a run of {kind.__name__}, of which no encoder can be taken")
    options = options_of_run(run)["model"]
    try:
        return kind(**{name: value for name, value in options.items() if name != "class"})
    except TypeError as error:
        raise CheckpointError(
            f"{run}: {kind.__name__} takes other options than those of its config.yaml: {error}"
        ) from error


def kind_of_run(run: Path) -> "type[Method]":
    """Import the class of a run's method: that of a folder of this package, or of a dotted path.

    Raises:
        CheckpointError: there is no such class, it lies in the run, or it is no method.
    """
    from lightning_modules.core.base import Method

    name = str(options_of_run(run)["model"]["class"])
    if "." in name:
        kind = _own(name, run)
    else:
        path = f"lightning_modules.{name}.module"
        if not name.isidentifier() or source_of(path) is None:
            raise CheckpointError(f"{run}: is a run of {name}, of which no encoder can be taken")
        kinds = [kind for kind in vars(import_module(path)).values() if isinstance(kind, type)]
        kind = next(kind for kind in kinds if issubclass(kind, Method) and kind.__module__ == path)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise CheckpointError(f"{run}: is a run of {name}, which is no Method; no encoder can be taken of it")
    return kind


def _own(name: str, run: Path) -> Any:
    """Import a class of a user's own, once its source is seen to have one of that name; nothing inside a run is."""
    module, _, kind = name.rpartition(".")
    file = source_of(module)
    if file is None:
        raise CheckpointError(f"{run}: is a run of {name}; there is no module {module} on the Python path")
    if inside := run_above(file, run):
        where = "the run itself" if Path(inside).resolve() == run.resolve() else f"the folder of a run, {inside}"
        raise CheckpointError(f"{run}: is a run of {name}, which lies in {where}; code in a run is not used")
    if kind not in _names(file):
        raise CheckpointError(f"{run}: is a run of {name}; {file} has no class {kind}")
    try:
        return getattr(import_module(module), kind)
    except ImportError as error:
        raise CheckpointError(f"{run}: is a run of {name}, which cannot be imported: {error}") from error


def source_of(module: str) -> Path | None:
    """Return the file of a module without importing its parents."""
    top, *rest = module.split(".")
    spec = find_spec(top) if all(map(str.isidentifier, (top, *rest))) else None
    if spec is None:
        return None
    if not rest and not spec.submodule_search_locations:
        return Path(spec.origin) if str(spec.origin).endswith(".py") else None
    bases = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
    files = [file for base in bases for file in (base / "__init__.py", base.with_suffix(".py"))]
    return next(filter(Path.is_file, files), None)


def _names(file: Path) -> set[str]:
    """Return the classes that a file defines and the names that it imports."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return set()
    imported = [node for node in body if isinstance(node, ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imported for alias in node.names}
    return names | {node.name for node in body if isinstance(node, ast.ClassDef)}
