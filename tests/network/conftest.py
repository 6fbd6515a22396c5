"""The hosts of one test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.network.hosts import ADDRESSES, Hosts, needs_root


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts whose names lead to their addresses."""
    needs_root()
    made = Hosts(tmp_path, dict(zip(("h1", "h2"), ADDRESSES, strict=True)))
    yield made
    made.close()


@pytest.fixture
def loopback_hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts that know their own names as 127.0.1.1, as Debian's installer writes it."""
    needs_root()
    made = Hosts(tmp_path, {"h1": "127.0.1.1", "h2": "127.0.1.1"})
    yield made
    made.close()
