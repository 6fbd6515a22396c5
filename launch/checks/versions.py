"""Versions of the packages, read from their metadata: nothing is imported."""

import configparser
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from launch.checks.finding import Finding
from launch.config.overlay import PROJECT
from launch.surroundings import version_of as installed

Installed = Callable[[str], str | None]


class Bad(NamedTuple):
    """Releases of a package that must not be used."""

    package: str
    releases: str  # a specifier
    what: str
    source: str  # repo#issue


KNOWN_BAD = (
    Bad(
        "lightning",
        "==2.6.2",
        "the release was malicious: it stole credentials",
        "Lightning-AI/pytorch-lightning#21691",
    ),
    Bad(
        "lightning",
        "==2.6.3",
        "the release was malicious: it stole credentials",
        "Lightning-AI/pytorch-lightning#21691",
    ),
    Bad("lightning", "<2.6.6", "a checkpoint can run code when it is loaded", "Lightning-AI/pytorch-lightning#21822"),
    Bad("pytorch-lightning", "==2.6.2", "the release was malicious", "Lightning-AI/pytorch-lightning#21691"),
    Bad("pytorch-lightning", "==2.6.3", "the release was malicious", "Lightning-AI/pytorch-lightning#21691"),
    Bad("pytorch-lightning", "<2.6.6", "a checkpoint can run code", "Lightning-AI/pytorch-lightning#21822"),
    Bad("datasets", "==5.0.*", "a stream that was resumed twice begins anew", "huggingface/datasets#8308"),
    Bad("deepspeed", ">=0.17.6,<0.18.3", "ZeRO-2 computes wrong gradients", "deepspeedai/DeepSpeed#7718"),
    Bad("deepspeed", ">=0.18.3,<=0.19.3", "ZeRO-2 loses gradients of modules used twice", "deepspeedai/DeepSpeed#8224"),
    Bad("nvidia-nccl-cu12", "==2.29.2", "collectives can hang", "pytorch/pytorch#174338"),
    Bad("nvidia-nccl-cu13", "==2.29.2", "collectives can hang", "pytorch/pytorch#174338"),
)
MALICIOUS = "remove the environment and change every credential that it could read"


def requirements() -> list[Requirement]:
    """Return what setup.cfg asks for, or what was installed with the wheel where there is none."""
    config = configparser.ConfigParser()
    if config.read(PROJECT / "setup.cfg", encoding="utf-8"):
        lines = config.get("options", "install_requires", fallback="").splitlines()
    else:
        lines = metadata.requires("tokamak") or []
    found = []
    for line in filter(None, map(str.strip, lines)):
        with suppress(InvalidRequirement):
            found.append(Requirement(line))
    return [needed for needed in found if needed.marker is None or needed.marker.evaluate({"extra": ""})]


def check(version_of: Installed = installed) -> Iterator[Finding]:
    """Compare what is installed with what the project asks for and with what is known to be bad."""
    known, problems = [], []
    for needed in requirements():
        found, pinned = version_of(needed.name), _install(needed)
        if found is None:
            problems.append(Finding("versions", f"{needed.name} is not installed", pinned))
        elif not _fits(needed, found):
            problems.append(Finding("versions", f"{needed.name} {found} does not fit {needed.specifier}", pinned))
        elif needed.name in ("torch", "lightning", "deepspeed", "transformers", "datasets"):
            known.append(f"{needed.name} {found}")
    problems += bad(version_of)
    yield from problems
    if not problems:
        yield Finding("versions", ", ".join([f"Python {sys.version.split()[0]}", *known]))


def bad(version_of: Installed = installed) -> Iterator[Finding]:
    """Yield what is installed and known to be bad; of several reasons for one package the first."""
    seen = set()
    for entry in KNOWN_BAD:
        found = version_of(entry.package)
        if found is None or entry.package in seen or not _fits(Requirement(entry.package + entry.releases), found):
            continue
        seen.add(entry.package)
        wanted = next((need for need in requirements() if need.name == entry.package), entry.package)
        fix = _install(wanted)
        fix = f"{MALICIOUS}, then {fix}" if "malicious" in entry.what else fix
        yield Finding("versions", f"{entry.package} {found}: {entry.what} ({entry.source})", fix)


def _install(wanted: Requirement | str) -> str:
    """Write the command that installs a package, in the version that was tried where that is known."""
    pins = PROJECT / "constraints.txt"
    return f"pip install {f'-c {pins} ' if pins.exists() else ''}'{wanted}'"


def _fits(needed: Requirement, version: str) -> bool:
    try:
        return needed.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
