"""On what a command runs: commit, versions, host, time."""

import platform
import shlex
import socket
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from launch.config.overlay import PROJECT

PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "datasets", "deepspeed", "numpy", "jsonargparse")


def now() -> str:
    """Return the time in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def surroundings() -> dict[str, Any]:
    """Return commit, versions, host, command and time of this process."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": (_git("status", "--porcelain") or "").splitlines(),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "command": shlex.join(["python", "-m", "launch", *sys.argv[1:]]),
        "time": now(),
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
