"""The code that a job runs: this folder as it will be then, or a copy of it as it is now. Imports nothing heavy."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from launch.config.errors import ConfigError
from launch.config.overlay import PROJECT
from launch.surroundings import SNAPSHOT, changed_files, commit

FOLDERS = ("launch", "lightning_modules", "datamodules", "callbacks", "configs")
START = (
    '"""Starts the copied code: `python FOLDER fit ...`."""\n\n'
    "from launch.__main__ import main\nfrom launch.leaving import run_and_exit\n\n"
    'if __name__ == "__main__":\n    run_and_exit(main)\n'
)


def described() -> str:
    """Return which code this is, for people."""
    changes = len(changed_files())
    changed = f", {changes} changed or new file{'s' * (changes > 1)}" if changes else ""
    return f"commit {known}{changed}" if (known := commit()) else "no commit known"


def snapshot(run: Path) -> Path:
    """Copy the project's packages into the run's folder, under the hash of their contents; one that is there is kept.

    Raises:
        ConfigError: git cannot say which files belong to the project.
    """
    contents = {name: (PROJECT / name).read_bytes() for name in _files()}
    digest = hashlib.sha256()
    for name, data in contents.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    final = run / "code" / digest.hexdigest()[:12]
    if final.exists():
        return final
    part = final.with_name(f".{final.name}.{os.getpid()}")
    facts = {"commit": commit(), "changed_files": changed_files()}
    for name, data in (contents | {"__main__.py": START.encode(), SNAPSHOT: json.dumps(facts).encode()}).items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(data)
    try:
        part.rename(final)
    except OSError:  # another process was faster
        shutil.rmtree(part)
    return final


def _files() -> list[str]:
    command = ["git", "-C", str(PROJECT), "ls-files", "-z", "-c", "-o", "--exclude-standard", "--", *FOLDERS]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--snapshot: git cannot list the files of {PROJECT}: {error}") from None
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    names = sorted({name for name in names if (PROJECT / name).is_file()})
    if done.returncode or not names:
        raise ConfigError(
            f"--snapshot: {PROJECT} is no git repository, so it cannot be told what belongs to the project"
        )
    return names
