"""Streaming: ranks share the documents, every token comes, and state goes on exactly on as many ranks."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import IterableDataset

from datamodules.core import sources
from datamodules.core.batches import TextBatch
from datamodules.core.errors import DataError
from datamodules.core.loader import Batching
from datamodules.core.sources import Source
from datamodules.core.streaming import Stream, from_files, own_state
from datamodules.core.wordpiece import TokenizerOptions
from datamodules.text import TextCorpus
from tests.corpora import recipe, texts, tokenizer_json, txt
from tests.text import word_tokenizer
from tests.unit.test_data_text import fit

SEP = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "MIN_PIECE_BYTES", 3000)
    (tmp_path / "texts").mkdir()
    for number in range(3):
        txt(tmp_path / f"texts/{number}.txt", texts(20 + number, seed=number))
    return tmp_path / "texts"


def stream(folder: Path, rank: int = 0, world_size: int = 1) -> Stream:
    source = Source(sources.locate(str(folder), "train"))
    batching = Batching(8, 2, rank, world_size)
    special = np.isin(np.arange(400), [0, 2, 3, 4])
    return Stream(from_files(source), tokenizer_json(), recipe("packed"), batching, special, rank, world_size)


def ids(step: list[TextBatch]) -> list[int]:
    return [token for batch in step for row in batch["ids_T"].reshape(-1, 32) for token in row[1:-1].tolist()]


def test_one_rank_sees_every_token_in_order_and_begins_again(folder: Path) -> None:
    tokenizer = word_tokenizer(400)
    documents = list(Source(sources.locate(str(folder), "train")).texts())
    tokens = [token for text in documents for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], SEP]]
    steps = 2 * len(tokens) // (8 * 30)
    seen = [token for step in itertools.islice(stream(folder), steps) for token in ids(step)]
    assert len(documents) == 63 and len(seen) > len(tokens) + 240
    assert seen == (tokens * 2)[: len(seen)]


def test_ranks_share_the_documents_and_the_places(folder: Path) -> None:
    shares = [list(itertools.islice(stream(folder, rank, 2), 5)) for rank in range(2)]
    for step in range(5):
        places = [p for share in shares for batch in share[step] for p in batch["sample_B"].tolist()]
        assert places == list(range(step * 8, step * 8 + 8))
    documents = [
        set(stream(folder, rank, 2).dataset.map(lambda row: {"key": hash(row["text"])})["key"]) for rank in range(2)
    ]
    assert not documents[0] & documents[1] and len(documents[0] | documents[1]) == 63


def test_state_goes_on_through_two_resumes_and_the_end_of_the_text(folder: Path) -> None:
    whole, seen, state = list(itertools.islice(stream(folder), 90)), [], None
    for count in (7, 50, 33):
        part = stream(folder)
        part.state = state or part.state
        start = part.state["step"]
        seen += list(itertools.islice(part, count + 1))[:count]  # one more than is used, as a loop that prefetches
        state = part.state_at(start + count)
    assert [list(map(lambda b: b["ids_T"].tolist(), step)) for step in seen] == [
        [batch["ids_T"].tolist() for batch in step] for step in whole
    ]
    assert state["step"] == 90 and state["dataset"]["epoch"] >= 1
    torch.save(state, folder / "state.pt")
    assert torch.load(folder / "state.pt", weights_only=True) == state


def test_another_number_of_ranks_is_refused() -> None:
    assert own_state({"ranks": ["a", "b"]}, 1, 2) == "b"
    with pytest.raises(
        DataError, match=r"data.streaming = true: the checkpoint was written on 2 ranks and this run has 4"
    ):
        own_state({"ranks": ["a", "b"]}, 0, 4)


def test_training_resumes_from_the_checkpoint_of_lightning(folder: Path, tmp_path: Path) -> None:
    word_tokenizer(400).save_pretrained(tmp_path / "tokenizer")
    options = TokenizerOptions(name=str(tmp_path / "tokenizer"))

    def data() -> TextCorpus:
        return TextCorpus(
            options, 8, 4, str(folder), streaming=True, sequence_length=32, examples="packed", cache_dir=str(tmp_path)
        )

    whole = fit(data(), tmp_path / "whole", 9)
    seen = fit(data(), tmp_path / "parts", 3)
    for steps in (5, 9):
        seen += fit(data(), tmp_path / "parts", steps, tmp_path / "parts/last.ckpt")
    assert len(whole) == 9 and seen == whole


def test_what_streaming_prepares_and_tells(folder: Path, tmp_path: Path) -> None:
    word_tokenizer(400).save_pretrained(tmp_path / "tokenizer")
    (folder / "notes.md").write_text("not text to train on")
    options = TokenizerOptions(name=str(tmp_path / "tokenizer"))
    data = TextCorpus(
        options,
        8,
        4,
        str(folder),
        str(folder / "0.txt"),
        streaming=True,
        sequence_length=32,
        examples="packed",
        cache_dir=str(tmp_path),
    )
    data.setup()
    assert data.epochs(100) == {}, "how much there is, is not known"
    assert set(data.corpora) == {"val"} and data.describe()[1] == f"train: streamed from {folder}, windows of 32"
    assert data.describe()[2] == "train: 3 files read; passed over: 1 of another kind (notes.md)"
    assert len(data.fingerprint) == 32 and sum(1 for _ in data.val_dataloader()) > 0
    with pytest.raises(DataError, match=r"data.test_source = null"):
        data.test_dataloader()


def test_an_empty_stream_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    txt(tmp_path / "texts/a.txt", [""])
    with pytest.raises(DataError, match="this rank's part of the stream holds no text"):
        next(iter(stream(tmp_path / "texts")))


def test_a_record_of_the_hub_without_a_text_is_refused() -> None:
    rows = IterableDataset.from_generator(lambda: ({"text": text} for text in ("w5 w6", None)))
    special = np.isin(np.arange(400), [0, 2, 3, 4])
    with pytest.raises(DataError, match=r"record 2 of the stream, None, is no text; leave such records out with"):
        next(iter(Stream(rows, tokenizer_json(), recipe("packed"), Batching(8, 2, 0, 1), special, 0, 1)))


def test_a_stream_counts_as_it_reads_and_goes_on_counting(folder: Path, tmp_path: Path) -> None:
    lines = ['{"text": "w5 w6 zzz"}', "bad", '{"text": " "}'] * 40
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.jsonl").write_text("\n".join(lines))
    source = Source(sources.locate(str(tmp_path / "b"), "train"), skip_bad=True)
    special = np.isin(np.arange(400), [0, 2, 3, 4])

    def opened() -> Stream:
        return Stream(from_files(source), tokenizer_json(), recipe("packed"), Batching(2, 1), special, 0, 1)

    whole = opened()
    list(itertools.islice(whole, 2))
    account = whole.account
    assert account.is_conserved() and account.used > 10 and account.unknown == {"Latin": account.used}
    assert account.left_out["refused"] in (account.used - 1, account.used) and account.left_out["empty"] > 10
    first = opened()
    list(itertools.islice(first, 1))
    second = opened()
    second.state = first.state_at(1)
    next(iter(second))
    assert second.account == account
