"""A run's folder: who is in it, what it was started with, and how each attempt ended.

config.yaml   the configuration, each value with its source
run.json      commit, versions, host, command of the newest attempt, hash of the configuration, fingerprint of the data
lock          host and process of a live fit
ledger.jsonl  one line when an attempt starts and one when it ends
outcome.json  how the newest attempt ended
"""

import fcntl
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.config.errors import ConfigError
from launch.config.overlay import PROJECT
from launch.config.read import Entry, Key, Table, read_file
from launch.config.resolved import RUN_FILE, Resolved
from launch.config.show import scalar

PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "datasets", "deepspeed", "numpy", "jsonargparse")
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


class RunFolder:
    """The folder of one run, as rank 0 of `fit` uses it; also read by the other commands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempt = 0

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    def enter(self, fresh: bool) -> None:
        """Make the folder and lock it against a second live fit.

        Raises:
            ConfigError: `fresh` and the folder exists, or another fit is live in it.
        """
        if fresh and self.path.exists() and any(file.name != "lock" for file in self.path.iterdir()):
            raise ConfigError(f"run.fresh = true: {self.path} exists; give another --run.dir, or delete the folder")
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)  # for the moment of looking and writing only
            file.seek(0)
            holder = _parsed(file.read())
            if isinstance(holder, dict) and _is_live(holder):
                raise ConfigError(
                    f"run.dir = {self.path}: in use by process {holder['pid']} on {holder['host']} since "
                    f"{holder['time']}; wait for it, or give another --run.dir{_other_host(holder, self.path)}"
                )
            file.truncate(0)
            file.write(json.dumps(_identity()))

    def leave(self) -> None:
        """Unlock the folder if this process holds it."""
        with suppress(OSError):
            holder = _parsed((self.path / "lock").read_text())
            if holder and (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid()):
                (self.path / "lock").write_text("")  # the file stays: others may wait to lock it

    def differences(self, resolved: Resolved) -> dict[Key, tuple[Entry | None, Entry | None]]:
        """Return the keys whose values are not those of the stored configuration: (stored, given now)."""
        file = self.path / "config.yaml"
        old = read_file(file, str(file)) if file.exists() else {}
        new = resolved.of_the_run() if old else {}
        changed = [key for key in {**old, **new} if _value(old, key) != _value(new, key)]
        return {key: (old.get(key), new.get(key)) for key in changed}

    def start(self, resolved: Resolved, reason: str) -> None:
        """Write the configuration and what it runs on, and open an attempt in the ledger."""
        lines = self.ledger()
        self.attempt = 1 + max((line["attempt"] for line in lines), default=0)
        if lines and lines[-1]["event"] == "start":
            self._note("end", lines[-1]["attempt"], reason="killed: it could not say how it ended")
        if not (self.path / "config.yaml").exists() or self.differences(resolved):
            write_whole(self.path / "config.yaml", resolved.run_text())
        facts = {**(read_json(self.path / RUN_FILE) or {}), **surroundings(), "config_sha256": resolved.digest()}
        write_json(self.path / RUN_FILE, facts)
        self._note("start", self.attempt, reason=reason, **_identity())

    def end(self, code: int, step: int, reason: str) -> None:
        """Close the attempt: outcome.json, the ledger, the lock."""
        outcome = {"attempt": self.attempt, "step": step, "code": code, "reason": reason, "time": _now()}
        write_json(self.path / "outcome.json", outcome)
        self._note("end", self.attempt, reason=reason, step=step, code=code)
        self.leave()

    def ledger(self) -> list[dict[str, Any]]:
        """Return the lines of the ledger; a last line that was cut off is left out."""
        file = self.path / "ledger.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [found for line in lines if (found := _parsed(line))]

    def finished_at(self) -> int:
        """Return the step at which the newest attempt ended well, 0 if it did not."""
        outcome = read_json(self.path / "outcome.json") or {}
        return outcome["step"] if outcome.get("code") == 0 else 0

    def _note(self, event: str, attempt: int, **facts: Any) -> None:
        with (self.path / "ledger.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"attempt": attempt, "event": event, "time": _now(), **facts}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def unsettled(differences: dict[Key, tuple[Entry | None, Entry | None]], path: Path) -> list[str]:
    """Return a complaint for each difference that a resumed run may not have."""
    problems = []
    for key, (old, new) in differences.items():
        name = ".".join(key)
        if any(name == settled or name.startswith(settled + ".") for settled in SETTLED):
            was, now = _shown(old), _shown(new)
            place = f" ({new.source})" if new else ""
            problems.append(f"{name} = {now}{place}: the run in {path} has {was}; keep that, or give another --run.dir")
    return problems


def described(differences: dict[Key, tuple[Entry | None, Entry | None]]) -> list[str]:
    """Return a line for each difference."""
    return [
        f"  {'.'.join(key)}: {_shown(old)} -> {_shown(new)}" + (f"  # {new.source}" if new else "")
        for key, (old, new) in differences.items()
    ]


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is never seen half-written."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; None if there is none or it is damaged."""
    return _parsed(path.read_text(encoding="utf-8")) if path.exists() else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _value(table: Table, key: Key) -> Any:
    return table[key].value if key in table else ...


def _shown(entry: Entry | None) -> str:
    return "(not set)" if entry is None else scalar(entry.value)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _identity() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID", "")
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "born": _born(pid), "job": job, "time": _now()}


def _born(pid: int) -> str:
    """Return when a process began, in the kernel's ticks: process numbers are used again."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _is_live(holder: dict[str, Any]) -> bool:
    if holder.get("job") and holder["job"] == os.environ.get("SLURM_JOB_ID"):
        return False  # a requeued job, perhaps on another host: SLURM has ended its earlier attempt
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder["pid"] != os.getpid() and holder.get("born", "") in ("", _born(holder["pid"]))


def _other_host(holder: dict[str, Any], path: Path) -> str:
    same = holder["host"] == socket.gethostname()
    return "" if same else f"; if that process is gone, delete {path / 'lock'}"


def surroundings() -> dict[str, Any]:
    """Return commit, versions, host, command and time of this process."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": (_git("status", "--porcelain") or "").splitlines(),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "command": shlex.join(["python", "-m", "launch", *sys.argv[1:]]),
        "time": _now(),
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PROJECT), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
