"""Where classes are defined: modules, their names and their imports, read from source without importing anything."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from launch.config.errors import meant


class NotFound(Exception):
    """There is no such module, or no such class in it; the message is a rule for a ConfigError."""


def source_file(module: str) -> Path | None:
    """Return the file of a module, by the finders of the top name only: a dotted one would import its parents."""
    top, *rest = module.split(".")
    for finder in sys.meta_path:
        spec = finder.find_spec(top, None) if hasattr(finder, "find_spec") else None
        if spec is None:
            continue
        folders = [Path(p) for p in spec.submodule_search_locations or []]
        if not rest and not folders and spec.origin and spec.origin.endswith(".py"):
            return Path(spec.origin)  # of a module that is frozen into Python, a later finder knows the source
        for folder in folders:
            base = folder.joinpath(*rest)
            for file in (base / "__init__.py", base.with_suffix(".py")):
                if file.is_file() and (rest or file.name == "__init__.py"):
                    return file
    return None


class Module:
    """The names that a module defines or imports at its top level."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        self.defined: dict[str, ast.AST] = {}
        self.imported: dict[str, str] = {}
        self.stars: list[str] = []  # modules of which all names are imported
        for node in _top_level(ast.parse(file.read_text(encoding="utf-8")).body):
            self._note(node)

    def _note(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            self.defined[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            self.defined[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            self.defined[node.target.id] = node.value
        elif isinstance(node, ast.Import):
            for alias in node.names:
                self.imported[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                if alias.name == "*":
                    self.stars.append(origin)
                else:
                    self.imported[alias.asname or alias.name] = f"{origin}.{alias.name}"

    def target(self, node: ast.expr) -> str | None:
        """Return the dotted name that an expression such as `base.Method` stands for."""
        first, _, rest = ast.unparse(node).partition(".")
        if first in self.defined:
            return f"{self.name}.{first}"
        if first in self.imported:
            return self.imported[first] + (f".{rest}" if rest else "")
        return None


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):  # imports inside `try:` and `if TYPE_CHECKING:`
            yield from _top_level([*node.body, *node.orelse])


@cache
def _module(name: str) -> Module | None:
    file = source_file(name)
    return Module(name, file) if file else None


def lookup(path: str, hops: int = 8) -> tuple[ast.AST, Module] | None:
    """Find what `package.module.name` is defined as, through imports and re-exports."""
    name = path.rpartition(".")[2]
    module = _module(path.rpartition(".")[0]) if "." in path else None
    if module is None or name in module.defined:
        return (module.defined[name], module) if module else None
    origins = [module.imported[name]] if name in module.imported else [f"{star}.{name}" for star in module.stars]
    return next(filter(None, (lookup(origin, hops - 1) for origin in origins)), None) if hops else None


def definition(path: str) -> tuple[ast.ClassDef | ast.FunctionDef, Module]:
    """Find a class or function.

    Raises:
        NotFound: no such module, or nothing of that name in it.
    """
    found = lookup(path)
    if found and isinstance(found[0], ast.ClassDef | ast.FunctionDef):
        return found
    module_name, _, name = path.rpartition(".")
    module = _module(module_name) if module_name else None
    if module is None:
        raise NotFound(f"there is no module {module_name or path} on the Python path, or it has no source to read")
    raise NotFound(f"module {module_name} has no class {name}{meant(name, [*module.defined])}")


def base_names(path: str, below: tuple[str, ...] = ()) -> list[str]:
    """Return the dotted names of a class and of its bases, as far as sources say."""
    found = lookup(path) if path not in below else None  # a source may say that a class is its own base
    bases = found[0].bases if found and isinstance(found[0], ast.ClassDef) else []
    targets = filter(None, (found[1].target(base) for base in bases))
    return [path, *(name for target in targets for name in base_names(target, (*below, path)))]
