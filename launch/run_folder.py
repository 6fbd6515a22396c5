"""A run's folder: who is in it, what it was started with, and how each attempt ended.

config.yaml   the configuration that was last trained with, each value with its source
config.next.yaml  that of an attempt which has not taken up training yet
run.json      commit, versions, host, command of the newest attempt that trained; hash of config.yaml and of the data
lock          host and process of a live fit
ledger.jsonl  a line when an attempt starts, with command and versions, and one when it ends; the same for a SLURM job
outcome.json  how the newest attempt that trained ended
data.json     the account of the data
"""

import fcntl
import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.config.errors import ConfigError, short
from launch.config.numbers import is_whole
from launch.config.read import DEFAULT, Entry, Key, Table, read_file
from launch.config.resolved import CONFIG, NEXT_CONFIG, RUN_FILE, Resolved
from launch.config.show import scalar
from launch.surroundings import now, surroundings
from lightning_modules.core.foreign import is_run

DEFAULTS_BEFORE = {("data", "sentences"): "split"}  # runs that began with them go on with them
# What a resumed run may not change: its steps would mean something else, or the optimizer's state would not fit.
SETTLED = (
    "seed",
    "model.class",
    "model.optimizer",
    "model.layer_decay",
    "data.class",
    "data.tokenizer",
    "data.global_batch_size",
    "data.sequence_length",
)

FOLDERS = ("checkpoints", "tensorboard", "tokenizer")
FILES = ("lock", "ledger.jsonl", "metrics.jsonl")  # those that are written on; others are replaced
SETTLED_KEYS = [tuple(name.split(".")) for name in SETTLED]


