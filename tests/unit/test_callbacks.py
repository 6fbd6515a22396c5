import json

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.electra_panel import ALARM, CAUGHT, MISSED, escape, panel
from callbacks.loggers import JsonLines, TensorBoard
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
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("a")
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
