"""Whatever is written in any format comes back as it was, and the account of it adds up."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from datamodules.core import json_items
from datamodules.core.formats import format_of
from datamodules.core.labels import records_of
from datamodules.core.lines import Records
from datamodules.core.sources import Source, find

CHARACTERS = st.one_of(
    st.sampled_from(list("ab \"'\t\n,;\\[]{}:.é你\u2028\x0b\x85\ufeff")),
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"),
)
ROWS = st.lists(st.fixed_dictionaries({"text": st.text(CHARACTERS, max_size=12), "label": st.text("ab", max_size=2)}))
Row = dict[str, str]


def separated(rows: list[Row], mark: str, **form: object) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["text", "label"], delimiter=mark, **form)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def zipped(content: bytes) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.jsonl", content)
    return out.getvalue()


def jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema({"text": pa.string(), "label": pa.string()}))


def parquet_of(rows: list[Row]) -> bytes:
    parquet.write_table(table(rows), out := io.BytesIO(), row_group_size=3)
    return out.getvalue()


def arrow_of(rows: list[Row]) -> bytes:
    with pa.ipc.new_stream(out := io.BytesIO(), table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=3)
    return out.getvalue()


FORMS: dict[str, Callable[[list[Row]], bytes]] = {
    "a.jsonl": jsonl,
    "A.JSONL": lambda rows: jsonl(rows).replace(b"\n", b"\r\n"),
    "a.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "b.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows, ensure_ascii=False).encode(),
    "a.csv": lambda rows: separated(rows, ","),
    "b.csv": lambda rows: separated(rows, ",", lineterminator="\n", quoting=csv.QUOTE_ALL),
    "a.tsv": lambda rows: separated(rows, "\t"),
    "a.parquet": parquet_of,
    "a.arrow": arrow_of,
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.csv.bz2": lambda rows: bz2.compress(separated(rows, ",")),
    "a.json.xz": lambda rows: lzma.compress(json.dumps(rows).encode(), preset=0),
    "a.jsonl.zst": lambda rows: pa.Codec("zstd").compress(jsonl(rows), asbytes=True),
    "a.zip": lambda rows: zipped(jsonl(rows)),
}


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=25, deadline=None)
@given(rows=ROWS, cut=st.floats(0, 1))
def test_what_is_read_is_what_was_written(name: str, rows: list[Row], cut: float) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(FORMS[name](rows))
        records = Records(None, quotes_join=True)
        assert [row for _, row in records_of(path, records)] == rows
        assert records.account.records == len(rows) and not records.account.left_out
        source = Source(find(folder, "train").files, quotes_join=True)
        counted = source.records()
        assert list(source.texts(counted)) == [row["text"] for row in rows if row["text"].strip()]
        assert counted.account.is_conserved() and counted.account.records == len(rows)
        assert {*counted.account.columns} == ({"text", "label"} if rows else set())
        form, extent = format_of(path), format_of(path).extent(path, records)
        parts = [part for part in ((0, int(extent * cut)), (int(extent * cut), extent)) if part[0] < part[1]]
        assert [text for part in parts for text in form.read(path, *part, source.records())] == [
            it["text"] for it in rows
        ]


@settings(max_examples=200, deadline=None)
@given(rows=ROWS)
def test_a_tsv_without_the_option_joins_nothing(rows: list[Row]) -> None:
    """Its lines are its rows; where every quote is closed in its own field, they are what was written."""
    rows = [{name: value.replace("\n", " ").replace("\t", " ") for name, value in row.items()} for row in rows]
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.tsv")
        path.write_bytes(separated(rows, "\t"))
        assert [row for _, row in records_of(path, Records(None))] == rows
        plain = "".join(f"{row['text']}\t{row['label']}\n" for row in rows)
        path.write_bytes(f"text\tlabel\n{plain}".encode())
        read = [row for _, row in records_of(path, Records(None))]
        assert len(read) == len(rows)
        if not any(row["text"].startswith('"') for row in rows):
            assert read == rows


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(
    st.characters(exclude_categories=["Cs"])), lambda some: st.lists(some) | st.dictionaries(st.text("ab"), some),
    max_leaves=6)), size=st.integers(1, 40), indent=st.sampled_from([None, 0, 2]))  # fmt: skip
def test_an_array_is_read_wherever_its_blocks_end(rows: list, size: int, indent: int | None) -> None:
    stream = io.BytesIO(json.dumps(rows, indent=indent).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_items, "HEAD_BYTES", size)
        assert list(json_items.Items(stream, Path("a.json"))) == rows


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.large_string()])
def test_strings_of_every_form_are_read(tmp_path: Path, kind: pa.DataType, ending: str) -> None:
    table = pa.table({"text": pa.array(["one", "zwei é", "one"]).cast(kind)})
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    assert list(Source((path,)).texts()) == ["one", "zwei é", "one"]
