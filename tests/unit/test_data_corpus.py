"""A corpus is the same bytes however it was made, survives a kill, and is read without copying."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from datamodules.core import sources, tokenization
from datamodules.core.corpus import Corpus, Plan, account_of
from datamodules.core.errors import DataError
from datamodules.core.order import Draws
from datamodules.core.packing import Rows, Windows
from datamodules.core.segments import sentences_of, two_segments
from datamodules.core.sources import Source
from tests.corpora import plan, recipe, texts, tokenizer_json, txt
from tests.text import word_tokenizer

CLS, SEP = 2, 3


@pytest.fixture(autouse=True)
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts small files into several pieces."""
    monkeypatch.setattr(sources, "MIN_PIECE_BYTES", 8000)


def made(plan: Plan, num_processes: int = 1) -> Corpus:
    plan.make(num_processes)
    return Corpus(plan.folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".lock")}


def rows(corpus: Corpus) -> list[list[int]]:
    return [corpus.row(number)[0].tolist() for number in range(corpus.num_rows)]


def test_segments_of_a_corpus_equal_those_of_the_usual_tokenizer(tmp_path: Path) -> None:
    documents, tokenizer = texts(200), word_tokenizer(400)
    source = Source((txt(tmp_path / "a.txt", documents),))
    corpus = made(Plan("train", source, recipe(seed=5), tokenizer_json(), tmp_path))
    keys = [document.key for piece in source.pieces() for document in source.read(piece, source.records())]
    expected, seconds = [], []
    for text, key in zip(documents, keys, strict=True):
        ids = [tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in sentences_of(text, "split")]
        for first, second in two_segments(ids, 32, Draws(5, key)):
            expected.append([CLS, *first, SEP, *second, *([SEP] if second else [])])
            seconds.append(len(first) + 2)
    assert len(corpus.manifest["shards"]) > 3 and rows(corpus) == expected
    assert [corpus.row(number)[1] for number in range(corpus.num_rows)] == seconds
    assert corpus.lengths(np.array([3, 0, 7])).tolist() == [len(expected[number]) for number in (3, 0, 7)]
    assert max(map(len, expected)) <= 32


@pytest.mark.parametrize("chunk", [64, 1 << 22])
def test_windows_cover_every_token_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(tokenization, "TOKENS_PER_CHUNK", chunk)
    documents, tokenizer = texts(120), word_tokenizer(400)
    corpus = made(plan(txt(tmp_path / "a.txt", documents), tmp_path, examples="packed"))
    stream = [i for text in documents for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], SEP]]
    windows = Windows(corpus, 32, CLS, SEP)
    cut = [windows.gather(np.array([number]))[0].tolist() for number in range(len(windows))]
    assert [token for window in cut for token in window[1:-1]] == stream
    assert all(window[0] == CLS and window[-1] == SEP for window in cut)
    assert {len(window) for window in cut[:-1]} == {32} and len(cut[-1]) <= 32
    assert windows.lengths(np.arange(len(windows))).tolist() == [len(window) for window in cut]
    together, seconds = windows.gather(np.array([5, 0, len(windows) - 1]))
    assert together.tolist() == cut[5] + cut[0] + cut[-1] and seconds.tolist() == [32, 32, len(cut[-1])]


def test_documents_are_cut_and_never_joined(tmp_path: Path) -> None:
    documents, tokenizer = texts(100), word_tokenizer(400)
    corpus = made(plan(txt(tmp_path / "a.txt", documents), tmp_path, examples="documents"))
    expected = []
    for text in documents:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected += [[CLS, *ids[start : start + 30], SEP] for start in range(0, len(ids), 30)]
    assert rows(corpus) == expected
    gathered, seconds = Rows(corpus).gather(np.array([4, 2]))
    assert gathered.tolist() == expected[4] + expected[2] and seconds.tolist() == [len(expected[4]), len(expected[2])]


def test_ids_are_small_and_read_in_place(tmp_path: Path) -> None:
    path = txt(tmp_path / "a.txt", texts(50))
    small = made(plan(path, tmp_path))
    large = made(plan(path, tmp_path, vocab_size=70_000))
    assert small.ids[0].dtype == np.uint16 and large.ids[0].dtype == np.int32
    assert not small.ids[0].flags.owndata and not small.ids[0].flags.writeable
    row, _ = small.row(3)
    assert np.shares_memory(row, small.ids[0]) and rows(small) == rows(large)
    assert Dataset.from_file(str(tokenization.shard_path(small.folder, 0)))[3]["ids"] == row.tolist()


