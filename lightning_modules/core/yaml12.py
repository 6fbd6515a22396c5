"""Scalars of YAML 1.2, and a run's config.yaml in them: PyYAML's own rules read `no` as False and 1e-06 as a string."""

import re
from pathlib import Path
from typing import Any

import yaml

LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # resolves nothing: every scalar is text
WORDS = {"": None, "~": None} | {w: v for low, v in [("null", None), ("true", True), ("false", False)]
                                 for w in (low, low.capitalize(), low.upper())}  # fmt: skip
INTEGER = re.compile(r"[-+]?[0-9]+")
MAX_DIGITS = 400
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def plain(text: str) -> Any:
    """Return what an unquoted scalar means in YAML 1.2."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text) if len(text) <= MAX_DIGITS else text  # Python refuses to read longer ones
    if FLOAT.fullmatch(text):
        return float(text.replace(".i", "i").replace(".I", "i").replace(".n", "n").replace(".N", "n"))
    return text


def read_options(file: Path) -> dict[str, Any]:
    """Read the configuration that a run has written down; what stands in quotes stays a string.

    Raises:
        OSError, yaml.YAMLError: it cannot be read.
        TypeError: it is no mapping.
    """
    found = _value(yaml.compose(file.read_text(encoding="utf-8"), LOADER))
    if not isinstance(found, dict):
        raise TypeError("it is no mapping")
    return found


def _value(node: yaml.Node | None) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {name.value: _value(value) for name, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        return plain(node.value) if not node.style else node.value
    return None
