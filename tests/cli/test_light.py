"""Help, `config`, `methods` and every mistake come without torch or any other heavy package."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import methods
from launch.registry import CALLBACKS, DATA, MODELS
from tests.cli.launching import ROOT, TOY, environment, errors, launch, light


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--help",),
        ("fit", "--help"),
        ("fit", "--config", TOY, "--help"),
        ("fit", "--config", "configs/electra/debug.yaml", "--help"),
        ("config", "--config", TOY),
        ("config", "--config", "configs/electra/debug.yaml"),
        ("methods",),
        ("doctor", "--help"),
        ("doctor",),
        ("plan", "--help"),
        ("plan",),
    ],
)
def test_answers_without_heavy_packages(words: tuple[str, ...]) -> None:
    done = light(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_help_names_every_command_and_no_later_one() -> None:
    commands = [line.split()[0] for line in light("--help").stdout.split("\n\n")[1].splitlines()]
    assert commands == [
        "fit",
        "validate",
        "test",
        "predict",
        "config",
        "methods",
        "doctor",
        "plan",
        "scaling",
        "slurm",
        "prepare",
        "export",
        "claim",
        "bench",
    ]
    assert errors_of_command("docter").startswith("docter: no such command; did you mean doctor?")
    assert "did you mean fit?" in errors_of_command("fitt")


def errors_of_command(word: str) -> str:
    done = light(word)
    assert done.returncode == 1
    return done.stderr.splitlines()[0].removeprefix("error: ")


def test_help_of_a_configuration_shows_its_own_classes() -> None:
    text = light("fit", "--config", TOY, "--help").stdout
    assert "model: Fit a line.\n" in text
    assert "--model.learning_rate float = 0.05\n      Step size.\n" in text
    assert "--model.language str = en\n      Any word; it is not used.\n" in text
    assert "--model.head.kind {linear|mlp} = linear" in text
    assert "--data.global_batch_size int = 8" in text
    assert "--callbacks.shout.word str = step" in text
    assert "--trainer.max_steps int = 6" in text
    assert "max_epochs" not in text


def test_methods_come_from_the_folders() -> None:
    text = light("methods").stdout
    assert text.startswith("electra\n")
    assert "configs/electra/debug.yaml" in text
    assert errors(light("methods", "now")) == ["now: `methods` takes no words"]


def test_every_mistake_is_shown_at_once(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "extends: toy.yaml\n"
        "model:\n"
        "  hiden_size: 64\n"
        "  ends: nowhere\n"
        "  language: 1.10\n"
        "data: {micro_batch_size: 3}\n"
        "callbacks:\n"
        "  chekpoint: {every_n_steps: 2}\n"
        "max_epochs: 3\n"
    )
    (tmp_path / "toy.yaml").write_text((ROOT / TOY).read_text())
    flags = ["--model.hidden_size", "100.0", "--trainer.callbacks", "[]", "--data.tag=null", "--optimizer.lr", "1"]
    assert errors(light("fit", "--config", str(bad), *flags)) == [
        f"callbacks.chekpoint = chekpoint ({bad}:8): unknown name; known: {', '.join(CALLBACKS)}, "
        "or a dotted path to a class of your own; did you mean checkpoint?",
        f"max_epochs = 3 ({bad}:9): unknown key; trainer.max_epochs is trainer.max_steps; the data has no end",
        "optimizer.lr = 1 (--optimizer.lr): unknown key",
        "trainer.callbacks = [] (--trainer.callbacks): not set here: it is the mapping `callbacks` at the top level, "
        "keyed by name",
        f"model.hiden_size = 64 ({bad}:3): not an option of Toy; did you mean model.hidden_size?",
        "model.hidden_size = 100.0 (--model.hidden_size): expected int; write 100",
        f"model.language = 1.1 ({bad}:5): expected str; put it in quotes",
        f'model.ends = nowhere ({bad}:4): expected one of "", diverged, error, data, term',
        "data.tag = null (--data.tag): expected str",
        f"data.global_batch_size = 8 ({tmp_path}/toy.yaml:7): must be a multiple of micro_batch_size x ranks = 3 x 1 "
        f"= 3; nearest: 6 or 9, or micro_batch_size 2 [data.micro_batch_size = 3 ({bad}:6), ranks = 1 (strategy single)"
        "]",
    ]


def test_mistakes_of_several_files_come_together(tmp_path: Path) -> None:
    (tmp_path / "tab.yaml").write_text("model:\n\thidden_size: 3\n")
    (tmp_path / "twice.yaml").write_text("seed: 1\nmodel: {class: electra}\nseed: 2\n")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    files = [word for name in ("tab", "none", "twice", "empty") for word in ("--config", f"{name}.yaml")]
    assert errors(light("fit", *files, "loose", "--config", cwd=tmp_path)) == [
        "loose: not a flag; write --key value, and files as --config FILE",
        "--config: give a file",
    ]
    assert errors(light("fit", *files, cwd=tmp_path)) == [
        "tab.yaml:2: not YAML: found character that cannot start any token; indent with spaces, not tabs",
        f"--config none.yaml: no such file, neither here nor in {ROOT}",
        "seed (twice.yaml:3): given twice, first at twice.yaml:1; keep one",
        "empty.yaml: empty; take the file off the command line or write a key into it",
    ]


def test_a_mistake_stays_on_its_line() -> None:
    assert errors(light("fit", "a\nb")) == ["a\\nb: not a flag; write --key value, and files as --config FILE"]


def test_what_is_required(tmp_path: Path) -> None:
    assert errors(light("fit")) == [
        f"model.class: required; one of {', '.join(MODELS)}, or a dotted path to a class",
        f"data.class: required; one of {', '.join(DATA)}, or a dotted path to a class",
        "trainer.max_steps: required for fit, expected int; give it in a YAML file or as a flag",
    ]
    part = ["--model", "tests.cli.toy.Toy", "--data", "tests.cli.toy.Points", "--trainer.max_steps", "0"]
    assert errors(light("fit", *part)) == [
        "data.global_batch_size: required, expected int; give it in a YAML file or as --data.global_batch_size VALUE",
        "trainer.max_steps = 0 (--trainer.max_steps): must be at least 1",
    ]


def test_other_ranks_do_not_repeat_a_mistake() -> None:
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        done = light("fit", "--config", TOY, "--seed", "-1", **{rank: "1", size: "2"})
        assert (done.returncode, done.stderr, done.stdout) == (1, "", "")
    for stray in ({"RANK": "0"}, {"RANK": "1"}, {"SLURM_PROCID": "3", "SLURM_NTASKS": "1"}, {"RANK": "junk"}):
        assert errors(light("fit", "--config", TOY, "--seed", "-1", **stray)) == [
            "seed = -1 (--seed): must be from 0 to 4294967295"
        ]


def test_a_method_says_how_its_claim_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "PROJECT", tmp_path)
    assert methods.claim("mine") == "none"
    (tmp_path / "configs" / "claims").mkdir(parents=True)
    (tmp_path / "configs" / "claims" / "mine.yaml").write_text("")
    assert methods.claim("mine") == "not run yet; python -m launch claim mine --size quick"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE = 2 (environment): strategy single is one process; use --config",
        ),
        ({"SLURM_NTASKS": "4"}, "SLURM_NTASKS = 4 (environment): strategy single is one process; use --config"),
        ({"RANK": "junk"}, "RANK = 'junk' (environment): expected a whole number; unset it"),
    ],
)
def test_one_process_alone(found: dict[str, str], message: str, tmp_path: Path) -> None:
    (line,) = errors(light("fit", "--config", TOY, "--run.dir", str(tmp_path / "run"), **found))
    assert line.startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_stray_rank_is_no_rank(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text('{"code": 0, "step": 6}')
    words = ["fit", "--config", TOY, "--run.dir", str(tmp_path), "--callbacks.checkpoint", "null"]
    assert "finished at step 6" in light(*words, RANK="1", LOCAL_RANK="1").stdout


def test_config_files_are_found_from_every_folder(tmp_path: Path) -> None:
    here, there = light("config", "--config", TOY), light("config", "--config", TOY, cwd=tmp_path)
    assert here.stdout == there.stdout != ""
    (tmp_path / "tests" / "cli").mkdir(parents=True)
    (tmp_path / TOY).write_text((ROOT / TOY).read_text().replace("seed: 3", "seed: 77"))
    assert light("config", "--config", TOY, cwd=tmp_path).stdout.startswith("seed: 77 "), "the working directory first"


def test_config_prints_sources_and_feeds_back(tmp_path: Path) -> None:
    words = ["--config", TOY, "--model.learning_rate", "1e-3", "--callbacks.progress", "null", "--model.language", "no",
             "--model.weights", "{a: 1, b: 2.5}", "--model.head", "{width: 3}", "--data.tag", 'a: "b" # c',
             "--run.dir", str(tmp_path)]  # fmt: skip
    text = light("config", *words).stdout
    lines = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in text.splitlines()}
    assert lines["learning_rate"] == "--model.learning_rate"
    assert lines["every_n_steps"] == "tests/cli/toy.yaml:12"
    assert lines["devices"] == "launch default"
    assert lines["hidden_size"] == "default"
    (tmp_path / "again.yaml").write_text(text)
    again = light("config", "--config", "again.yaml", cwd=tmp_path).stdout
    assert values(again) == values(text)
    assert [line.partition("  # ")[0] for line in again.splitlines()] == [
        line.partition("  # ")[0] for line in text.splitlines()
    ]
    assert yaml.safe_load(text)["model"]["weights"] == {"a": 1, "b": 2.5}
    assert values(text)["callbacks"]["progress"] is None
    assert values(text)["data"]["tag"] == 'a: "b" # c'


def values(text: str) -> dict:
    return yaml.safe_load(text)


def test_a_class_that_goes_takes_its_options_along(tmp_path: Path) -> None:
    other = ["--callbacks.shout.word", "hey", "--callbacks.shout.class", "tests.cli.toy.Silent"]
    done = light("config", "--config", TOY, *other)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "callbacks.shout: tests.cli.toy.Silent (--callbacks.shout.class) replaces tests.cli.toy.Shout, "
        "its options go: word"
    ]


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m launch config --config {TOY} | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stderr == ""


def test_launch_by_its_real_entry_too() -> None:
    assert launch("config", "--config", TOY).stdout == light("config", "--config", TOY).stdout
