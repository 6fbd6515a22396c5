"""Folders as people have them: parts, shards, what is no data, and what of them is told."""

from pathlib import Path

import pytest

from datamodules.core.errors import DataError
from datamodules.core.pair_options import EvaluationSet
from datamodules.core.sources import find, local, locate
from datamodules.core.wordpiece import TokenizerOptions
from datamodules.labelled import LabelledText
from datamodules.pairs import TextPairs
from datamodules.text import TextCorpus
from tests.files import ROWS, names, write
from tests.pairs import saved_tokenizer


def test_a_folder_of_everything(tmp_path: Path) -> None:
    for name in ("a.jsonl", "deep/B.JSON", ".hidden.jsonl", ".ipynb_checkpoints/a.jsonl", "__MACOSX/a.jsonl"):
        write(tmp_path / name)
    for name in ("notes.md", "c.bin", "dataset_infos.json", "indices.arrow"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "again.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nothing")
    found = find(str(tmp_path), "train")
    assert [path.name for path in found.files] == ["a.jsonl", "B.JSON"]
    assert {reason: sorted(path.name for path in paths) for reason, paths in found.passed_over.items()} == {
        "hidden": [".hidden.jsonl", ".ipynb_checkpoints", "__MACOSX"],
        "of another kind": ["c.bin", "notes.md"],
        "a description": ["dataset_infos.json"],
        "an index": ["indices.arrow"],
        "the same file again": ["again.jsonl"],
        "a link to nothing": ["gone.jsonl"],
    }


