"""Hundreds of mistakes, each refused in one line, at once, with nothing executed and nothing lost."""

import time
from pathlib import Path

import pytest

from tests.bad.configurations import LIGHT
from tests.bad.trying import check, lay_out, light, state, timed, words_of


@pytest.mark.parametrize("name", LIGHT)
def test_a_mistake_in_the_configuration_is_one_line(tmp_path: Path, name: str) -> None:
    mistake = LIGHT[name]
    lay_out(tmp_path, mistake.files)
    before, began = state(tmp_path), time.monotonic()
    ended = light(words_of(mistake), tmp_path, mistake.env)
    timed(name, began)
    check(mistake, ended, tmp_path, before)
