"""Which checkpoints of a run are whole.

A checkpoint is a folder `step_00001000` with `manifest.json`, `trainer.pt` and one `shard_00000.pt` per rank.
The manifest holds the size and the SHA-256 of every other file, and the SHA-256 of itself.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.schema import check_manifest, check_shard, check_whole

MANIFEST = "manifest.json"
TRAINER = "trainer.pt"
FORMAT = 1
HASHING_THREADS = 4
STEP_FOLDER = re.compile(r"step_([0-9]{8,})")
MOST_MANIFEST_BYTES = 64 << 20

_log = logging.getLogger(__name__)


def step_folder(checkpoints: Path, step: int) -> Path:
    """Name the folder of the checkpoint of one step."""
    return checkpoints / f"step_{step:08d}"


def shard_name(rank: int) -> str:
    """Name the file that one rank writes."""
    return f"shard_{rank:05d}.pt"


def complete_steps(checkpoints: Path) -> list[int]:
    """List the steps that were published and can be looked into, ascending; their files are not read."""
    return [step for step in _steps(checkpoints) if os.path.isfile(step_folder(checkpoints, step) / MANIFEST)]


def newest_complete(checkpoints: Path, below: float = math.inf, reads: bool = True) -> Path | None:
    """Find the newest checkpoint below a step that passes `verify`; each damaged one that is newer gets a warning."""
    for step in reversed([step for step in _steps(checkpoints) if step < below]):
        folder = step_folder(checkpoints, step)
        try:
            verify(folder, reads=reads)
        except CheckpointError as error:
            _log.warning("skipping a damaged checkpoint: %s", error)
        else:
            return folder
    return None


def verify(folder: Path, rank: int = 0, world_size: int = 1, reads: bool = True) -> dict[str, Any]:
    """Check a checkpoint against its manifest, which is returned: sizes of all files, contents of this rank's share.

    Raises:
        CheckpointError: a file is missing, has another size or SHA-256, or holds more than plain data.
    """
    with told(folder):
        return _verified(folder, rank, world_size, reads)


def _verified(folder: Path, rank: int, world_size: int, reads: bool) -> dict[str, Any]:
    manifest = read_manifest(folder)
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name in [TRAINER, *(shard_name(index) for index in range(manifest["world_size"]))]:
        if name not in files:
            raise CheckpointError(f"{folder / MANIFEST}: lists no {name}")
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing, but the manifest lists it")
        if path.stat().st_size != facts["size"]:
            raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, the manifest says {facts['size']}")
    share = sorted(files)[rank::world_size] if reads else []
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        for name, found in zip(share, pool.map(_sha256, [folder / name for name in share]), strict=True):
            if found != files[name]["sha256"]:
                raise CheckpointError(
                    f"{folder / name}: its SHA-256 is {found[:12]}, the manifest says {files[name]['sha256'][:12]}: "
                    "the file was damaged, or belongs to another save"
                )
    for name in share:
        check = check_whole if name == TRAINER else check_shard
        check(open_file(folder / name), folder / name)
    return manifest


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Take what the system cannot read for damage.

    Raises:
        CheckpointError: naming the file and the reason.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest alone.

    Raises:
        CheckpointError: the folder or the manifest is missing, is not JSON, or was changed after it was written.
    """
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise CheckpointError(f"{path}: is no ordinary file")
        if path.stat().st_size > MOST_MANIFEST_BYTES:
            raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, more than a manifest may have")
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; a checkpoint is a folder with a manifest") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != seal(manifest):
        raise CheckpointError(f"{path}: was changed after it was written, its own SHA-256 does not fit")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: has format {manifest.get('format')}, this version reads format {FORMAT}")
    check_manifest(manifest, path)
    name = folder.resolve().name  # `best` is a link
    if STEP_FOLDER.fullmatch(name) and name != step_folder(folder, manifest["step"]).name:
        raise CheckpointError(f"{path}: is of step {manifest['step']}, its folder was renamed or copied; name it so")
    return manifest


def seal(manifest: dict[str, Any]) -> str:
    """Hash everything in a manifest but its own hash."""
    facts = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_file(path: Path) -> Any:
    """Open a file of a checkpoint, its tensors mapped into memory and not read.

    Raises:
        CheckpointError: the file is unreadable, or holds anything but tensors, numbers, strings, lists and dicts.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch.load has no common base for its errors
        lines = str(error).splitlines() or [type(error).__name__]
        code = next((line.strip() for line in lines if "GLOBAL" in line), None)
        if code is not None:
            raise CheckpointError(f"{path}: refused, it carries code and not only plain data ({code})") from error
        raise CheckpointError(f"{path}: cannot be read ({lines[0]})") from error


def has_steps(checkpoints: Path) -> bool:
    """Say whether anything is called a checkpoint."""
    return bool(_steps(checkpoints))


def _steps(checkpoints: Path) -> list[int]:
    try:
        names = [STEP_FOLDER.fullmatch(name) for name in os.listdir(checkpoints)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{checkpoints}: cannot be listed ({error.strerror}); let it be read") from error
    return sorted(int(name[1]) for name in names if name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
