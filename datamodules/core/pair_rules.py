"""Rules between the options of pairs, checked before anything is built: (keys, complaint or None)."""

import math
import re
from collections.abc import Iterator
from typing import Any

NAME = re.compile(r"[A-Za-z0-9_-]+")
NEEDED = {"sts": ("path",), "pair_classification": ("path",), "classification": ("path", "train")}
BEIR = ("corpus", "queries", "qrels")
Options = dict[str, Any]


def one_kind(source: Any, sources: Any) -> str | None:
    """Pairs come from one source or from a mixture."""
    sources = [name for name, options in (sources or {}).items() if options is not None]
    if not source and not sources:
        return "give a source, as data.source: pairs.csv or data.source: embedded, or several in data.sources"
    return "is given beside data.sources; take one out, as with --data.source null" if source and sources else None


def names(given: Options | None) -> str | None:
    """Names become parts of metrics' names."""
    odd = next((name for name in given or {} if not NAME.fullmatch(name)), None)
    return None if odd is None else f"the name {odd!r} may hold letters, digits, _ and - only"


def weights(sources: Options | None) -> str | None:
    """Either all sources have a weight, or none has."""
    weighted = {name: options.get("weight") for name, options in mappings(sources)}
    found = {name: weighted.get(name) for name, options in (sources or {}).items() if options is not None}
    without = [name for name, weight in found.items() if weight is None]
    odd = [name for name, weight in found.items() if weight is not None and not 0 < weight < math.inf]
    if odd:
        return f"{odd[0]}.weight must be above 0; a source is taken out by null"
    if without and len(without) < len(found):
        return f"{without[0]} has no weight, others have; give all of them one, or none for their numbers of examples"
    return None


def limits(given: Options | None, length: int) -> str | None:
    """A side's texts are at most as long as the longest sequence, and hold something besides special tokens."""
    for name, options in mappings(given):
        for side in ("query_tokens", "passage_tokens"):
            limit = options.get(side)
            if limit is not None and not 3 <= limit <= length:
                return f"{name}.{side} = {limit} must be from 3 to data.sequence_length = {length}"
    return None


def finite_labels(given: Options | None) -> str | None:
    """Labels are numbers to compute with."""
    for name, options in mappings(given):
        for word, number in (options.get("labels") or {}).items():
            if number is not None and not math.isfinite(number):
                return f"{name}.labels.{word} = {number} must be finite"
    return None


def complete_sets(sets: Options | None) -> str | None:
    """Each task needs its files."""
    for name, options in mappings(sets):
        given = {part for part, value in options.items() if value is not None}
        if options.get("task") == "retrieval":
            if "path" not in given and not given.issuperset(BEIR):
                return f"{name} needs a path, or corpus, queries and qrels"
        elif missing := [part for part in NEEDED.get(options.get("task"), ()) if part not in given]:
            return f"{name} needs {' and '.join(missing)}"
    return None


def of_the_task(sets: Options | None) -> str | None:
    """A set has no options that its task would not look at."""
    for name, options in mappings(sets):
        columns, prompts = options.get("columns") or {}, options.get("prompts") or {}
        if options.get("task") == "classification":
            second = {"columns": columns.get("positive"), "prompts": prompts.get("positive")}
            given = [f"{part}.positive" for part, value in second.items() if value]
            given += ["passage_tokens"] * (options.get("passage_tokens") is not None)
            if given:
                return f"{name}.{given[0]} is of second texts, which classification has not; take it out"
        if options.get("rank_own") and options.get("task") != "retrieval":
            return f"{name}.rank_own is of retrieval; take it out"
        if columns.get("negatives"):
            return f"{name}.columns.negatives: no set looks at negatives; take it out"
    return None


def first_broken(values: Options) -> str | None:
    """Apply the rules to the options of data, as plain values: the key with the complaint, or None."""
    for keys, rule in RULES:
        if complaint := rule(*(values[key.removeprefix("data.")] for key in keys)):
            return f"{keys[0]}: {complaint}"
    return None


def mappings(given: Any) -> Iterator[tuple[str, Options]]:
    """Yield what is written as a mapping of options; a source may also be just its path, or null."""
    return ((name, options) for name, options in (given or {}).items() if isinstance(options, dict))


RULES = [
    (("data.source", "data.sources"), one_kind),
    (("data.sources",), names),
    (("data.sources",), weights),
    (("data.source", "data.sequence_length"), lambda source, length: limits({"source": source}, length)),
    (("data.source",), lambda source: finite_labels({"source": source})),
    *(((f"data.{key}", "data.sequence_length"), limits) for key in ("sources", "validation", "test")),
    *(((f"data.{key}",), finite_labels) for key in ("sources", "validation", "test")),
    *(((f"data.{key}",), rule) for key in ("validation", "test") for rule in (names, complete_sets, of_the_task)),
]
