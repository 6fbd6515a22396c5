"""ELECTRA's two segments against a slow reading of the published rule, and what is drawn against its rates."""

import itertools
import random

import numpy as np
import pytest

from datamodules.core.order import Draws
from datamodules.core.segments import cut_at_words, cut_to, dealt, pieces, sentences_of, target_length, two_segments


def literal_examples(document: list[list[int]], max_length: int, draws: Draws) -> list[tuple[list[int], list[int]]]:
    """The rule in prose, token by token: collect sentences up to the target, then deal them to A and B."""
    examples = []
    waiting = list(document)
    while any(waiting):
        target = max_length
        if draws.uniform() < 0.05:
            chance = draws.uniform()
            target = next(t for t in range(5, max_length + 1) if chance < (t - 4) / (max_length - 4))
        taken: list[list[int]] = []
        while waiting and sum(map(len, taken)) < target:
            taken.append(waiting.pop(0))
        one_segment = draws.uniform() < 0.1
        aim = float("inf") if one_segment else (target - 3) // 2
        a: list[int] = []
        b: list[int] = []
        for sentence in taken:
            joins_a = len(a) == 0 or len(a) + len(sentence) < aim
            if not joins_a and not b and len(a) < aim:
                joins_a = draws.uniform() < 0.5
            (a if joins_a else b).extend(sentence)
        while len(a) + 2 > max_length:
            a.pop()
        while b and len(a) + len(b) + 3 > max_length:
            b.pop()
        examples.append((a, b))
    return examples


def some_document(source: random.Random) -> list[list[int]]:
    lengths = [source.choice([1, 3, 8, 20, 40, 70]) for _ in range(source.randrange(1, 30))]
    return [[source.randrange(5, 1000) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("max_length", [8, 16, 64, 128])
def test_segments_follow_the_literal_rule(max_length: int) -> None:
    source = random.Random(max_length)
    for number in range(300):
        document = some_document(source)
        expected = literal_examples(document, max_length, Draws(7, number))
        assert list(two_segments(document, max_length, Draws(7, number))) == expected


def test_rates_of_single_segments_and_short_targets() -> None:
    draws, count, whole = Draws(3, 1), 20_000, [[1] * 10] * 13
    single = np.mean([not dealt(whole, 128, draws)[1] for _ in range(count)])
    assert abs(single - 0.1) < 5 * np.sqrt(0.1 * 0.9 / count)
    targets = np.array([target_length(128, draws) for _ in range(count)])
    short = targets[targets < 128]
    assert abs(len(short) / count - 0.05 * 123 / 124) < 5 * np.sqrt(0.05 * 0.95 / count)
    assert (short.min(), short.max()) == (5, 127) and abs(short.mean() - 66) < 5 * 36 / np.sqrt(len(short))
    lengths = [
        sum(map(len, pair)) for d in range(300) for pair in list(two_segments([[1] * 5] * 400, 128, Draws(3, d)))[:-1]
    ]
    assert abs(np.mean(np.array(lengths) < 120) - 0.05 * 111 / 124) < 0.01


def test_a_aims_at_half_and_a_late_short_sentence_can_still_join_it() -> None:
    seeds = [Draws(0, number) for number in range(200)]
    both = [dealt([[1] * 50, [2] * 30, [3] * 4], 128, draws) for draws in seeds]
    joined_late = [first for first, second in both if second and first[-1] == 3]
    assert joined_late and all(set(first) == {1, 3} for first in joined_late)
    aims = [len(first) for first, second in both if second]
    assert min(aims) == 54 and max(aims) < 100


def test_overflow_is_cut_off_as_in_the_original() -> None:
    (first, second), *more = two_segments([list(range(300))], 64, Draws(1, 1))
    assert (first, second, more) == (list(range(62)), [], [])
    first, second = cut_to(*dealt([[1] * 20, [2] * 200], 64, Draws(5, 0)), 64)
    assert len(first) + len(second) == 61


@pytest.mark.parametrize("max_length", [8, 16, 64, 128])
def test_nothing_is_lost_where_the_rest_goes_on(max_length: int) -> None:
    source, is_inside = random.Random(max_length), [number % 3 == 0 for number in range(1000)]
    for number in range(300):
        document = some_document(source)
        made = list(two_segments(document, max_length, Draws(7, number), is_inside))
        assert sorted(id_ for pair in made for part in pair for id_ in part) == sorted(itertools.chain(*document))
        for first, second in made:
            assert first and len(first) + len(second) + 2 + bool(second) <= max_length


def test_a_long_sentence_is_cut_before_a_word() -> None:
    is_inside = [False] * 10 + [True] * 10
    assert list(cut_at_words([1, 11, 2, 3, 11, 12, 4], 5, is_inside)) == [[1, 11, 2], [3, 11, 12, 4]]
    assert list(cut_at_words([1, *[11] * 7], 3, is_inside)) == [[1, 11, 11], [11] * 3, [11] * 2], "an endless word"
    _, *more = two_segments([[1, 11, 2, 3] * 10], 8, Draws(1, 1), is_inside)
    assert more and not is_inside[more[0][0][0]]


def test_documents_do_not_touch_each_other() -> None:
    document = [[1, 2, 3]] * 100
    alone = list(two_segments(document, 32, Draws(1, 11)))
    list(two_segments([[9] * 7] * 5, 32, Draws(1, 10)))
    assert list(two_segments(document, 32, Draws(1, 11))) == alone
    assert list(two_segments(document, 32, Draws(2, 11))) != alone


def test_sentences_by_line_and_by_sign() -> None:
    text = 'He came. "Did he?" she asked. It was 3.14 in fact!\n\n  Next line, e.g. this one. (Yes.) Éire too.'
    assert sentences_of(text, "line") == [line.strip() for line in text.split("\n") if line]
    assert sentences_of(text, "split") == [
        "He came.",
        '"Did he?" she asked.',
        "It was 3.14 in fact!",
        "Next line, e.g. this one.",
        "(Yes.)",
        "Éire too.",
    ]


SENTENCES = [
    ("春天来了。花开了！真的吗？“好。”他说。", ["春天来了。", "花开了！", "真的吗？", "“好。”", "他说。"]),
    ("これは本です。「何ですか？」と言った。", ["これは本です。", "「何ですか？」", "と言った。"]),
    ("यह एक घर है। वह पेड़ है॥ अच्छा।", ["यह एक घर है।", "वह पेड़ है॥", "अच्छा।"]),
    ("ما هذا؟ هذا كتاب. نعم", ["ما هذا؟", "هذا كتاب.", "نعم"]),
    ("i ran. then i slept! ok? yes", ["i ran. then i slept!", "ok?", "yes"]),
    ("See a.com/x?y=1.5 now. He said: (Yes.) 3 came.", ["See a.com/x?y=1.5 now.", "He said: (Yes.)", "3 came."]),
]


@pytest.mark.parametrize(("text", "sentences"), SENTENCES)
def test_sentences_of_any_writing(text: str, sentences: list[str]) -> None:
    assert sentences_of(text, "unicode") == sentences


def test_pieces_cover_a_document() -> None:
    cut = list(pieces(list(range(10)), 4))
    assert [len(piece) for piece in cut] == [4, 4, 2] and np.concatenate(cut).tolist() == list(range(10))
    assert list(pieces([], 4)) == []
