"""On what a command runs: commit, versions, host, time."""

import json
import platform
import shlex
import socket
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from typing import Any

from launch.config.overlay import PROJECT

PACKAGES = (
    *("torch", "lightning", "transformers", "tokenizers", "datasets", "deepspeed", "numpy", "jsonargparse"),
    *("sentence-transformers", "accelerate"),  # peers of the benches, and what their trainers need
)
SNAPSHOT = "snapshot.json"  # in a copy of the project: of which commit it is


def now() -> str:
    """Return the time in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def surroundings() -> dict[str, Any]:
    """Return commit, versions, host, command and time of this process."""
    return {
        "commit": commit(),
        "changed_files": changed_files(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "command": shlex.join(["python", "-m", "launch", *sys.argv[1:]]),
        "time": now(),
    }


def commit() -> str | None:
    """Return the commit of the code, None where it is in no repository."""
    return copied["commit"] if (copied := _copied()) else _git("rev-parse", "HEAD")


def changed_files() -> list[str]:
    """Return what differs from the commit, as `git status` writes it."""
    return copied["changed_files"] if (copied := _copied()) else (_git("status", "--porcelain") or "").splitlines()


def _copied() -> dict[str, Any] | None:
    """Return what a copy of the project says about itself: the folder around it may be another repository."""
    file = PROJECT / SNAPSHOT
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


@cache  # one answer for a process: what it runs was imported at its start
def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PROJECT), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def version_of(name: str) -> str | None:
    """Return the version of a package by its metadata, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
