"""Pairs of texts: forms, formats, batches, mixtures, prompts, lengths, the cache, and the same data for any ranks."""

import json
import os
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from datamodules.core.batches import PairBatch
from datamodules.core.errors import DataError
from datamodules.core.loader import Batching, FromStep, loader
from datamodules.core.pair_loader import PairSteps
from datamodules.core.pair_options import Columns, PairSource, Prompts
from datamodules.core.tasks import Retrieval
from datamodules.core.wordpiece import TokenizerOptions, WordPieceTraining
from datamodules.pairs import TextPairs
from tests.pairs import jsonl, pairs, texts_of, words

TRIPLETS = [
    {"anchor": words(5 + n, 6), "positive": words(50 + n, 7, 8), "negative": words(100 + n, *range(5, 8 + n % 5))}
    for n in range(40)
]


def first(made: TextPairs, count: int = 1) -> list[list[PairBatch]]:
    return [*islice(made.train_dataloader(), count)]


def test_texts_labels_and_keys_stay_together_in_every_epoch(tmp_path: Path) -> None:
    rows = [{"sentence1": words(5 + n), "sentence2": words(50 + n, 7), "score": n / 8} for n in range(40)]
    made = pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", rows))
    truth = {(row["sentence1"], row["sentence2"]): row["score"] for row in rows}
    seen: list[tuple[str, ...]] = []
    for step, batches in enumerate(first(made, 15)):  # three epochs of 40 in batches of 8
        for number, batch in enumerate(batches):
            found = texts_of(batch, made)
            assert (
                batch["label_P"].tolist() == [truth[pair] for pair in found]
                and batch["label_P"].dtype.is_floating_point
            )
            assert batch["lens"] == sorted(batch["lens"], reverse=True) and batch["num_columns"] == 2
            places = step * 8 + number * 4 + np.arange(4)
            assert batch["sample_B"].tolist() == places[batch["slot_B"].numpy() % 4].tolist()
            assert batch["position"] == places[0] and batch["source"] == "train"
            seen += found
    for epoch in range(3):
        assert sorted(seen[epoch * 40 : epoch * 40 + 40]) == sorted(truth)
    assert seen[:40] != seen[40:80]


def test_equal_texts_have_equal_keys_and_share_a_row(tmp_path: Path) -> None:
    rows = [{"query": words(5 + n % 3), "document": words(50 + n)} for n in range(8)]
    made = pairs(tmp_path, source=jsonl(tmp_path / "a.jsonl", rows))
    assert len(made.parts[0].store) == 3 + 8
    (step,) = first(made)
    texts = [text for batch in step for pair in zip(*texts_of(batch, made), strict=True) for text in pair]
    keys = [int(key) for batch in step for key in batch["key_CP"].flatten()]
    assert len(keys) == 16 and len(dict(zip(texts, keys, strict=True))) == len(set(keys)) == 11
    assert len(set(zip(texts, keys, strict=True))) == 11 and (step[0]["label_P"] == 1).all()


