"""Readers: what a document is in each format, stretches that cover a file once, and every fault by its place."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from datamodules.core import sources
from datamodules.core.corpus import text_description
from datamodules.core.errors import DataError
from datamodules.core.formats import format_of
from datamodules.core.labels import Fields, read_examples
from datamodules.core.lines import Records
from datamodules.core.sources import Source, facts_of, locate

TEXTS = ["One.\nTwo, with a comma.", "Three.", 'Four "quoted"\nand five.', "Ünïcödé ✓ six", "seven"]


def write(path: Path, texts: list[str] = TEXTS) -> Path:
    """Write texts in the format of the file's ending, by other means than the readers use."""
    suffix = next(s for s in (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow") if s in path.suffixes)
    if suffix == ".parquet":
        parquet.write_table(pa.table({"n": range(len(texts)), "text": texts}), path, row_group_size=2)
        return path
    if suffix == ".arrow":
        table = pa.table({"text": texts, "n": range(len(texts))})
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        return path
    out = io.StringIO(newline="")
    if suffix == ".txt":
        out.write("\n\n\n".join(texts) + "\n")
    elif suffix == ".jsonl":
        out.write("".join(json.dumps({"n": 1, "text": text}) + "\n" for text in texts))
    else:
        writer = csv.writer(out, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\r\n")
        writer.writerows([["n", "text"], *([number, text] for number, text in enumerate(texts))])
    raw = out.getvalue().encode()
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(raw))
    return path


def read(*files: Path, **options: object) -> list[str]:
    return list(Source(files, **options).texts())


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.txt.gz", "a.jsonl.xz", "a.csv.gz"]
)
def test_every_format_gives_the_same_texts(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name), quotes_join=name.endswith(".tsv")) == TEXTS


def test_documents_of_a_txt_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    lines = [line for text in TEXTS for line in text.split("\n")]
    assert read(path, bounds="line") == lines
    assert [text.replace("\n\n\n", "\n") for text in read(path, bounds="file")] == ["\n".join(lines)]
    path.write_bytes("\ufeffone\r\ntwo\r\n \r\nthree".encode())
    assert read(path) == ["one\ntwo", "three"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("bounds", ["blank_line", "line"])
def test_stretches_cover_a_file_once_wherever_they_are_cut(tmp_path: Path, name: str, bounds: str) -> None:
    path, records = write(tmp_path / name, TEXTS * 3), Records(bounds=bounds)
    form = format_of(path)
    extent = form.extent(path, records)
    whole = list(form.read(path, 0, extent, records))
    for cut in range(extent + 1):
        assert [*form.read(path, 0, cut, records), *form.read(path, cut, extent, records)] == whole
    thirds = [0, extent // 3, extent // 3, extent // 2, extent]
    parts = [form.read(path, a, b, records) for a, b in itertools.pairwise(thirds)]
    assert [text for part in parts for text in part] == whole


def test_pieces_are_even_and_independent_of_who_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MIN_PIECE_BYTES", 4000)
    files = [tmp_path / f"{number}.txt" for number in range(7)]
    for number, path in enumerate(files):
        write(path, [f"text {number} {i}" for i in range([3, 2000, 5, 1, 700, 0, 9][number])])
    source = Source(tuple(files))
    pieces, records = source.pieces(), source.records()
    assert 6 <= len(pieces) <= 256
    assert [d.text for piece in pieces for d in source.read(piece, records)] == [
        t for path in files for t in read(path)
    ]


def test_share_divides_documents_by_their_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", [f"document {number}" for number in range(4000)])
    held, rest = read(path, share=(0.0, 0.1)), read(path, share=(0.1, 1.0))
    assert sorted(held + rest) == sorted(read(path)) and 320 < len(held) < 480
    other = write(tmp_path / "b.txt", [f"document {number}" for number in reversed(range(4000))])
    assert sorted(read(other, share=(0.0, 0.1))) == sorted(held)


def test_locating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    files = [write(tmp_path / name) for name in ("b.txt", "a.jsonl.gz", "deep/c.txt")]
    (tmp_path / "notes.md").write_text("not text to train on")
    assert locate(str(tmp_path), "train") == tuple(sorted(files))
    assert locate("*.txt", "train") == (Path("b.txt"),) and locate("**/*.txt", "train") == (
        Path("b.txt"),
        Path("deep/c.txt"),
    )
    assert locate("b.txt", "train") == (Path("b.txt"),)


def test_a_dataset_that_the_library_saved(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    whole = Dataset.from_dict({"text": TEXTS})
    DatasetDict(train=whole, test=whole.select([3, 1])).save_to_disk(tmp_path / "saved")
    assert read(*locate(str(tmp_path / "saved/train"), "train")) == TEXTS
    assert read(*locate(str(tmp_path / "saved/test"), "train")) == [TEXTS[3], TEXTS[1]]
    assert read(*locate(str(tmp_path / "saved"), "train")) == TEXTS
    assert read(*locate(str(tmp_path / "saved"), "test")) == [TEXTS[3], TEXTS[1]]
    with pytest.raises(DataError, match=r"saved: has no part for validation, only train \(data-0.*\), test \(data"):
        locate(str(tmp_path / "saved"), "val")


def test_text_has_one_embedded_corpus() -> None:
    with pytest.raises(DataError, match=r"embedded:topic: text has one embedded corpus; write embedded, or the path"):
        locate("embedded:topic", "train")


def test_a_hub_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="nobody/nothing: neither a local file or folder nor a dataset of the hub"):
        locate("nobody/nothing", "train")


def test_a_hub_data_set_that_fits_in_memory_has_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As huggingface/datasets#2386: with HF_DATASETS_IN_MEMORY_MAX_SIZE a data set names no files."""
    from datasets import load_dataset

    cache = tmp_path / "cache"
    parquet.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    made = load_dataset("parquet", data_files={"train": str(tmp_path / "a.parquet")}, cache_dir=str(cache))
    built = Path(made["train"].cache_files[0]["filename"]).parent
    there = cache / "acme___toy/default/0.0.0" / ("a" * 40)
    shutil.copytree(built, there)
    info = json.loads((there / "dataset_info.json").read_text())
    (there / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "toy", "config_name": "default"}))
    for file in there.glob("parquet-*.arrow"):
        file.rename(file.with_name(file.name.replace("parquet-", "toy-")))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.IN_MEMORY_MAX_SIZE", 1 << 40)
    assert load_dataset("acme/toy", split="train").cache_files == [], "the fault is there"
    assert read(*locate("acme/toy", "train")) == TEXTS


