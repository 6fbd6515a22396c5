"""YAML 1.2 text -> flat table: (key, path) -> value with the file and line it stands in.

Only what a configuration needs: mappings, lists, strings, numbers, true, false, null. No tags, anchors or aliases, one
document, keys once. PyYAML's own rules would read `no` as False, `1:30` as 90 and `5e-4` as a string.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from launch.config.errors import ConfigError
from lightning_modules.core.yaml12 import LOADER, plain

MAX_DEPTH = 20
MAX_BYTES = 16 << 20
MAX_KEYS = 2000  # of a configuration: each is compared with the others
MAX_EVENTS = 100_000  # words, brackets and the like of a file
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

Key = tuple[str, ...]


DEFAULT = "default"  # the source of a value that nobody gave


class Entry(NamedTuple):
    """A value and where it was given; `text` is the unquoted word of a flag, which may also be meant as a string."""

    value: Any
    source: str
    text: str | None = None


Table = dict[Key, Entry]


def read_file(path: Path, name: str) -> Table:
    """Read a file into a table; `name` is how messages call it.

    Raises:
        ConfigError: the file cannot be read, or is no YAML as above; all mistakes that can be told apart.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{name}: is a folder, not a YAML file")
        if not path.is_file():  # reading a pipe may wait for ever
            raise ConfigError(f"{name}: is not a regular file; save the configuration in one")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # its size may be told wrongly, as in /proc
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{name}: is over {MAX_BYTES >> 20} MiB, which is no configuration")
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: not UTF-8 text; save the file as UTF-8") from None
    return read_text(text, name)


def read_text(text: str, name: str, line: bool = True) -> Table:
    """Read YAML text into a table; see `read_file`. Without `line`, the sources are the bare name, as for a flag."""
    reader = _Reader(name, line)
    reader.check_events(text)
    node = yaml.compose(text, LOADER)
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        raise ConfigError(f"{name}: empty; take the file off the command line or write a key into it")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{reader.where(node)}: the top of the file must be `key: value` lines")
    reader.leaves(node, ())
    if reader.problems:
        raise ConfigError(*reader.problems)
    return reader.table


class _Reader:
    def __init__(self, name: str, line: bool) -> None:
        self.name, self.line = name, line
        self.table: Table = {}
        self.above: dict[Key, str] = {}  # every key above a leaf, with the source of its first leaf
        self.problems: list[str] = []

    def where(self, at: yaml.Node | yaml.Event) -> str:
        return f"{self.name}:{at.start_mark.line + 1}" if self.line else self.name

    def check_events(self, text: str) -> None:
        """Refuse what is no YAML of ours; the event stream does not recurse, so a bomb of brackets is harmless."""
        if found := CONTROL.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise ConfigError(f"{self.name}:{line}: control character {found[0]!r}; this is not a text file")
        depth = documents = 0
        try:
            for count, event in enumerate(yaml.parse(text, LOADER)):
                if count > MAX_EVENTS:
                    raise ConfigError(f"{self.where(event)}: more than {MAX_EVENTS:,} words; this is no configuration")
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                documents += isinstance(event, yaml.DocumentStartEvent)
                if rule := _refused(event, depth, documents):
                    raise ConfigError(f"{self.where(event)}: {rule}")
        except yaml.MarkedYAMLError as error:
            raise ConfigError(self._no_yaml(text, error)) from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.name}: not YAML: {' '.join(str(error).split())}") from None

    def _no_yaml(self, text: str, error: yaml.MarkedYAMLError) -> str:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        words = text.split("\n")[line : line + 1]
        hint = "; indent with spaces, not tabs" if words and words[0].lstrip(" ").startswith("\t") else ""
        place = f"{self.name}:{line + 1}" if self.line else self.name
        return f"{place}: not YAML: {error.problem}{hint}"

    def leaves(self, node: yaml.MappingNode, key: Key) -> None:
        """Put every leaf below a mapping into the table; lists are leaves, an empty mapping is one too."""
        if not node.value and key:
            self.add(key, Entry({}, self.where(node)))
        seen: dict[str, str] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.value == "<<":
                self.problems.append(
                    f"{self.where(name)}: keys are plain names; to build on another file use `extends`"
                )
                continue
            first = seen.setdefault(name.value, self.where(name))
            if first != self.where(name) and isinstance(value, yaml.MappingNode):
                self.problems.append(self.twice((*key, name.value), self.where(name), first))
                continue
            path = (*key, *name.value.split("."))
            if isinstance(value, yaml.MappingNode):
                self.leaves(value, path)
            else:
                self.add(path, Entry(self.value(value), self.where(name)))

    def add(self, key: Key, entry: Entry) -> None:
        """Add a leaf that nothing in this text has given yet, neither itself nor above nor below."""
        upper = [key[:length] for length in range(1, len(key) + 1)]
        first = self.above.get(key) or next((self.table[k].source for k in upper if k in self.table), None)
        if first:
            self.problems.append(self.twice(key, entry.source, first))
            return
        self.table[key] = entry
        if len(self.table) > MAX_KEYS:
            raise ConfigError(f"{entry.source}: more than {MAX_KEYS:,} keys; this is no configuration")
        for k in upper[:-1]:
            self.above.setdefault(k, entry.source)

    def twice(self, key: Key, source: str, first: str) -> str:
        return f"{'.'.join(key)} ({source}): given twice, first at {first}; keep one"

    def value(self, node: yaml.Node) -> Any:
        """Return the Python value of a node."""
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for name, item in node.value:
                if not isinstance(name, yaml.ScalarNode) or name.value in found:
                    self.problems.append(f"{self.where(name)}: keys are plain names, each given once")
                else:
                    found[name.value] = self.value(item)
            return found
        if "${" in node.value:
            self.problems.append(f"{self.where(node)}: {node.value!r}: there is no ${{...}}; write the value itself")
        return plain(node.value) if not node.style else node.value


def _refused(event: yaml.Event, depth: int, documents: int) -> str | None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        return "anchors and aliases (&x, *x) are not supported; write the values out, or use `extends`"
    if getattr(event, "tag", None):
        return f"tags are not supported ({event.tag}); write the plain value"
    if depth > MAX_DEPTH:
        return f"more than {MAX_DEPTH} levels"
    if documents > 1:
        return "a second document (---); one to a file, to build on another use `extends`"
    return None
