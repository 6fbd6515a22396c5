"""What a configuration need not say because the encoder that a run starts from brings it: the tokenizer."""

import json
import os
from pathlib import Path

from launch.config.kinds import Kind
from launch.config.parts import Parts
from launch.config.read import Entry, Table
from launch.config.shadow import REQUIRED

SOURCE = "model.init_from"  # where the value comes from, as messages and the run's config.yaml call it


def lay_tokenizer(table: Table, parts: Parts) -> None:
    """Set data.tokenizer to that of model.init_from where none is given, in place."""
    given = table.get(("model", "init_from"), Entry(None, ""))
    source = (
        given.value if isinstance(given.value, str) or given.value is None else given.text
    )  # the flag 2024 is a name
    signature = parts.signatures.get(("data",))
    field = signature.fields.get("tokenizer") if signature else None
    is_given = any(key[:2] == ("data", "tokenizer") for key in table)
    if isinstance(source, str) and source and field and field.default is REQUIRED and not is_given:
        key = ("data", "tokenizer", "name") if _has_name(field.kind) else ("data", "tokenizer")
        table[key] = Entry(tokenizer_of(source), SOURCE)


def _has_name(kind: Kind) -> bool:
    kinds = kind.args if kind.name == "union" else (kind,)
    return any("name" in inner.fields for inner in kinds)


def tokenizer_of(source: str) -> str:
    """Return the folder or name of the tokenizer that belongs to a source.

    Of a run it is the run's, of an exported ELECTRA the discriminator's, of a folder of sentence-transformers its
    network's; a hub name or another folder has it itself.
    """
    folder = Path(source)
    run = folder.resolve().parents[1] if os.path.isfile(folder / "manifest.json") else folder
    if os.path.isdir(run / "tokenizer"):
        return str(run / "tokenizer")
    if os.path.isdir(folder / "discriminator"):
        return str(folder / "discriminator")
    try:
        inner = json.loads((folder / "modules.json").read_text(encoding="utf-8"))[0]["path"]
        return str(folder / inner)
    except (OSError, ValueError, LookupError, TypeError):  # it is none, or the run will say what is wrong with it
        return source
