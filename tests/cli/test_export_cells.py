"""`launch export` of a sentence encoder: from files of pairs to cut models that hold what the run's grid says."""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from launch.config.resolved import resolve
from launch.export import beside, own_options, parse
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.matryoshka2d import MatryoshkaEncoder
from lightning_modules.matryoshka2d.grid import read_csv
from tests.cli.launching import ROOT, environment, errors, launch, light

WORDS = [
    "red",
    "blue",
    "green",
    "car",
    "moon",
    "dog",
    "cat",
    "tree",
    "house",
    "river",
    "runs",
    "sleeps",
    "shines",
    "old",
]
FLAGS = ["--data.validation.dev.task", "sts", "--data.validation.dev.path", "dev.csv", "--trainer.max_steps", "6"]
FULL = """
import resource, signal, sys
from launch.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (100, 5_000, 60_000):  # at the configuration, the tokenizer, the weights; the next byte does not fit
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    assert main(["export", RUN, "--out", OUT]) == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sys.exit(main(["export", RUN, "--out", "/proc/self/encoder"]))
"""


def sentence(draws: random.Random) -> str:
    return " ".join(draws.choices(WORDS, k=draws.randint(2, 9)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, scored pairs and a run that was trained on them."""
    folder, draws = tmp_path_factory.mktemp("pairs"), random.Random(0)
    for name, head, count in (("pairs", ["anchor", "positive"], 120), ("dev", ["sentence1", "sentence2", "score"], 40)):
        rows = [[sentence(draws), sentence(draws), round(draws.random(), 3)][: len(head)] for _ in range(count)]
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    flags = [
        *FLAGS,
        "--data.root",
        str(folder),
        "--run.dir",
        str(folder / "run"),
        "--data.cache_dir",
        str(folder / "cache"),
    ]
    prompts = ["--data.source.path", "pairs.csv", "--data.source.prompts.anchor", "query: "]
    done = launch("fit", "--config", "configs/matryoshka2d/debug.yaml", *flags, *prompts)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def cosines(folder: Path, encode) -> tuple[np.ndarray, np.ndarray]:
    with (folder / "dev.csv").open() as file:
        rows = list(csv.DictReader(file))
    first, second = (encode([row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    return (first * second).sum(1), np.array([float(row["score"]) for row in rows])


def test_every_cell_holds_what_the_grid_says_of_it(place: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    done = launch("export", str(place / "run"), "--out", str(place / "cells"), "--all-cells")
    assert done.returncode == 0, done.stderr
    grid = read_csv(place / "run" / "grid" / "step_00000006.csv")
    cells = [(layer, dim) for layer in grid.layers for dim in grid.dims]
    lines = done.stdout.splitlines()
    assert lines[0] == f"exported step_00000006 of {place / 'run'}; every tensor was read back and compared"
    assert lines[1] == "vectors that sentence-transformers reads out of it equal the run's own"
    assert sorted(lines[2:]) == sorted(f'  SentenceTransformer("{place / "cells" / f"{n}x{d}"}")' for n, d in cells)
    assert len(cells) == 6 and "warning" not in done.stdout
    encoder = MatryoshkaEncoder.from_run(place / "run", device="cpu")
    for layer, dim in cells:
        folder = place / "cells" / f"{layer}x{dim}"
        model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        assert model.prompts == {"query": "query: ", "document": ""} and model.max_seq_length == 32
        cosine_N, score_N = cosines(place, model.encode)
        own_N, _ = cosines(place, lambda texts, n=layer, d=dim: encoder.encode(texts, n, d))
        assert abs(cosine_N - own_N).max() <= 1e-5
        measured = grid.cell(layer, dim)["dev_spearman"]
        assert spearmanr(cosine_N, score_N).statistic == pytest.approx(measured, abs=5e-3), "but for ties of rounding"
        assert f"**{measured:.4f}**" in (folder / "README.md").read_text()
    weights = {path: path.stat() for path in (place / "cells").glob("*/model.safetensors")}
    assert {(stat.st_nlink, stat.st_mode & 0o222) for stat in weights.values()} == {(len(grid.dims), 0)}
    assert len(weights) == 6 and len({stat.st_ino for stat in weights.values()}) == len(grid.layers), "one a depth"


def test_a_test_measures_what_each_depth_costs_and_the_model_card_says_so(place: Path) -> None:
    judged = ["--data.test.dev.task", "sts", "--data.test.dev.path", "dev.csv"]
    done = launch("test", "--run.dir", str(place / "run"), *judged)
    assert done.returncode == 0, done.stdout + done.stderr
    measured, plain = (read_csv(place / "run" / "grid" / f"{name}step_00000006.csv") for name in ("test_", ""))
    assert measured.values == plain.values and plain.costs.parameters == {}
    assert sorted(measured.costs.sentences_per_second) == sorted(measured.costs.parameters) == [1, 2]
    assert min(measured.costs.sentences_per_second.values()) > 0
    done = launch("export", str(place / "run"), "--out", str(place / "told"), "--layers", "1", "--dim", "16")
    assert done.returncode == 0, done.stderr
    one = measured.costs.parameters[1]
    assert f"| 1 | {one:,} |" in (place / "told" / "README.md").read_text()
    assert one == sum(p.numel() for p in MatryoshkaEncoder.from_run(place / "run", device="cpu").first(1).parameters())


def test_costs_are_not_told_where_weights_are_in_parts(tmp_path: Path) -> None:
    words = ["--config", "configs/matryoshka2d/debug.yaml", "--config", "configs/strategy/zero3.yaml"]
    run = ["--run.dir", str(tmp_path), "--trainer.devices", "1", "--trainer.max_steps", "4"]
    for command, given in (("fit", [*words, *run]), ("test", run[:2])):
        done = launch(command, *given)
        assert done.returncode == 0, done.stdout + done.stderr
    grid = read_csv(tmp_path / "grid" / "test_step_00000004.csv")
    assert grid.values and grid.costs.parameters == grid.costs.sentences_per_second == {}


def test_one_cell_and_what_was_not_trained(place: Path) -> None:
    out = place / "one"
    done = launch("export", str(place / "run"), "--out", str(out), "--layers", "1", "--dim", "20", "--step", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        "warning: width 20 was not trained; this run trained 8, 16, 32",
        "vectors that sentence-transformers reads out of it equal the run's own",
        f'  SentenceTransformer("{out}")',
    ]
    encoder, older = (MatryoshkaEncoder.from_run(place / "run", step, device="cpu") for step in (3, None))
    found = MatryoshkaEncoder.from_folder(out, device="cpu").encode(WORDS)
    assert abs(found - encoder.encode(WORDS, 1, 20)).max() <= 1e-6
    assert abs(found - older.encode(WORDS, 1, 20)).max() > 1e-4, "the weights are those of step 3"
    with pytest.raises(CheckpointError, match=r"run: holds no checkpoint of step 5"):
        MatryoshkaEncoder.from_run(place / "run", 5)


def test_a_cell_that_is_not_there(place: Path) -> None:
    done = launch("export", str(place / "run"), "--out", str(place / "none"), "--layers", "3")
    assert errors(done) == ["--layers 3: the encoder has 2 layers; give a number from 1 to 2"]
    assert not (place / "none").exists()


def test_every_flag_that_is_given_reaches_the_method() -> None:
    resolved = resolve(["--config", "configs/matryoshka2d/debug.yaml"])
    for flags, options in (
        ([], {}),
        (["--layers", "0"], {"layers": 0}),
        (["--layers", "3", "--dim", "-1"], {"layers": 3, "dim": -1}),
        (["--all-cells"], {"all_cells": True}),
    ):
        assert own_options(resolved, parse(["RUN", "--out", "FOLDER", *flags])) == options


def test_a_number_that_is_none(place: Path) -> None:
    (line,) = errors(light("export", str(place / "run"), "--out", str(place / "none"), "--dim", "wide"))
    assert line.startswith("export: argument --dim: invalid int value: 'wide'")


@pytest.mark.parametrize("method", ["electra", "finetune"])
def test_methods_that_cannot_be_cut_refuse_the_flags_at_once(method: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(resolve(["--config", f"configs/{method}/debug.yaml"]).run_text())
    flags = ["--layers", "3", "--dim", "128", "--all-cells"]
    assert errors(light("export", str(tmp_path), "--out", str(tmp_path / "out"), *flags)) == [
        f"{flag}: model.class = {method} knows nothing of it; leave it out"
        for flag in ("--layers", "--dim", "--all-cells")
    ]


def test_a_full_disk_is_one_line_and_leaves_nothing(place: Path) -> None:
    before = {path.name for path in place.iterdir()}
    code = FULL.replace("RUN", repr(str(place / "run"))).replace("OUT", repr(str(place / "full")))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    *full, unwritable = errors(done)
    assert full == [f"--out {place / 'full'}: cannot be written: File too large"] * 3
    assert unwritable.startswith("--out /proc/self/encoder: cannot be written: ")
    assert {path.name for path in place.iterdir()} == before


def test_a_killed_export_leaves_no_half_folder_and_the_next_one_sweeps(place: Path) -> None:
    out = place / "killed"
    command = [sys.executable, "-m", "launch", "export", str(place / "run"), "--out", str(out), "--all-cells"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    part = place / f".killed.{os.uname().nodename}.{process.pid}.part"
    deadline = time.monotonic() + 120
    while not (part / "1x8" / "modules.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert part.is_dir() and not out.exists()
    with beside(out) as folder:
        assert not part.exists()
        folder.mkdir()
        (folder / "file").write_text("whole")
        living = place / f".killed.{os.uname().nodename}.{os.getppid()}.part"
        living.mkdir()
    assert (out / "file").read_text() == "whole"
    shutil.rmtree(out)
    with pytest.raises(KeyError), beside(out) as folder:
        folder.mkdir()
        raise KeyError("a fault that is no disk's")
    assert not out.exists() and not folder.exists()
    assert living.exists(), "of a process that runs"
    living.rmdir()
