"""`python -m launch prepare`: tokenise a corpus ahead of training, whole or as one part of an array job."""

import json
import shlex
import sys
from typing import TYPE_CHECKING

from launch.config import Resolved, resolve
from launch.config.errors import ConfigError, one_line
from launch.config.numbers import is_whole
from launch.config.resolved import look_for_sources

if TYPE_CHECKING:
    from lightning import LightningDataModule

USAGE = """usage: python -m launch prepare --config FILE [--key value ...] [--part I/N | --tokenizer_only | --report]

Makes what `fit` would make before its first step: the trained tokenizer, if there is one, and the tokenised corpora,
in data.cache_dir. What is there already is not made again; after an interruption the same command goes on. What became
of the data is told at the end.

  --report           print the whole account of the data as JSON instead
  --part I/N         only the I-th of N parts (1/4 to 4/4), as for a job array over machines that share the cache
                     folder; needs the tokenizer, and the last part to end completes the corpora
  --tokenizer_only   only the tokenizer
"""


def main(words: list[str]) -> int:
    """Prepare the data of a configuration; return 0, or 1 after telling what is wrong with it."""
    as_json = "--report" in words
    if "--help" in words or "-h" in words or not words:
        print(USAGE, end="")
        return 0
    words, part, tokenizer_only = own_flags([word for word in words if word != "--report"])
    resolved = resolve(words)
    look_for_sources(resolved)
    from datamodules.core.errors import DataError

    try:
        data = instantiate(resolved)
        if tokenizer_only:
            print(f"tokenizer: {data.preparation.make_tokenizer()}")
        elif part is not None:
            report(data.preparation.make_part(data.seed, *part), part)
        else:
            data.prepare_data()
            data.setup()
            print(json.dumps(data.report(), indent=2, ensure_ascii=False) if as_json else "\n".join(data.describe()))
    except DataError as error:
        command = shlex.join(["python", "-m", "launch", "prepare", *words, "--tokenizer_only"])
        fix = (
            f"; make it with: {command}" if part is not None and "tokenizer has not been trained" in str(error) else ""
        )
        print(f"error: {one_line(error)}{fix}", file=sys.stderr)
        return 1
    return 0


def own_flags(words: list[str]) -> tuple[list[str], tuple[int, int] | None, bool]:
    """Take --part I/N and --tokenizer_only out of the words.

    Raises:
        ConfigError: the part is not written I/N with 1 <= I <= N.
    """
    rest, part, tokenizer_only = [], None, False
    left = [piece for word in words for piece in (word.split("=", 1) if word.startswith("--part=") else [word])]
    while left:
        word = left.pop(0)
        if word == "--tokenizer_only":
            tokenizer_only = True
        elif word == "--part":
            value = left.pop(0) if left else ""
            number, _, count = value.partition("/")
            if not (is_whole(number) and is_whole(count) and 1 <= int(number) <= int(count)):
                raise ConfigError(f"--part {value}: must be I/N with I from 1 to N, as --part 1/4")
            part = (int(number), int(count))
        else:
            rest.append(word)
    return rest, part, tokenizer_only


def instantiate(resolved: Resolved) -> "LightningDataModule":
    """Build the datamodule of a configuration, and nothing else of it.

    Raises:
        ConfigError: the class has nothing to prepare.
    """
    from jsonargparse import ArgumentParser

    from launch.classes import imported, limit_imports

    path = resolved.parts.paths[("data",)]
    datamodule = imported(resolved.parts, ("data",))
    limit_imports(resolved.parts, [datamodule])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(datamodule, "data")
    values = {key: value for key, value in resolved.values["data"].items() if key != "class"}
    data = parser.instantiate(parser.parse_object({"data": values})).data
    if not hasattr(data, "preparation"):
        raise ConfigError(f"data.class = {path!r}: has nothing to prepare; start fit")
    data.seed = resolved.get("seed")
    return data


def report(done: dict[str, tuple[int, int]], part: tuple[int, int]) -> None:
    """Print which corpora are complete after this part."""
    print(f"part {part[0]}/{part[1]} is done")
    for split, (there, count) in done.items():
        print(f"{split}: {'complete' if there == count else f'{there} of {count} shards'}")
