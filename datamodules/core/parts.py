"""Which part of a data set (train, validation, test) a file of a folder is: as the folder declares, or by its name."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from datamodules.core.errors import DataError
from datamodules.core.opening import stem_of

PART_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
PART_OF = {f"{word}{end}": part for part, words in PART_WORDS.items() for word in words for end in ("", "set", "data")}
PART_OF["devtest"] = "test"  # as FLORES calls it
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # testData is two words
WANTED = {"train": "train", "val": "validation", "test": "test", "predict": "test"}  # the part of each split
SHARD = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?$")
HUB_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
NUMBERED = re.compile(r"(.+[-.])(\d{5})(-of-)(\d{5})")
Parts = dict[str, list[Path]]


def parts_by_name(paths: list[Path], folder: Path) -> Parts:
    """Sort files by the part that their names tell; "" for none.

    A folder or a file is of a part when the first or the last word of its name says so, without the number of a shard:
    train/, train-00000-of-00001, my_test, dev2. A word inside counts where another name differs by this word alone:
    en_train_full, en_test_full. Where shards are numbered as on the hub, their whole name is the part.
    """
    shards = {path: match[1].lower() for path in paths if (match := HUB_SHARD.fullmatch(stem_of(path)))}
    is_hub = any(PART_OF.get(name) == "train" for name in shards.values())
    twins = twins_of(paths)
    by_part: Parts = {}
    for path in paths:
        part = next((found for name in path.relative_to(folder).parent.parts if (found := part_of(name))), "")
        if not part and is_hub and path in shards:
            part = PART_OF.get(shards[path], shards[path])
        by_part.setdefault(part or part_of(stem_of(path)) or twins.get(path, ""), []).append(path)
    return by_part


def part_of(name: str) -> str:
    """Tell the part by the last or the first word of a name; "" for none."""
    words = words_of(name)
    return PART_OF.get(words[-1]) or PART_OF.get(words[0]) or ""


def words_of(name: str) -> list[str]:
    """Cut a name into words, without the number of a shard."""
    return re.split(r"[-_. =]+", SHARD.sub("", CAMEL.sub("_", name).lower()))


def twins_of(paths: list[Path]) -> dict[Path, str]:
    """Tell the part of files whose names differ by the word for it alone."""
    named: dict[tuple[Path, str], dict[Path, str]] = {}
    for path in paths:
        words = words_of(stem_of(path))
        for place, word in enumerate(words):
            if word in PART_OF:
                form = "_".join(["*" if number == place else other for number, other in enumerate(words)])
                named.setdefault((path.parent, form), {})[path] = PART_OF[word]
    return {path: part for same in named.values() if len({*same.values()}) > 1 for path, part in same.items()}


def lacking_shards(paths: Iterable[Path]) -> tuple[int, str]:
    """Count the shards that are not there though the names of others number them, and name the first."""
    there: dict[tuple[Path, str, str], set[int]] = {}
    for path in paths:
        if match := NUMBERED.fullmatch(stem_of(path)):
            name, number, of, total = match.groups()
            there.setdefault((path.parent, name, of + total), set()).add(int(number))
    lacking = []
    for (_, name, of), known in there.items():
        total = int(of[-5:])
        begin = int(0 not in known and total in known)  # some count from 1
        lacking += [f"{name}{number:05d}{of}" for number in range(begin, begin + total) if number not in known]
    return len(lacking), lacking[0] if lacking else ""


def declared_splits(folder: Path) -> dict[str, Path] | None:
    """Read the splits of a data set that `datasets` has saved, with their folders; None where it has not.

    Raises:
        DataError: dataset_dict.json is damaged.
    """
    splits = folder / "dataset_dict.json"
    if not splits.is_file():
        return None
    try:
        names = [str(name) for name in json.loads(splits.read_text(encoding="utf-8"))["splits"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{splits}: does not name the splits of a data set; save it again") from None
    found: dict[str, Path] = {}
    for name in sorted(names, key=lambda name: name not in PART_WORDS):  # of test and eval, say, the first is the test
        part = PART_OF.get(name.lower(), name)
        found[name if part in found else part] = folder / name
    return found


def declared_patterns(folder: Path) -> list[tuple[str, str]]:
    """Read (part, pattern) from the YAML in front of a README.md; the part is "" where names are to tell it.

    Raises:
        DataError: it declares several data sets, and none of them as the default.
    """
    readme = folder / "README.md"
    try:
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        head = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---")) if text.startswith("---") else None
        configs = [it for it in (head or {}).get("configs") or [] if it.get("data_files") or it.get("data_dir")]
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
        return []
    if len(configs) > 1:
        default = [it for it in configs if it.get("default") or it.get("config_name") == "default"]
        if len(default) != 1:
            names = ", ".join(str(it.get("config_name")) for it in configs)
            raise DataError(f"{readme}: declares several data sets ({names}); name the files of one")
        configs = default
    if not configs:
        return []
    below = f"{str(configs[0]['data_dir']).strip('./')}/" if configs[0].get("data_dir") else ""
    files = configs[0].get("data_files")
    found = patterns_of(files) if files else [("", "*")]
    return [(PART_OF.get(part.lower(), part), below + pattern.removeprefix("./")) for part, pattern in found]


def patterns_of(declared: Any) -> Iterator[tuple[str, str]]:
    """Yield (part, pattern) of `data_files`: a pattern, a list of them, entries with a split, or patterns by split."""
    if isinstance(declared, dict) and "path" not in declared:
        declared = [{"split": split, "path": path} for split, path in declared.items()]
    for entry in declared if isinstance(declared, list) else [declared]:
        part, paths = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        yield from ((str(part), str(path)) for path in (paths if isinstance(paths, list) else [paths]))
