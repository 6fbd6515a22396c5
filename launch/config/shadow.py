"""Signatures read from source: names, types, defaults and explanations of a class's arguments, nothing imported.

A type that cannot be read (a class of torch or Lightning) is `any`: the second pass, with the real classes, checks it.
"""

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launch.config.docs import argument_lines
from launch.config.kinds import ANY, Kind, union
from launch.config.source import Module, definition, lookup

REQUIRED = object()
COMPUTED = object()  # the default is an expression; only the real class knows its value
LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "set", "frozenset"}
DICTS = {"dict", "Dict", "Mapping"}
SIMPLE = {"int", "float", "bool", "str"}


@dataclass(frozen=True)
class Field:
    """One argument."""

    kind: Kind
    default: Any  # a value, REQUIRED or COMPUTED
    text: str  # its line of the docstring


@dataclass(frozen=True)
class Signature:
    """The arguments of a class or function."""

    name: str
    doc: str
    fields: dict[str, Field]
    open: bool  # takes **kwargs, so other names may be right


def signature(path: str) -> Signature:
    """Read the signature of `package.module.Class`, or of a function.

    Raises:
        NotFound: no source of that name.
    """
    node, module = definition(path)
    if isinstance(node, ast.ClassDef):
        return _class_signature(node, module)
    return _arguments(node.name, ast.get_docstring(node) or "", node.args, module, skip=0)


def _class_signature(node: ast.ClassDef, module: Module) -> Signature:
    doc = ast.get_docstring(node) or ""
    found = _constructor(node, module)
    if found is None:
        return Signature(node.name, doc, dict(_dataclass_fields(node, module)), open=False)
    constructor, owner, owners = found
    doc = f"{doc}\n\n{ast.get_docstring(constructor) or ''}"
    own = _arguments(node.name, doc, constructor.args, owners, skip=1)
    if not (own.open and _passes_on(constructor)):
        return own
    parent = next(_parents(owner, owners), None)
    if parent is None:
        return own
    inherited = _class_signature(*parent)
    return Signature(node.name, doc, {**own.fields, **inherited.fields, **own.fields}, inherited.open)


def _constructor(node: ast.ClassDef, module: Module) -> tuple[ast.FunctionDef, ast.ClassDef, Module] | None:
    """Return the class's own __init__ or the nearest inherited one, with the class that has it; None without one."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item, node, module
    if _is_dataclass(node):
        return None
    return next(filter(None, (_constructor(*parent) for parent in _parents(node, module))), None)


def _parents(node: ast.ClassDef, module: Module) -> Iterator[tuple[ast.ClassDef, Module]]:
    for base in node.bases:
        parent = lookup(module.target(base) or "")
        if parent and isinstance(parent[0], ast.ClassDef):
            yield parent


def _passes_on(constructor: ast.FunctionDef) -> bool:
    """Tell whether **kwargs go to the parent's constructor."""
    name = constructor.args.kwarg.arg
    return any(
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == "super().__init__"
        and any(word.arg is None and ast.unparse(word.value) == name for word in node.keywords)
        for node in ast.walk(constructor)
    )


def _is_dataclass(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def _dataclass_fields(node: ast.ClassDef, module: Module) -> Iterator[tuple[str, Field]]:
    texts = argument_lines(ast.get_docstring(node) or "")
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and str(after.value.value)
            kind = kind_of(item.annotation, module)
            yield item.target.id, Field(kind, _default(item.value, module), told or texts.get(item.target.id, ""))


def _arguments(name: str, doc: str, args: ast.arguments, module: Module, skip: int) -> Signature:
    positional = [*args.posonlyargs, *args.args]
    given = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    pairs = [*[*zip(positional, given, strict=True)][skip:], *zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    texts = argument_lines(doc)
    fields = {
        arg.arg: Field(kind_of(arg.annotation, module), _default(default, module), texts.get(arg.arg, ""))
        for arg, default in pairs
    }
    return Signature(name, doc, fields, open=args.kwarg is not None)


def _default(node: ast.expr | None, module: Module) -> Any:
    if node is None:
        return REQUIRED
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("field"):
        node = next((word.value for word in node.keywords if word.arg == "default"), None)
    try:
        return plain_value(ast.literal_eval(node)) if node else COMPUTED
    except ValueError:
        pass
    constant = lookup(module.target(node) or "")
    try:
        return plain_value(ast.literal_eval(constant[0])) if constant else COMPUTED
    except ValueError:
        return COMPUTED


def plain_value(value: Any) -> Any:
    """Return a default as YAML would give it: tuples and sets as lists."""
    return [plain_value(item) for item in value] if isinstance(value, tuple | set | list) else value


def kind_of(node: ast.expr | None, module: Module) -> Kind:
    """Read an annotation."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return kind_of(ast.parse(node.value, mode="eval").body, module)
        return Kind("none") if node.value is None else ANY
    if isinstance(node, ast.BinOp):
        return union(kind_of(node.left, module), kind_of(node.right, module))
    if isinstance(node, ast.Subscript):
        return _subscript(node, module)
    if isinstance(node, ast.Name | ast.Attribute):
        return _named(node, module)
    return ANY


def _subscript(node: ast.Subscript, module: Module) -> Kind:
    name = ast.unparse(node.value).rpartition(".")[2]
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return Kind("literal", tuple(ast.literal_eval(item) for item in items))
    kinds = [kind_of(item, module) for item in items if not isinstance(item, ast.Constant) or item.value is not ...]
    if name == "Optional":
        return union(kinds[0], Kind("none"))
    if name == "Union":
        return union(*kinds)
    if name == "Annotated":
        return kinds[0]
    if name in LISTS:
        return Kind("list", (kinds[0],))
    if name in DICTS:
        return Kind("dict", (kinds[-1],))
    if name in ("tuple", "Tuple"):
        return Kind("list", (kinds[0],)) if len(items) > len(kinds) else Kind("tuple", tuple(kinds))
    return ANY


def _named(node: ast.expr, module: Module) -> Kind:
    name = ast.unparse(node).rpartition(".")[2]
    if name in SIMPLE and name not in module.defined and hasattr(builtins, name):
        return Kind(name)
    if name in LISTS:
        return Kind("list", (ANY,))
    if name in DICTS:
        return Kind("dict", (ANY,))
    if name in ("Path", "PathLike"):
        return Kind("str")
    found = lookup(module.target(node) or "")
    if found and _is_dataclass(found[0]):
        return Kind("fields", (found[0].name,), dict(_dataclass_fields(*found)))
    return kind_of(*found) if found and isinstance(found[0], ast.expr) else ANY
