"""The handler only notes a signal; a repeat within a moment is ignored, a later one ends the process with 75."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys
sys.modules["torch"] = None
from lightning_modules.core import stop
stop.install()
assert stop.requested() == 0
os.kill(os.getpid(), int(sys.argv[1]))
os.kill(os.getpid(), int(sys.argv[1]))
assert stop.requested() == int(sys.argv[1])
stop.install()
assert stop.requested() == int(sys.argv[1])
stop.REPEAT_SECONDS = -1.0
if sys.argv[2] == "again":
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(7)
"""


def test_a_signal_is_noted_when_nobody_reads_any_more() -> None:
    program = PROGRAM.replace("stop.install()\nassert", "stop.install()\nos.dup2(writer, 2)\nassert", 1)
    program = program.replace(
        "import os, signal, sys", "import os, signal, sys\nreader, writer = os.pipe()\nos.close(reader)"
    )
    command = [sys.executable, "-c", program, str(int(signal.SIGTERM)), "no more"]
    assert subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}).returncode == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize(("then", "code"), [("no more", 7), ("again", 75)])
def test_signal_is_noted_and_a_late_repeat_ends(number: signal.Signals, then: str, code: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(int(number)), then]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert number.name in done.stderr
