"""Ranks of a real run share each step's micro-batches, read what rank 0 made, and keep their place in a stream."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpora import texts, txt


def run(folder: Path, ranks: int, steps: int, kind: str = "prepared") -> list[dict]:
    """Start a run and return the notes of its ranks."""
    folder.mkdir(exist_ok=True)
    script = Path(__file__).with_name("data_toy.py")
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), str(folder), str(ranks), str(steps), kind]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def joined(notes: list[dict]) -> list[list[list[int]]]:
    """Put the micro-batches of all ranks behind each other, step by step."""
    return [[batch for rank in step for batch in rank] for step in zip(*(note["seen"] for note in notes), strict=True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(4):
        txt(tmp_path / f"texts/{number}.txt", texts(15, seed=number))
    return tmp_path


def test_two_ranks_see_what_one_sees(folder: Path) -> None:
    one, two = run(folder / "one", 1, 6), run(folder / "two", 2, 6)
    assert [len(step) for step in joined(one)] == [4] * 6 and joined(two) == joined(one)
    assert [note["made"] for note in two] == [1, 0] and two[0]["lines"] == two[1]["lines"]
    assert two[0]["items"] == two[1]["items"] == one[0]["items"]
    validated = sorted(one[0]["validated"])
    assert sorted(two[0]["validated"] + two[1]["validated"]) == validated == list(range(len(validated))) != []
    (folder / "two/last.ckpt").rename(folder / "one/last.ckpt")
    whole = run(folder / "whole", 1, 9)
    assert joined(two) + joined(run(folder / "one", 1, 9)) == joined(whole)  # from two ranks to one


@pytest.mark.matrix
def test_a_stream_goes_on_where_each_rank_stood(folder: Path) -> None:
    whole = run(folder / "whole", 2, 8, "streaming")
    first, second = (joined(run(folder / "parts", 2, steps, "streaming")) for steps in (3, 8))
    assert first + second == joined(whole) and len(first) == 3
    assert whole[0]["seen"][0] != whole[1]["seen"][0]
