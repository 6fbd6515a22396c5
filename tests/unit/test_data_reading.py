"""Files as people have them: other endings, compressions, quotes, folders of everything; each is what it is called."""

import bz2
import gzip
import json
import lzma
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from datamodules.core import json_items, lines, opening, tables
from datamodules.core.errors import DataError
from datamodules.core.labels import records_of
from datamodules.core.lines import Records
from datamodules.core.pair_options import EvaluationSet
from datamodules.core.sources import Source, find, local, locate
from datamodules.core.wordpiece import TokenizerOptions
from datamodules.labelled import LabelledText
from datamodules.pairs import TextPairs
from datamodules.text import TextCorpus
from tests.pairs import saved_tokenizer

ROWS = [{"text": f"row {number}", "label": number % 2} for number in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
ARCHIVE = "an archive of several files, or damaged"
TEXTS = [row["text"] for row in ROWS]


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


def zipped(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return folder / name


def texts(path: Path, **options: object) -> list[str]:
    return list(Source((path,), **options).texts())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode()),
        ("A.JSONL", LINES),
        ("a.jsonl.GZ", gzip.compress(LINES, mtime=0)),
        ("a.jsonl.bz2", bz2.compress(LINES)),
        ("a.jsonl.bz2", bz2.compress(LINES[:100]) + bz2.compress(LINES[100:])),
        ("a.json.xz", lzma.compress(json.dumps(ROWS).encode())),
        ("a.jsonl.zst", zstd(LINES)),
        ("a.jsonl.zst", zstd(LINES[:100]) + zstd(LINES[100:])),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
    ],
)
def test_every_ending_is_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name) == TEXTS
    assert [row for _, row in records_of(tmp_path / name)] == ROWS


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 16])
def test_an_array_is_what_its_lines_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Wherever the blocks end that are read: in a number, an escape, a character of several bytes."""
    monkeypatch.setattr(json_items, "HEAD_BYTES", size)
    rows = [12, -1.5e3, None, True, [], {}, "é\u2028", {"text": 'a"\\b', "deep": [{"n": 10**30}]}, float("inf"), 7]
    for form in ({}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}):
        (tmp_path / "a.json").write_text(json.dumps(rows, **form) + "\n")
        assert [row for _, row in records_of(tmp_path / "a.json")] == rows
    (tmp_path / "a.json").write_text("[ ] ")
    assert [*records_of(tmp_path / "a.json")] == []
    (tmp_path / "a.json").write_text(r'[{"text": "a\ud800b"}]')
    with pytest.raises(DataError, match=r"a\.json: record 1: .* is half of a surrogate pair"):
        texts(tmp_path / "a.json")


def test_a_zip_of_one_file_is_read(tmp_path: Path) -> None:
    path = zipped(tmp_path, "a.zip", {"__MACOSX/._a.jsonl": b"x", "in/a.jsonl": LINES})
    assert texts(path) == TEXTS
    with pytest.raises(DataError, match=r"b\.zip: holds 2 files, and one is read; unpack it"):
        locate(str(zipped(tmp_path, "b.zip", {"a.jsonl": LINES, "b.jsonl": LINES})), "train")
    write(tmp_path / "d.jsonl")
    assert names(tmp_path) == ["a.zip", "d.jsonl"]
    assert [it.name for it in find(str(tmp_path), "train").passed_over[ARCHIVE]] == ["b.zip"]
    (tmp_path / "c.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"c\.zip: truncated or damaged"):
        locate(str(tmp_path / "c.zip"), "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", POINTER, "git-lfs pointer.*git lfs pull"),
        ("a.parquet", POINTER, "git-lfs pointer"),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), "is UTF-16 or UTF-32; convert it, as by iconv"),
        ("a.csv", "text,label\na,1\n".encode("utf-16-le") * 4, "is UTF-16 without a mark"),
        ("a.csv", b"text,label\ra,1\rb,0\r", "lines that end in a bare CR"),
        ("a.txt", b"one\rtwo\r\rthree", "lines that end in a bare CR"),
        ("a.jsonl", gzip.compress(LINES, mtime=0), r"is a \.gz file by its first bytes"),
        ("a.jsonl", zstd(LINES), r"is a \.zst file by its first bytes"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "is a web page"),
        ("a.csv", b"text,label\na\rb,1\n", "a field holds a bare CR; convert it"),
        ("a.csv", b"text,l\xe9bel\na,1\n", r"a\.csv:1: not UTF-8 \(byte 0xe9 at offset 6\)"),
        ("a.jsonl.gz", LINES, r"is plain text, not compressed; take \.gz off its name"),
        ("a.jsonl.gz", b"", "is empty, as no compressed file is"),
        ("a.jsonl.gz", zstd(LINES), r"is a \.zst file by its first bytes"),
        ("a.jsonl.zst", POINTER, "git-lfs pointer"),
        ("a.jsonl.gz", POINTER, "git-lfs pointer"),
        ("a.jsonl.xz", POINTER, "git-lfs pointer"),
        ("a.jsonl.bz2", POINTER, "git-lfs pointer"),
        ("a.csv", b"PK\x03\x04 and more", "of an office program, to be saved as csv"),
        ("a.jsonl", LINES.replace(b"\n", b"\r") + b"\n", "lines that end in a bare CR are one"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-20], "truncated or damaged"),
        ("a.jsonl.bz2", bz2.compress(LINES)[:-20], "truncated or damaged"),
        ("a.jsonl.bz2", LINES, "is plain text, not compressed"),
        ("a.jsonl.zst", zstd(LINES)[:-20], "truncated or damaged"),
        ("a.jsonl.zst", LINES, "is plain text, not compressed"),
        ("a.json", b'[{"text": "a"}, {"text": ', r"record 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a", "n": 1, "text": "b"}', r"a\.jsonl:2: names 'text' twice; give each"),
        ("a.json", b'[{"text": "a"}, {"n": 1, "text": "a", "n": 1}]', r"a\.json: record 2: names 'n' twice"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', r"record 2: not JSON \(expected , or \]"),
        ("a.json", b'[{"text": "a"}] [{"text": "b"}]', r"record 2: not JSON \(there is more behind"),
        ("a.json", b'[{"text": "a"}, {"text": "\xe9"}]', "not UTF-8 "),
        ("a.json", b'[{"text": "a"}, ' + b"[" * 200_000, r"record 2: not JSON \(.*recursion"),
        ("a.json", b'{\n "text": "a"\n}\n', r"a\.json:1: not JSON.*in a \.json file an array"),
    ],
)
def test_a_file_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        texts(tmp_path / name)
    assert "\n" not in str(caught.value)
    if name.endswith(".txt"):
        return
    with pytest.raises(DataError, match=message):
        list(records_of(tmp_path / name))


QUOTES = 'text\tlabel\n"He said\t1\nand left"\t0\nplain\t1\nfive " six\t0\n'


def test_a_quote_joins_no_rows_of_a_tsv(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(QUOTES)
    assert texts(path) == ['"He said', 'and left"', "plain", 'five " six']
    assert [row["label"] for _, row in records_of(path)] == ["1", "0", "1", "0"]
    path.write_text('text\tlabel\n"a ""b"" c"\t1\n"d"\t0\ne\t1\n')
    assert texts(path) == ['a "b" c', "d", "e"], "every quote is closed in its own field"
    path.write_text('text\tlabel\n"two\nlines"\t1\n')
    with pytest.raises(DataError, match=r"a\.tsv:2: has 1 columns, .* a quote joins no lines.*set data\.quotes_join"):
        texts(path)
    assert texts(path, quotes_join=True) == ["two\nlines"]


def test_what_stays_in_a_text_is_told(tmp_path: Path) -> None:
    path, records = tmp_path / "a.tsv", Records()
    path.write_text(QUOTES)
    list(records_of(path, records))
    assert list(records.account.notes.items()) == [(tables.QUOTES_STAY, 1)]
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\rtwo\nthree\r\n\nfour\n")
    for bounds in ("blank_line", "line", "file"):
        source = Source((path,), bounds=bounds)
        records = source.records()
        list(source.texts(records))
        assert dict(records.account.notes) == {lines.BARE_CR: 1}, bounds


def test_a_row_that_is_not_utf_8_is_left_out_whole(tmp_path: Path) -> None:
    path, records = tmp_path / "a.csv", Records(skip_bad=True)
    path.write_bytes(b'text,label\n"one\ntw\xe9\nthree",1\nb,0\n')
    assert [row for _, row in records_of(path, records)] == [{"text": "b", "label": "0"}]
    assert records.account.messages == [f"{path}:2: not UTF-8 (byte 0xe9 at offset 18); {lines.NOT_UTF8_FIX}"]
    assert records.account.records == 2 and records.account.left_out == {"refused": 1}
    path.write_bytes(b"text,label,,\na,1,,\n")
    assert [row["label"] for _, row in records_of(path)] == ["1"], "columns without a name may be several"


def test_a_field_of_a_csv_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_FIELD", 1000)
    (tmp_path / "a.csv").write_text('text,label\n"' + "never closed\n" * 1000)
    with pytest.raises(DataError, match=r"a\.csv:2: not CSV \(field larger than field limit \(1000\)\); close the"):
        texts(tmp_path / "a.csv")


def test_joined_rows_of_a_csv_are_counted_and_an_open_quote_is_found(tmp_path: Path) -> None:
    path, records = tmp_path / "a.csv", Records()
    path.write_text('text,label\n"two\nlines",1\nb,0\n')
    assert [row["text"] for _, row in records_of(path, records)] == ["two\nlines", "b"]
    assert records.account.notes == {"records of several lines": 1} and records.account.records == 2
    path.write_text("text,label\na,0\n" + '"open,1\n' + "b,0\n" * 50)
    with pytest.raises(DataError, match=r"a\.csv:3: not CSV"):
        texts(path)


def test_a_line_has_a_bound_and_memory_stays_flat(tmp_path: Path) -> None:
    """As the attacks: a line of a gigabyte, plain and compressed to a megabyte."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from datamodules.core.sources import Source; from datamodules.core.errors import DataError\n"
        "from datamodules.core.labels import records_of\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for read in (lambda p: Source((p,)).texts(), records_of):\n"
        "    try: list(read(Path(sys.argv[1]))); print('read')\n"
        "    except DataError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)\n"
    )
    bomb = tmp_path / "a.jsonl.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as stream:
        stream.write(b'{"text": "')
        for _ in range(300):
            stream.write(b"a" * (1 << 20))
    array = tmp_path / "b.json.gz"
    with gzip.open(array, "wb", compresslevel=1) as stream:
        stream.write(b'[{"text": "a"}, {"text": "')
        for _ in range(300):
            stream.write(b"a" * (1 << 20))
    (tmp_path / "plain.jsonl").touch()
    os.truncate(tmp_path / "plain.jsonl", 1 << 30)
    for path in (bomb, array, tmp_path / "plain.jsonl"):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
        *messages, grown = done.stdout.splitlines()
        assert len(messages) == 2 and all(str(path) in it for it in messages), done
        assert path.name == "plain.jsonl" or all("more than 128 MiB" in message for message in messages)
        assert int(grown) < 450, "MiB"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_value_of_a_table_has_the_bound_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 1000)
    table = pa.table({"text": ["a", "b" * 2000, *["c"] * 50]})
    if name == "a.parquet":
        parquet.write_table(table, tmp_path / name)
        parquet.write_table(table.slice(1, 1), tmp_path / "one.parquet")
        with pytest.raises(DataError, match=r"row group 0 has records of more than"):
            list(records_of(tmp_path / "one.parquet"))
    else:
        with pa.ipc.new_file(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=r"among the rows from 0 on is one of more than 128 MiB"):
        texts(tmp_path / name)


