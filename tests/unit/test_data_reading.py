"""Files as people have them: other endings, compressions, quotes; each is what it is called."""

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
from datamodules.core.sources import Source, find, locate
from tests.files import ROWS, names, write

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
