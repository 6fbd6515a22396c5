"""The wheel: outside of the checkout there are the same methods, configurations and claims, and a command."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.cli.launching import ROOT, environment

FOLDERS = ("launch", "lightning_modules", "datamodules", "callbacks", "configs", "benchmarks")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs; built from a copy, without a network."""
    pytest.importorskip("setuptools")
    scratch = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, scratch / "source" / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, scratch / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir",
               str(scratch), str(scratch / "source")]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch / "site")
    return scratch / "site"


def run(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run the command in another folder, with the wheel and the other packages: -S keeps the checkout out."""
    script = "import sys; sys.argv[0] = 'tokamak'; from launch.__main__ import command; command()"
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    variables = environment() | {"PYTHONPATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run([sys.executable, "-S", "-c", script, *words], cwd=folder, env=variables, capture_output=True,
                          text=True, timeout=240)  # fmt: skip


def test_everything_that_is_shipped_is_in_the_wheel(installed: Path) -> None:
    data = ("configs/*/*.yaml", "lightning_modules/*/README.md", "datamodules/samples/*", "launch/jobs/*.sbatch")
    for pattern in (*data, "benchmarks/*/claim/results.json", "**/*.py"):
        for path in ROOT.glob(pattern):
            place = path.relative_to(ROOT)
            if place.parts[0] in FOLDERS and path.is_file() and "__pycache__" not in place.parts:
                assert (installed / place).is_file(), place
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "tokamak = launch.__main__:command" in entry.read_text()


def test_light_commands_work_outside_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    methods = run(installed, tmp_path, "methods")
    assert methods.returncode == 0 and "configs/electra/debug.yaml" in methods.stdout, methods.stderr
    assert "claim: none" not in methods.stdout.split("matryoshka2d")[1]
    shown = run(installed, tmp_path, "config", "--config", "configs/electra/laptop.yaml")
    assert shown.returncode == 0 and "max_steps: 2000" in shown.stdout, shown.stderr
    file = installed / "configs/electra/laptop.yaml"
    assert (
        f"--config configs/electra/laptop.yaml: not in this folder, so it is that of the project, {file}"
        in shown.stderr
    )
    assert run(installed, tmp_path, "--version").stdout.startswith("tokamak ")
    for command in ("claim", "bench"):
        assert run(installed, tmp_path, command, "--help").returncode == 0


def test_what_the_wheel_lacks_does_not_come_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    lacking = tmp_path / "site"
    shutil.copytree(installed, lacking)
    shutil.rmtree(lacking / "launch/checks")
    done = run(lacking, tmp_path, "doctor")
    assert "No module named 'launch.checks'" in done.stderr


def test_the_doctor_compares_versions_outside_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "doctor")
    (line,) = [line for line in done.stdout.splitlines() if line.split()[1:2] == ["versions"]]
    assert all(f"{name} " in line for name in ("torch", "lightning", "transformers", "datasets")), done.stdout


@pytest.mark.slow
def test_a_run_outside_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "fit", "--config", "configs/electra/debug.yaml")
    assert done.returncode == 0, done.stderr
    assert os.path.isdir(tmp_path / "runs/electra/debug/checkpoints/step_00000008")