def test_processes_and_parts_make_the_same_bytes(tmp_path: Path) -> None:
    path = txt(tmp_path / "a.txt", texts(300))
    plain, double, parts = (plan(path, tmp_path / name) for name in ("plain", "double", "parts"))
    plain.make(1)
    double.make(2)
    states = [parts.make_part(1, part, 3) for part in (2, 1)]
    assert not parts.is_complete() and states[0][0] < states[1][0] < states[1][1] >= 5
    with pytest.raises(FileNotFoundError):
        Corpus(parts.folder)
    assert parts.make_part(2, 3, 3) == (states[0][1], states[0][1]) and parts.is_complete()
    assert files(plain.folder) == files(double.folder) == files(parts.folder)


def test_plain_prepare_completes_what_parts_left(tmp_path: Path) -> None:
    path = txt(tmp_path / "a.txt", texts(300))
    left, plain = plan(path, tmp_path / "left"), plan(path, tmp_path / "plain")
    left.make_part(1, 1, 4)
    before = {name: (left.folder / name).stat().st_mtime_ns for name in files(left.folder)}
    left.make(1)
    plain.make(1)
    assert files(left.folder) == files(plain.folder)
    assert {name: (left.folder / name).stat().st_mtime_ns for name in before} == before


MAKE = """
import signal
import sys
from pathlib import Path
from datamodules.core import sources
from datamodules.core.corpus import Plan, account_of
from datamodules.core.sources import Source
from datamodules.core.tokenization import Recipe
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job was started with it ignored
    path, cache, tokenizer, num_processes, sources.MIN_PIECE_BYTES = *map(Path, sys.argv[1:4]), *map(int, sys.argv[4:])
    recipe = Recipe("segments", "split", 32, 0, 400, 2, 3)
    Plan("train", Source((path,)), recipe, tokenizer.read_text(), cache).make(num_processes)
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def start(folder: Path, path: Path, cache: Path, num_processes: int, piece: int = 8000) -> subprocess.Popen:
    script = folder / "make.py"
    script.write_text(MAKE)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    words = [script, path, cache, folder / "tokenizer.json", num_processes, piece]
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def begun(process: subprocess.Popen, folder: Path) -> list[int]:
    """Wait until a preparation has made two shards, and return its processes."""
    while sum(1 for _ in folder.glob("*.json")) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return children(process.pid)


def gone(pids: list[int]) -> bool:
    """Wait for processes to end."""
    deadline = time.monotonic() + 30
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(runs, pids))


def test_a_killed_preparation_leaves_nothing_behind_and_goes_on(tmp_path: Path) -> None:
    path = txt(tmp_path / "a.txt", texts(6000))
    killed, plain = plan(path, tmp_path / "killed"), plan(path, tmp_path / "plain")
    process = start(tmp_path, path, tmp_path / "killed", 2)
    workers = begun(process, killed.folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.is_complete() and len(workers) >= 2 and gone(workers)
    (killed.folder / f".shard_00001.arrow.{os.uname().nodename}.{process.pid}.tmp").write_text("half")
    killed.make(1)
    plain.make(1)
    assert files(killed.folder) == files(plain.folder)


def test_an_interrupt_stops_all_processes(tmp_path: Path) -> None:
    path = txt(tmp_path / "a.txt", texts(6000))
    process, half = start(tmp_path, path, tmp_path, 2), plan(path, tmp_path)
    workers = begun(process, half.folder)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode != 0 and err.count("Traceback") == 1 and err.endswith("KeyboardInterrupt\n")
    assert not half.is_complete() and gone(workers)


def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    path = txt(tmp_path / "a.txt", texts(6000))
    process, half = start(tmp_path, path, tmp_path, 2), plan(path, tmp_path)
    workers = begun(process, half.folder)
    os.kill(workers[-1], signal.SIGKILL)
    _, err = process.communicate()
    assert "DataError: data.num_prepare_processes = 2: one was killed; probably memory ran out" in err
    assert not half.is_complete() and gone(workers)


def test_two_preparations_at_once_do_no_harm(tmp_path: Path) -> None:
    path = txt(tmp_path / "a.txt", texts(2000))
    both = [start(tmp_path, path, tmp_path / "both", 1) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], [process.stderr.read() for process in both]
    together, plain = plan(path, tmp_path / "both"), plan(path, tmp_path / "plain")
    plain.make(1)
    assert together.is_complete() and files(together.folder) == files(plain.folder)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = []
    for size in (1, 6):
        path = txt(tmp_path / f"{size}.txt", texts(4000, longest=120) * size)
        process = start(tmp_path, path, tmp_path / "cache", 1, piece=1 << 18)
        out, err = process.communicate()
        assert process.returncode == 0, err
        peaks.append(int(out) / 1024)
    assert path.stat().st_size > 10 << 20
    assert peaks[1] - peaks[0] < 4  # MiB: less than the text alone


def test_fingerprint_follows_the_text_and_the_recipe_only(tmp_path: Path) -> None:
    path = txt(tmp_path / "a.txt", texts(20))
    base = plan(path, tmp_path).fingerprint
    os.utime(path, (1, 1))
    assert plan(path, tmp_path).fingerprint == base
    moved = path.rename(tmp_path / "b.txt")
    assert plan(moved, tmp_path / "other").fingerprint == base
    others = [plan(moved, tmp_path, length=16), plan(moved, tmp_path, seed=1), plan(moved, tmp_path, examples="packed")]
    others.append(Plan("train", Source((moved,), share=(0.1, 1.0)), recipe(), tokenizer_json(), tmp_path))
    others.append(Plan("train", Source((moved,)), recipe(), word_tokenizer(399).backend_tokenizer.to_str(), tmp_path))
    assert len({base, *(other.fingerprint for other in others)}) == 6
    packed = {plan(moved, tmp_path, examples="packed", length=length, seed=length).fingerprint for length in (16, 32)}
    assert len(packed) == 1
    moved.write_text(moved.read_text().replace("w5", "w6"))
    assert plan(moved, tmp_path).fingerprint != base


def test_a_copy_in_another_process_maps_the_files_again(tmp_path: Path) -> None:
    corpus = made(plan(txt(tmp_path / "a.txt", texts(100)), tmp_path))
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 500 and rows(pickle.loads(pickled)) == rows(corpus)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    corpus = made(plan(txt(tmp_path / "a.txt", texts(100)), tmp_path))
    shard = tokenization.shard_path(corpus.folder, 1)
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(DataError, match=rf"{shard}: missing or not \d+ bytes long, as it was published; delete"):
        Corpus(corpus.folder)


def test_a_flipped_bit_is_found_at_the_next_start(tmp_path: Path) -> None:
    planned = plan(txt(tmp_path / "a.txt", texts(100)), tmp_path)
    shard = tokenization.shard_path(made(planned).folder, 1)
    planned.make(1)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"{shard}: missing, or not the bytes that were published; delete {shard.parent}"
    ):
        planned.make(2)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"shards": [{"bytes": 3}]}'])
@pytest.mark.parametrize("name", ["manifest.json", "shard_00001.json"])
def test_what_a_crash_cut_off_is_made_again(tmp_path: Path, name: str, content: str) -> None:
    planned = plan(txt(tmp_path / "a.txt", texts(100)), tmp_path)
    planned.make(1)
    before = files(planned.folder)
    (planned.folder / name).write_text(content)
    if name != "manifest.json":
        (planned.folder / "manifest.json").unlink()
    planned.make(1)
    assert files(planned.folder) == before


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.txt: no text for train; give a source that holds documents"):
        made(plan(txt(tmp_path / "a.txt", ["", " "]), tmp_path))
    (tmp_path / "b.jsonl").write_text('{"no": "text"}\n')
    bad = Plan("train", Source((tmp_path / "b.jsonl",), skip_bad=True), recipe(), tokenizer_json(), tmp_path)
    with pytest.raises(
        DataError, match=r"no text for train \(1 bad records were skipped, the first: .*b.jsonl:1: has no"
    ):
        bad.make(1)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_first_bad_record_is_told_whoever_meets_it(tmp_path: Path, num_processes: int) -> None:
    lines = [json.dumps({"text": text}) for text in texts(400)]
    lines[150] = lines[350] = "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = Source((tmp_path / "a.jsonl",))
    with pytest.raises(DataError, match=r"a.jsonl:151: not JSON"):
        Plan("train", source, recipe(), tokenizer_json(), tmp_path).make(num_processes)
    skipping = Plan("train", Source(source.files, skip_bad=True), recipe(), tokenizer_json(), tmp_path)
    corpus = made(skipping, num_processes)
    account = account_of(corpus.manifest)
    assert account.left_out == {"refused": 2} and account.used == corpus.manifest["documents"] == 398
    assert account.records == 400 and account.is_conserved() and account.columns == {"text": 398}
    assert [message.split(": ")[0][-3:] for message in account.messages] == ["151", "351"]