def test_content_hash_is_remembered_and_notices_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HASHED_ALWAYS", 10)
    path = write(tmp_path / "a.txt")
    first = facts_of(path, tmp_path / "cache")["sha256"]
    note = next((tmp_path / "cache/content").iterdir())
    note.write_text(note.read_text().replace(first, "remembered"))
    assert facts_of(path, tmp_path / "cache")["sha256"] == "remembered"
    path.write_text("other words than before")
    assert facts_of(path, tmp_path / "cache")["sha256"] not in (first, "remembered")


def test_the_fingerprint_of_a_text_is_what_it_always_was(tmp_path: Path) -> None:
    """Of corpora that were prepared before there were quotes, parts and notes to speak of."""
    for name in ("a.jsonl", "b.csv.gz", "c.parquet"):
        path = write(tmp_path / name)
        known = ["".join(path.suffixes), hashlib.sha256(path.read_bytes()).hexdigest()]
        said = text_description(Source(locate(str(path), "train")), tmp_path / "cache")
        assert said == [1, [known], "text", "blank_line", False, [0.0, 1.0]]


def test_a_tsv_is_looked_through_for_quotes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "HASHED_ALWAYS", 10)
    path, cache = tmp_path / "a.tsv", tmp_path / "cache"
    path.write_text("text\nplain words\n")
    plain = sources.described(path, cache)
    assert plain == [".tsv", hashlib.sha256(path.read_bytes()).hexdigest()], "as it always was"
    path.write_text('text\nplain "words"\n')
    rule = sources.described(path, cache)[2:]
    monkeypatch.setattr(sources, "open_bytes", None)
    assert rule == sources.described(path, cache)[2:] == ["quotes of a tsv join no rows"]


@pytest.mark.parametrize("always", [10, 1 << 20])
def test_a_change_that_keeps_size_and_date_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: int
) -> None:
    monkeypatch.setattr(sources, "HASHED_ALWAYS", always)
    path = tmp_path / "a.txt"
    path.write_text("a river and a stone\n" * 10)
    first, stat = facts_of(path, tmp_path / "cache")["sha256"], path.stat()
    with path.open("r+") as stream:  # in place: the same inode too
        stream.write("a cloud")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    assert facts_of(path, tmp_path / "cache")["sha256"] != first