class RunFolder:
    """The folder of one run, as rank 0 of `fit` uses it; also read by the other commands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempt = 0
        self.facts: dict[str, Any] = {}  # of this attempt, noted once it has begun
        self.began = False

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    def enter(self, fresh: bool) -> None:
        """Make the folder and lock it against a second live fit.

        Raises:
            ConfigError: `fresh` and the folder exists, another fit is live in it, or it cannot be written.
        """
        try:
            self._enter(fresh)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"run.dir = {short(self.path)}: cannot be used: {reason}; give another one") from None

    def _enter(self, fresh: bool) -> None:
        if fresh and self.path.exists() and any(file.name != "lock" for file in self.path.iterdir()):
            raise ConfigError(f"run.fresh = true: {self.path} exists; give another --run.dir, or delete the folder")
        if os.path.isfile(self.path / CONFIG) and not is_run(str(self.path)):
            raise ConfigError(
                f"{self.path / CONFIG}: is not a run's, which would replace it; give another --run.dir, or rename it"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for name in FOLDERS:
            if os.path.lexists(self.path / name) and not os.path.isdir(self.path / name):
                raise ConfigError(f"{self.path / name}: is no folder, and the run keeps one there; move it away")
        for name in FILES:
            if os.path.lexists(self.path / name) and not os.path.isfile(self.path / name):
                raise ConfigError(f"{self.path / name}: is no file, and the run keeps one there; move it away")
            if os.path.islink(self.path / name):  # a folder from elsewhere may lead to any file
                raise ConfigError(
                    f"{self.path / name}: is a link, and the run writes on there; put a file in its place"
                )
        with (self.path / "lock").open("a+", encoding="utf-8", errors="replace") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)  # for the moment of looking and writing only
            file.seek(0)
            holder = _holder(file.read())
            if holder and _is_live(holder):
                raise ConfigError(
                    f"run.dir = {self.path}: in use by process {holder['pid']} on {holder['host']} since "
                    f"{holder.get('time')}; wait for it, or give another --run.dir{_other_host(holder, self.path)}"
                )
            file.truncate(0)
            file.write(json.dumps(_identity()))

    def leave(self) -> None:
        """Unlock the folder if this process holds it."""
        with suppress(OSError):
            holder = _holder(_text(self.path / "lock"))
            if holder and (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid()):
                (self.path / "lock").write_text("", encoding="utf-8")  # the file stays: others may wait to lock it

    def differences(self, resolved: Resolved) -> dict[Key, tuple[Entry | None, Entry | None]]:
        """Return the keys whose values are not those that were last trained with: (stored, given now)."""
        file = self.path / CONFIG
        old = read_file(file, str(file)) if os.path.lexists(file) else {}
        new = resolved.of_the_run() if old else {}
        changed = [key for key in {**old, **new} if _value(old, key) != _value(new, key)]
        changed = [key for key in changed if key in old or new[key].source != DEFAULT]  # options that are new
        return {key: (old.get(key), new.get(key)) for key in changed}

    def keep_defaults(self, resolved: Resolved) -> list[str]:
        """Go on with a default that was another one when the run began; return a line for each."""
        lines = []
        for key, (old, new) in self.differences(resolved).items():
            if old and new and new.source == DEFAULT and DEFAULTS_BEFORE.get(key) == old.value:
                lines.append(f"{'.'.join(key)} = {_shown(old)}, as the run began; the default is {_shown(new)} now")
                resolved.table[key] = Entry(old.value, DEFAULT)
        return lines

    def start(self, resolved: Resolved, reason: str) -> None:
        """Write the configuration beside the old one and what it runs on, and open an attempt in the ledger.

        Raises:
            ConfigError: the folder takes no files.
        """
        try:
            self._start(resolved, reason)
        except OSError as error:
            raise ConfigError(f"{error.filename or self.path}: cannot be written: {error.strerror}") from None

    def _start(self, resolved: Resolved, reason: str) -> None:
        lines = self.ledger()
        self.attempt = 1 + max((line["attempt"] for line in lines), default=0)
        if lines and lines[-1]["event"] == "start":
            self._note("end", lines[-1]["attempt"], reason="killed: it could not say how it ended")
        write_whole(self.path / NEXT_CONFIG, resolved.run_text())
        self.facts, self.began = surroundings(), False
        if not (self.path / RUN_FILE).exists():
            self._note_facts(**self.facts)
        about = {name: self.facts[name] for name in ("command", "commit", "versions")}
        self._note("start", self.attempt, reason=reason, **_identity(), **about)

    def accept(self, resolved: Resolved, **facts: Any) -> None:
        """Make the configuration that of the run, and note what else it trains with: its training has begun."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / CONFIG).exists() or self.differences(resolved):  # else the old one names the older sources
            write_whole(self.path / CONFIG, resolved.run_text())
        (self.path / NEXT_CONFIG).unlink(missing_ok=True)
        known = {name: fact for name, fact in facts.items() if fact is not None}
        hashes = {"config_sha256": resolved.digest(), "config_file_sha256": self.config_hash()}
        self._note_facts(**self.facts, **hashes, **known)
        self.began = True

    def config_hash(self) -> str | None:
        """Return a hash of config.yaml as it lies there, None where there is none."""
        with suppress(OSError):
            return hashlib.sha256((self.path / CONFIG).read_bytes()).hexdigest()
        return None

    def is_changed(self) -> bool:
        """Say whether config.yaml is not as the run left it: it was edited, or cut off."""
        left = (read_json(self.path / RUN_FILE) or {}).get("config_file_sha256")
        return left is not None and left != self.config_hash()

    def end(self, code: int, step: int, reason: str) -> None:
        """Close the attempt: outcome.json, the ledger, the lock. A full disk does not hide how the run ended."""
        outcome = {"attempt": self.attempt, "step": step, "code": code, "reason": reason, "time": now()}
        try:
            (self.path / NEXT_CONFIG).unlink(missing_ok=True)
            if self.began or not (self.path / "outcome.json").exists():  # a refused start says nothing of the run
                write_json(self.path / "outcome.json", outcome)
            self._note("end", self.attempt, reason=reason, step=step, code=code)
        except OSError as error:
            print(f"{error.filename or self.path}: cannot be written: {error.strerror}", file=sys.stderr)
        self.leave()

    def ledger(self) -> list[dict[str, Any]]:
        """Return the lines about attempts; one that was cut off or damaged is left out."""
        return [line for line in self._lines() if not str(line["event"]).startswith("job_")]

    def job_lines(self) -> list[dict[str, Any]]:
        """Return the lines that batch scripts wrote."""
        return [line for line in self._lines() if str(line["event"]).startswith("job_")]

    def _lines(self) -> list[dict[str, Any]]:
        found = [_parsed(line) for line in _text(self.path / "ledger.jsonl").splitlines()]
        lines = [line for line in found if isinstance(line, dict) and {"attempt", "event", "time"} <= line.keys()]
        return [line for line in lines if isinstance(line["attempt"], int)]

    def note_job(self, event: str, **facts: Any) -> None:
        """Write a line about a job, under the number of the attempt that it makes or has made.

        Raises:
            OSError: the folder takes no files.
        """
        attempt = max((line["attempt"] for line in self.ledger()), default=0)
        self._note(event, attempt + (event == "job_start"), **facts)

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, 0 if there is none; it is not read."""
        with suppress(OSError, ValueError):
            names = [name.removeprefix("step_") for name in os.listdir(self.checkpoints)]
            return max((int(name) for name in names if is_whole(name) and self.holds(int(name))), default=0)
        return 0

    def forget_holder(self, is_over: Callable[[str], bool]) -> None:
        """Unlock the folder if the lock names another job and that one is over: it may have died on another host."""
        holder = _holder(_text(self.path / "lock"))
        job = str(holder.get("job", "")) if holder else ""
        if job and job != os.environ.get("SLURM_JOB_ID") and is_over(job):
            (self.path / "lock").write_text("", encoding="utf-8")

    def finished_at(self) -> int:
        """Return the step of the newest checkpoint, or a later one at which an attempt ended well without saving."""
        outcome = read_json(self.path / "outcome.json") or {}
        step = outcome.get("step")
        ended = step if outcome.get("code") == 0 and isinstance(step, int) else 0
        return max(ended, self.newest_step())

    def holds(self, step: int) -> bool:
        """Tell whether there is a checkpoint of a step; it is not read."""
        return os.path.isfile(self.checkpoints / f"step_{step:08d}" / "manifest.json")

    def _note_facts(self, **facts: Any) -> None:
        write_json(self.path / RUN_FILE, {**(read_json(self.path / RUN_FILE) or {}), **facts})

    def _note(self, event: str, attempt: int, **facts: Any) -> None:
        path = self.path / "ledger.jsonl"
        torn = is_torn(path)
        if torn:
            print(f"{path}: its last line was cut off, which loses what it said of an attempt; it is closed")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps({"attempt": attempt, "event": event, "time": now(), **facts}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def identity(resolved: Resolved) -> dict[str, Any]:
    """Return what may not change in a run, by which its checkpoints know it: key -> value."""
    return {".".join(key): resolved.table[key].value for key in sorted(filter(is_settled, resolved.table))}


def is_settled(key: Key) -> bool:
    """Say whether a resumed run may not change an option."""
    return any(key[: len(settled)] == settled for settled in SETTLED_KEYS)


def unsettled(differences: dict[Key, tuple[Entry | None, Entry | None]], path: Path) -> list[str]:
    """Return a complaint for each difference that a resumed run may not have."""
    problems = []
    for key, (old, new) in differences.items():
        if is_settled(key):
            was, now = _shown(old), _shown(new)
            place = f" ({new.source})" if new else ""
            problems.append(
                f"{'.'.join(key)} = {now}{place}: the run in {path} has {was}; keep that, or give another --run.dir"
            )
    return problems


def described(differences: dict[Key, tuple[Entry | None, Entry | None]]) -> list[str]:
    """Return a line for each difference."""
    return [
        f"  {'.'.join(key)}: {_shown(old)} -> {_shown(new)}" + (f"  # {new.source}" if new else "")
        for key, (old, new) in differences.items()
    ]


def is_torn(path: Path) -> bool:
    """Say whether a file of lines ends inside of one, as after a loss of power."""
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        return False
    with suppress(OSError), path.open("rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    return False


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is never seen half-written."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file of one object; None if there is none or it is damaged."""
    found = _parsed(_text(path))
    return found if isinstance(found, dict) else None