@pytest.mark.parametrize(
    "files",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
         "data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
        ["train.jsonl", "train2.jsonl", "dev.jsonl", "test.jsonl"],
        ["train/a.jsonl", "train/b.jsonl", "valid/a.jsonl", "test/a.jsonl"],
        ["my_train.jsonl", "my_train_2.jsonl", "my_val.jsonl", "my_test.jsonl"],
        ["wiki.train.txt", "wiki.train.2.txt", "wiki.valid.txt", "wiki.test.txt"],
        ["Train.JSONL", "TRAIN_1.jsonl", "Dev.jsonl", "Test.jsonl"],
    ],
)  # fmt: skip
def test_a_folder_with_parts_gives_each_split_its_own(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        write(tmp_path / name)
    assert names(tmp_path) == sorted(files[:2], key=Path)
    assert names(tmp_path, "val") == [files[2]] and names(tmp_path, "test") == [files[3]]
    assert sum(map(len, find(str(tmp_path), "train").passed_over.values())) == 2


@pytest.mark.parametrize(
    ("files", "train", "validation", "test"),
    [
        ("snli_1.0_train.jsonl snli_1.0_dev.jsonl snli_1.0_test.jsonl", [0], [1], [2]),
        ("en_train_full.jsonl en_dev_full.jsonl en_test_full.jsonl", [0], [1], [2]),
        ("train2017/a.jsonl val2017/a.jsonl test2017/a.jsonl", [0], [1], [2]),
        ("trainset.jsonl valset.jsonl testset.jsonl", [0], [1], [2]),
        ("trainData.jsonl devData.jsonl testData.jsonl", [0], [1], [2]),
        ("split=train/a.jsonl split=validation/a.jsonl split=test/a.jsonl", [0], [1], [2]),
        ("dev/en.jsonl devtest/en.jsonl", None, [0], [1]),
        ("mnli_train/a.jsonl mnli_dev/a.jsonl mnli_test/a.jsonl", [0], [1], [2]),
        ("default/train/0000.parquet default/validation/0000.parquet default/test/0000.parquet", [0], [1], [2]),
        ("train.jsonl.gz Validation.JSON test.csv", [0], [1], [2]),
        ("train.csv test.csv sample_submission.csv", [0], None, [1]),
        ("train-00000-of-00002.parquet train-00001-of-00002.parquet validation_matched-00000-of-00001.parquet", [0, 1],
         None, None),
        ("train-00000-of-00001.parquet unsupervised-00000-of-00001.parquet test-00000-of-00001.parquet", [0], None,
         [2]),
        ("a.txt b.txt how_to_test_code.txt training.txt", None, None, None),
        ("a.txt b.txt how_to_test_code.txt the_train_station.txt", [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]),
        ("a.txt b.txt c.txt eval.txt testing.txt", [0, 1, 2], None, [3, 4]),
        ("more.jsonl test.jsonl", [0], None, [1]),
        ("test.jsonl", None, [0], [0]),
        ("train.jsonl more.jsonl", None, None, None),
        ("train.jsonl dev.jsonl more.jsonl most.jsonl", None, [1], None),
        ("one.jsonl test.jsonl test2.jsonl", None, None, [1, 2]),
    ],
)  # fmt: skip
def test_parts_by_their_names(
    tmp_path: Path, files: str, train: list[int] | None, validation: list[int] | None, test: list[int] | None
) -> None:
    for name in (written := files.split()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for split, places in (("train", train), ("val", validation), ("test", test)):
        if places is not None:
            assert names(tmp_path, split) == sorted((written[place] for place in places), key=Path), split
            found = find(str(tmp_path), split)
            assert len(found.files) + sum(map(len, found.passed_over.values())) == len(written)
        else:
            with pytest.raises(DataError, match=r"has no part for|is named as the training part, .* as none"):
                find(str(tmp_path), split)


def test_a_pattern_takes_what_it_fits_but_nothing_twice(tmp_path: Path) -> None:
    files = ("train.jsonl", "test.jsonl", "cache-1.arrow", "__MACOSX/a.jsonl", ".hid/a.jsonl", "README.md", "c.json")
    for name in files:
        write(tmp_path / name)
    (tmp_path / "c.json").write_text('{\n  "version": 1\n}\n')
    (tmp_path / "loop").symlink_to(tmp_path)
    found = find(f"{tmp_path}/**/*.jsonl", "train")
    assert [path.name for path in found.files] == ["test.jsonl", "train.jsonl"]
    assert found.notes == {"of the files that the pattern fits are named as the part test, and are read too": 1}
    assert {"hidden", "the same file again"} == found.passed_over.keys()
    found = find(f"{tmp_path}/*", "train")
    assert [path.name for path in found.files] == ["test.jsonl", "train.jsonl"]
    assert found.passed_over.keys() == {"a cache", "a description", "one JSON object, and no records"}
    assert find(f"{tmp_path}/test*", "train").notes == {}
    with pytest.raises(DataError, match=r"cache-\*: no file that it fits is data \(passed over: 1 a cache \(cache-1"):
        find(f"{tmp_path}/cache-*", "train")
    (tmp_path / "a.bin").touch()
    with pytest.raises(DataError, match=r"a\.bin: files ending in '\.bin' are not supported"):
        find(f"{tmp_path}/*", "train")


def test_shards_that_are_not_there_are_told(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl.gz", "test-00001-of-00003.jsonl"):
        write(tmp_path / "a" / name)
    for name in ("x-00001-of-00002.jsonl", "x-00002-of-00002.jsonl"):
        write(tmp_path / "c" / name)
    assert find(str(tmp_path / "c"), "train").notes == {}, "counted from 1"
    write(tmp_path / "b/c4-train.00007-of-01024.json")
    told = "of the shards that the names of the files count are not there, as "
    assert find(str(tmp_path / "a"), "train").notes == {}
    assert find(str(tmp_path / "a"), "test").notes == {f"{told}test-00000-of-00003": 2}
    assert find(str(tmp_path / "b"), "train").notes == {f"{told}c4-train.00000-of-01024": 1023}


def test_what_describes_a_folder_is_no_data(tmp_path: Path) -> None:
    for number, text in enumerate(
        ('{\n  "version": 1\n}\n', '{"a": [\n1]}', '{ "a": {\n"b": 1}}', '\ufeff{\r\n"a": 1}')
    ):
        (tmp_path / f"{number}.json").write_text(text)
    for name, text in (("l.json", '{"text": "a"}\n{"text": "b"}'), ("m.json", '[{\n"text": "a"}]'), ("n.json", "{}")):
        (tmp_path / name).write_text(text)
    assert names(tmp_path) == ["l.json", "m.json", "n.json"]
    assert len(find(str(tmp_path), "train").passed_over["one JSON object, and no records"]) == 4


def test_a_readme_of_the_hub_names_the_files(tmp_path: Path) -> None:
    for name in ("one/a.jsonl", "one/b.jsonl", "other.jsonl"):
        write(tmp_path / name)
    readme, others = tmp_path / "README.md", "- config_name: b\n  data_files: x\n- config_name: c\n  data_files: y\n"
    split = "  - split: {}\n    path: {}\n"
    files = split.format("train", "one/a*") + split.format("test", "one/b.jsonl")
    head = f"configs:\n- config_name: default\n  data_files:\n{files}"
    readme.write_text(f"---\nlicense: mit\n{head}---\n# Data\n")
    assert names(tmp_path) == ["one/a.jsonl"] and names(tmp_path, "test") == ["one/b.jsonl"]
    assert [path.name for path in find(str(tmp_path), "train").passed_over["not named in README.md"]] == ["other.jsonl"]
    readme.write_text(f"---\n{head}{others}---\n")
    assert names(tmp_path) == ["one/a.jsonl"], "the default one"
    readme.write_text("---\nconfigs:\n- data_files:\n    train: one/a.jsonl\n    test: [one/b.jsonl]\n---\n")
    assert names(tmp_path) == ["one/a.jsonl"] and names(tmp_path, "test") == ["one/b.jsonl"], "patterns by split"
    readme.write_text("---\nconfigs:\n- data_dir: ./one\n---\n")
    assert names(tmp_path) == ["one/a.jsonl", "one/b.jsonl"]
    readme.write_text("---\nconfigs:\n- data_files:\n  - split: en\n    path: one/a*\n---\n")
    assert names(tmp_path) == ["one/a.jsonl"], "one alone of any name"
    readme.write_text("---\nconfigs:\n- data_files: {en: one/a*, fr: one/b*}\n---\n")
    with pytest.raises(DataError, match=r"has no part for train, only en .*, fr .*; its splits are en, fr"):
        locate(str(tmp_path), "train")
    readme.write_text(f"---\nconfigs:\n{others}---\n")
    with pytest.raises(DataError, match=r"README\.md: declares several data sets \(b, c\)"):
        locate(str(tmp_path), "train")


def test_splits_of_a_saved_data_set_that_mean_one_part_are_not_joined(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    whole = Dataset.from_list(ROWS)
    DatasetDict({"train": whole, "eval": whole, "test": whole}).save_to_disk(tmp_path / "d")
    assert names(tmp_path / "d", "test") == ["test/data-00000-of-00001.arrow"]
    DatasetDict({"en": whole, "fr": whole}).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match="its splits are en, fr"):
        locate(str(tmp_path / "e"), "train")


def test_a_saved_data_set_without_its_caches(tmp_path: Path) -> None:
    from datasets import Dataset, load_from_disk

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    loaded = load_from_disk(str(tmp_path / "saved")).map(lambda row: {"text": row["text"].upper()})
    assert list((tmp_path / "saved").glob("cache-*.arrow")), loaded
    assert names(tmp_path / "saved") == ["data-00000-of-00001.arrow"]
    (tmp_path / "saved/old.arrow").write_bytes((tmp_path / "saved/data-00000-of-00001.arrow").read_bytes())
    assert names(tmp_path / "saved") == ["data-00000-of-00001.arrow"], "state.json names the files"
    (tmp_path / "saved/data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow: is not there, though state\.json names it"):
        locate(str(tmp_path / "saved"), "train")


@pytest.mark.parametrize(
    "name",
    ["s3://bucket/a.jsonl", "gs://b/*.parquet", "https://h/a.csv", "hf://datasets/x/y", "memory://a", "S3://b/c"],
)
def test_addresses_are_no_paths(name: str) -> None:
    for work in (lambda: local(name), lambda: locate(name, "train")):
        with pytest.raises(
            DataError, match=r"is an address \(\w+://\), and only local paths are read and written; give a"
        ):
            work()
    with pytest.raises(DataError, match="write the path alone"):
        locate("file:///data/a.jsonl", "train")


def test_parts_of_a_folder_serve_where_none_is_named(tmp_path: Path) -> None:
    for name, count in (("train.jsonl", 20), ("validation.jsonl", 6), ("test.jsonl", 4)):
        write(tmp_path / "set" / name, [{"text": f"w5 w6 {name} {n}", "label": n % 2} for n in range(count)])
    (tmp_path / "set/notes.md").write_text("about it")
    tokenizer = TokenizerOptions(saved_tokenizer(tmp_path / "t"))
    options = {"cache_dir": str(tmp_path / "cache"), "accept": ["unknown"]}
    text = TextCorpus(tokenizer, 4, 4, source=str(tmp_path / "set"), sequence_length=16, **options)
    text.prepare_data()
    text.setup()
    assert {split: account.used for split, account in text.accounts().items()} == {"train": 20, "val": 6, "test": 4}
    passed = "train: 1 files read; passed over: 1 of another kind, 1 of the part test, 1 of the part validation"
    assert any(line.startswith(passed) for line in text.describe())
    serves = f"val: 1 files are the part validation of {tmp_path}/set, which serves where none is named"
    assert serves in text.describe()
    labelled = LabelledText(tokenizer, 4, 4, source=str(tmp_path / "set"), sequence_length=16, **options)
    labelled.setup()
    assert {split: len(rows) for split, rows in labelled.splits.items()} == {"train": 20, "val": 6, "test": 4}
    assert labelled.accounts()["train"].passed_over.total() == 3
    assert serves in labelled.describe()
    labelled.setup("predict")
    assert len(labelled.splits["predict"]) == 4 and labelled.splits["predict"].labels.sum() == 0


def test_a_test_part_without_labels_that_nobody_named_is_left_out(tmp_path: Path) -> None:
    """As that of GLUE, where -1 stands for no label."""
    write(tmp_path / "set/train.jsonl", [{"text": f"w5 w{n}", "label": n % 2} for n in range(9, 29)])
    test = write(tmp_path / "set/test.jsonl", [{"text": f"w5 w{n}", "label": -1} for n in range(9, 19)])
    tokenizer = TokenizerOptions(saved_tokenizer(tmp_path / "t"))
    options = {"cache_dir": str(tmp_path / "cache"), "accept": ["unknown"], "source": str(tmp_path / "set")}
    data = LabelledText(tokenizer, 4, 4, sequence_length=16, **options)
    data.setup("fit")
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 20}
    (line,) = [line for line in data.describe() if line.startswith("test:")]
    assert line.startswith(f"test: the part of {tmp_path}/set is left out, as it lacks labels: {test}:1: 'label' = -1")
    for more, stage in (({}, "test"), ({"test_source": str(test)}, "fit")):
        with pytest.raises(DataError, match=r"'label' = -1 is a missing label"):
            LabelledText(tokenizer, 4, 4, sequence_length=16, **options, **more).setup(stage)


def test_pairs_tell_what_of_their_folders_they_do_not_read(tmp_path: Path) -> None:
    for name, count in (("train.jsonl", 20), ("validation.jsonl", 6)):
        rows = [{"anchor": f"w5 w6 {name} {n}", "positive": f"w7 {n}", "label": n % 2} for n in range(count)]
        write(tmp_path / "set" / name, rows)
    (tmp_path / "set/notes.md").write_text("about it")
    tokenizer, folder = TokenizerOptions(saved_tokenizer(tmp_path / "t")), str(tmp_path / "set")
    options = {"cache_dir": str(tmp_path / "cache"), "accept": ["unknown"], "sequence_length": 16}
    pairs = TextPairs(tokenizer, 4, 4, source=folder, validation={"own": EvaluationSet("sts", folder)}, **options)
    pairs.prepare_data()
    pairs.setup()
    told = [line for line in pairs.describe() if "passed over" in line]
    assert told == [
        "train: 1 files read; passed over: 1 of another kind, 1 of the part validation (notes.md, validation.jsonl)",
        "val own: 1 files read; passed over: 1 of another kind, 1 of the part train (notes.md, train.jsonl)",
    ]
    assert pairs.accounts()["val own"].used == 6 and pairs.accounts()["train"].used == 20
