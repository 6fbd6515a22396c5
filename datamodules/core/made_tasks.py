"""Labelled tasks made from the embedded articles, so that an encoder can be judged where there is no data set.

None of them asks whether a token was replaced:
`topic` is the article's own; `same_article` asks whether the second text goes on with the article of the first;
`in_order` asks whether two halves of an article, without its first sentence, stand in their order.
"""

import json
import lzma
from collections.abc import Callable

import numpy as np

from datamodules.core.errors import DataError
from datamodules.core.labels import Example
from datamodules.core.order import permute
from datamodules.core.segments import sentences_of
from datamodules.core.sources import EMBEDDED, locate

PARTNERS = 1  # key of who is paired with whom
DEFAULTS = {"text_field": "text", "pair_field": None, "label_field": "label", "labels": "classes"}  # of LabelledText
PREFIX = f"{EMBEDDED}:"


def halves(text: str, skip: int) -> tuple[str, str] | None:
    """Cut a text in the middle of its sentences, the first `skip` left out; None if fewer than two are left."""
    sentences = sentences_of(text, "split")[skip:]
    middle = len(sentences) // 2
    return (" ".join(sentences[:middle]), " ".join(sentences[middle:])) if middle else None


def topic(articles: list[dict[str, str]]) -> list[tuple[str, str | None, str]]:
    """Label each article with its topic, one of eleven; a few articles have none."""
    return [(row["text"], None, row["topic"]) for row in articles if row["topic"] != "Uncategorized"]


def same_article(articles: list[dict[str, str]]) -> list[tuple[str, str | None, str]]:
    """Pair each first half with its own second half, and with that of another article.

    Every half stands in one pair of each kind, so that no single half tells the label.
    """
    pairs = [pair for article in articles if (pair := halves(article["text"], skip=0))]
    order = permute(np.arange(len(pairs)), len(pairs), PARTNERS).tolist()
    other = dict(zip(order, [*order[1:], order[0]], strict=True))
    rows = []
    for number, (first, second) in enumerate(pairs):
        rows += [(first, second, "same"), (first, pairs[other[number]][1], "other")]
    return rows


def in_order(articles: list[dict[str, str]]) -> list[tuple[str, str | None, str]]:
    """Give both orders of the two halves; the first sentence, which defines the title, would tell the label."""
    rows = []
    for article in articles:
        if pair := halves(article["text"], skip=1):
            rows += [(*pair, "in_order"), (pair[1], pair[0], "swapped")]
    return rows


MADE: dict[str, Callable[[list[dict[str, str]]], list[tuple[str, str | None, str]]]] = {
    f"{PREFIX}{make.__name__}": make for make in (topic, same_article, in_order)
}


def check_name(name: str | None, key: str) -> None:
    """Refuse a name of the embedded articles that is no task; `key` is where it stands.

    Raises:
        DataError: naming the key and the tasks.
    """
    if name and name not in MADE and (name == EMBEDDED or name.startswith(PREFIX)):
        raise DataError(f"{key} = {name!r}: no such task; there are {', '.join(MADE)}")


def refuse_idle(**fields: str | None) -> None:
    """Refuse options that tasks made from the embedded articles do not look at.

    Raises:
        DataError: one has another value than its default.
    """
    for name, value in fields.items():
        if value != DEFAULTS[name]:
            raise DataError(f"data.{name} = {value}: the tasks of embedded have fields of their own; take it out")


def make_examples(name: str, split: str) -> list[Example]:
    """Make the examples of a task for train, val or test."""
    (file,) = locate(EMBEDDED, split)
    with lzma.open(file, "rt", encoding="utf-8") as stream:
        articles = [json.loads(line) for line in stream]
    return [Example(*row, f"{file}: example {number}") for number, row in enumerate(MADE[name](articles))]
