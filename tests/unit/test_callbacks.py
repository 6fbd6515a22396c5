import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.electra_panel import ALARM, CAUGHT, MISSED, escape, panel
from callbacks.loggers import JsonLines, TensorBoard
from datamodules.core.errors import DataError
from tests.text import text_batch, word_tokenizer


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_values_of_a_step_come_to_one_line(tmp_path):
    logger = JsonLines(str(tmp_path))
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.log_metrics({"val/loss": 3.0, "train/gap": float("nan")}, step=1)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    assert lines(tmp_path) == [{"step": 1, "train/loss": 2.0, "val/loss": 3.0, "train/gap": None}]
    logger.finalize("success")
    assert lines(tmp_path)[1] == {"step": 2, "train/loss": 1.0}


def test_rewinding_drops_later_steps_and_a_torn_line(tmp_path):
    logger = JsonLines(str(tmp_path))
    for step in (1, 2, 3):
        logger.log_metrics({"a": step}, step=step)
    logger.save()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "a"')
    again = JsonLines(str(tmp_path))
    again.rewind(2)
    again.log_metrics({"a": 30}, step=3)
    again.save()
    assert [line["a"] for line in lines(tmp_path)] == [1, 2, 30]


def test_rewinding_drops_damaged_lines_once(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n\xff\n5\n{"st\n{"step": "x"}\n{"step": 2}\n')
    JsonLines(str(tmp_path)).rewind(2)
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]
    assert "4 damaged lines are dropped" in caplog.text


def test_metrics_that_are_a_folder_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match="is not a file; move it away"):
        JsonLines(str(tmp_path)).rewind(2)


FULL = """
import resource, signal, sys
from callbacks.loggers import JsonLines
logger = JsonLines(sys.argv[1])
logger.log_metrics({"a": 1.0}, step=1)
logger.save()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30, resource.RLIM_INFINITY))
logger.log_metrics({"a": 2.0}, step=2)
try:
    logger.save()
except OSError:
    print("full", open(sys.argv[1] + "/metrics.jsonl").read().endswith("}\\n"))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
logger.save()
"""


def test_a_full_disk_leaves_whole_lines(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == "full True\n", done.stderr
    assert [line["a"] for line in lines(tmp_path)] == [1.0, 2.0]


def test_tensorboard_shows_no_step_twice_after_a_rewind(tmp_path):
    first = TensorBoard(str(tmp_path))
    for step in range(1, 6):
        first.log_metrics({"a": float(step)}, step=step)
    first.finalize("success")
    second = TensorBoard(str(tmp_path))
    second.rewind(3)
    for step in (4, 5, 6):
        second.log_metrics({"a": float(10 * step)}, step=step)
    second.finalize("success")
    found = EventAccumulator(str(tmp_path)).Reload().Scalars("a")
    assert [(event.step, event.value) for event in found] == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]


def test_panel_marks_what_was_found_missed_and_accused():
    batch = text_batch([6])
    corrupted = batch["ids_T"].clone()
    corrupted[1], corrupted[2] = (corrupted[1] + 1) % 90 + 5, (corrupted[2] + 1) % 90 + 5
    probability = torch.tensor([0.0, 0.9, 0.2, 0.8, 0.1, 0.0])
    text = panel(word_tokenizer(), batch, corrupted, probability, 1)
    judged = text.split("**judged** ")[1]
    seen = word_tokenizer().convert_ids_to_tokens(corrupted.tolist())
    assert f"{CAUGHT} **{seen[1]}** (90%)" in judged and f"{MISSED} **{seen[2]}** (20%)" in judged
    assert f"{ALARM} **{seen[3]}** (80%)" in judged and judged.count("**") == 6
    assert "**original** " in text


def test_markdown_of_the_text_itself_is_escaped():
    assert escape("<b>*x*</b> a_b") == "&lt;b>\\*x\\*&lt;/b> a\\_b"
