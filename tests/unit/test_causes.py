"""What ends a run from outside is told in one line, whichever library it comes through."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from datamodules.core.errors import DataError
from launch.causes import as_said, known_cause

RUN = Path("runs/one")


class Failing(Dataset[int]):
    """Fails in a worker."""

    def __init__(self, fail: Callable[[], object]) -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 2

    def __getitem__(self, item: int) -> int:
        self.fail()
        return item


def bad_record() -> None:
    raise DataError("a.jsonl:3: no object; mend it")


def error_of(fail: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:
        list(DataLoader(Failing(fail), batch_size=None, num_workers=1))
    return caught.value


def test_an_error_of_the_data_in_a_worker_is_told_as_it_was_said() -> None:
    found = as_said(error_of(bad_record))
    assert isinstance(found, DataError) and str(found) == "a.jsonl:3: no object; mend it"
    plain = DataError("b")
    assert as_said(plain) is plain


def test_what_a_worker_cannot_read_is_named() -> None:
    found = known_cause(error_of(lambda: Path("/no/corpus.arrow").read_bytes()), RUN)
    assert str(found) == (
        "data: a worker of data.num_workers could not go on: [Errno 2] No such file or directory: '/no/corpus.arrow'"
    )


def test_an_error_of_the_program_in_a_worker_is_none_of_these() -> None:
    assert known_cause(error_of(lambda: {}["x"]), RUN) is None


def test_a_file_of_the_run_is_named_and_others_are_not() -> None:
    assert "runs/one/metrics.jsonl: Too many levels" in str(
        known_cause(OSError(errno.ELOOP, os.strerror(errno.ELOOP), "runs/one/metrics.jsonl"), RUN)
    )
    assert known_cause(FileNotFoundError(errno.ENOENT, "No such file", "model.py"), RUN) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may start no process")
def test_a_process_that_cannot_be_started() -> None:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        found = "no error"
        try:
            os.setuid(65533)
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
            os.fork()
        except OSError as error:
            found = str(known_cause(error, RUN))
        finally:
            os.write(writer, found.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        assert stream.read() == (
            "data.num_workers: a process could not be started: Resource temporarily unavailable; take fewer, "
            "or raise ulimit -u"
        )
    os.waitpid(child, 0)
