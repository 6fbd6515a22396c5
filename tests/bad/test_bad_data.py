"""Data that is wrong, in the process of a server that has imported everything."""

import time
from pathlib import Path

import pytest

from tests.bad.data import DATA
from tests.bad.trying import check, heavy, lay_out, state, timed, words_of
from tests.forked import server


@pytest.mark.parametrize("name", DATA)
def test_a_mistake_in_the_data_is_one_line(tmp_path: Path, name: str) -> None:
    mistake = DATA[name]
    lay_out(tmp_path, mistake.files)
    before, began = state(tmp_path), time.monotonic()
    ended = heavy(server(), words_of(mistake), tmp_path, mistake.env)
    timed(name, began)
    check(mistake, ended, tmp_path, before)
