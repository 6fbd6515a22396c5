"""Which files of a folder, or of a pattern, are data, and which of them a split reads.

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
from stat import S_ISREG

from datamodules.core.errors import DataError
from datamodules.core.formats import endings, format_of
from datamodules.core.lines import is_one_object
from datamodules.core.opening import kind_of
from datamodules.core.parts import (
    PART_WORDS,
    WANTED,
    Parts,
    declared_patterns,
    declared_splits,
    lacking_shards,
    parts_by_name,
)

NEVER = {
    "a cache": re.compile(r"cache-.*\.arrow$|.*\.(lock|incomplete)$"),
    "an index": re.compile(r"indices\.arrow$|.*\.(idx|index)$|(.*\.)?index\.json$"),
    "a description": re.compile(r"(dataset_infos?|dataset_dict|state)\.json$|README"),
}
NOT_ENTERED = ("__MACOSX", "_temporary")  # what macOS adds to archives, and what Spark has not finished
SHARDS_LACK = "of the shards that the names of the files count are not there, as {}"
NAMED_BY_ALL = "of the files that the pattern fits are named as the part {}, and are read too"


@dataclass
class Located:
    """Files of a source, and those of its folder that are passed over, by reason.

    `part` is the part of the folder that the files are, and `parts` are all that it has; empty where it has none.
    `notes` says in words what else there is to tell, with numbers.
    """

    files: tuple[Path, ...]
    passed_over: dict[str, list[Path]] = field(default_factory=dict)
    part: str = ""
    parts: tuple[str, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)

    def pass_over(self, reason: str, path: Path) -> None:
        """Note a file that is not read."""
        self.passed_over.setdefault(reason, []).append(path)

    def serve(self, name: str) -> None:
        """Note that a part of a folder is read although no option names it."""
        self.notes[f"files are the part {self.part} of {name}, which serves where none is named"] = len(self.files)


def files_of_folder(folder: Path, split: str) -> Located:
    """Find the files of a folder for a split (train, val, test, predict).

    Raises:
        DataError: there are none, or which part is meant cannot be told.
    """
    found = Located(())
    by_part, is_declared = declared(folder, found), True
    if by_part is None:
        by_part, is_declared = parts_by_name([*walked(folder, found)], folder), False
    if not any(by_part.values()):
        raise DataError(
            f"{folder}: holds no file that ends in {endings()}{passed(found)}; name another folder, a file or a pattern"
        )
    found.parts = tuple(part for part in PART_WORDS if by_part.get(part))
    if found.parts or is_declared:
        found.part = chosen_part(folder, split, by_part)
    for part, paths in by_part.items():
        for path in paths if part != found.part else ():
            found.pass_over(f"of the part {part}" if part else "of no part", path)
    found.files = tuple(sorted(by_part[found.part]))
    lacking, first = lacking_shards(found.files)
    if lacking:
        found.notes[SHARDS_LACK.format(first)] = lacking
    return found


def files_of_pattern(pattern: str, matches: list[Path]) -> Located:
    """Choose among the files that a pattern fits, as among those of a folder, but whatever part they are.

    Raises:
        DataError: none is left, or one is of a kind that no reader is for.
    """
    fixed = next((number for number, name in enumerate(Path(pattern).parts) if any(it in name for it in "*?[")), 0)
    found, files, seen = Located(()), [], set[tuple[int, int]]()
    for path in sorted(matches):
        below = path.parts[fixed:]
        of_state = files_of_state(path.parent)
        reason = "hidden" if any(map(is_hidden, below)) else reason_against(path, of_state, seen)
        if reason in ("of another kind", "no regular file"):
            readable(path)
        if reason:
            found.pass_over(reason, path)
        else:
            files.append(path)
    if not files:
        raise DataError(f"{pattern}: no file that it fits is data{passed(found)}; correct it")
    by_part = parts_by_name(files, Path(*Path(pattern).parts[:fixed]))
    for part in ("validation", "test"):
        if len(by_part) > 1 and part in by_part:
            found.notes[NAMED_BY_ALL.format(part)] = len(by_part[part])
    found.files = tuple(files)
    return found


def chosen_part(folder: Path, split: str, by_part: Parts) -> str:
    """Choose the part of a folder for a split: the one of its name.

    Files of no part train where there is no training part, and they are as many as the others; so does a split of any
    name that is alone. What is alone serves for every evaluation.

    Raises:
        DataError: there is none for it, or there are more files of no part than of one.
    """
    wanted, others = WANTED[split], len(by_part.get("", ()))
    is_most = others >= sum(map(len, by_part.values())) - others
    if wanted == "train" and is_most and by_part.get("train"):
        raise DataError(
            f"{folder}: {by_part['train'][0].name} is named as the training part, {by_part[''][0].name} as none; "
            "name the files, or give a pattern"
        )
    if by_part.get(wanted):
        return wanted
    if wanted == "train" and is_most:
        return ""
    if len(by_part) == 1 and (wanted != "train" or not {*by_part} & {*PART_WORDS}):
        return next(iter(by_part))
    shown = ", ".join(f"{part or 'no part'} ({paths[0].name})" for part, paths in by_part.items() if paths)
    splits = [part for part in by_part if part not in PART_WORDS]  # as those of a saved data set may be called
    known = f"; its splits are {', '.join(splits)}" if any(splits) else ""
    raise DataError(f"{folder}: has no part for {wanted}, only {shown}{known}; name the files that are meant")


def declared(folder: Path, found: Located) -> Parts | None:
    """Read the parts that a folder declares: in dataset_dict.json, or in the YAML of a README as on the hub.

    Raises:
        DataError: what declares them is damaged, or nothing is there of what it names.
    """
    splits = declared_splits(folder)
    if splits is not None:
        return {part: [*walked(path, found)] for part, path in splits.items()}
    patterns = declared_patterns(folder)
    if not patterns:
        return None
    paths = [*walked(folder, found)]
    by_part: Parts = {}
    for part, pattern in patterns:
        fitting = [path for path in paths if fnmatch(path.relative_to(folder).as_posix(), pattern)]
        if not fitting:
            raise DataError(f"{folder / 'README.md'}: no file is {pattern!r}, which it names; name the files")
        for known, some in (parts_by_name(fitting, folder) if not part else {part: fitting}).items():
            by_part.setdefault(known, []).extend(path for path in some if path not in by_part.get(known, ()))
    for path in paths:
        if not any(path in some for some in by_part.values()):
            found.pass_over("not named in README.md", path)
    return by_part


def walked(folder: Path, found: Located) -> Iterator[Path]:
    """Yield the data files below a folder, in the order of their paths, each once; note what is passed over."""
    seen: set[tuple[int, int]] = set()
    paths = []
    for place, names, files in os.walk(folder, followlinks=True, onerror=refuse_unreadable):
        names.sort()  # of a folder and a link to it the same one is entered on every machine
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
    if kind := next((kind for kind, names in NEVER.items() if names.match(path.name)), None):
        return kind
    try:
        stat = path.stat()
    except OSError:
        return "a link to nothing"
    if not S_ISREG(stat.st_mode):
        return "no regular file"
    try:
        kind, is_known = kind_of(path), format_of(path) is not None
    except DataError:
        return "an archive of several files, or damaged"
    if of_state is not None and path.name not in of_state and kind == ".arrow":
        return "not named in state.json"
    if not is_known:
        return "of another kind"
    if is_one_object(path):
        return "one JSON object, and no records"
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


def readable(path: Path) -> Path:
    """Refuse what is no regular file, as a pipe or a device, or of a kind that no reader is for."""
    if not path.is_file():
        raise DataError(f"{path}: is no regular file; copy the text into one")
    if format_of(path) is None:
        kinds = f"files ending in {path.suffix!r}" if path.suffix else "files without an ending"
        inside = f" that hold one of {kind_of(path)!r}" * (path.suffix.lower() == ".zip")
        raise DataError(f"{path}: {kinds}{inside} are not supported; convert to {endings()}")
    return path


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is none that somebody wrote as data."""
    return name.startswith(".") or name in NOT_ENTERED


def refuse_unreadable(error: OSError) -> None:
    """Refuse a folder that cannot be listed."""
    raise DataError(f"{error.filename}: cannot be listed: {error.strerror}; let it be read") from None


def passed(found: Located) -> str:
    """Say in brackets what was passed over, nothing where nothing was."""
    parts = [f"{len(paths):,} {reason} ({paths[0].name})" for reason, paths in found.passed_over.items()]
    return f" (passed over: {', '.join(parts)})" if parts else ""
