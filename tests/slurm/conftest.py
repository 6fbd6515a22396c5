"""One cluster for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A SLURM of two nodes."""
    if reason := missing():
        pytest.skip(reason)
    made = Cluster()
    yield made
    made.close()
