"""`launch prepare`: all at once, or the tokenizer first and then the parts, to the same files."""

import json
import re
from pathlib import Path

import pytest

from datamodules.core import sources
from launch.config.errors import ConfigError
from launch.prepare import main
from tests.corpora import texts, txt


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A configuration whose source makes several shards."""
    monkeypatch.setattr(sources, "MIN_PIECE_BYTES", 8000)
    txt(tmp_path / "a.txt", texts(300))
    config = {
        "seed": 3,
        "model": "electra",
        "data": {
            "class": "text",
            "source": str(tmp_path / "a.txt"),
            "tokenizer": {"train": {"vocab_size": 400}},
            "sequence_length": 32,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "validation_fraction": 0.1,
            "num_prepare_processes": 1,
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return ["--config", str(tmp_path / "config.yaml"), "--data.cache_dir"]


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        str(name): content for name, content in found.items() if name.suffix != ".lock" and name.parts[0] != "content"
    }


def test_parts_after_the_tokenizer_equal_plain_prepare(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture
) -> None:
    parts, plain = str(tmp_path / "parts"), str(tmp_path / "plain")
    assert main([*words, parts, "--part", "1/3"]) == 1
    message = capsys.readouterr().err
    assert "the tokenizer has not been trained yet" in message and message.count("\n") == 1
    command = message.strip().rpartition("make it with: python -m launch prepare ")[2]
    assert main(command.split()) == 0
    assert main([*words, parts, "--part=1/3"]) == 0
    out = capsys.readouterr().out
    assert "part 1/3 is done" in out and " shards" in out and "train: complete" not in out
    assert main([*words, parts, "--part", "3/3"]) == 0
    assert main([*words, parts, "--part", "2/3"]) == 0
    assert "train: complete" in capsys.readouterr().out
    assert main([*words, plain]) == 0
    assert "train: " in capsys.readouterr().out
    assert files(tmp_path / "parts") == files(tmp_path / "plain") and len(files(tmp_path / "plain")) > 12


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "-1/3"])
def test_parts_that_are_none(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match="must be I/N with I from 1 to N"):
        main([*words, "unused", "--part", part])


def test_a_fault_in_the_data_is_one_line(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert main([*words, str(tmp_path), "--data.source", str(tmp_path / "a.jsonl")]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'a.jsonl'}:1: has no field 'text'") and message.count("\n") == 1
    with pytest.raises(ConfigError, match=r"^data.source = gone.txt .* no such file"):  # told before torch is imported
        main([*words, str(tmp_path), "--data.source", "gone.txt"])


@pytest.mark.parametrize("cache", ["/proc/none", "/proc/none/deep", "FILE", "FILE/deep"])
def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture, cache: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main([*words, cache.replace("FILE", str(tmp_path / "file"))]) == 1
    message = capsys.readouterr().err
    assert message.endswith("; set data.cache_dir to a folder with room that can be written\n")
    assert message.startswith("error: /") and message.count("\n") == 1


def test_a_cache_of_a_user_who_is_not_there_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data.cache_dir = ~nosuchuser/x .*: there is no such user"):
        main([*words, "~nosuchuser/x"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.dir", "s3://bucket/run"),
        ("data.cache_dir", "gs://bucket/cache"),
        ("data.source", "https://host/a.jsonl"),
        ("data.validation_source", "hf://datasets/a/b/*.parquet"),
        ("data.tokenizer.name", "S3://bucket/tokenizer"),
        ("model.init_from", "zip::s3://bucket/run.zip"),
        ("data.test_source", "memory://a"),
    ],
)
def test_addresses_are_refused_before_anything_is_read(words: list[str], key: str, value: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{key} = .{re.escape(value)}.*: is an address .*only local paths.*give a path"
    ):
        main([*words, "unused", f"--{key}", value])


def test_rules_speak_before_anything_is_read(words: list[str]) -> None:
    flags = ["--data.sequence_length", "5", "--data.validation_fraction", "1", "--data.num_prepare_processes", "-1"]
    with pytest.raises(ConfigError) as caught:
        main([*words, "unused", *flags, "--data.streaming", "true", "--data.tokenizer.train.vocab_size", "20"])
    text = str(caught.value)
    for complaint in ("at least 8", "from 0 to below 1", "must be 0 or more", "packed examples only", "at least 100"):
        assert complaint in text


def test_a_window_that_does_not_fit_and_two_tokenizers_are_refused_with_a_fix(words: list[str]) -> None:
    flags = ["--data.length_grouping_steps", "99999999999999", "--data.tokenizer", "folder"]
    with pytest.raises(ConfigError) as caught:
        main([*words, "unused", *flags])
    assert "sorts more than 16,777,216 sequences at once; at most 2,097,152 here" in str(caught.value)
    assert "is given beside data.tokenizer.train; take the training out with --data.tokenizer.train null" in str(
        caught.value
    )


def test_the_account_is_told_and_reported_at_every_start(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "notes.md").write_text("no data")
    reports = []
    for _ in ("made", "found"):
        assert main([*words, str(tmp_path / "cache"), "--report"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1] and reports[0].keys() == {"train", "val"}
    train, val = reports[0]["train"], reports[0]["val"]
    assert train["records"] == val["records"] == 300 == train["used"] + val["used"]
    assert train["left_out"] == {"in another part": val["used"]} and train["files"] == 1
    assert main([*words, str(tmp_path / "cache")]) == 0
    assert (
        f"train: 300 records read, {train['used']} used; not: {val['used']} in another part" in capsys.readouterr().out
    )
