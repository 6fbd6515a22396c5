"""Which files of a folder are data, and of which part (train, validation, test) they are.

One rule for all: files of known endings are read, in the order of their paths. Hidden ones, caches, indices and what
describes a data set are passed over; links are followed, each file is read once. A folder with parts, as `datasets`
saves it or as the hub names them, gives the part that is wanted.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from datamodules.core.errors import DataError
from datamodules.core.formats import endings, format_of
from datamodules.core.opening import kind_of

PART_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
PART_OF = {word: part for part, words in PART_WORDS.items() for word in words}
WANTED = {"train": "train", "val": "validation", "test": "test", "predict": "test"}  # the part of each split
SHARD = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?$")
NEVER = {
    "a cache": ("cache-*.arrow", "*.lock", "*.incomplete"),
    "an index": ("indices.arrow", "*.idx", "*.index", "*.index.json", "index.json"),
    "a description": ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "README*"),
}


@dataclass
class Located:
    """Files of a source, and those of its folder that are passed over, by reason.

    `part` is the part of the folder that the files are, and `parts` are all that it has; empty where it has none.
    """

    files: tuple[Path, ...]
    passed_over: dict[str, list[Path]] = field(default_factory=dict)
    part: str = ""
    parts: tuple[str, ...] = ()

    def pass_over(self, reason: str, path: Path) -> None:
        """Note a file that is not read."""
        self.passed_over.setdefault(reason, []).append(path)


def files_of_folder(folder: Path, split: str) -> Located:
    """Find the files of a folder for a split (train, val, test, predict).

    Raises:
        DataError: there are none, or which part is meant cannot be told.
    """
    found = Located(())
    by_part: dict[str, list[Path]] = declared(folder, found)
    if not by_part:
        for path in walked(folder, found):
            by_part.setdefault(part_of(path, folder), []).append(path)
    files = [path for paths in by_part.values() for path in paths]
    if not files:
        raise DataError(
            f"{folder}: holds no file that ends in {endings()}{passed(found)}; name another folder, a file or a pattern"
        )
    found.parts = tuple(part for part in PART_WORDS if part in by_part)
    if found.parts and [*by_part] != [""]:
        found.part = chosen_part(folder, split, by_part, found.parts)
        for part, paths in by_part.items():
            for path in paths if part != found.part else ():
                found.pass_over(f"of the part {part}" if part else "of no part", path)
        files = by_part[found.part]
    found.files = tuple(sorted(files))
    return found


def chosen_part(folder: Path, split: str, by_part: dict[str, list[Path]], parts: tuple[str, ...]) -> str:
    """Choose the part of a folder for a split; one that is alone serves for every evaluation.

    Raises:
        DataError: there is none for it.
    """
    wanted = WANTED[split]
    others = [part for part in by_part if part not in PART_OF]  # as splits of a saved data set may be called
    if wanted in by_part and not (wanted == "train" and "" in by_part and len(parts) == 1):
        return wanted
    if wanted != "train" and len(by_part) == 1:
        return next(iter(by_part))
    if parts == ("train",) and wanted == "train":
        raise DataError(
            f"{folder}: {by_part['train'][0].name} is named as the training part, {by_part[''][0].name} as none; "
            "name the files, or give a pattern"
        )
    shown = ", ".join(f"{part or 'no part'} ({paths[0].name})" for part, paths in by_part.items())
    known = f"; its splits are {', '.join(others)}" if any(others) else ""
    raise DataError(f"{folder}: has no part for {wanted}, only {shown}{known}; name the files that are meant")


def declared(folder: Path, found: Located) -> dict[str, list[Path]]:
    """Read the parts that a folder declares: in dataset_dict.json, or in the YAML of a README as on the hub.

    Raises:
        DataError: what declares them is damaged.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        try:
            names = [str(name) for name in json.loads(splits.read_text(encoding="utf-8"))["splits"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{splits}: does not name the splits of a data set; save it again") from None
        return {PART_OF.get(name.lower(), name): [*walked(folder / name, found)] for name in names}
    patterns = declared_patterns(folder)
    if not patterns:
        return {}
    paths = [*walked(folder, found)]
    by_part: dict[str, list[Path]] = {}
    for part, pattern in patterns:
        fitting = [path for path in paths if fnmatch(path.relative_to(folder).as_posix(), pattern)]
        if not fitting:
            raise DataError(
                f"{folder / 'README.md'}: no file is {pattern!r}, which it names; download the folder again"
            )
        by_part.setdefault(PART_OF.get(part.lower(), part), []).extend(fitting)
    for path in paths:
        if not any(path in some for some in by_part.values()):
            found.pass_over("not named in README.md", path)
    return by_part


def declared_patterns(folder: Path) -> list[tuple[str, str]]:
    """Read (part, pattern) from the YAML in front of a README.md.

    Raises:
        DataError: it declares several configurations.
    """
    readme = folder / "README.md"
    try:
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        head = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---")) if text.startswith("---") else None
        configs = [it for it in head["configs"] if it.get("data_files")] if head and head.get("configs") else []
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
        return []
    if len(configs) > 1:
        default = [it for it in configs if it.get("default") or it.get("config_name") == "default"]
        if len(default) != 1:
            names = ", ".join(str(it.get("config_name")) for it in configs)
            raise DataError(f"{readme}: declares several data sets ({names}); name the files of one")
        configs = default
    return list(patterns_of(configs[0]["data_files"])) if configs else []


def patterns_of(declared: Any) -> Iterator[tuple[str, str]]:
    """Yield (part, pattern) of `data_files`, which may be a pattern, a list of them, or entries with a split."""
    for entry in declared if isinstance(declared, list) else [declared]:
        part, paths = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        yield from ((str(part), str(path)) for path in (paths if isinstance(paths, list) else [paths]))


def walked(folder: Path, found: Located) -> Iterator[Path]:
    """Yield the data files below a folder, in the order of their paths, each once; note what is passed over."""
    seen: set[tuple[int, int]] = set()
    paths = []
    for place, names, files in os.walk(folder, followlinks=True, onerror=refuse_unreadable):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            names.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for name in [name for name in names if is_hidden(name)]:
            found.pass_over("hidden", Path(place, name))
            names.remove(name)
        of_state = files_of_state(Path(place))
        paths += [(Path(place, name), of_state) for name in files]
    for path, of_state in sorted(paths, key=lambda it: it[0]):
        if reason := reason_against(path, of_state, seen):
            found.pass_over(reason, path)
        else:
            yield path


def reason_against(path: Path, of_state: set[str] | None, seen: set[tuple[int, int]]) -> str:
    """Say why a file is not read, nothing if it is; `seen` are the files and folders that were met."""
    if is_hidden(path.name):
        return "hidden"
    if of_state is not None and path.name not in of_state and kind_of(path) == ".arrow":
        return "not named in state.json"
    if kind := next((kind for kind, names in NEVER.items() if any(fnmatch(path.name, it) for it in names)), None):
        return kind
    if not path.exists():
        return "a link to nothing"
    if not path.is_file():
        return "no regular file"
    if format_of(path) is None:
        return "of another kind"
    stat = path.stat()
    if (stat.st_dev, stat.st_ino) in seen:
        return "the same file again"
    seen.add((stat.st_dev, stat.st_ino))
    return ""


def files_of_state(folder: Path) -> set[str] | None:
    """Read which files belong to a data set that was saved by `datasets`; None where a folder is none.

    Raises:
        DataError: it is a selection of rows, or the file is damaged.
    """
    state = folder / "state.json"
    if not state.is_file():
        return None
    try:
        known = json.loads(state.read_text(encoding="utf-8"))
        names = {file["filename"] for file in known["_data_files"]}
        selected = known.get("_indices_data_files") or known.get("_indices_files")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # some other program's
    if selected:
        raise DataError(f"{folder}: is a selection of rows by an index; save it again after flatten_indices()")
    if lacking := sorted(name for name in names if not (folder / name).is_file()):
        raise DataError(f"{folder / lacking[0]}: is not there, though state.json names it; save the data set again")
    return names


def part_of(path: Path, folder: Path) -> str:
    """Tell of which part a file is by its name or a folder above it; "" for none.

    Of a name the first or the last word counts, without the number of a shard: train-00000-of-00001, my_test, dev.
    """
    for above in path.relative_to(folder).parent.parts:
        if above.lower() in PART_OF:
            return PART_OF[above.lower()]
    stem = path.name.lower().split(".")
    stem = ".".join(stem[: -2 if len(stem) > 2 and f".{stem[-1]}" != kind_of(path) else -1])
    words = re.split(r"[.]" if kind_of(path) == ".txt" else r"[-_. ]", SHARD.sub("", stem))
    return PART_OF.get(words[-1]) or PART_OF.get(words[0]) or ""


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is none that somebody wrote as data."""
    return name.startswith(".") or name == "__MACOSX"


def refuse_unreadable(error: OSError) -> None:
    """Refuse a folder that cannot be listed."""
    raise DataError(f"{error.filename}: cannot be listed: {error.strerror}; let it be read") from None


def passed(found: Located) -> str:
    """Say in brackets what was passed over, nothing where nothing was."""
    parts = [f"{len(paths):,} {reason} ({paths[0].name})" for reason, paths in found.passed_over.items()]
    return f" (passed over: {', '.join(parts)})" if parts else ""