def test_bad_records_cost_the_same_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "a.jsonl", []
    path.write_text('{"text": "a"}\nbad\n' * 3000)
    opened = opening.open_bytes
    for module in (opening, lines):
        monkeypatch.setattr(module, "open_bytes", lambda path: read.append(path) or opened(path))
    source = Source((path,), skip_bad=True)
    records = source.records()
    assert len(list(source.texts(records))) == 3000 and records.account.left_out == {"refused": 3000}
    assert records.account.messages[1].startswith(f"{path}:4: not JSON")
    assert len(read) < 5, "the file was read again for bad records"


def test_a_record_far_down_is_named_without_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "COUNTED_AGAIN", 700)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 100 + "bad\n")
    records = Records(skip_bad=True)
    assert len(list(lines.read_json(path, 1300, 2000, records))) == 7
    assert records.account.messages[0].startswith(f"{path}: line 8 from byte 1302: not JSON")
    with pytest.raises(DataError, match=r"a\.jsonl:101: not JSON"):
        list(lines.read_json(path, 1300, 2000, Records()))


def test_lines_of_a_later_stretch_have_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 100 + "bad\n" + '{"text": "a"}\n' * 10)
    records = Records(skip_bad=True)
    assert len(list(lines.read_json(path, 700, 10_000, records))) > 40
    assert records.account.messages[0].startswith(f"{path}:101: not JSON")


# --- folders


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def names(folder: Path, split: str = "train") -> list[str]:
    return [path.relative_to(folder).as_posix() for path in locate(str(folder), split)]


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
        locate("file:///tmp/a.jsonl", "train")


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
