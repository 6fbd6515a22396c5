"""Rules between the options of data, checked before anything is built: (keys, complaint about their values or None)."""

import glob
import os
from pathlib import Path
from typing import Any

from datamodules.core import pair_rules
from datamodules.core.addresses import address_problem

MOST_GROUPED = 1 << 24
PLACES = ("source", "validation_source", "test_source", "predict_source", "root", "cache_dir", "tokenizer.name",
          "sources", "validation", "test")  # fmt: skip
WORDS = ("prompts", "labels", "columns")  # options of sources and sets that name no files


def long_enough(length: int) -> str | None:
    """Two segments and their special tokens need some room."""
    return None if length >= 8 else "must be at least 8; three tokens of an example are special"


def share(fraction: float) -> str | None:
    """Something must be left to train on."""
    return None if 0 <= fraction < 1 else "must be from 0 to below 1; 0 holds nothing out"


def not_negative(number: int) -> str | None:
    """Counts of steps and processes have no sign."""
    return "must be 0 or more" if number < 0 else None


def window_fits(steps: int, batch_size: int) -> str | None:
    """The lengths of a whole window are sorted at once, in memory."""
    most = MOST_GROUPED // max(1, batch_size)
    return f"sorts more than {MOST_GROUPED:,} sequences at once; at most {most:,} here" if steps > most else None


def one_tokenizer(name: str | None, vocab_size: int | None) -> str | None:
    """A tokenizer is named or trained."""
    fix = "is given beside data.tokenizer.train; take the training out with --data.tokenizer.train null"
    return fix if name and vocab_size else None


def known_home(folder: str | None) -> str | None:
    """A path may begin with the home of a user who is there."""
    return "there is no such user; write the path in full" if os.path.expanduser(folder or "").startswith("~") else None


def no_address(given: Any) -> str | None:
    """Files, also those of sources and sets, are local."""
    if not isinstance(given, dict):
        return address_problem(given)
    below = ((name, no_address(value)) for name, value in given.items() if name not in WORDS)
    return next((f"{name} {problem}" for name, problem in below if problem), None)


def room_for_letters(vocab_size: int | None) -> str | None:
    """A quarter of a trained vocabulary is kept for single characters."""
    return "must be at least 100" if vocab_size is not None and vocab_size < 100 else None


def streamed(streaming: bool, examples: str, grouping: int, num_workers: int) -> str | None:
    """A stream has no order to look ahead in, and its state lives in the training process."""
    if not streaming:
        return None
    if examples != "packed":
        return "makes packed examples only; set data.examples to packed"
    if grouping:
        return "cannot group by length; set data.length_grouping_steps to 0"
    return "reads in the training process; set data.num_workers to 0" if num_workers else None


PATHS = ("path", "train", "corpus", "queries", "qrels")


def missing(source: Any, root: str | None = None) -> str | None:
    """Say which file, folder or pattern of a source leads nowhere; the hub is not asked for what may be a name of it.

    Args:
        source: a name, or a mapping with names under some of PATHS.
        root: the folder in which relative paths are looked up.
    """
    from datamodules.core.errors import DataError
    from datamodules.core.sources import is_hub_name, local

    given = [source] if isinstance(source, str) else [(source or {}).get(key) for key in PATHS]
    for name in filter(None, given):
        try:
            where = str(local(root or os.curdir) / local(name))
            found = next(glob.iglob(where), None) if glob.has_magic(name) else os.path.exists(where)
            if not found and not name.startswith("embedded") and not is_hub_name(name):
                return f"{name}: no such file (seen from {Path(root or os.curdir).absolute()}); correct the path"
        except (DataError, OSError, ValueError) as error:
            return str(error)
    return None


def any_missing(sources: dict[str, Any] | None, root: str | None) -> str | None:
    """Say the same of several sources."""
    return next(filter(None, (missing(source, root) for source in (sources or {}).values())), None)


# What `fit` and `prepare` look for before they import anything heavy.
SOURCES = [
    *(((f"data.{key}",), missing) for key in ("validation_source", "predict_source")),
    (("data.source", "data.validation_source"), lambda source, _: missing(source)),
    (("data.test_source", "data.labels"), lambda source, _: missing(source)),
    (("data.source", "data.root"), missing),
    *(((f"data.{key}", "data.root"), any_missing) for key in ("sources", "validation", "test")),
]
RULES = [
    *pair_rules.RULES,
    (("data.sequence_length",), long_enough),
    (("data.validation_fraction",), share),
    (("data.length_grouping_steps",), not_negative),
    (("data.length_grouping_steps", "data.global_batch_size"), window_fits),
    (("data.num_workers",), not_negative),
    (("data.num_prepare_processes",), not_negative),
    (("data.tokenizer.name", "data.tokenizer.train.vocab_size"), one_tokenizer),
    (("data.cache_dir",), known_home),
    *(((f"data.{key}",), no_address) for key in PLACES),
    (("data.tokenizer.train.vocab_size",), room_for_letters),
    (("data.streaming", "data.examples", "data.length_grouping_steps", "data.num_workers"), streamed),
]
