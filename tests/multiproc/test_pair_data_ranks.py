"""Pairs in a real run: ranks share each step, read what rank 0 made, and go on with the same pairs on other ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.multiproc.test_data_ranks import joined, run
from tests.pairs import jsonl, saved_tokenizer, words

SCRIPT = """
import sys
from pathlib import Path
from tests.pairs import pairs
from datamodules.core.wordpiece import TokenizerOptions
made = pairs(Path(sys.argv[1]), source=sys.argv[2], tokenizer=TokenizerOptions(sys.argv[3]))
print(made.fingerprint, len(made.parts[0]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    triplets = [
        {"anchor": words(5 + n // 3), "positive": words(60 + n, 7), "negative": words(*range(9, 12 + n % 5))}
        for n in range(60)
    ]
    jsonl(tmp_path / "a.jsonl", triplets)
    scored = [{"sentence1": words(5 + n), "sentence2": words(200 + n), "score": n / 4} for n in range(25)]
    jsonl(tmp_path / "b.jsonl", scored)
    return tmp_path


def test_two_ranks_see_what_one_sees_and_one_goes_on_where_they_stopped(folder: Path) -> None:
    two, whole = run(folder / "two", 2, 5, "pairs"), run(folder / "whole", 1, 9, "pairs")
    assert [len(step) for step in joined(whole)] == [4] * 9 and joined(two) == joined(whole)[:5]
    assert [note["made"] for note in two] == [1, 0] and two[0]["lines"] == two[1]["lines"]
    assert two[0]["lines"][1:] == whole[0]["lines"][1:], "but for the folder of the tokenizer"
    assert two[0]["items"] == two[1]["items"] == whole[0]["items"] > 0
    assert sorted(two[0]["validated"] + two[1]["validated"]) == sorted(whole[0]["validated"]) == list(range(50))
    (folder / "one").mkdir()
    (folder / "two/last.ckpt").rename(folder / "one/last.ckpt")
    assert joined(run(folder / "one", 1, 9, "pairs")) == joined(whole)[5:]


@pytest.mark.matrix
def test_two_runs_that_prepare_at_once_make_one_store(folder: Path) -> None:
    source = jsonl(
        folder / "c.jsonl", [{"query": words(n % 300, n % 7), "answer": words(n % 90)} for n in range(20_000)]
    )
    call = [sys.executable, "-c", SCRIPT, str(folder), source, saved_tokenizer(folder / "tokenizer")]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0].splitlines()[-1] for process in runs}
    assert [process.returncode for process in runs] == [0] * 3 and len(said) == 1
    (store,) = [path for path in (folder / "cache/pairs").iterdir() if path.is_dir()]
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["examples"] == 20_000 and not [*store.glob(".*.tmp")]
