"""How a document becomes examples: ELECTRA's two segments, or plain pieces.

The rule for segments is that of google-research/electra, build_pretraining_dataset.py, with two differences. What is
drawn belongs to (seed, document), where the original has one generator for a process, so examples do not depend on
the files. And what the original loses at the end of an example begins the next one, unless `sentences` asks for the
sentences of before ("split", "line").
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import regex

from datamodules.core.order import Draws

SINGLE_SEGMENT = 0.1
SHORT_EXAMPLE = 0.05
SHORTEST_TARGET = 5

Sentences = Literal["unicode", "split", "line"]
# Of UAX #29's sentence boundaries: a sentence ends at a terminator, with what closes behind it. A full stop ends none
# before a small letter (SB8), and the terminators of ASCII need white space, which addresses and numbers have not.
# The pattern begins with one set, which is what it is searched by; the branches come after the first terminator.
UNICODE_END = regex.compile(
    r"""[.!?\p{Sentence_Terminal}](?:"""
    r"""(?<=\P{ASCII})[\p{Sentence_Terminal}--\p{ASCII}]*[\p{Pe}\p{Pf}"']*\s*"""
    r"""|(?<=\p{ASCII})[.!?]*(?:(?<=[!?])[\p{Pe}\p{Pf}"']*\s+|(?<=\.)[\p{Pe}\p{Pf}"']*\s+(?!\p{Ll}))"""
    r""")""",
    regex.V1,
)
# A sentence ends at . ! or ? with closing quotes or brackets, before white space and what can begin a sentence.
SENTENCE_END = re.compile(r"""[.!?]["'\u2019\u201d)\]]*\s+(?=["'\u2018\u201c(\[]*[^\W_a-z])""")


def sentences_of(text: str, rule: Sentences) -> list[str]:
    """Divide a document into sentences: its lines, or also what ends like a sentence inside a line.

    Args:
        text: the document.
        rule: "unicode", the ends of any writing; "split", those of English; "line", none.
    """
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if rule == "line":
        return lines
    end = UNICODE_END if rule == "unicode" else SENTENCE_END
    return [sentence for line in lines for sentence in divided_line(line, end)]


def divided_line(line: str, ends: "re.Pattern[str] | regex.Pattern[str]") -> list[str]:
    """Divide a line into its sentences."""
    bounds = [0, *[end.end() for end in ends.finditer(line)], len(line)]
    return [line[start:end].rstrip() for start, end in pairwise(bounds) if start < end]


def two_segments(
    sentences: list[list[int]], max_length: int, draws: Draws, is_inside: Sequence[bool] | None = None
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield segments A and B (maybe empty) of one document after another, without special tokens.

    Args:
        sentences: token ids of each sentence.
        max_length: longest example, its three special tokens included.
        draws: the document's numbers.
        is_inside: for each id whether it goes on with a word. With it nothing is lost: what is over an example begins
            the next one, cut before a word. Without it what is over is lost, as in the original.
    """
    if is_inside is not None:
        size = max_length - 2
        if max(map(len, sentences), default=0) > size:
            sentences = [piece for ids in sentences for piece in cut_at_words(ids, size, is_inside)]
    held: list[list[int]] = []
    length, target = 0, target_length(max_length, draws)
    for sentence in [*sentences, None]:
        if sentence is not None:
            held.append(sentence)
            length += len(sentence)
        while length >= target or (length and sentence is None):
            first, second = dealt(held, target, draws)
            kept = cut_to(first, second, max_length, is_inside)
            yield kept
            rest = [] if is_inside is None else [first[len(kept[0]) :], second[len(kept[1]) :]]
            held = [ids for ids in rest if ids]
            length, target = sum(map(len, held)), target_length(max_length, draws)


def cut_at_words(ids: list[int], size: int, is_inside: Sequence[bool]) -> Iterator[list[int]]:
    """Cut a sentence into pieces of at most a size, before words; a word that is longer is cut too."""
    start = 0
    while start < len(ids):
        end = start + size
        while start < end < len(ids) and is_inside[ids[end]]:
            end -= 1
        end = end if end > start else start + size
        yield ids[start:end]
        start = end


def target_length(max_length: int, draws: Draws) -> int:
    """Draw at which number of tokens the next example is complete."""
    if draws.uniform() >= SHORT_EXAMPLE:
        return max_length
    return SHORTEST_TARGET + int(draws.uniform() * (max_length - SHORTEST_TARGET + 1))


def dealt(sentences: list[list[int]], target: int, draws: Draws) -> tuple[list[int], list[int]]:
    """Deal sentences to A and B.

    A sentence that fits joins A also after B has begun, as in the original; so the order of sentences is not kept.
    """
    single = draws.uniform() < SINGLE_SEGMENT
    aim = 100_000 if single else (target - 3) // 2
    first: list[int] = []
    second: list[int] = []
    for sentence in sentences:
        fits = not first or len(first) + len(sentence) < aim
        if fits or (not second and len(first) < aim and draws.uniform() < 0.5):
            first += sentence
        else:
            second += sentence
    return first, second


def cut_to(
    first: list[int], second: list[int], max_length: int, is_inside: Sequence[bool] | None = None
) -> tuple[list[int], list[int]]:
    """Cut A and B to the longest example; with `is_inside` before words, and B not into scraps of one."""
    if len(first) + len(second) + 3 <= max_length:
        return first, second
    if is_inside is None:
        first = first[: max_length - 2]
        return first, second[: max(0, max_length - len(first) - 3)]
    head = next(cut_at_words(first, max_length - 2, is_inside), [])
    room = max_length - len(head) - 3 if len(head) == len(first) else 0
    return head, next(cut_at_words(second, room, is_inside), []) if room > 0 else []


def pieces(ids: list[int], size: int) -> Iterator[list[int]]:
    """Cut a document into pieces of a size, the last one shorter."""
    return (ids[start : start + size] for start in range(0, len(ids), size))
