"""`launch bench`: the short form writes all files; what was measured is not looked at."""

import json

import pytest

from tests.cli.launching import errors, launch, light


def test_refusals_need_no_torch():
    assert errors(light("bench", "elektra")) == ["bench elektra: no such bench; did you mean electra?"]
    found = errors(light("bench", "electra", "--round", "3", "--threads", "0", "--precision", "fp16", "--size", "huge"))
    assert found == [
        "--round: no such flag of bench; did you mean rounds?",
        "--threads 0: must be a whole number of 1 or more",
        "--size huge: must be one of small, base, debug",
        "--precision fp16: must be one of fp32, bf16",
    ]
    assert "usage: python -m launch bench" in light("bench").stdout


def checked(folder, systems: set[str]) -> dict:
    results = json.loads((folder / "results.json").read_text())
    assert {"bench", "command", "minutes", "machine", "about", "settings", "comparisons"} <= set(results)
    assert {"cpu", "cores", "load", "commit", "versions", "python", "time"} <= set(results["machine"])
    (setting,) = results["settings"]
    assert set(setting["tokens_per_s"]) == systems
    assert len(setting["rounds"]) == 2
    for turns in setting["rounds"]:
        assert all(turn["seconds"] > 0 and turn["tokens"] > 0 for turn in turns.values())
    for found in results["comparisons"]:
        assert found["interval"][0] <= found["median"] <= found["interval"][1]
        assert found["rounds"] == 2 and found["met"] is None
    report = (folder / "report.md").read_text()
    assert all(f"| {found['comparison']} |" in report for found in results["comparisons"])
    assert (folder / "ratios.png").stat().st_size > 1000
    return results


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_electra(tmp_path):
    done = launch("bench", "electra", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    systems = {"fit", "bare", "trainer", "careful", "loader"}
    results = checked(tmp_path, systems)
    assert [c["comparison"] for c in results["comparisons"]] == [
        "fit / bare",
        "fit / trainer",
        "fit / careful",
        "loader / fit",
    ]
    (setting,) = results["settings"]
    assert 0 <= setting["pad_fraction"] < 1
    for turns in setting["rounds"]:  # every system saw the same sequences
        assert len({turns[name]["tokens"] for name in systems - {"loader"}}) == 1
    assert set(setting["time"]) == systems - {"loader"}
    for found in setting["time"].values():
        assert sum(found["shares"].values()) == pytest.approx(1.0)
        assert found["share_of_limit"] > 0
    assert setting["time"]["fit"]["gflops"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_data(tmp_path):
    done = launch("bench", "data", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "bench" / "data"  # never over what was measured
    assert (folder / "report.md").read_text().startswith("# Bench: data, a quick run that measures nothing\n")
    checked(folder, {"bare", "packed", "documents", "segments", "two processes"})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quick_runtime(tmp_path):
    done = launch("bench", "runtime", "--quick", "--out", str(tmp_path), seconds=800)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [setting["name"] for setting in results["settings"]] == ["ddp, debug", "zero3, debug"]
    for setting in results["settings"]:
        for turns in setting["rounds"]:  # both systems saw the same sequences on the first rank
            assert turns["fit"]["tokens"] == turns["bare"]["tokens"] > 0
    compared = [found["comparison"] for found in results["comparisons"]]
    assert compared == ["fit / bare", "fit / bare", "slices / dcp", "blocked / copy", "slices, loading / dcp, loading"]
    report = (tmp_path / "report.md").read_text()
    assert "## Saves and loads, in seconds" in report and "| fsdp | dcp |" in report
    assert "## From the start of two processes to the end of the first step" in report


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quick_matryoshka2d(tmp_path):
    done = launch("bench", "matryoshka2d", "--quick", "--out", str(tmp_path), seconds=800)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    names = ["fp32, 1 thread, pairs", "evaluation, 1 thread, texts", "encoding, 1 thread, texts"]
    assert [setting["name"] for setting in results["settings"]] == names
    for turns in results["settings"][0]["rounds"]:  # the peer's texts are tokenised again, from our ids
        assert turns["fit"]["tokens"] == turns["paper"]["tokens"] == turns["cached"]["tokens"]
        assert turns["trainer"]["tokens"] == pytest.approx(turns["fit"]["tokens"], rel=0.02)
        assert turns["trainer"]["pairs"] == turns["fit"]["pairs"] == 128
    compared = [found["comparison"] for found in results["comparisons"]]
    assert compared == ["fit / trainer", "paper / plain", "cached / kept", "grid / cell", "half / full"]
    assert "## Speed, in units a second" in (tmp_path / "report.md").read_text()
