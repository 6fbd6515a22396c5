"""RUN/metrics.csv."""

import resource
import signal

import pytest

from callbacks.papers import Papers
from callbacks.table import Csv
from datamodules.core.errors import DataError

PAPERS = Papers("own", "python -m launch fit", "abc", "seed: 1\n", {"seed": 1})


def attempt(logger: Csv, start: int, end: int) -> None:
    """Log the steps after `start` as a run does that goes on from there."""
    logger.rewind(start)
    logger.log_papers(PAPERS, start)
    for step in range(start + 1, end + 1):
        logger.log_metrics({"train/loss": step / 10}, step)
        logger.log_metrics({"perf/tokens_per_s": 5.0}, step)
    logger.finalize("success")


def test_a_table_has_a_row_for_a_step_and_a_column_for_a_value(tmp_path):
    logger = Csv(str(tmp_path))
    attempt(logger, 0, 2)
    logger.log_metrics({"val/loss, all": float("nan"), "train/loss": 0.3}, 3)
    logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        'step,train/loss,perf/tokens_per_s,"val/loss, all"', "1,0.1,5.0,", "2,0.2,5.0,", "3,0.3,,",
    ]  # fmt: skip
    assert (tmp_path / "hparams.yaml").read_text() == "# python -m launch fit\n# commit: abc\nseed: 1\n"


def test_a_table_is_cut_back_and_loses_a_torn_row(tmp_path, caplog):
    attempt(Csv(str(tmp_path)), 0, 5)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("6,0.6,5.")
    attempt(Csv(str(tmp_path)), 3, 4)
    assert "1 damaged rows are dropped" in caplog.text
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows == ["step,train/loss,perf/tokens_per_s", *(f"{step},{step / 10},5.0" for step in (1, 2, 3, 4))]
    (tmp_path / "other" / "metrics.csv").mkdir(parents=True)
    with pytest.raises(DataError, match="is not a file; move it away"):
        Csv(str(tmp_path / "other"))


def test_a_full_disk_leaves_whole_rows_and_is_told_with_the_file(tmp_path):
    logger = Csv(str(tmp_path))
    attempt(logger, 0, 2)
    before = (tmp_path / "metrics.csv").read_text()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, hard))
    try:
        logger.log_metrics({"train/loss": 0.3, "perf/tokens_per_s": 5.0}, 3)
        with pytest.raises(OSError, match=r"metrics\.csv"):
            logger.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "metrics.csv").read_text() == before
    logger.save()
    assert (tmp_path / "metrics.csv").read_text() == before + "3,0.3,5.0\n"
