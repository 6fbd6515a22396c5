"""The handler only notes a signal; a repeat within a moment is ignored, a later one ends the process with 75."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys, time
sys.modules["torch"] = None
from lightning_modules.core import stop
stop.install()
assert not stop.requested()
os.kill(os.getpid(), int(sys.argv[1]))
os.kill(os.getpid(), int(sys.argv[1]))
assert stop.requested() and stop.name() == signal.Signals(int(sys.argv[1])).name
stop.install()
assert stop.requested()
time.sleep(0.5)  # until the thread has read the two
if sys.argv[2] == "again":
    stop.REPEAT_SECONDS = 0.0
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
sys.exit(7)
"""


def test_a_signal_is_noted_when_nobody_reads_any_more() -> None:
    program = PROGRAM.replace("stop.install()\nassert", "stop.install()\nos.dup2(writer, 2)\nassert", 1)
    program = program.replace(
        "import os, signal, sys, time", "import os, signal, sys, time\nreader, writer = os.pipe()\nos.close(reader)"
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


HELD = """
import ctypes, os, signal, threading
from lightning_modules.core import stop
stop.install()
stop.REPEAT_SECONDS = 0.5
for seconds in (0.5, 2.0):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
mutex = ctypes.create_string_buffer(64)
for _ in range(2):  # waits for itself, as a collective for a rank that hangs: no signal wakes it
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_second_signal_ends_a_process_whose_main_thread_is_in_a_call_that_does_not_return() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75, done.stderr
    assert [line for line in done.stderr.splitlines() if line] == [
        "SIGTERM: stopping after at most 3 more steps, then it saves; a second signal after 0.5 s ends it at once; "
        "no checkpoint stands so far",
        "ended at once; no checkpoint stands",
    ]


FORKED = """
import os, signal, sys, time
from lightning_modules.core import stop
stop.install()
child = os.fork()
if child == 0:
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    assert not stop.requested()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
ended = os.waitpid(child, 0)[1]
assert os.WTERMSIG(ended) == signal.SIGTERM, ended
time.sleep(0.5)
assert not stop.requested(), "what came to the child is not for this one"
"""


def test_a_forked_process_keeps_its_signals_to_itself() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


CLOCK = """
from lightning_modules.core import stop
assert not stop.requested()
stop.after(3600)
assert not stop.requested()
stop.after(0)
assert stop.requested() and stop.name() == "run.max_wall_time"
stop.install()
assert stop.requested()
"""


def test_the_clock_asks_for_a_stop() -> None:
    done = subprocess.run([sys.executable, "-c", CLOCK], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("\nrun.max_wall_time is over: stopping after at most 3 more steps, then it saves; ")


HANGUP = """
import os, pty, signal, sys, time
child, terminal = pty.fork()
if child == 0:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where nohup has started the tests
    from lightning_modules.core import stop
    stop.install()
    print("ready", flush=True)
    for _ in range(200):
        if stop.requested():
            break
        time.sleep(0.05)
    print("a line to a terminal that is gone", flush=True)
    sys.stderr.write("and another\\n")
    with open(sys.argv[1], "w") as file:
        file.write(stop.name())
    os._exit(0)
seen = b""
while b"ready" not in seen:
    seen += os.read(terminal, 100)
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_terminal_that_hangs_up_ends_a_run_by_the_normal_way(tmp_path: Path) -> None:
    file = tmp_path / "stopped"
    done = subprocess.run(
        [sys.executable, "-c", HANGUP, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert file.read_text() == "SIGHUP"


NOHUP = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from lightning_modules.core import stop
stop.install()
os.kill(os.getpid(), signal.SIGHUP)
assert not stop.requested() and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
"""


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    done = subprocess.run([sys.executable, "-c", NOHUP], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
