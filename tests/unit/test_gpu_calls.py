"""Every call of tests/gpu fits the signature of what it calls: what cannot run here is at least called rightly."""

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

OURS = ("lightning_modules.", "datamodules.", "callbacks.", "launch.", "tests.")
FILES = sorted((Path(__file__).parents[1] / "gpu").glob("test_*.py"))
SOME_OF = {
    "test_cuda": {"attend", "_varlen", "_jagged", "Encoder", "draw_slots", "objective", "total", "set_rates"},
    "test_cuda_memory": {"plan_of", "peak", "build", "objective", "build_optimizer"},
}
UNKNOWN = object()


class Instance(NamedTuple):
    """An object of a class that is known, of which nothing else is."""

    kind: type


class Calls:
    """The calls of a file, with what they call as far as its imports, classes and annotations tell."""

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        self.names: dict[str, Any] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module != "tests.gpu.needed":
                self.names |= {alias.asname or alias.name: _imported(node.module, alias.name) for alias in node.names}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef):
                result = self.value(node.returns) if node.returns is not None else UNKNOWN
                self.names[node.name] = _function(node, result)

    def value(self, node: ast.expr) -> Any:
        """Return what an expression is, an Instance of its class, or UNKNOWN."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            of = self.value(node.value)
            return getattr(of.kind if isinstance(of, Instance) else of, node.attr, UNKNOWN)
        if isinstance(node, ast.Subscript):
            of = self.value(node.value)
            return list(of.values()) if isinstance(of, dict) else UNKNOWN
        if isinstance(node, ast.Call):
            called = self.value(node.func)
            kind = called if isinstance(called, type) else getattr(called, "__annotations__", {}).get("return")
            return Instance(kind) if isinstance(kind, type) else UNKNOWN
        return UNKNOWN

    def assign(self, targets: list[ast.expr], value: ast.expr) -> None:
        """Remember what a name is bound to; of several names, one by one."""
        for target in targets:
            if isinstance(target, ast.Name):
                self.names[target.id] = self.value(value)
            elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for one, its in zip(target.elts, value.elts, strict=True):
                    self.assign([one], its)

    def ours(self) -> Iterator[tuple[ast.Call, Any, bool]]:
        """Yield every call of something of the project, what is called, and whether it gets itself first."""
        for function in [node for node in self.tree.body if isinstance(node, ast.FunctionDef)]:
            before = dict(self.names)
            for node in sorted(ast.walk(function), key=lambda node: getattr(node, "lineno", 0)):
                if isinstance(node, ast.Assign):
                    self.assign(node.targets, node.value)
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    of = self.value(node.func.value) if isinstance(node.func, ast.Attribute) else None
                    called = self.value(node.func)
                    for one in called if isinstance(called, list) else [called]:
                        if callable(one) and f"{getattr(one, '__module__', '')}.".startswith(OURS):
                            yield node, one, isinstance(of, Instance) and inspect.isfunction(one)
            self.names = before


def _imported(module: str, name: str) -> Any:
    found = import_module(module)
    return getattr(found, name) if hasattr(found, name) else import_module(f"{module}.{name}")


def _function(node: ast.FunctionDef, result: Any) -> Any:
    """Return a function of the file itself, which cannot be imported, with its signature."""
    scope: dict[str, Any] = {}
    exec(f"def {node.name}({ast.unparse(node.args)}): ...", {}, scope)
    scope[node.name].__module__ = "tests.gpu"
    scope[node.name].__annotations__ = {"return": result}
    return scope[node.name]


def bind(call: ast.Call, called: Any, has_self: bool) -> None:
    """Raise TypeError if a call does not fit; after a starred argument no argument can be missing for sure."""
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    starred = starred or any(keyword.arg is None for keyword in call.keywords)
    signature = inspect.signature(called)
    given = [None] * (len([a for a in call.args if not isinstance(a, ast.Starred)]) + has_self)
    named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    (signature.bind_partial if starred else signature.bind)(*given, **named)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_calls_of_the_gpu_tests_fit_their_signatures(file):
    found = list(Calls(file.read_text()).ours())
    for call, called, has_self in found:
        try:
            bind(call, called, has_self)
        except TypeError as error:
            pytest.fail(f"{file.name}:{call.lineno}: {called.__qualname__}: {error}")
    assert {called.__name__ for _, called, _ in found} >= SOME_OF[file.stem]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("attention.KERNELS[kernel](q, q, q, layout, None)", "missing a required argument: 'scale'"),
        ("attention.attend(q, q, q, layout, window=3)", "unexpected keyword argument 'window'"),
        ("made().objective(batch)", "missing a required argument: 'key'"),
        ("made(3)", "too many positional"),
        ("Electra(hidden=3)", "unexpected keyword argument 'hidden'"),
    ],
)
def test_a_call_that_does_not_fit_is_found(line, problem):
    source = "from lightning_modules.core import attention\nfrom lightning_modules.electra.module import Electra\n"
    source += f"def made() -> Electra: ...\ndef test(q, layout, batch, kernel):\n    {line}\n"
    with pytest.raises(TypeError, match=problem):
        for call, called, has_self in Calls(source).ours():
            bind(call, called, has_self)


def test_what_is_not_of_the_project_is_left_alone():
    assert not list(Calls("def test(x):\n    x.cuda().sum(1, 2, 3, 4)\n    len(1, 2)\n").ours())
