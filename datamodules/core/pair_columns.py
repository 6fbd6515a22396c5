"""Which columns of a record hold the texts and the label of a pair, by their usual names or as a configuration says."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from datamodules.core.errors import DataError
from datamodules.core.pair_options import Columns

ANCHORS = ("anchor", "query", "question", "sentence1", "text1", "premise")
POSITIVES = ("positive", "passage", "document", "answer", "response", "sentence2", "text2", "hypothesis", "context")
POSITIVE_LISTS = ("pos", "positives")
SCORES = ("score", "similarity", "similarity_score", "relatedness_score", "relatedness", "gold_score", "scores")
CLASSES = ("label", "labels", "gold_label", "is_duplicate")
NEGATIVE = re.compile(
    r"(?:(?:hard|mined|random)_)?neg(?:ative)?s?(?:_(?:passage|document|doc|text|sentence)s?)?(?:_?(\d+))?"
)
LIKE_LABEL = re.compile(
    "labels?|scores?|similarity|relatedness|relevan(ce|cy|t)|grades?|gold|duplicate|entailment|paraphrase|judge?ment|"
    "target|class"
)
LIKE_NEGATIVE = re.compile("neg(ative)?s?|distractors?|irrelevant")
ABOUT = re.compile("ids?|idx|index|urls?|titles?|sources?|types?|names?")  # columns that tell of what others hold
WORD = re.compile(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]+")
ROLES = ("anchor", "positive", "negatives")
Wanted = Literal["score", "class"]  # what a label is, where there must be one

SCORES_BEFORE, CLASSES_BEFORE = ("score", "similarity"), ("label",)  # the rules of runs from before
NEGATIVE_BEFORE = re.compile(r"(?:hard_)?negative(?:_?(\d+))?")


@dataclass(frozen=True)
class Roles:
    """The columns of the texts and of the label; `sure` when the label's was named or can only hold numbers."""

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    label: str | None
    sure: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        texts = (self.anchor, self.positive, *self.negatives)
        return texts if self.label is None else (*texts, self.label)


@dataclass(frozen=True)
class Finder:
    """Finds columns by their names.

    Args:
        columns: those that a configuration names.
        key: where its options stand, as "sources.nli".
        wanted: what a label is, where there must be one.
        accepts: pass over a column that looks like a label or negatives and is not read.
        before: find no more than runs from before did.
    """

    columns: Columns
    key: str
    wanted: Wanted | None = None
    accepts: bool = False
    before: bool = False

    def roles(self, names: Iterable[str], place: str) -> Roles:
        """Find all columns among the names of a record.

        Raises:
            DataError: one is missing, several could be meant, or one that looks like a label or negatives is not read.
        """
        names = list(names)
        anchor, positive = self.text("anchor", names, place), self.text("positive", names, place)
        negatives = self.negatives(names)
        if lacking := next((name for name in negatives if name not in names), None):
            known = ", ".join(map(repr, names))
            raise DataError(
                f"{place}: has no column {lacking!r}, only {known}; correct data.{self.key}.columns.negatives"
            )
        label = self.label(names)
        if (label is None and self.wanted) or (label is not None and label not in names):
            lacking = f"{label!r}" if label else f"for the label ({', '.join((*SCORES, *CLASSES))})"
            known = ", ".join(map(repr, names))
            raise DataError(f"{place}: has no column {lacking}, only {known}; name it in data.{self.key}.columns.label")
        sure = bool(self.columns.label) or label is None or plainly(label) in SCORES
        found = Roles(anchor, positive, negatives, label, sure)
        self.refuse_unread(names, found.columns, place)
        return found

    def text(self, role: str, names: list[str], place: str) -> str:
        """Find the column of the anchor or of the positive."""
        usual = ANCHORS if role == "anchor" else POSITIVES if self.before else (*POSITIVES, *POSITIVE_LISTS)
        given = getattr(self.columns, role)
        fitting = [given] if given else [name for name in names if name.lower() in usual]
        if not fitting or fitting[0] not in names:
            lacking = f"{given!r}" if given else f"for the {role} ({', '.join(usual)})"
            unnamed = "is the header line missing? If not, " if any(name.count(" ") > 1 for name in names) else ""
            raise DataError(
                f"{place}: has no column {lacking}, only {', '.join(map(repr, names)) or 'nothing'}; {unnamed}name it "
                f"in data.{self.key}.columns.{role}"
            )
        if len(fitting) > 1:
            several = " and ".join(map(repr, fitting))
            raise DataError(f"{place}: {several} could be the {role}; name one in data.{self.key}.columns.{role}")
        return fitting[0]

    def negatives(self, names: Iterable[str]) -> tuple[str, ...]:
        """Find the columns of hard negatives, in the order of their numbers."""
        if self.columns.negatives is not None:
            return tuple(self.columns.negatives)
        pattern, written = (NEGATIVE_BEFORE, str.lower) if self.before else (NEGATIVE, plainly)
        found = [(int(match[1] or 0), name) for name in names if (match := pattern.fullmatch(written(name)))]
        return tuple(name for _, name in sorted(found))

    def label(self, names: Iterable[str]) -> str | None:
        """Find the column of the label; None when there is none or it is not wanted."""
        if self.columns.label is not None:
            return self.columns.label or None
        scores, classes = (SCORES_BEFORE, CLASSES_BEFORE) if self.before else (SCORES, CLASSES)
        written = str.lower if self.before else plainly
        by_name = {written(name): name for name in reversed([*names])}
        usual = (*classes, *reversed(scores)) if self.wanted == "class" else (*scores, *classes)
        return next((by_name[name] for name in usual if name in by_name), None)

    def refuse_unread(self, names: Iterable[str], read: Iterable[str], place: str) -> None:
        """Refuse a column that is not read where it looks like negatives, or like a label and no other one is read.

        Raises:
            DataError: naming it, and the options.
        """
        if self.accepts or self.before:
            return
        names, read = [*names], {*read}
        has_label = self.columns.label is not None or self.label(names) in read
        for name in (name for name in names if name not in read):
            role = None if has_label or not looks(LIKE_LABEL, name) else "label"
            if self.columns.negatives is None and looks(LIKE_NEGATIVE, name) and not looks(LIKE_LABEL, name):
                role = "negatives"
            if role:
                what, value, none = ("a label", name, "''") if role == "label" else ("negatives", f"[{name}]", "[]")
                raise DataError(
                    f"{place}: the column {name!r} looks like {what} and is not read; read it with data.{self.key}."
                    f"columns: {{{role}: {value}}}, leave it out with {{{role}: {none}}}, or set data.accept: [columns]"
                )


def plainly(name: str) -> str:
    """Write the name of a column in lower case, with _ between its words."""
    return re.sub(r"[\s_-]+", "_", name.strip()).lower()


def may_hold_lists(name: str) -> bool:
    """Say whether the name of a column of texts is a plural, in which a table writes a list as JSON."""
    written = plainly(name)
    return written in POSITIVE_LISTS or (NEGATIVE.fullmatch(written) is not None and written.endswith(("s", "neg")))


def looks(pattern: re.Pattern[str], name: str) -> bool:
    """Say whether a word of a column's name fits a pattern, and none says that it only tells of another column."""
    found = [word.lower() for word in WORD.findall(name)]
    return any(map(pattern.fullmatch, found)) and not any(map(ABOUT.fullmatch, found))
