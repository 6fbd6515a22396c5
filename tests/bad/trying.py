"""Trying a command line that must be refused: exit code 1, one line that names the thing, and nothing else done."""

import hashlib
import os
import re
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

from launch.__main__ import main
from tests.cli.launching import HEAVY, ROOT, environment

BOUND_SECONDS = 60
CANARY = "ran"  # what a mistake would leave that was executed
SECONDS: dict[str, float] = {}  # how long each took


class Mistake(NamedTuple):
    """A command line, what its one line of error must say (a regular expression), and what lies in the folder."""

    words: str
    message: str
    files: dict[str, str | bytes] = {}  # noqa: RUF012 - never written to
    env: dict[str, str] = {}  # noqa: RUF012


class Ended(NamedTuple):
    """How a command line ended."""

    code: int | None
    out: str
    err: str


def lay_out(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write the files of a mistake."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def light(words: list[str], folder: Path, env: dict[str, str]) -> Ended:
    """Run a command line in a forked process, in which no heavy package can be imported."""
    if (child := os.fork()) == 0:
        for name in HEAVY:
            sys.modules[name] = None
        run_here(words, folder, env)
    return awaited(child, folder)


def heavy(server: ForkServerContext, words: list[str], folder: Path, env: dict[str, str]) -> Ended:
    """Run a command line in a process of the server that has imported everything."""
    process = server.Process(target=run_here, args=(words, folder, env))
    process.start()
    process.join(BOUND_SECONDS)
    alive = process.is_alive()
    process.kill()
    process.join()
    return Ended(None if alive else process.exitcode, *outputs(folder))


def run_here(words: list[str], folder: Path, env: dict[str, str]) -> None:
    """Become the command line."""
    signal.alarm(BOUND_SECONDS)
    os.environ.clear()
    os.environ.update(environment() | env)
    os.chdir(folder)
    for descriptor, name in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv[1:] = words
    code = 99
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 98
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def awaited(child: int, folder: Path) -> Ended:
    """Wait for a process."""
    status = os.waitpid(child, 0)[1]
    return Ended(os.waitstatus_to_exitcode(status), *outputs(folder))


def outputs(folder: Path) -> tuple[str, str]:
    """Read what a command line has written."""
    return tuple(
        (folder / name).read_text(errors="replace") if (folder / name).exists() else "" for name in (".out", ".err")
    )


def state(folder: Path) -> dict[str, str]:
    """Hash what lies in a folder, locks and outputs left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("lock", ".out", ".err")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def words_of(mistake: Mistake) -> list[str]:
    """Split a command line as a shell does, with the project's folder filled in."""
    import shlex

    return [word.replace("ROOT/", f"{ROOT}/") for word in shlex.split(mistake.words)]


def check(mistake: Mistake, ended: Ended, folder: Path, before: dict[str, str]) -> None:
    """Hold a refusal to what a refusal is."""
    shown = f"{mistake.words}\n{ended.out}\n{ended.err}"
    assert ended.code is not None and ended.code != -signal.SIGALRM, f"it hangs: {shown}"
    assert "Traceback" not in ended.err, shown
    assert ended.code == 1, f"exit code {ended.code}: {shown}"
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert lines, shown
    assert any(re.search(mistake.message, line) for line in lines), f"{mistake.message!r} in {shown}"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", ended.err), "control characters reach the terminal"
    assert not (folder / CANARY).exists(), f"it was executed: {shown}"
    after = state(folder)
    lost = {name for name, found in before.items() if after.get(name) != found}
    assert not lost, f"changed or lost: {lost}"


def timed(name: str, began: float) -> None:
    """Note how long a mistake took."""
    SECONDS[name] = time.monotonic() - began
