"""Writing a table as YAML whose comments are the sources; read again, it gives the same configuration."""

import json
import math
import re
from typing import Any

from launch.config.errors import one_line
from launch.config.read import Entry, Key, Table, plain

SAFE = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~+@ -]*(?<! )")
COMMENT_COLUMN = 44


def scalar(value: Any) -> str:
    """Return a value as YAML 1.2 on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return (
            repr(value) if math.isfinite(value) else {"nan": ".nan"}.get(str(value), str(value).replace("inf", ".inf"))
        )
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str) and not (SAFE.fullmatch(value) and plain(value) == value):
        return one_line(json.dumps(value, ensure_ascii=False))
    return str(value)


def lines(table: Table, sources: bool = True) -> str:
    """Return the table as YAML text, each value with the file and line, the flag or the default it comes from."""
    text: list[str] = []
    above: Key = ()
    for key, entry in table.items():
        shared = next((n for n, (a, b) in enumerate(zip(above, key[:-1], strict=False)) if a != b), None)
        shared = min(len(above), len(key) - 1) if shared is None else shared
        if not shared and text and (len(key) > 1 or len(above)):
            text.append("")
        text += [f"{'  ' * depth}{scalar(key[depth])}:" for depth in range(shared, len(key) - 1)]
        text.append(_line(key, entry, sources))
        above = key[:-1]
    return "\n".join(text) + "\n"


def _line(key: Key, entry: Entry, sources: bool) -> str:
    words = f"{'  ' * (len(key) - 1)}{scalar(key[-1])}: {scalar(entry.value)}"
    return f"{words:<{COMMENT_COLUMN}}  # {one_line(entry.source)}" if sources else words


def named(key: Key | str, entry: Entry) -> str:
    """Return `key = value (source)`, the beginning of a complaint."""
    name = key if isinstance(key, str) else ".".join(key)
    words = scalar(entry.value)
    return f"{name} = {words if len(words) < 80 else words[:76] + ' ...'} ({entry.source})"