def test_all_formats_give_the_same_pairs(tmp_path: Path) -> None:
    table = pa.table({name: [row[name] for row in TRIPLETS] for name in TRIPLETS[0]})
    parquet.write_table(table, tmp_path / "d.parquet")
    with pa.OSFile(str(tmp_path / "e.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    header, order = "anchor,positive,negative", ("positive", "negative", "anchor")
    (tmp_path / "b.csv").write_text(
        header + "\n" + "".join(",".join(f'"{row[name]}"' for name in row) + "\n" for row in TRIPLETS)
    )
    (tmp_path / "c.tsv").write_text(
        "\t".join(order) + "\n" + "".join("\t".join(row[name] for name in order) + "\n" for row in TRIPLETS)
    )
    jsonl(tmp_path / "a.jsonl.gz", TRIPLETS)
    (tmp_path / "parts").mkdir()
    jsonl(tmp_path / "parts/1.jsonl", TRIPLETS[:10])
    jsonl(tmp_path / "parts/2.jsonl", TRIPLETS[10:])
    jsonl(tmp_path / "parts/0.jsonl", [])
    found = set()
    for name in ("a.jsonl.gz", "b.csv", "c.tsv", "d.parquet", "e.arrow", "parts", "parts/*.jsonl"):
        made = pairs(tmp_path, source=str(tmp_path / name))
        batches = [batch for step in first(made, 3) for batch in step]
        assert batches[0]["num_columns"] == 3
        found.add(json.dumps([texts_of(batch, made) for batch in batches]))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("record", "columns", "read"),
    [
        ({"premise": "w5", "hypothesis": "w6", "label": 1}, None, ("premise", "hypothesis", "label")),
        ({"question": "w5", "answer": "w6", "id": 3}, None, ("question", "answer")),
        ({"Query": "w5", "Passage": "w6"}, None, ("Query", "Passage")),
        ({"text1": "w5", "text2": "w6", "similarity": 0.5, "label": 4}, None, ("text1", "text2", "similarity")),
        (
            {"anchor": "w5", "positive": "w6", "negative_10": "w7", "negative_2": "w8", "negative": "w9"},
            None,
            ("anchor", "positive", "negative", "negative_2", "negative_10"),
        ),
        ({"anchor": "w5", "positive": "w6", "negative": "w9"}, Columns(negatives=[]), ("anchor", "positive")),
        ({"a": "w5", "b": "w6", "c": "w7", "d": 2}, Columns("a", "b", ["c"], "d"), ("a", "b", "c", "d")),
        ({"sentence1": "w5", "sentence2": "w6", "label": 7}, Columns(label=""), ("sentence1", "sentence2")),
        ({"query": "w5", "passage": "w6", "label": 7}, Columns(label="label"), ("query", "passage", "label")),
    ],
)  # fmt: skip
def test_columns_are_found_by_their_usual_names_or_named(tmp_path: Path, record, columns, read) -> None:
    source = PairSource(jsonl(tmp_path / "a.jsonl", [record]), columns)
    known = pairs(tmp_path, source=source).parts[0].store.told
    assert (tuple(known["columns"]), known["examples"]) == (read, 1)


def test_words_stand_for_numbers_and_null_leaves_records_out(tmp_path: Path) -> None:
    kinds = ("entailment", "neutral", "contradiction")
    rows = [{"premise": words(5 + n), "hypothesis": words(60 + n), "label": kinds[n % 3]} for n in range(9)]
    source = PairSource(
        jsonl(tmp_path / "a.jsonl", rows), labels={"entailment": 1, "neutral": None, "contradiction": 0}
    )
    made = pairs(tmp_path, source=source)
    assert made.parts[0].store.arrays["label"].tolist() == [1, 0, 1, 0, 1, 0]


def test_prompts_and_lengths_of_each_side(tmp_path: Path) -> None:
    source = PairSource(
        jsonl(tmp_path / "a.jsonl", [{**row, "anchor": words(*range(5, 20))} for row in TRIPLETS]),
        prompts=Prompts("w300 ", "w301 w302 "),
        query_tokens=7,
        passage_tokens=6,
    )
    made = pairs(tmp_path, source=source)
    for anchor, positive, negative in texts_of(first(made)[0][0], made):
        assert anchor == "w300 w5 w6 w7 w8"
        assert len(positive.split()) == 4 and positive.startswith("w301 w302 ") and negative.startswith("w301 w302 ")
    told = made.parts[0].store.told
    assert told["cut"] == 1 + 40 + 40 and any("100.0% of them cut" in line for line in made.describe())
    plain = pairs(tmp_path, source=source.path)
    assert plain.fingerprint != made.fingerprint


MIXED = {"sts": "b.jsonl", "triplets": "a.jsonl"}


def mixture(folder: Path, weights: tuple[float, float] = (1, 3), **options: object) -> TextPairs:
    jsonl(folder / "a.jsonl", TRIPLETS)
    rows = [{"sentence1": words(200 + n), "sentence2": words(250 + n, 7), "score": n} for n in range(30)]
    jsonl(folder / "b.jsonl", rows)
    found = zip(MIXED.items(), weights, strict=True)
    sources = {name: PairSource(path, weight=weight) for (name, path), weight in found}
    return pairs(folder, sources=sources, root=str(folder), **options)


def test_every_batch_of_a_mixture_has_one_source(tmp_path: Path) -> None:
    made = mixture(tmp_path)
    steps = first(made, 16)
    sources = []
    for step in steps:
        assert len({(batch["source"], batch["num_columns"]) for batch in step}) == 1
        sources.append(step[0]["source"])
        assert step[0]["num_columns"] == {"sts": 2, "triplets": 3}[sources[-1]]
    for block in range(4):
        assert sorted(sources[block * 4 : block * 4 + 4]) == ["sts", "triplets", "triplets", "triplets"]
    triplets = [pair for step in steps if step[0]["source"] == "triplets" for b in step for pair in texts_of(b, made)]
    assert sorted(triplets[:40]) == sorted(tuple(row.values()) for row in TRIPLETS), "an epoch of a source of its own"
    assert "train: triplets, 75.0% of the steps: 40 pairs (anchor, positive, negative); " in "\n".join(made.describe())
    batch = made.global_batch_size
    assert made.epochs(16) == {"sts": 4 * batch / 30, "triplets": 12 * batch / 40}


def test_without_weights_sources_come_in_proportion_to_their_pairs(tmp_path: Path) -> None:
    made = mixture(tmp_path, weights=(None, None))
    assert [part.weight for part in made.parts] == [30, 40]
    with pytest.raises(DataError, match=r"data\.sources: sts has no weight, others have; give all of them one"):
        mixture(tmp_path, weights=(None, 2))
    with pytest.raises(DataError, match=r"data\.sources: triplets\.weight must be above 0"):
        mixture(tmp_path, weights=(1, 0))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_neither_ranks_nor_workers_nor_the_first_step_matter(tmp_path: Path, num_workers: int) -> None:
    made = mixture(tmp_path)
    whole = [[texts_of(batch, made) for batch in step] for step in first(made, 12)]
    shown: dict[int, list] = {}
    for world in (1, 2, 4):
        for rank in range(world):
            batching = Batching(8, 2 if world == 4 else 4, rank, world)
            steps = PairSteps(made.parts, batching, made.seed, made.is_special(), True)
            found = [*islice(loader(steps, num_workers, FromStep(lambda: 5)), 7)]
            for step, batches in enumerate(found, 5):
                shown.setdefault(world, [[] for _ in range(12)])[step] += [texts_of(batch, made) for batch in batches]
    flat = [[*chain(*step)] for step in whole[5:]]
    for world, steps in shown.items():
        assert [[*chain(*step)] for step in steps[5:]] == flat, world


def test_no_text_stands_twice_in_a_global_batch(tmp_path: Path) -> None:
    rows = [{"anchor": words(5 + n // 5), "positive": words(50 + (n * 7) % 40, 8)} for n in range(200)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    batches = {}
    for option in (True, False):
        made = pairs(tmp_path, source=source, no_duplicates=option)
        steps = [[pair for batch in step for pair in texts_of(batch, made)] for step in first(made, 64)]
        batches[option] = steps
        repeated = sum(len(set(chain(*step))) < 16 for step in steps)
        assert (repeated == 0) == option
    assert sorted(chain(*batches[True])) == sorted(chain(*batches[False])), "each pair of the window once"


def test_embedded_pairs_bring_their_own_validation_and_test(tmp_path: Path) -> None:
    made = pairs(
        tmp_path, source="embedded", tokenizer=TokenizerOptions(train=WordPieceTraining(2000)), sequence_length=64
    )
    assert len(made.parts[0]) > 16_000
    (validation,), (test,) = made.tasks("val"), made.tasks("test")
    assert isinstance(validation, Retrieval) and validation.name == test.name == "wikipedia"
    assert len(validation.query_Q) == len(validation.document_M) == len(validation.judged_J) > 150
    assert validation.judged_J.tolist() == validation.document_J.tolist()
    texts = {int(s): batch for step in made.val_dataloader() for batch in step for s in batch["sample_B"]}
    assert sorted(texts) == list(range(made.num_texts("val")))
    title = made.tokenizer("acceleration")["input_ids"]
    batch = texts[int(validation.query_Q[0])]
    row = batch["sample_B"].tolist().index(int(validation.query_Q[0]))
    assert batch["ids_T"][slice(*batch["layout"].cu_seqlens[row : row + 2])].tolist() == title
    assert title[0] == made.tokenizer.cls_token_id and title[-1] == made.tokenizer.sep_token_id
    half = pairs(tmp_path, source="embedded:title", tokenizer=made.preparation.tokenizer, sequence_length=64)
    assert len(half.parts[0]) * 2 == len(made.parts[0]) and half.fingerprint != made.fingerprint


def test_texts_are_tokenised_once_and_a_damaged_store_is_named(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", TRIPLETS)
    made = pairs(tmp_path, source=source)
    folder = Path(made.places.train["train"])
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    os.rename(source, tmp_path / "b.jsonl")
    again = pairs(tmp_path, source=str(tmp_path / "b.jsonl"))
    assert again.fingerprint == made.fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "shard_00000.arrow", "text.npy", "label.npy", "key.npy",
    }  # fmt: skip
    for name in ("shard_00000.arrow", "label.npy"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(DataError, match=rf"{name}: missing, or not the bytes that were published; delete .*pairs"):
            pairs(tmp_path, source=str(tmp_path / "b.jsonl"))
        (folder / name).write_bytes(good)
    (folder / "manifest.json").write_text('{"shards": [')
    assert pairs(tmp_path, source=str(tmp_path / "b.jsonl")).fingerprint == made.fingerprint


def test_the_fingerprint_follows_what_decides_the_data(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", TRIPLETS)
    other = jsonl(tmp_path / "b.jsonl", TRIPLETS[::-1])
    sets = [
        {"source": source}, {"source": other}, {"source": source, "no_duplicates": False},
        {"source": source, "sequence_length": 15}, {"source": PairSource(source, Columns(negatives=[]))},
        {"sources": {"x": source}}, {"sources": {"x": PairSource(source, weight=2), "y": PairSource(other, weight=1)}},
        {"sources": {"x": PairSource(source, weight=1), "y": PairSource(other, weight=1)}},
    ]  # fmt: skip
    prints = [pairs(tmp_path, **options).fingerprint for options in sets]
    assert len(set(prints)) == len(prints)
    assert pairs(tmp_path, source=source, micro_batch_size=2, seed=1).fingerprint == prints[0]


def test_a_tokenizer_is_trained_on_all_columns_of_all_sources(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"anchor": "abc", "positive": "def", "negative": "ghi"}])
    jsonl(tmp_path / "b.jsonl", [{"sentence1": "jkl", "sentence2": "mno", "score": 1}])
    training = TokenizerOptions(train=WordPieceTraining(100))
    made = pairs(tmp_path, root=str(tmp_path), sources={"x": "a.jsonl", "y": "b.jsonl"}, tokenizer=training)
    known = made.tokenizer.get_vocab()
    assert set("abcdefghijklmno") <= set(known)
    assert made.tokenizer("abc")["input_ids"][0] == made.tokenizer.cls_token_id, "with BERT's template"
    assert " (trained), " in made.describe()[0]
    (words,) = tmp_path.glob("cache/tokenizers/*/tokenizer.json")
    words.unlink()
    again = pairs(tmp_path, root=str(tmp_path), sources={"x": "a.jsonl", "y": "b.jsonl"}, tokenizer=training)
    assert again.tokenizer.get_vocab() == known and words.is_file(), "what was deleted is made again"
    for manifest in tmp_path.glob("cache/pairs/*/manifest.json"):
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "shards": []}))
    assert (
        len(pairs(tmp_path, root=str(tmp_path), sources={"x": "a.jsonl", "y": "b.jsonl"}, tokenizer=training).parts)
        == 2
    )


def test_fewer_pairs_than_a_batch_are_told_and_repeat(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", TRIPLETS[:1])
    with pytest.warns(UserWarning, match=r"data\.source: 1 pairs are fewer than one global batch of 8"):
        made = pairs(tmp_path, source=source)
    (step,) = first(made)
    assert len(step) == 2 and len({key for batch in step for key in batch["key_CP"][0].tolist()}) == 1
