"""How a document becomes examples: ELECTRA's two segments, or plain pieces.

The rule for segments is that of google-research/electra, build_pretraining_dataset.py, with one difference: what is
drawn belongs to (seed, document), where the original has one generator for a process, so examples do not depend on
the files.
"""

import re
from collections.abc import Iterator
from typing import Literal

from datamodules.core.order import Draws

SINGLE_SEGMENT = 0.1
SHORT_EXAMPLE = 0.05
SHORTEST_TARGET = 5

Sentences = Literal["split", "line"]
# A sentence ends at . ! or ? with closing quotes or brackets, before white space and what can begin a sentence.
SENTENCE_END = re.compile(r"""[.!?]["'\u2019\u201d)\]]*\s+(?=["'\u2018\u201c(\[]*[^\W_a-z])""")


def sentences_of(text: str, rule: Sentences) -> list[str]:
    """Divide a document into sentences: its lines, or with "split" also what ends like a sentence inside a line."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    return lines if rule == "line" else [sentence for line in lines for sentence in divided_line(line)]


def divided_line(line: str) -> Iterator[str]:
    """Yield the sentences of a line."""
    start = 0
    for end in SENTENCE_END.finditer(line):
        yield line[start : end.end()].rstrip()
        start = end.end()
    yield line[start:]


def two_segments(sentences: list[list[int]], max_length: int, draws: Draws) -> Iterator[tuple[list[int], list[int]]]:
    """Yield segments A and B (maybe empty) of one document after another, without special tokens.

    Args:
        sentences: token ids of each sentence.
        max_length: longest example, its three special tokens included.
        draws: the document's numbers.
    """
    held: list[list[int]] = []
    length, target = 0, target_length(max_length, draws)
    for sentence in sentences:
        held.append(sentence)
        length += len(sentence)
        if length >= target:
            yield divided(held, target, max_length, draws)
            held, length, target = [], 0, target_length(max_length, draws)
    if length:
        yield divided(held, target, max_length, draws)


def target_length(max_length: int, draws: Draws) -> int:
    """Draw at which number of tokens the next example is complete."""
    if draws.uniform() >= SHORT_EXAMPLE:
        return max_length
    return SHORTEST_TARGET + int(draws.uniform() * (max_length - SHORTEST_TARGET + 1))


def divided(sentences: list[list[int]], target: int, max_length: int, draws: Draws) -> tuple[list[int], list[int]]:
    """Divide sentences over A and B and cut off what is over the longest example.

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
    first = first[: max_length - 2]
    return first, second[: max(0, max_length - len(first) - 3)]


def pieces(ids: list[int], size: int) -> Iterator[list[int]]:
    """Cut a document into pieces of a size, the last one shorter."""
    return (ids[start : start + size] for start in range(0, len(ids), size))
