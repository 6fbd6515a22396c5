"""`plan` and `doctor` as a user starts them."""

from pathlib import Path

import pytest

from tests.cli.launching import ROOT, errors, json_lines, launch, light

SEVEN_BILLION = [
    *("--config", "configs/electra/base.yaml", "--config", "configs/trainer/gpu.yaml"),
    *("--config", "configs/strategy/fsdp.yaml", "--ranks", "16", "--model.num_layers", "32"),
    *("--model.hidden_size", "4096", "--model.num_heads", "64", "--model.embedding_size", "4096"),
    *("--model.generator_width", "0.25", "--data.micro_batch_size", "8"),
]


def test_seven_billion_parameters_without_a_gpu(tmp_path: Path) -> None:
    run = tmp_path / "earlier"
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "perf/tokens_per_s": 5}\n{"step": 2, "perf/tokens_per_s": 100000}\n'
    )
    done = launch("plan", *SEVEN_BILLION, "--from", str(run))
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert text.startswith("electra: 6,999,583,547 parameters; a vocabulary of 30,522\n")
    header = next(line for line in text.splitlines() if line.startswith("  GiB of a rank"))
    assert header.split()[4:] == ["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp"]
    table = text.split("\n\n")[1].splitlines()[1:]
    rows = {line.split("  ")[1]: line.split()[-7:] for line in table}
    assert rows["weights"][0] == rows["weights"][1] == "26.08"
    assert rows["weights"][6] == "1.63"
    assert float(rows["peak of the GPU"][6]) < float(rows["peak of the GPU"][0]) / 1.5
    assert "step: 256 sequences = 16 ranks x 2 micro-batches x 8, at most 131,072 tokens" in text
    assert f"time: 11.6 days at 100,000 tokens/s (median of 1 measurements in {run})" in text
    assert list(tmp_path.iterdir()) == [run], "nothing is written"


def test_mistakes_of_a_plan_come_without_torch() -> None:
    debug = ["--config", "configs/electra/debug.yaml"]
    assert errors(light("plan", *debug, "--ranks", "none")) == ["--ranks = none: expected a whole number above 0"]
    assert errors(light("plan", *debug, "--ranks")) == ["--ranks: give a value"]
    assert errors(light("plan", *debug, "--tokens-per-second", "fast")) == [
        "--tokens-per-second = fast: expected a number above 0"
    ]
    assert errors(light("plan", *debug, "--from", "a", "--tokens-per-second", "1")) == [
        "--from: is given beside --tokens-per-second; take one of them away"
    ]
    (line,) = errors(light("plan", *debug, "--data.tokenizer", "bert", "--data.tokenizer.train", "null"))
    assert line.endswith("and a plan fetches nothing; state the size of the vocabulary as --vocab-size N")
    (line,) = errors(light("plan", *debug, "--config", "configs/strategy/ddp.yaml"))
    assert line.endswith("give the number of processes as --ranks N")


@pytest.mark.slow
def test_a_plan_is_of_the_run_that_follows(tmp_path: Path) -> None:
    words = ["--config", "configs/electra/debug.yaml", "--run.dir", str(tmp_path / "run")]
    planned = launch("plan", *words).stdout
    assert launch("fit", *words, "--data.cache_dir", str(tmp_path / "cache")).returncode == 0
    steps = [line["step"] for line in json_lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    assert f"run: {max(steps)} steps" in planned
    timed = launch("plan", *words, "--from", str(tmp_path / "run")).stdout
    assert "measurements in" in next(line for line in timed.splitlines() if line.startswith("time: "))


def test_doctor_of_a_run(tmp_path: Path) -> None:
    words = ["--config", "configs/electra/debug.yaml", "--run.dir", str(tmp_path / "run")]
    done = launch("doctor", *words)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    subjects = [line.split()[1] for line in lines[1:-1]]
    assert subjects == ["versions", "slurm", "network", "cores", "folder", "clock", "disk"]
    assert all(line.startswith("ok ") for line in lines[1:-1])
    assert lines[-1] == "nothing to fix"
    assert not (tmp_path / "run").exists()


def test_doctor_finds_what_is_wrong_and_says_how_to_mend_it() -> None:
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "3", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "4"}
    done = light("doctor", cwd=ROOT, GLOO_SOCKET_IFNAME="nothere0", **job)
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("fix ")]
    assert [line.split()[1] for line in lines] == ["slurm", "network"]
    assert all("; " in line for line in lines)
    assert done.stdout.splitlines()[-1] == "2 things to fix"


def test_mistakes_in_the_words_of_the_doctor() -> None:
    assert errors(light("doctor", "fast")) == ["fast: not a flag; write --key value, and files as --config FILE"]
