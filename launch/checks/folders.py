"""Folders: can be written, keep to what checkpoints rely on, have room, and have the same time as this machine."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from launch.checks.finding import Finding
from launch.config.errors import ConfigError, short
from launch.config.overlay import expanded
from launch.config.resolved import Resolved

GIB = 1 << 30
SKEW_SECONDS = 3.0
OLDEST_TIME = 1767225600.0  # 2026-01-01; a clock before it was never set
Probe = Callable[[Path], None]


def check(resolved: Resolved | None) -> Iterator[Finding]:
    """Try the run's folder, or the working folder where there is no configuration."""
    folder = resolved.run_dir if resolved else Path.cwd()
    place = existing(folder)
    if cache := resolved.get("data.cache_dir") if resolved else None:
        cache = expanded(cache, "data.cache_dir")
        if complaint := behaves(cache, existing(cache)):
            yield complaint._replace(fix="give another --data.cache_dir")
    complaint = behaves(folder, place)
    yield complaint or Finding("folder", f"{short(folder)}: files are made, renamed over, locked and synced")
    if complaint is None:
        yield clock(place)
        yield room(folder, place, resolved)


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    found = folder.absolute()
    while not os.path.isdir(found) and found != found.parent:
        found = found.parent
    return found


def behaves(folder: Path, place: Path) -> Finding | None:
    """Do in a hidden folder what a run does; it is removed again."""
    trial = place / f".doctor.{os.uname().nodename}.{os.getpid()}.{time.time_ns()}"
    doing = "a folder is made"
    try:
        trial.mkdir()
        for doing in PROBES:
            PROBES[doing](trial)
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "give another --run.dir, on a file system of the kind that POSIX describes"
        if isinstance(error, PermissionError) or doing == "a folder is made":
            fix = "give a --run.dir that you may write"
        return Finding("folder", f"{short(folder)}: {doing}: {reason}", fix)
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return None


def _written(trial: Path) -> None:
    with (trial / "new").open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())


def _renamed(trial: Path) -> None:
    (trial / "old").write_bytes(b"old")
    os.replace(trial / "new", trial / "old")
    if (trial / "old").read_bytes() != b"new" or (trial / "new").exists():
        raise OSError("the file that was there before is still there")
    (trial / "folder.tmp").mkdir()
    (trial / "folder.tmp" / "file").write_bytes(b"")
    os.rename(trial / "folder.tmp", trial / "folder")


def _synced(trial: Path) -> None:
    descriptor = os.open(trial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exclusive(trial: Path) -> None:
    os.close(os.open(trial / "once", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        os.close(os.open(trial / "once", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    raise OSError("a file that must not exist was made twice")


def _linked(trial: Path) -> None:
    (trial / "best").symlink_to("folder")


def _locked(trial: Path) -> None:
    with (trial / "lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


PROBES: dict[str, Probe] = {
    "a file is written and synced": _written,
    "a name is given over an older file": _renamed,
    "a folder is synced": _synced,
    "a file is made only once": _exclusive,
    "a link is made": _linked,
    "a file is locked": _locked,
}


def clock(place: Path, time_here: Callable[[], float] = time.time) -> Finding:
    """Compare this machine's time with that of the folder's file system, which may be another machine's."""
    now = time_here()
    if now < OLDEST_TIME:
        return Finding("clock", f"it is {time.ctime(now)} here", "set the clock: timedatectl set-ntp true")
    trial = place / f".doctor.clock.{os.getpid()}.{time.time_ns()}"
    try:
        trial.write_bytes(b"x")
        skew = trial.stat().st_mtime - (now + time_here()) / 2
    except OSError as error:
        return Finding("clock", f"{short(place)}: no file to compare times with: {error.strerror}", "free some space")
    finally:
        with suppress(OSError):
            trial.unlink()
    if abs(skew) > SKEW_SECONDS:
        fix = "let both machines take their time from one server (timedatectl set-ntp true)"
        return Finding("clock", f"files in {short(place)} are dated {skew:+.1f} s from this machine's time", fix)
    return Finding("clock", f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, the folder's within {max(0.1, abs(skew)):.1f} s")


def room(folder: Path, place: Path, resolved: Resolved | None) -> Finding:
    """Compare the free space with the checkpoints that will be kept."""
    free = shutil.disk_usage(place).free
    if resolved is None:
        return Finding(
            "disk", f"{free / GIB:,.1f} GiB free in {short(place)}; give --config to compare it with a run's"
        )
    from launch.plan import plan_of

    try:
        plan = plan_of(resolved, ranks=1 if resolved.get("strategy.class") == "single" else None)
    except ConfigError as error:
        return Finding(
            "disk", f"{free / GIB:,.1f} GiB free; what a checkpoint takes is not known ({error.problems[0]})"
        )
    held = sum(_size(file) for file in (folder / "checkpoints").rglob("*"))
    needed = plan.checkpoint_bytes * plan.kept_checkpoints
    text = f"{free / GIB:,.1f} GiB free, {plan.kept_checkpoints} checkpoints take {needed / GIB:,.1f} GiB"
    if needed > free + held:
        fix = f"free {(needed - free - held) / GIB:,.1f} GiB, give another --run.dir, or keep fewer checkpoints"
        return Finding("disk", text, fix)
    return Finding("disk", text)


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0
