"""Mistakes in data: texts, labelled texts, pairs, and the sets that pairs are judged by."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad.trying import Mistake

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
CLASSES = {
    "huggingface": json.dumps({"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}})
}
PROSE = "".join(f"The quick brown fox number {n} jumps over the lazy dog near the river.\n\n" for n in range(40))


def lines(*records: Any) -> str:
    """Write records as JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def arrow(metadata: dict[str, str] | None = None, **columns: Any) -> bytes:
    """Write an Arrow file as `datasets` does."""
    table = pa.table(columns).replace_schema_metadata(metadata)
    with io.BytesIO() as stream:
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        return stream.getvalue()


def parquet(metadata: dict[str, str] | None = None, **columns: Any) -> bytes:
    """Write a Parquet file."""
    with io.BytesIO() as stream:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), stream)
        return stream.getvalue()


def zst(content: str) -> bytes:
    """Compress a text by Zstandard."""
    return pa.compress(content.encode(), codec="zstd", asbytes=True)


def zipped(*names: str) -> bytes:
    """Write an archive whose files hold one text."""
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            for name in names:
                archive.writestr(name, lines({"text": "a text"}))
        return stream.getvalue()


def damaged(content: bytes) -> bytes:
    """Turn a byte over in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def words_of(method: str, source: str, more: str) -> str:
    """Write the command line that prepares a source."""
    return f"prepare --config ROOT/configs/{method}/debug.yaml --data.cache_dir cache --data.source {source} {more}".strip()


def text(name: str, content: str | bytes, message: str, more: str = "", **files: str | bytes) -> Mistake:
    """A source of text that is wrong."""
    return Mistake(words_of("electra", name, more), message, {name: content, **files})


def folder(files: dict[str, str | bytes], message: str, more: str = "") -> Mistake:
    """A folder of text that is wrong."""
    return Mistake(words_of("electra", "corpus", more), message, {f"corpus/{name}": files[name] for name in files})


def labelled(name: str, content: str | bytes, message: str, more: str = "", **files: str | bytes) -> Mistake:
    """A labelled source that is wrong."""
    fields = "--data.text_field text --data.label_field label"
    return Mistake(words_of("finetune", name, f"{fields} {more}"), message, {name: content, **files})


def pairs(name: str, content: str | bytes, message: str, more: str = "", **files: str | bytes) -> Mistake:
    """A source of pairs that is wrong."""
    return Mistake(words_of("matryoshka2d", name, more), message, {name: content, **files})


def judged(task: str, files: dict[str, str | bytes], message: str, more: str = "") -> Mistake:
    """A set that is wrong, beside pairs that are right."""
    first = next(iter(files))
    path = first.split("/")[0]
    fields = f"--data.validation '{{mine: {{task: {task}, path: {path}{more}}}}}' --data.accept '[unknown]'"
    return Mistake(words_of("matryoshka2d", "good.jsonl", fields), message, {**files, "good.jsonl": PAIRS})


def many(**fields: Any) -> Sequence[dict[str, Any]]:
    """Return twenty records of one text each."""
    return [{"text": f"the text of number {n} is here", **fields} for n in range(20)]


ROW = {"text": "a text of some words"}
GOOD = "".join(lines({"text": f"text number {n}", "label": "no" if n % 2 else "yes"}) for n in range(20))
PAIRS = "".join(lines({"anchor": f"question number {n}", "positive": f"answer number {n}"}) for n in range(20))
FOXES = "".join(lines({"text": f"The fox number {n} jumps over the lazy dog."}) for n in range(40))

TEXT = {
    "text: an empty file": text("a.txt", "", r"a\.txt"),
    "text: blank lines alone": text("a.txt", "\n\n \n\n", r"a\.txt"),
    "text: an empty jsonl": text("a.jsonl", "", r"a\.jsonl"),
    "text: an empty json": text("a.json", "", r"a\.json"),
    "text: an empty array": text("a.json", "[]", r"a\.json"),
    "text: an empty csv": text("a.csv", "", r"a\.csv: is empty"),
    "text: a csv of a header": text("a.csv", "id,text\n", r"a\.csv"),
    "text: an empty parquet": text("a.parquet", b"", r"a\.parquet"),
    "text: an empty arrow": text("a.arrow", b"", r"a\.arrow"),
    "text: an empty gz": text("a.jsonl.gz", b"", r"a\.jsonl\.gz: is empty"),
    "text: an empty zst": text("a.jsonl.zst", b"", r"a\.jsonl\.zst: is empty"),
    "text: no field": text("a.jsonl", lines({"body": "x"}), r"a\.jsonl:1: .*text"),
    "text: no column of a csv": text("a.csv", "id,body\n1,x\n", r"a\.csv.*'text'.*data\.text_field"),
    "text: no column of a parquet": text("a.parquet", parquet(body=["x"]), r"a\.parquet.*'text'.*data\.text_field"),
    "text: no column of an arrow": text("a.arrow", arrow(body=["x"]), r"a\.arrow.*'text'.*data\.text_field"),
    "text: a number": text("a.jsonl", lines(ROW, {"text": 3}), r"a\.jsonl:2: "),
    "text: a null": text("a.jsonl", lines(ROW, {"text": None}), r"a\.jsonl:2: "),
    "text: a list": text("a.jsonl", lines(ROW, {"text": ["a", "b"]}), r"a\.jsonl:2: "),
    "text: numbers in a parquet": text("a.parquet", parquet(text=[1, 2]), r"a\.parquet: column 'text' holds int64"),
    "text: a null in a parquet": text("a.parquet", parquet(text=["a", None]), r"a\.parquet: row 1: 'text' is null"),
    "text: lists in an arrow": text("a.arrow", arrow(text=[["a"], ["b"]]), r"a\.arrow: column 'text' holds list"),
    "text: a record that is a list": text("a.jsonl", "[1, 2]\n", r"a\.jsonl:1: "),
    "text: a record that is a word": text("a.jsonl", lines(ROW) + '"word"\n', r"a\.jsonl:2: "),
    "text: no JSON": text("a.jsonl", lines(ROW) + "{text: x}\n", r"a\.jsonl:2: not JSON"),
    "text: half a JSON": text("a.jsonl", lines(ROW) + '{"text": "x', r"a\.jsonl:2: not JSON"),
    "text: a field twice": text("a.jsonl", '{"text": "a", "text": "b"}\n', r"a\.jsonl:1: .*twice"),
    "text: half an array": text("a.json", '[{"text": "x"}, {"text": ', r"a\.json: .*record 2"),
    "text: one object": text("a.json", '{\n "text": "x"\n}\n', r"a\.json"),
    "text: deep": text("a.jsonl", '{"text": "x", "y": ' + "[" * 100_000 + "]" * 100_000 + "}\n", r"a\.jsonl:1: "),
    "text: a long number": text("a.jsonl", '{"text": "x", "y": ' + "9" * 5000 + "}\n", r"a\.jsonl:1: "),
    "text: half a surrogate": text("a.jsonl", '{"text": "x \\ud83d y"}\n', r"a\.jsonl:1: "),
    "text: UTF-16 txt": text("a.txt", PROSE.encode("utf-16"), r"a\.txt: .*UTF-16"),
    "text: UTF-16 without a mark": text("a.txt", PROSE.encode("utf-16-le"), r"a\.txt: .*UTF-16"),
    "text: UTF-16 jsonl": text("a.jsonl", FOXES.encode("utf-16"), r"a\.jsonl: .*UTF-16"),
    "text: UTF-32": text("a.txt", PROSE.encode("utf-32"), r"a\.txt: .*UTF-(16|32)"),
    "text: latin-1": text("a.txt", (PROSE + "caf\xe9").encode("latin-1"), r"a\.txt:81: not UTF-8"),
    "text: latin-1 csv": text("a.csv", "id,text\n1,caf\xe9\n".encode("latin-1"), r"a\.csv:2: not UTF-8"),
    "text: bare CR": text("a.txt", PROSE.replace("\n", "\r"), r"a\.txt: .*CR"),
    "text: bare CR jsonl": text("a.jsonl", FOXES.replace("\n", "\r"), r"a\.jsonl: .*CR"),
    "text: bare CR csv": text("a.csv", "id,text\r1,a\r2,b\r", r"a\.csv: .*CR"),
    "text: a pointer of git-lfs": text("a.txt", POINTER, r"a\.txt: .*git.lfs"),
    "text: a pointer as jsonl": text("a.jsonl", POINTER, r"a\.jsonl: .*git.lfs"),
    "text: a pointer as csv": text("a.csv", POINTER, r"a\.csv: .*git.lfs"),
    "text: a pointer as parquet": text("a.parquet", POINTER, r"a\.parquet: .*git.lfs"),
    "text: a pointer as arrow": text("a.arrow", POINTER, r"a\.arrow: .*git.lfs"),
    "text: a pointer as gz": text("a.jsonl.gz", POINTER, r"a\.jsonl\.gz: .*git.lfs"),
    "text: a pointer as zip": text("a.jsonl.zip", POINTER, r"a\.jsonl\.zip: .*git.lfs"),
    "text: a web page as csv": text("a.csv", "<!DOCTYPE html>\n<html></html>\n", r"a\.csv: is a web page"),
    "text: a web page as jsonl": text("a.jsonl", "<!DOCTYPE html>\n<html></html>\n", r"a\.jsonl: .*web page"),
    "text: a gz by another name": text("a.txt", gzip.compress(PROSE.encode()), r"a\.txt: .*gz"),
    "text: a parquet by another name": text("a.jsonl", parquet(text=["x"]), r"a\.jsonl: .*[Pp]arquet"),
    "text: a pdf": text("a.txt", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", r"a\.txt: is a PDF file"),
    "text: plain text as gz": text("a.jsonl.gz", FOXES, r"a\.jsonl\.gz: is plain text"),
    "text: a zst as gz": text("a.jsonl.gz", zst(FOXES), r"a\.jsonl\.gz: is a .*zst"),
    "text: half a gz": text("a.jsonl.gz", gzip.compress(FOXES.encode())[:-20], r"a\.jsonl\.gz: truncated"),
    "text: half an xz": text("a.jsonl.xz", lzma.compress(FOXES.encode())[:-20], r"a\.jsonl\.xz: truncated"),
    "text: half a bz2": text("a.jsonl.bz2", bz2.compress(FOXES.encode())[:-20], r"a\.jsonl\.bz2: truncated"),
    "text: half a zst": text("a.jsonl.zst", zst(FOXES)[:-20], r"a\.jsonl\.zst: truncated"),
    "text: a damaged gz": text("a.jsonl.gz", damaged(gzip.compress(FOXES.encode())), r"a\.jsonl\.gz: truncated or dam"),
    "text: half a parquet": text("a.parquet", parquet(text=["x"] * 99)[:-30], r"a\.parquet: .*damaged"),
    "text: half an arrow": text("a.arrow", arrow(text=[PROSE] * 9)[:-3000], r"a\.arrow: .*damaged"),
    "text: a zip of two": text("a.zip", zipped("a.jsonl", "b.jsonl"), r"a\.zip: holds 2 files"),
    "text: a zip of none": text("a.zip", zipped(), r"a\.zip: holds 0 files|a\.zip"),
    "text: a zip of a picture": text("a.zip", zipped("a.png"), r"a\.zip: .*'\.zip' that hold one of '\.png'"),
    "text: half a zip": text("a.jsonl.zip", zipped("a.jsonl")[:-30], r"a\.jsonl\.zip"),
    "text: a picture": text("a.png", b"\x89PNG\r\n\x1a\n", r"a\.png: files ending in '\.png'"),
    "text: no ending": text("corpus", "words\n", r"corpus: files without an ending"),
    "text: an open quote": text("a.csv", 'id,text\n1,"a\n2,b\n', r"a\.csv:2: not CSV"),
    "text: a quote that ends early": text("a.csv", 'id,text\n1,"a" b\n', r"a\.csv:2: "),
    "text: a header of one column": text("a.csv", "text;id\na;1\n", r"a\.csv:1: its header is one column"),
    "text: a header with a column twice": text("a.csv", "text,text\na,b\n", r"a\.csv:1: its header names 'text' twice"),
    "text: too few columns": text("a.csv", "id,text,more\n1,a,b\n2\n", r"a\.csv:3: "),
    "text: too many columns": text("a.csv", "id,text\n1,a,b\n", r"a\.csv:2: "),
    "text: a tsv with quotes": text("a.tsv", 'id\ttext\n1\t"a\n2\tb"\n3\tc\td\n', r"a\.tsv:4: "),
    "text: a csv named tsv": text("a.tsv", "id,text\n1,a\n", r"a\.tsv:1: its header is one column"),
    "text: no tokenizer": text("a.jsonl", FOXES, r"data\.tokenizer", "--data.tokenizer ./nowhere --data.tokenizer.train null"),
    "text: a length of nothing": text("a.jsonl", FOXES, r"data\.sequence_length = 3", "--data.sequence_length 3"),
    "text: lost by lines": text("a.txt", ("word " * 400 + "\n\n") * 40, r"lost", "--data.sentences line --data.validation_fraction 0"),
    "text: an unread source": text("a.txt", PROSE, r"nothing\.txt: no such file", "--data.validation_source nothing.txt"),
    "text: a bad validation": text("a.txt", PROSE, r"b\.jsonl:1: not JSON", "--data.validation_source b.jsonl", **{"b.jsonl": "{"}),
    "text: an unknown embedded": Mistake(words_of("electra", "embedded:title", ""), r"embedded:title: "),
}  # fmt: skip

FOLDERS = {
    "folder: nothing in it": folder({".hidden.txt": PROSE}, r"corpus: holds no file that ends in"),
    "folder: pictures": folder({"a.png": b"\x89PNG", "README.md": "# about\n"}, r"corpus: holds no file.*passed over|corpus: holds no file"),
    "folder: tests alone": folder({"test.jsonl": FOXES}, r"corpus: has no part for"),
    "folder: parts that do not tell": folder({"train.jsonl": FOXES, "a.jsonl": FOXES, "b.jsonl": FOXES}, r"corpus: train\.jsonl is named as the training part"),
    "folder: one bad file of two": folder({"a.jsonl": FOXES, "b.jsonl": "{"}, r"b\.jsonl:1: not JSON"),
    "folder: two data sets": folder({"README.md": "---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n", "a.jsonl": FOXES, "b.jsonl": FOXES}, r"README\.md: declares several data sets"),
    "folder: a file that is not there": folder({"README.md": "---\nconfigs:\n- config_name: default\n  data_files: nothing.jsonl\n---\n", "a.jsonl": FOXES}, r"README\.md: no file is 'nothing\.jsonl'"),
    "folder: a selection of rows": folder({"state.json": json.dumps({"_data_files": [{"filename": "d.arrow"}], "_indices_data_files": [{"filename": "i.arrow"}]}), "d.arrow": arrow(text=["a"])}, r"is a selection of rows by an index"),
    "folder: an Arrow file that is not there": folder({"state.json": json.dumps({"_data_files": [{"filename": "d.arrow"}]}), "e.arrow": arrow(text=["a"])}, r"d\.arrow: is not there, though state\.json"),
    "folder: splits that are no JSON": folder({"dataset_dict.json": "{", "train/a.jsonl": FOXES}, r"dataset_dict\.json: "),
}  # fmt: skip

LABELLED = {
    "labels: an empty file": labelled("a.jsonl", "", r"a\.jsonl: (no document|holds no example)"),
    "labels: a txt": labelled("a.txt", PROSE, r"a\.txt: has no fields for a label"),
    "labels: no text field": labelled("a.jsonl", lines({"body": "x", "label": "a"}), r"a\.jsonl:1: has no field 'text'"),
    "labels: no label field": labelled("a.jsonl", lines({"text": "x"}), r"a\.jsonl:1: has no field 'label'"),
    "labels: a text that is a number": labelled("a.jsonl", lines({"text": 3, "label": "a"}), r"a\.jsonl:1: field 'text' = 3 is not a string(?!.*on_bad_record)"),
    "labels: a pair that lacks": labelled("a.jsonl", GOOD, r"a\.jsonl:1: has no field 'other'", "--data.pair_field other"),
    "labels: null": labelled("a.jsonl", GOOD + lines({"text": "x", "label": None}), r"a\.jsonl:21: 'label' = None is a missing label"),
    "labels: NaN": labelled("a.jsonl", GOOD + lines({"text": "x", "label": float("nan")}), r"a\.jsonl:21: "),
    "labels: empty": labelled("a.csv", "text,label\na,yes\nb,no\nc,\n", r"a\.csv:4: 'label' = '' is a missing label"),
    "labels: nan in words": labelled("a.csv", "text,label\na,yes\nb,no\nc,nan\n", r"a\.csv:4: 'label' = 'nan' is a missing label"),
    "labels: NA of R": labelled("a.csv", "text,label\na,yes\nb,no\nc,NA\n", r"a\.csv:4: 'label' = 'NA' is a missing label.*accept"),
    "labels: not available": labelled("a.csv", "text,label\na,yes\nb,no\nc,n/a\n", r"a\.csv:4: 'label' = 'n/a' is a missing label.*accept"),
    "labels: NA of a sheet": labelled("a.csv", "text,label\na,yes\nb,no\nc,#N/A\n", r"a\.csv:4: 'label' = '#N/A' is a missing label"),
    "labels: NaN in a parquet": labelled("a.parquet", parquet(text=["a", "b", "c"], label=[0.0, 1.0, float("nan")]), r"a\.parquet.*missing label"),
    "labels: null in an arrow": labelled("a.arrow", arrow(text=["a", "b", "c"], label=[0, 1, None]), r"a\.arrow.*missing label"),
    "labels: -1": labelled("a.jsonl", lines(*({"text": f"t{n}", "label": n} for n in (0, 1, -1))), r"a\.jsonl:3: 'label' = -1 is a missing label"),
    "labels: -1 of a ClassLabel": labelled("a.parquet", parquet(CLASSES, text=["a", "b", "c"], label=[0, 1, -1]), r"a\.parquet.*-1"),
    "labels: a number over a ClassLabel": labelled("a.parquet", parquet(CLASSES, text=["a", "b", "c"], label=[0, 1, 2]), r"a\.parquet: row 2: 'label' = 2 has no name among"),
    "labels: fractions": labelled("a.jsonl", lines({"text": "a", "label": 0.5}, {"text": "b", "label": 1.5}), r"a\.jsonl:1: 'label' = 0\.5 names no class"),
    "labels: a list": labelled("a.jsonl", lines({"text": "a", "label": ["x"]}, {"text": "b", "label": "y"}), r"a\.jsonl:1: "),
    "labels: one class": labelled("a.jsonl", lines(*many(label="x")), r"a\.jsonl:1: every label is 'x'"),
    "labels: words as numbers": labelled("a.jsonl", GOOD, r"a\.jsonl:1: 'label' = 'yes' is no number", "--data.labels numbers --model.task regression"),
    "labels: infinity as a number": labelled("a.jsonl", '{"text": "a", "label": Infinity}\n', r"a\.jsonl:1: ", "--data.labels numbers --model.task regression"),
    "labels: a class of validation alone": labelled("a.jsonl", GOOD, r"b\.jsonl:1: label 'maybe' is none of", "--data.validation_source b.jsonl", **{"b.jsonl": lines({"text": "a", "label": "maybe"})}),
    "labels: another spelling": labelled("a.jsonl", GOOD, r"b\.jsonl:1: label 'Yes' is none of", "--data.validation_source b.jsonl", **{"b.jsonl": lines({"text": "a", "label": "Yes"})}),
    "labels: half a surrogate": labelled("a.jsonl", '{"text": "x \\ud83d", "label": "a"}\n', r"a\.jsonl:1: "),
    "labels: half a surrogate as class": labelled("a.jsonl", GOOD + '{"text": "x", "label": "\\ud83d"}\n', r"a\.jsonl:21: "),
    "labels: an unknown task": Mistake(words_of("finetune", "embedded:weather", ""), r"embedded:weather.*no such task"),
    "labels: a field for embedded": Mistake(words_of("finetune", "embedded:topic", "--data.text_field body"), r"data\.text_field = body"),
    "labels: a pointer of git-lfs": labelled("a.csv", POINTER, r"a\.csv: .*git.lfs"),
    "labels: an escape code as a class": labelled("a.jsonl", lines(*many(label="\x1b[31mred\x07")), r"every label is"),
    "labels: a tokenizer without words": labelled("a.jsonl", GOOD, r"data\.tokenizer", "--data.tokenizer tok --data.tokenizer.train null", **{"tok/tokenizer_config.json": "{}"}),
}  # fmt: skip

PAIRED = {
    "pairs: an empty file": pairs("a.jsonl", "", r"a\.jsonl: (no document|holds no pair)"),
    "pairs: a txt": pairs("a.txt", PROSE, r"a\.txt: a txt file has no columns"),
    "pairs: no anchor": pairs("a.jsonl", lines({"x": "a", "positive": "b"}), r"a\.jsonl:1: has no column for the anchor"),
    "pairs: no positive": pairs("a.jsonl", lines({"anchor": "a", "x": "b"}), r"a\.jsonl:1: has no column for the positive"),
    "pairs: two anchors": pairs("a.jsonl", lines({"query": "a", "question": "b", "answer": "c"}), r"a\.jsonl:1: 'query' and 'question' could be the anchor"),
    "pairs: an empty text": pairs("a.jsonl", PAIRS + lines({"anchor": "", "positive": "b"}), r"a\.jsonl:21: 'anchor' is empty"),
    "pairs: a number": pairs("a.jsonl", PAIRS + lines({"anchor": 3, "positive": "b"}), r"a\.jsonl:21: "),
    "pairs: a label of words": pairs("a.jsonl", lines({"premise": "a", "hypothesis": "b", "gold_label": "neutral"}), r"a\.jsonl:1: 'gold_label' = 'neutral'.*labels"),
    "pairs: a label over 1": pairs("a.jsonl", lines({"anchor": "a", "positive": "b", "label": 5}), r"a\.jsonl:1: 'label' = 5.*not from 0 to 1"),
    "pairs: a label not read": pairs("a.jsonl", lines({"anchor": "a", "positive": "b", "relevance": 1}), r"a\.jsonl:1: the column 'relevance' looks like a label"),
    "pairs: negatives not read": pairs("a.jsonl", lines({"anchor": "a", "positive": "b", "distractors": ["c"]}), r"a\.jsonl:1: the column 'distractors' looks like"),
    "pairs: a column that is not there": pairs("a.jsonl", PAIRS, r"a\.jsonl:1: has no column 'title'", "--data.sources '{x: {path: a.jsonl, columns: {anchor: title}}}' --data.source null"),
    "pairs: a score of words": pairs("a.jsonl", lines({"anchor": "a", "positive": "b", "score": "high"}), r"a\.jsonl:1: 'score' = 'high'"),
    "pairs: NaN": pairs("a.jsonl", lines({"anchor": "a", "positive": "b", "score": float("nan")}), r"a\.jsonl:1: "),
    "pairs: an empty list": pairs("a.jsonl", lines({"anchor": "a", "positive": []}), r"a\.jsonl:1: 'positive' is an empty list"),
    "pairs: no list in a csv": pairs("a.csv", "anchor,positive,negatives\na,b,[c]\n", r"a\.csv:2: 'negatives'.*is no list in JSON"),
    "pairs: too many negatives": pairs("a.jsonl", lines({"anchor": "a", "positive": "b", "negatives": [f"n{n}" for n in range(200)]}), r"200 hard negatives, at most 128"),
    "pairs: a label sometimes": pairs("a.jsonl", PAIRS + lines({"anchor": "a", "positive": "b", "label": 1}), r"a\.jsonl:21: has 'label', which the first record has not"),
    "pairs: positives beside a label": pairs("a.jsonl", lines({"anchor": "a", "positive": ["b", "c"], "label": 1}), r"a\.jsonl:1: 'positive' = \['b', 'c'\] is no text"),
    "pairs: a pointer of git-lfs": pairs("a.parquet", POINTER, r"a\.parquet: .*git.lfs"),
    "pairs: half a surrogate": pairs("a.jsonl", '{"anchor": "\\ud83d", "positive": "b"}\n', r"a\.jsonl:1: "),
    "pairs: a long prompt": pairs("a.jsonl", PAIRS, r"prompts: .*tokens", "--data.sources '{x: {path: a.jsonl, prompts: {anchor: \"" + "the answer of a question " * 20 + "\"}}}' --data.source null"),
    "pairs: two parts of pairs": Mistake(words_of("matryoshka2d", "embedded", "--part 1/2"), r"--part 1/2: pairs are prepared whole"),
    "pairs: a zip of two": pairs("a.zip", zipped("a.jsonl", "b.jsonl"), r"a\.zip: holds 2 files"),
}  # fmt: skip

ENTRY = {"corpus": {"_id": "d1", "title": "", "text": "a document"}, "query": {"_id": "q1", "text": "a query"}}
JUDGEMENTS = "query-id\tcorpus-id\tscore\nq1\td1\t1\n"


def beir(message: str, **files: str | None) -> Mistake:
    """A folder in the form of BEIR, with other files in place of the right ones."""
    right = {
        "beir/corpus.jsonl": lines(ENTRY["corpus"]), "beir/queries.jsonl": lines(ENTRY["query"]),
        "beir/qrels/test.tsv": JUDGEMENTS,
    }  # fmt: skip
    found = right | {f"beir/{name.replace('qrels', 'qrels/test.tsv')}": content for name, content in files.items()}
    return judged("retrieval", {name: content for name, content in found.items() if content is not None}, message)


SETS = {
    "set: sts of one score": judged("sts", {"s.jsonl": lines(*({"sentence1": f"a {n}", "sentence2": "b", "score": 1} for n in range(5)))}, r"s\.jsonl: every .* is 1"),
    "set: sts without scores": judged("sts", {"s.jsonl": lines({"sentence1": "a", "sentence2": "b"})}, r"s\.jsonl:1: has no column for the label"),
    "set: sts of nothing": judged("sts", {"s.jsonl": ""}, r"s\.jsonl: "),
    "set: classes of 2 in pairs": judged("pair_classification", {"s.jsonl": lines(*({"sentence1": f"a {n}", "sentence2": "b", "score": n} for n in range(3)))}, r"s\.jsonl: label 2 is neither 0 nor 1"),
    "set: a corpus that is empty": beir(r"corpus|none of", **{"corpus.jsonl": ""}),
    "set: queries that are not there": beir(r"queries", **{"queries.jsonl": None}),
    "set: judgements that are not there": beir(r"qrels", qrels=None),
    "set: an id with two texts": beir(r"corpus\.jsonl:2: the id 'd1' stands there twice", **{"corpus.jsonl": lines(ENTRY["corpus"], {**ENTRY["corpus"], "text": "another"})}),
    "set: judgements of other queries": beir(r"none of its queries is in", qrels=JUDGEMENTS.replace("q1", "q7")),
    "set: judgements of other documents": beir(r"none of its corpus is in", qrels=JUDGEMENTS.replace("d1", "d7")),
    "set: grades in words": beir(r"test\.tsv:2: ", qrels=JUDGEMENTS.replace("\t1\n", "\thigh\n")),
    "set: nothing relevant": beir(r"no query has a relevant document", qrels=JUDGEMENTS.replace("\t1\n", "\t0\n")),
    "set: judgements in the form of TREC": beir(r"test\.tsv:2: has no field 'query-id'", qrels="q1 0 d1 1\nq1 0 d2 1\n"),
    "set: a document without an id": beir(r"corpus\.jsonl:1: ", **{"corpus.jsonl": lines({"text": "a"})}),
    "set: a class that training lacks": judged("classification", {"s.jsonl": lines({"text": "a", "label": "z"}), "t.jsonl": GOOD}, r"s\.jsonl:1: class 'z' is not in", ", train: t.jsonl"),
    "set: a missing class": judged("classification", {"s.jsonl": lines({"text": "a", "label": None}), "t.jsonl": GOOD}, r"s\.jsonl:1: ", ", train: t.jsonl"),
}  # fmt: skip

DATA = TEXT | FOLDERS | LABELLED | PAIRED | SETS
