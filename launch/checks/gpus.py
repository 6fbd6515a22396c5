"""GPUs: the driver, the CUDA of torch, its NCCL, and as many devices as the configuration asks for."""

import os
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from launch.checks.finding import Finding
from launch.checks.versions import installed
from launch.config.resolved import Resolved
from launch.config.rules import count_of

# The oldest driver of each CUDA release family: docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
DRIVER_FILE = Path("/proc/driver/nvidia/version")


def check(resolved: Resolved | None) -> Iterator[Finding]:
    """Look at the GPUs if there are any or the configuration wants some; torch is imported only then."""
    kind = (resolved.get("trainer.accelerator") if resolved else None) or "auto"
    driver = driver_version()
    promised = os.environ.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0")
    if kind == "cpu" or (kind == "auto" and driver is None and not promised):
        yield cores(resolved)
        return
    import torch

    build = torch.version.cuda
    if build is None:
        yield Finding("gpus", f"torch {torch.__version__} is built without CUDA", "install torch from its CUDA index")
        return
    if complaint := driver_complaint(driver, build):
        yield complaint
        return
    yield from nccl()
    yield devices(torch.cuda.device_count(), resolved)


def driver_version(file: Path = DRIVER_FILE) -> str | None:
    """Return the version of NVIDIA's kernel driver, None without one."""
    try:
        found = re.search(r"(?<![\w.])(\d{3}\.\d+(?:\.\d+)?)(?![\w.])", file.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None


def driver_complaint(driver: str | None, build: str) -> Finding | None:
    """Say what is wrong between the driver and the CUDA that torch was built with."""
    oldest = OLDEST_DRIVER.get(int(build.split(".")[0]), 0)
    if driver is None:
        return Finding("gpus", "there is no NVIDIA driver here", "run on a GPU node, or --trainer.accelerator cpu")
    if int(driver.split(".")[0]) < oldest:
        fix = f"update the driver to {oldest} or newer, or install torch for an older CUDA"
        return Finding("gpus", f"driver {driver} is too old for CUDA {build} of torch", fix)
    return None


def nccl() -> Iterator[Finding]:
    """Compare the NCCL that is installed with the one that torch asks for."""
    for line in metadata.requires("torch") or []:
        needed = Requirement(line)
        found = installed(needed.name) if needed.name.startswith("nvidia-nccl") else None
        if found and not needed.specifier.contains(found):
            fix = f"pip install '{needed.name}{needed.specifier}'"
            yield Finding("gpus", f"{needed.name} {found}, torch wants {needed.specifier}", fix)


def devices(count: int, resolved: Resolved | None) -> Finding:
    """Compare the GPUs that are visible with those that the configuration asks for."""
    asked = wanted(resolved)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    place = f" (CUDA_VISIBLE_DEVICES = {visible})" if visible is not None else ""
    if count == 0:
        return Finding("gpus", f"no GPU is visible{place}", "ask for GPUs when you start the job, or unset it")
    if asked and asked > count:
        return Finding(
            "gpus", f"{count} visible{place}, trainer.devices asks for {asked}", f"--trainer.devices {count}"
        )
    return Finding("gpus", f"{count} visible{place}, driver {driver_version()}")


def cores(resolved: Resolved | None) -> Finding:
    """Compare the cores with the processes of a CPU run and their loaders."""
    count, ranks = len(os.sched_getaffinity(0)), wanted(resolved) or 1
    workers = (resolved.get("data.num_workers") if resolved else None) or 0
    processes = ranks * (1 + workers)
    if workers and processes > count:
        fix = f"--data.num_workers {max(0, count // ranks - 1)}, or ask for {processes} cores"
        return Finding("cores", f"{ranks} ranks with {workers} loaders each on {count} cores", fix)
    return Finding("cores", f"{count} cores for {ranks} process{'es' if ranks > 1 else ''} on the CPU")


def wanted(resolved: Resolved | None) -> int | None:
    """Return the devices that the configuration asks for on a node, None where it leaves them open."""
    count = count_of(resolved.get("trainer.devices")) if resolved else None
    return count if count is not None and count > 0 else None
