# ruff: noqa: UP045, D417, B006
"""The signatures that are read from source are those of the real classes."""

import importlib
import inspect
import sys
import typing
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Optional

import pytest
from lightning.pytorch import Trainer

from launch.config.defaults import FIXED_TRAINER, RESERVED, Run
from launch.config.docs import argument_lines, first_sentence
from launch.config.kinds import ANY, Kind, union
from launch.config.shadow import COMPUTED, REQUIRED, Signature, plain_value, signature
from launch.config.source import NotFound, base_names, source_file
from launch.registry import GROUPS, RUN, TRAINER

PLAIN = {int: "int", float: "float", bool: "bool", str: "str", NoneType: "none", list: "list", dict: "dict"}
ENTRIES = {f"{group}.{name}": path for group, known in GROUPS.items() for name, path in known.items()}


def real_kind(annotation: Any) -> Kind:
    """Return the kind of a real annotation of our own classes; what it does not know fails the test."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, UnionType):
        return union(*map(real_kind, args))
    if origin is Literal:
        return Kind("literal", args)
    if origin in (list, dict):
        return Kind(PLAIN[origin], (real_kind(args[-1]),))
    if origin is tuple:
        return Kind("list", (real_kind(args[0]),)) if args[-1] is ... else Kind("tuple", tuple(map(real_kind, args)))
    if is_dataclass(annotation):
        return Kind("fields", (annotation.__name__,))
    return Kind("str") if annotation is Path else Kind(PLAIN[annotation])


def compare(shadow: Signature, real: Any, exact: bool) -> None:
    parameters = [p for p in inspect.signature(real).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert [*shadow.fields] == [p.name for p in parameters]
    for parameter in parameters:
        field = shadow.fields[parameter.name]
        if parameter.default is parameter.empty:
            assert field.default is REQUIRED, parameter
        else:
            assert field.default is COMPUTED or field.default == plain_value(parameter.default), parameter
            assert not exact or field.default is not COMPUTED, f"{parameter}: give a literal as the default"
        if exact:
            assert field.kind == real_kind(parameter.annotation), parameter
            assert field.text, f"{parameter}: the docstring does not explain it"
            compare_dataclass(field.kind, parameter.annotation)


def compare_dataclass(kind: Kind, annotation: Any) -> None:
    inner = next((k for k in (kind, *kind.args) if isinstance(k, Kind) and k.name == "fields"), None)
    real = next((a for a in (annotation, *typing.get_args(annotation)) if is_dataclass(a)), None)
    assert (inner is None) == (real is None)
    if inner:
        assert {n: f.kind for n, f in inner.fields.items()} == {f.name: real_kind(f.type) for f in fields(real)}
        for name, field in inner.fields.items():
            compare_dataclass(field.kind, next(f.type for f in fields(real) if f.name == name))


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_registry_entry(entry: str) -> None:
    path = ENTRIES[entry]
    module, _, name = path.rpartition(".")
    shadow = signature(path)
    assert not shadow.open, "no **kwargs in constructors of ours"
    assert first_sentence(shadow.doc)
    compare(shadow, getattr(importlib.import_module(module), name), exact=True)


def test_the_trainer_and_the_run() -> None:
    ours, theirs = signature(TRAINER), signature("lightning.pytorch.Trainer")
    own = {name: ours.fields[name] for name in ("activation_checkpointing", "compile_layers")}
    assert ours.fields == own | theirs.fields and not ours.open
    compare(theirs, Trainer, exact=False)
    compare(signature(RUN), Run, exact=True)
    texts = {name: field.text for name, field in signature(TRAINER).fields.items()}
    assert texts["devices"].startswith("The devices to use.")
    assert [name for name, text in texts.items() if not text] == []


def test_reserved_keys_exist() -> None:
    names = set(signature(TRAINER).fields)
    assert set(RESERVED) <= names
    assert set(FIXED_TRAINER) <= set(RESERVED)


@dataclass
class Inner:
    width: int
    depth: "int | None" = 3


FIVE = 5


class Base:
    def __init__(
        self, a: Optional[int] = FIVE, *, b: list["str"] = ("x",), c: "Inner | None" = None, **more: int
    ) -> None:
        """Take things.

        Args:
            a (int): The first:
                with a colon.
            **more: Everything else.

        Returns:
            nothing: no argument.
        """


class Child(Base):
    """A child without a constructor."""


class Grand(Child, dict): ...


class Passing(Child):
    def __init__(self, d: float = 0.5, a: int = 6, **kwargs: int) -> None:
        super().__init__(**kwargs)


Alias = Literal["u", "v"]


def function(
    x: Alias, y: typing.Union[int, "Alias", None] = -1, z: dict[str, int] = dict(a=1), w: typing.Any = None
) -> None: ...


HERE = __name__ if "." in __name__ else "tests.unit.test_config_shadow"


def test_inherited_constructors_constants_and_dataclasses() -> None:
    found = signature(f"{HERE}.Grand")
    assert {name: (str(f.kind), f.default) for name, f in found.fields.items()} == {
        "a": ("int or null", 5), "b": ("list of str", ["x"]), "c": ("a mapping of width, depth or null", None),
    }  # fmt: skip
    assert found.open
    assert found.fields["a"].text == "The first: with a colon."
    inner = found.fields["c"].kind.args[0].fields
    assert (str(inner["depth"].kind), inner["depth"].default, inner["width"].default) == ("int or null", 3, REQUIRED)
    assert base_names(f"{HERE}.Grand")[:3] == [f"{HERE}.Grand", f"{HERE}.Child", f"{HERE}.Base"]


def test_words_that_are_passed_on() -> None:
    found = signature(f"{HERE}.Passing")
    assert {name: field.default for name, field in found.fields.items()} == {"d": 0.5, "a": 6, "b": ["x"], "c": None}
    assert found.open, "the parent takes any word too"


def test_functions_aliases_and_computed_defaults() -> None:
    found = signature(f"{HERE}.function").fields
    assert found["x"].kind == Kind("literal", ("u", "v"))
    assert found["x"].default is REQUIRED
    assert (found["y"].kind, found["y"].default) == (
        union(Kind("int"), Kind("literal", ("u", "v")), Kind("none")), -1)  # fmt: skip
    assert found["z"].default is COMPUTED
    assert found["w"].kind == ANY


def test_sources_are_found_without_importing() -> None:
    before = set(sys.modules)
    assert source_file("xml.dom.minidom").name == "minidom.py"
    assert source_file("xml.dom").name == "__init__.py"
    assert source_file("this_is_no_package.x") is None
    assert source_file("sys") is None
    assert "xml.dom.minidom" in before or "xml.dom.minidom" not in sys.modules
    with pytest.raises(NotFound, match="has no class Bse; did you mean Base"):
        signature(f"{HERE}.Bse")


def test_docstrings_of_both_layouts() -> None:
    text = "One. Two.\n\nArgs:\n    a: First\n        goes on.\n\n    b: Second.\n\nRaises:\n    c: no.\n"
    assert argument_lines(text) == {"a": "First goes on.", "b": "Second."}
    assert argument_lines("Args:\n    `a`: x\n    **kw: y\n") == {"a": "x", "kw": "y"}
    assert argument_lines("nothing") == {}
    assert first_sentence("One\ntwo. Three.\n\nFour.") == "One two."
