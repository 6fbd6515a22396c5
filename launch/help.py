"""`fit --config FILE --help`: the keys of just the classes that the files name, with types, values and explanations."""

from launch.config.check import value_at
from launch.config.defaults import RESERVED
from launch.config.docs import first_sentence
from launch.config.kinds import Kind
from launch.config.parts import TOP, Parts
from launch.config.read import Key, Table
from launch.config.resolved import merge
from launch.config.shadow import COMPUTED, REQUIRED, Field
from launch.config.show import scalar
from launch.registry import GROUPS

GENERAL = """usage: python -m launch {command} --config FILE [--config FILE ...] [--key value ...]

Files and flags are merged from left to right. A file may begin with `extends: [other.yaml]`, relative to itself.
A flag is --key value or --key=value; a key is written as in `--model.learning_rate 1e-3`; null takes a callback out.
The run lives in --run.dir, by default runs/<folder>/<name> of the first --config.

python -m launch {command} --config FILE --help   shows every key of that configuration
python -m launch methods                    lists what there is to train
"""


def main(command: str, words: list[str]) -> int:
    """Print the help for the configuration that the words give."""
    words = [word for word in words if word not in ("--help", "-h")]
    if not words:
        print(GENERAL.format(command=command), end="")
        return 0
    table, _, _ = merge(words)
    parts = Parts(table)
    print(f"usage: python -m launch {command} --config FILE [--config FILE ...] [--key value ...]\n")
    print("seed: int  # all randomness is keyed by it")
    for part in sorted(parts.signatures, key=lambda key: TOP.index(key[0])):
        signature = parts.signatures[part]
        print(f"\n{'.'.join(part)}: {first_sentence(signature.doc)}")
        fields = {
            name: field for name, field in signature.fields.items() if part != ("trainer",) or name not in RESERVED
        }
        print(*_fields(part, fields, table), sep="\n")
    for problem in parts.problems:
        print(f"\n{problem}")
    for group in ("model", "data", "strategy", "callbacks", "loggers"):
        print(f"\n{group}: {', '.join(GROUPS[group])}, or a dotted path to a class", end="")
    print()
    return 0


def _fields(part: Key, fields: dict[str, Field], table: Table) -> list[str]:
    lines = []
    for name, field in fields.items():
        key = (*part, name)
        below, inner = _inside(key, field.kind)
        given = value_at(table, key)
        lines.append(f"  --{'.'.join(key)} {_type(field.kind)}{_value(field, given)}")
        if field.text:
            lines.append(f"      {first_sentence(field.text)}")
        if inner:
            lines += _fields(below, inner.fields, table)
    return lines


def _inside(key: Key, kind: Kind) -> tuple[Key, Kind | None]:
    """Return the mapping that a kind can be, and the key above its own: with NAME where there are several by name."""
    members = [member for member in (kind, *kind.args) if isinstance(member, Kind)]
    if found := next((member for member in members if member.name == "fields"), None):
        return key, found
    named = next((member.args[0] for member in members if member.name == "dict" and member.args), None)
    return _inside((*key, "NAME"), named) if named else (key, None)


def _type(kind: Kind) -> str:
    words = str(kind).removeprefix("one of ")
    return f"{{{words.replace(', ', '|')}}}" if kind.name == "literal" else words


def _value(field: Field, given: object) -> str:
    if given != {}:
        return f" = {scalar(given)}"
    if field.default is REQUIRED or field.default == -1:  # Lightning's way to say: no limit on the steps
        return " (required)"
    return "" if field.default is COMPUTED else f" = {scalar(field.default)}"