def _text(path: Path) -> str:
    """Return what stands in a file, nothing if it is no file that can be read."""
    with suppress(OSError):
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _value(table: Table, key: Key) -> Any:
    return table[key].value if key in table else ...


def _shown(entry: Entry | None) -> str:
    return "(not set)" if entry is None else scalar(entry.value)


def _identity() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID", "")
    pid = os.getpid()
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    facts = {"host": socket.gethostname(), "pid": pid, "born": _born(pid), "job": job, "restarts": restarts}
    return {**facts, "time": now()}


def _born(pid: int) -> str:
    """Return when a process began, in the kernel's ticks: process numbers are used again."""
    return _stat(pid)[19]


def _stat(pid: int) -> list[str]:
    """Return what the kernel says of a process, from its state on; empty words where it says nothing."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return [""] * 20


def _holder(text: str) -> dict[str, Any] | None:
    """Return whom a lock names, None if it says nothing of use."""
    found = _parsed(text)
    pid = found.get("pid") if isinstance(found, dict) else None
    return found if isinstance(pid, int) and 0 < pid < 2**31 and isinstance(found.get("host"), str) else None


def _is_live(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT")
        same_job = bool(job) and holder.get("job") == job
        # a job that was requeued to another host: SLURM has ended its earlier attempt
        return not (same_job and restarts and restarts != holder.get("restarts", ""))
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    if _stat(holder["pid"])[0] == "Z":  # it has ended, and nobody has asked how
        return False
    return holder["pid"] != os.getpid() and holder.get("born", "") in ("", _born(holder["pid"]))


def _other_host(holder: dict[str, Any], path: Path) -> str:
    same = holder["host"] == socket.gethostname()
    return "" if same else f"; if that process is gone, delete {path / 'lock'}"
