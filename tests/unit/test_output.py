"""What is printed: nothing of it raises, whoever reads it and on whatever terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.core.errors import DataError
from launch.config.errors import ConfigError, one_line
from launch.config.resolved import resolve
from launch.fit import _told
from launch.output import visible
from lightning_modules.core.checkpoint.errors import CheckpointError

ROOT = Path(__file__).parents[2]
DEAD = """
import os, sys
from launch import output
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, int(sys.argv[1]))
output.install()
stream = sys.stdout if sys.argv[1] == "1" else sys.stderr
for _ in range(3):
    print("x" * 100_000, file=stream, flush=True)
os._exit(0 if os.readlink(f"/proc/self/fd/{sys.argv[1]}") == "/dev/null" else 5)
"""


def run(*words: str, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=ROOT, env={**os.environ, **more}, capture_output=True)


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_dead_reader_gives_way_to_dev_null(number: str) -> None:
    done = run("-c", DEAD, number)
    assert (done.returncode, done.stderr) == (0, b"")


def test_lines_are_sent_whole() -> None:
    """print() writes in pieces, and with -u each would reach a pipe that ranks share by itself."""
    reader, writer = os.pipe2(os.O_DIRECT)  # hands over one write at a time
    code = "from launch import output\noutput.install()\nfor _ in range(9): print('step', 3)"
    process = subprocess.Popen([sys.executable, "-u", "-c", code], cwd=ROOT, stdout=writer)
    os.close(writer)
    writes = list(iter(lambda: os.read(reader, 4096), b""))
    os.close(reader)
    assert process.wait() == 0 and writes == [b"step 3\n"] * 9


def test_a_full_disk_is_tried_again() -> None:
    done = run("-c", "from launch import output\noutput.install()\nprint('a', flush=True)\nprint('b', flush=True)")
    assert done.stdout == b"a\nb\n"
    command = f"{sys.executable} -c 'from launch import output; output.install(); print(1, flush=True)' > /dev/full"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_an_output_that_is_closed_is_held_by_no_other_file(closed: str) -> None:
    code = "import os, sys; from launch import output; output.install(); sys.stderr.isatty(); print(1)"
    code = f"{code}; sys.exit(4 if os.open(os.devnull, 0) > 2 else 5)"
    done = subprocess.run(f"{sys.executable} -c '{code}' {closed}", shell=True, cwd=ROOT)
    assert done.returncode == 4


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"rmdir {tmp_path}/gone; {sys.executable} -m launch config --config tests/cli/toy.yaml"
    more = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=tmp_path / "gone", env=more, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: the working directory is gone; go to one that is there\n")


def test_a_terminal_without_unicode() -> None:
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    assert run("-m", "launch", "--help", **ascii_only).stdout.isascii()
    done = run("-m", "launch", "config", "--config", "tests/cli/toy.yaml", "--model.language", "\u00e4", **ascii_only)
    assert done.returncode == 0
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e4 \u4e2d\n", "plain \u00e4 \u4e2d\n"),
        ("a\tb\nc\n", "a\tb\nc\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("ok\rerror: no", "ok\\rerror: no"),
        ("a\x08b\x7f", "a\\x08b\\x7f"),
        ("gpj.\u202etxt", "gpj.\\u202etxt"),
        ("line\u2028two", "line\\u2028two"),
        ("\r 30% \x1b[31m", "\r 30% "),
        ("\x1b[2J\x1b[1;1H\x1b[?25l\x1bc", "\\x1bc"),
        ("\x1b[\x1b[31m31m", "\\x1b[31m"),
        ("\n\x1b[A", "\n\x1b[A"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_carriage_return_inside_a_line_is_shown() -> None:
    code = r"print('good', '\rbad\x1b[2J'); print('\r50%', end='', flush=True)"
    assert run("-c", f"from launch import output; output.install(); {code}").stdout == b"good \\rbad\n\r50%"


def test_every_kind_of_error_is_one_line(capsys: pytest.CaptureFixture) -> None:
    for kind in (DataError, CheckpointError, ConfigError):
        _told(kind("a\nb\x1b[31m.jsonl: is empty"))
    assert capsys.readouterr().err == "error: a\\nb\\x1b[31m.jsonl: is empty\n" * 3


def test_a_run_has_a_name_that_can_be_shown() -> None:
    for name in ("a\nb", "a\x1b[31m", "\u202ea"):
        with pytest.raises(ConfigError, match=r"run\.dir = .*: must be on one line, without control characters"):
            resolve(["--config", "tests/cli/toy.yaml", "--run.dir", name])
    assert one_line("\u0627\u0644\u200f") == "\u0627\u0644\u200f", "marks of a writing stay"