def raw(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


BAD_RECORDS = {  # what is written, what the message says
    "not utf-8": (raw("a.txt", b"good\n\nb\xe9d\n\nmore"), r"a.txt:3: not UTF-8 \(byte 0xe9 at offset 7\); .*iconv"),
    "not json": (
        raw("a.jsonl", b'{"text": "a"}\n{"text": \n'),
        r"a.jsonl:2: not JSON \(.*\): '\{\"text\": '; write one",
    ),
    "no object": (raw("a.jsonl", b'{"text": "a"}\n["b"]\n'), r"a.jsonl:2: not a JSON object: .\['b'\]"),
    "no field": (
        raw("a.jsonl", b'{"text": "a"}\n\n{"body": "b", "n": 1}\n'),
        r"a.jsonl:3: has no field 'text', only 'body', 'n'",
    ),
    "no string": (raw("a.jsonl", b'{"text": "a"}\n{"text": 5}\n'), r"a.jsonl:2: field 'text' = 5 is not a string"),
    "surrogate": (
        raw("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n'),
        r"a.jsonl:2: '\\ud800' is half of a surrogate",
    ),
    "deep": (
        raw("a.jsonl", b'{"text": "a"}\n' + b"[" * 200_000 + b"]" * 200_000),
        r"a.jsonl:2: not JSON \(.*recursion",
    ),
    "columns": (raw("a.csv", b'text,n\na,1\n"two\nlines",2\nb\n'), r"a.csv:5: has 1 columns, the header has 2"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_records_are_named_or_left_out(tmp_path: Path, case: str) -> None:
    make, message = BAD_RECORDS[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=f"{message}.*, or set data.on_bad_record to skip"):
        read(path)
    source = Source((path,), skip_bad=True)
    records = source.records()
    texts = [document.text for piece in source.pieces() for document in source.read(piece, records)]
    assert texts[0] in ("a", "good") and records.account.left_out["refused"] == 1 and len(records.account.messages) == 1


def test_a_null_in_a_table_is_a_bad_record(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: row 1: 'text' is null"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", skip_bad=True) == ["a", "b"]


BAD_FILES = {
    "truncated gz": (
        raw("a.jsonl.gz", gzip.compress(b'{"text": "abc"}\n' * 9000)[:-20]),
        "a.jsonl.gz: truncated or damaged after",
    ),
    "not gz": (raw("a.txt.gz", b"plain text"), "a.txt.gz: is plain text, not compressed; take .gz off"),
    "truncated xz": (raw("a.txt.xz", lzma.compress(b"abc " * 9000)[:-20]), "a.txt.xz: truncated or damaged"),
    "no column": (raw("a.csv", b"body,n\na,1\n"), "a.csv: no column 'text', only 'body', 'n'; set data.text_field"),
    "empty csv": (raw("a.csv", b""), "a.csv: is empty; write a header line"),
    "open quote": (raw("a.csv", b'text\n"a\nb\n'), r"a.csv:2: not CSV \(unexpected end of data\)"),
    "not parquet": (raw("a.parquet", b"text"), "a.parquet: not a Parquet file or damaged"),
    "not arrow": (raw("a.arrow", b"text, text, text"), "a.arrow: not an Arrow file or damaged"),
}


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("case", BAD_FILES)
def test_damaged_files_are_always_refused(tmp_path: Path, case: str, skip_bad: bool) -> None:
    make, message = BAD_FILES[case]
    with pytest.raises(DataError, match=message):
        read(make(tmp_path), skip_bad=skip_bad)


def test_a_column_of_another_kind_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": [1, 2], "body": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'text' holds int64, not strings"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_field="body") == ["a", "b"]


def test_a_damaged_page_of_a_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": [f"text {n}" for n in range(9999)]}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:5000] = bytes(255 for _ in range(4996))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet: not a Parquet file or damaged"):
        read(path, skip_bad=True)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_value_of_a_table_that_is_not_utf_8_is_a_bad_record(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    raws = pa.array([b"good", b"b\xe9d", b"more"], pa.large_binary() if kind == pa.large_string() else pa.binary())
    table, path = pa.table({"text": raws.view(kind), "label": ["a", "b", "c"]}), tmp_path / name
    if name == "a.parquet":
        parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=rf"{name}: row 1: 'text' is not UTF-8 \(byte 0xe9 at 1\)"):
        read(path)
    assert read(path, skip_bad=True) == ["good", "more"]
    with pytest.raises(DataError, match=rf"{name}: not an? .* file or damaged \('utf-8' codec"):
        read_examples((path,), Fields("text", None, "label", "classes"))


def test_labelled_lines_that_no_text_is_made_of(tmp_path: Path) -> None:
    for line, message in (("[" * 200_000, "not JSON"), ('{"text": "\\udfff", "label": 1}', "half of a surrogate")):
        (tmp_path / "a.jsonl").write_text(line + "\n")
        with pytest.raises(DataError, match=rf"a.jsonl:1: .*{message}"):
            read_examples((tmp_path / "a.jsonl",), Fields("text", None, "label", "classes"))


def test_pipes_devices_and_broken_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.txt"):
        with pytest.raises(DataError, match=rf"{name}: is no regular file"):
            locate(str(tmp_path / name), "train")
    for content in ("", "[]", "{}", '{"splits": 3}'):
        (tmp_path / "dataset_dict.json").write_text(content)
        with pytest.raises(DataError, match=r"dataset_dict.json: does not name the splits"):
            locate(str(tmp_path), "train")


def test_a_document_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.core.lines.MAX_DOCUMENT_BYTES", 1 << 20)
    path = raw("a.txt", b"a line of text\n" * 100_000)(tmp_path)
    with pytest.raises(DataError, match=r"more than 1 MiB without a blank line; .*data.documents to line"):
        read(path)
    assert len(read(path, bounds="line")) == 100_000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.txt", "gone.txt: no such file"),
        ("*.jsonl", r"\*.jsonl: no file matches this pattern"),
        ("empty", "empty: holds no file that ends in .txt, .jsonl, .json, .csv"),
        ("a.md", "a.md: files ending in '.md' are not supported; convert to .txt"),
        ("a.parquet.gz", "a.parquet.gz: files ending in '.gz' are not supported"),
    ],
)
def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "a.parquet.gz").write_text("text")
    with pytest.raises(DataError, match=message):
        locate(name, "train")
