import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tokenizers.decoders import ByteLevel, WordPiece

from callbacks.electra_panel import LEGEND, Piece, escape, panel, words
from callbacks.loggers import JsonLines, TensorBoard
from datamodules.core.errors import DataError


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


class Pieces:
    """Stands for a WordPiece tokenizer."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, ids: list[int]) -> str:
        return WordPiece().decode([self.pieces[i] for i in ids])


def judged(pieces: str, corrupted: dict[int, int], probability: list[float], special: tuple[int, ...] = ()) -> str:
    """Return the panel's verdict on pieces of which some were replaced by others."""
    pieces, size = pieces.split(), len(pieces.split())
    seen = torch.tensor([corrupted.get(i, i) for i in range(size)])
    special_T = torch.tensor([i in special for i in range(size)])
    batch = {"lens": [size], "ids_T": torch.arange(size), "special_T": special_T}
    text = panel(Pieces(*pieces), batch, seen, torch.tensor(probability), 1)
    assert text.startswith(f"{LEGEND}\n\n**original** {FSI}")
    return text.split("**judged** ")[1]


FSI, LRI, PDI = "\u2068", "\u2066", "\u2069"


def marked(word: str, what: str) -> str:
    return f"{FSI}**{word}**{PDI} {LRI}({what}){PDI}"


def test_panel_names_what_was_found_missed_and_accused_in_words():
    text = judged("the chef cooked the meal", {1: 4, 2: 0}, [0.0, 0.9, 0.2, 0.8, 0.1])
    expected = [
        "the",
        marked("meal", "found, 90%"),
        marked("the", "missed, 20%"),
        marked("the", "accused, 80%"),
        "meal",
    ]
    assert text == f"{FSI}{' '.join(expected)}{PDI}"
    assert not any(ord(c) > 0x2070 for c in LEGEND + text), "no pictures"


def test_panel_puts_pieces_together_and_leaves_special_tokens_out():
    pieces = "[CLS] def ##ine ac ##cel ##er ##ation ##x [SEP]"
    text = judged(pieces, {4: 2}, [0.9, 0.1, 0.2, 0.1, 0.7, 0.8, 0.1, 0.1, 0.9], special=(0, 8))
    assert text == f"{FSI}define {marked('acineerationx', 'found, 70%')}{PDI}", "of the piece that was replaced"


@pytest.mark.parametrize("word", ["\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd"])
def test_panel_isolates_what_runs_from_right_to_left(word):
    """As UAX #9 orders it, the verdict follows its word and is read as it stands."""
    text = judged(f"{word} a", {}, [0.9, 0.0])
    assert text == f"{FSI}{marked(word, 'accused, 90%')} a{PDI}"
    shown = markdown_to_safe_html(text)
    assert shown == f"<p>{FSI}{FSI}<strong>{word}</strong>{PDI} {LRI}(accused, 90%){PDI} a{PDI}</p>"


def test_panel_takes_out_what_steers_the_display():
    text = judged("a\u202eb\x1b[2J c\u2069", {}, [0.0, 0.0])
    assert text == f"{FSI}ab\\[2J c{PDI}"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["\u0120the", "\u0120def", "ine", ",", "\u0120", "x"], ["the", "define,", "x"]),  # GPT-2's, a space in front
        (["\u0120\u00e4\u00b8\u0143", "\u00e5\u013d\u00bd"], ["\u4e2d\u56fd"]),
    ],
)
def test_words_of_bytes_are_told_by_their_spaces(tokens, expected):
    bytes_of = SimpleNamespace(decode=lambda ids: ByteLevel().decode([tokens[i] for i in ids]))
    found = words(bytes_of, [Piece(i, False, 0.0) for i in range(len(tokens))])
    assert [bytes_of.decode([piece.token for piece in word]).strip() for word in found] == expected


def test_markdown_of_the_text_itself_is_escaped():
    assert escape("<b>*x*</b> a_b") == "&lt;b>\\*x\\*&lt;/b> a\\_b"


def test_a_torn_last_line_is_mended_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, logger = tmp_path / "metrics.jsonl", JsonLines(str(tmp_path))
    file.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}')
    logger.rewind(2)
    assert file.read_text().endswith('{"step": 2, "a": 2.0}\n') and not caplog.text, "only its end was missing"
    file.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a"')
    logger.rewind(2)
    assert file.read_text() == '{"step": 1, "a": 1.0}\n' and "1 damaged lines are dropped (of step 2)" in caplog.text
