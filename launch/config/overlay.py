"""Merging: the words of the command line, left to right, file over file and flag over file, into one table."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.core.addresses import address_problem
from launch.config.errors import ConfigError, one_line, short
from launch.config.read import MAX_KEYS, Entry, Key, Table, plain, read_file, read_text

PROJECT = Path(__file__).parents[2]
# A string where a mapping is expected is short for a mapping with this one key.
SHORTHAND = {("model",): "class", ("data",): "class", ("strategy",): "class", ("data", "tokenizer"): "name"}
NAMED = ("callbacks", "loggers")  # mappings of parts, each with a class, by default the one called like the part
NOTHING = Entry(None, "")
MAX_FILES = 100  # two files that each extend the next one twice, and so on, double at every level


def find_file(path: str) -> Path:
    """Return the file: from the working directory, or else from the project root.

    Raises:
        ConfigError: it is in neither place.
    """
    for candidate in (expanded(path, "--config"), PROJECT / path):
        if os.path.exists(candidate):  # Path.exists raises for a name that is too long
            return candidate
    shipped = [file for file in PROJECT.glob("configs/*/*.yaml") if file.name == Path(path).name]
    near = sorted(file.relative_to(PROJECT).as_posix() for file in shipped)
    hint = f"; did you mean {' or '.join(near[:3])}?" if near else f", neither here nor in {PROJECT}"
    raise ConfigError(f"--config {short(path)}: no such file{hint}")


def expanded(path: str, key: str) -> Path:
    """Return a path whose `~` is somebody's home.

    Raises:
        ConfigError: there is no such user, or it is the address of another store.
    """
    if problem := address_problem(path):
        raise ConfigError(f"{key} = {short(path)}: {problem}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{key} = {short(path)}: there is no such user; write the folder out") from None


def apply_file(
    table: Table, path: Path, notes: list[str], above: tuple[Path, ...] = (), read: list[Path] | None = None
) -> None:
    """Lay a file over the table, after the files that it extends; `read` counts them.

    Raises:
        ConfigError: all mistakes of these files that can be told apart.
    """
    name, problems, read = shown(path), [], [] if read is None else read
    if len(read) >= MAX_FILES:
        raise ConfigError(
            f"{shown(read[0])}: extends more than {MAX_FILES} files, counting each time that one is named"
        )
    read.append(path)
    upper = read_file(path, name)
    extends = upper.pop(("extends",), Entry([], name))
    names = [extends.value] if isinstance(extends.value, str) else extends.value
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise ConfigError(f"extends = {names!r} ({extends.source}): expected a list of files, relative to this one")
    for item in names:
        try:
            lower = path.parent / expanded(item, "extends")
            if not os.path.exists(lower):
                raise ConfigError(f"extends = {short(item)!r} ({extends.source}): no such file as {shown(lower)}")
            if lower.resolve() in [p.resolve() for p in (*above, path)]:
                raise ConfigError(f"extends = {item!r} ({extends.source}): the file extends itself")
            apply_file(table, lower, notes, (*above, path), read)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    overlay(table, upper, notes)


def apply_flag(table: Table, name: str, word: str, notes: list[str]) -> None:
    """Lay one `--name word` over the table; a word in brackets, braces or quotes is read as YAML."""
    source = f"--{one_line(name)}"
    if word[:1] in ("{", "[", '"', "'"):
        found = read_text(f"{name}: {word}", source, line=False)
        overlay(table, {key: Entry(entry.value, source) for key, entry in found.items()}, notes)
    elif "${" in word:
        raise ConfigError(f"{name} = {word!r} ({source}): there is no ${{...}}; write the value itself")
    else:
        overlay(table, {tuple(name.split(".")): Entry(plain(word), source, word)}, notes)


def overlay(table: Table, upper: Table, notes: list[str]) -> None:
    """Lay one table over another, in place. Another class takes the options of the old one away, with a note."""
    upper = dict(_expanded(key, entry) for key, entry in upper.items())
    if len(upper) + len(table) > MAX_KEYS:
        source = next(iter(upper.values())).source
        raise ConfigError(
            f"{source}: {len(upper):,} more keys beside {len(table):,}; a configuration has at most {MAX_KEYS:,}"
        )
    for key, entry in sorted(upper.items(), key=lambda item: item[0][-1] != "class"):  # classes first
        below = [k for k in table if k[: len(key)] == key and k != key]
        if entry.value == {} and (below or table.get(key, NOTHING).value == {}):
            continue  # an empty mapping changes nothing, but it brings back what null took away
        if key[-1] == "class":
            _drop_options(table, key[:-1], entry, notes)
        for k in below:  # a scalar, a list or null replaces all below it
            del table[k]
        for length in range(1, len(key)):  # a mapping replaces a scalar
            table.pop(key[:length], None)
        table[key] = entry


def _expanded(key: Key, entry: Entry) -> tuple[Key, Entry]:
    short = SHORTHAND.get(key, "class" if len(key) == 2 and key[0] in NAMED else None)
    return ((*key, short), entry) if short and isinstance(entry.value, str) else (key, entry)


def _drop_options(table: Table, part: Key, entry: Entry, notes: list[str]) -> None:
    default = part[-1] if part[0] in NAMED else None
    old = table.get((*part, "class"), Entry(default, "")).value
    if old is None or old == entry.value:
        return
    gone = [k for k in table if k[: len(part)] == part and k[-1] != "class"]
    for key in gone:
        del table[key]
    if gone:
        names = ", ".join(".".join(k[len(part) :]) for k in gone)
        notes.append(f"{'.'.join(part)}: {entry.value} ({entry.source}) replaces {old}, its options go: {names}")


def nested(table: Table) -> dict[str, Any]:
    """Return the table as nested dictionaries."""
    root: dict[str, Any] = {}
    for key, entry in table.items():
        node = root
        for name in key[:-1]:
            node = node.setdefault(name, {})
        node[key[-1]] = entry.value
    return root


def under(table: Table, part: Key) -> Iterator[tuple[Key, Entry]]:
    """Yield the entries strictly below a key."""
    return ((key, entry) for key, entry in table.items() if key[: len(part)] == part and len(key) > len(part))


def shown(path: Path) -> str:
    """Return a path as messages call it: relative to the working directory or the project if it lies there."""
    full = Path(os.path.realpath(path)) if os.path.exists(path) else path
    for root in (Path.cwd(), PROJECT):
        if full.is_relative_to(root):
            return short(full.relative_to(root).as_posix())
    return short(full)
