"""The classes of a run are those that it began with, whatever becomes of the file that it was trained on."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import AutoModelForSequenceClassification

from datamodules.core.classes import Naming, read_names
from datamodules.core.errors import DataError
from datamodules.core.labels import Fields, class_names, read_examples
from datamodules.core.wordpiece import usable
from launch.export import main
from tests.forked import train
from tests.text import word_tokenizer

TEXTS = {"Positive": "river river river", "negative": "metal metal metal"}
WORDS = ("bridge", "cloud", "forest", "garden", "silver", "music", "stone", "paper")
CONFIG = ["--config=configs/finetune/debug.yaml", "--data.sequence_length=16", "--data.num_examples=null"]
CONFIG += ["--callbacks.validation=null", "--trainer.max_steps=30", "--model.learning_rate=1e-2"]


def write(path: Path, names: dict[str, str]) -> None:
    """Write texts of two kinds, each with the name of its class."""
    rows = [f"{text} {one} {two},{names[name]}" for one in WORDS for two in WORDS for name, text in TEXTS.items()]
    path.write_text("text,label\n" + "".join(f"{row}\n" for row in rows))


def predictions(run: Path) -> list[str]:
    return [json.loads(line)["label"] for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_predictions_tests_and_exports_have_the_classes_of_the_run(tmp_path):
    source, new, run = tmp_path / "t.csv", tmp_path / "new.csv", tmp_path / "run"
    write(source, {name: name for name in TEXTS})
    new.write_text("text\nriver river river stone\nmetal metal metal stone\n")
    flags = [*CONFIG, f"--data.source={source}", f"--data.predict_source={new}", f"--data.cache_dir={tmp_path}"]
    train(run, 1, *flags)
    write(source, {"Positive": "positive", "negative": "negative"})  # a lower-case p comes behind n
    train(run, 1, command="predict")
    assert predictions(run) == ["Positive", "negative"]
    told = train(run, 1, f"--data.test_source={source}", command="test", code=1)
    assert f"label 'positive' is none of the classes of the run ({run / 'labels.json'}) 'Positive', 'negative'" in told
    source.unlink()
    (run / "predictions.jsonl").unlink()
    train(run, 1, command="predict")
    assert predictions(run) == ["Positive", "negative"]
    write(tmp_path / "test.csv", {name: name for name in TEXTS})
    train(run, 1, f"--data.test_source={tmp_path / 'test.csv'}", command="test")
    assert json.loads((run / "test.json").read_text())["test/accuracy"] == 1
    (run / "labels.json").rename(tmp_path / "labels.json")
    told = train(run, 1, command="predict", code=1)
    assert f"{run / 'labels.json'}: is missing; restore it" in told
    (tmp_path / "labels.json").rename(run / "labels.json")
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert exported.id2label == {0: "Positive", 1: "negative"}


def test_a_run_goes_on_with_names_that_would_not_be_taken_today():
    before = Naming(("0.0", "1.0", "10.0", "2.0", "nan", "-1"))
    for value, name in (("10.0", "10.0"), (10, "10.0"), (2.0, "2.0"), ("nan", "nan"), (-1, "-1"), ("0", "0.0")):
        assert before.read(value, "label", "a.csv:2") == name


@pytest.mark.parametrize(
    "form", ["ints.jsonl", "floats.jsonl", "words.jsonl", "ints.parquet", "floats.parquet", "floats.csv", "ints.csv"]
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(-5, 200).filter(lambda n: n != -1), min_size=2, max_size=9, unique=True))
def test_numbers_are_one_class_each_in_their_order(tmp_path, form, numbers):
    kind, path = form.partition(".")[0], tmp_path / form
    made = {"ints": int, "floats": float, "words": str}[kind]
    rows = [{"text": "w5", "label": made(number)} for number in [*numbers, numbers[0]]]
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_examples((path,), Fields("text", None, "label", "classes"))
    assert [example.label for example in found[:-1]] == [str(number) for number in numbers]
    assert class_names(found) == [str(number) for number in sorted(numbers)]


@pytest.mark.parametrize("text", ["", "{}", '["a", "a"]', "[1]", "[" * 100_000, "\ufeff"])
def test_a_damaged_list_of_classes_is_named(tmp_path, text):
    assert read_names(tmp_path) is None
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(DataError, match=r"labels.json: .*restore it: it names the classes of the run"):
        read_names(tmp_path)


def test_ids_are_those_of_the_run_whatever_its_tokenizer_was_trained_on(tmp_path):
    """The tokenizer of a run is as little that of the file of today as its classes are."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices([*WORDS, "river", "metal"], k=12)) for _ in range(200)]
    source, held, run = tmp_path / "t.txt", tmp_path / "held.txt", tmp_path / "run"
    source.write_text("\n\n".join(lines[:150]))
    held.write_text("\n\n".join(lines[150:]))
    flags = ["--config=configs/electra/debug.yaml", f"--data.source={source}", f"--data.validation_source={held}"]
    flags += [
        f"--data.cache_dir={tmp_path / 'cache'}",
        "--trainer.max_steps=3",
        "--data.tokenizer.train.vocab_size=200",
    ]
    train(run, 1, *flags)
    train(run, 1, command="validate")
    before = json.loads((run / "validate.json").read_text())
    source.write_text("\n\n".join("zebra yonder " + line.upper() + " xylophone" for line in lines))
    train(run, 1, command="validate")
    assert json.loads((run / "validate.json").read_text()) == before


def test_a_named_tokenizer_with_other_ids_than_the_run_s_is_refused(tmp_path):
    for folder, size in (("run/tokenizer", 100), ("same", 100), ("other", 120)):
        word_tokenizer(size).save_pretrained(tmp_path / folder)
    kept = tmp_path / "run/tokenizer"
    assert usable(str(tmp_path / "same"), kept) == str(tmp_path / "same")
    with pytest.raises(
        DataError, match=r"other' *: has other ids than the tokenizer that the run began with; give that"
    ):
        usable(str(tmp_path / "other"), kept)
    with pytest.warns(UserWarning, match="going on with"):
        assert usable(str(tmp_path / "gone"), kept) == str(kept)
