"""Preparation says how far it is, also where nobody sits at a terminal."""

import re
import time

import pytest

from datamodules.core import progress as module
from datamodules.core.progress import progress, shown


def test_a_line_comes_every_few_seconds(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.02)
    with progress("tokenising train", 3, "shards", lambda: 1200) as advance:
        advance(1)
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) > 3 and re.fullmatch(r"tokenising train: 1 of 3 shards, 1,200 documents, \d s", lines[0])
    time.sleep(0.1)
    assert not capfd.readouterr().err, "a line after the end"


def test_quick_work_says_nothing(capfd: pytest.CaptureFixture) -> None:
    assert [*shown(range(5), "checking", "shards")] == [0, 1, 2, 3, 4]
    assert not capfd.readouterr().err


def test_work_that_fails_ends_its_lines(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.02)
    with pytest.raises(ValueError), progress("reading", None, "pairs"):
        raise ValueError
    time.sleep(0.1)
    assert not capfd.readouterr().err
