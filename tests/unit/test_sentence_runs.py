"""Real runs from a folder of sentence-transformers, and from such a run: one step at no rate changes no vector."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from launch.export import main
from tests.forked import train
from tests.pairs import jsonl

sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers.models import Dense, Normalize

from tests.unit.test_sentence_folders import DOCUMENT, LENGTH, QUERY, TEXTS, opened, st_folder

STILL = {
    "seed": 1,
    "model": {"class": "matryoshka2d", "mode": "paper", "learning_rate": 1e-12},
    "data": {"class": "pairs", "sequence_length": LENGTH, "global_batch_size": 4, "micro_batch_size": 2},
    "trainer": {"max_steps": 1, "log_every_n_steps": 1, "accelerator": "cpu", "devices": 1, "precision": "32-true"},
    "callbacks": {"checkpoint": {"every_n_steps": 1}},
}


def still(place: Path, start: Path, *words: str) -> Path:
    """Train one step that moves nothing, from a source, and export."""
    place.mkdir()
    file = place / "still.yaml"
    pairs = jsonl(place / "pairs.jsonl", [{"anchor": text, "positive": text[::-1]} for text in "abcdefgh"])
    file.write_text(yaml.safe_dump(STILL))
    train(place / "run", 1, "--config", str(file), "--data.source.path", pairs, "--model.init_from", str(start), *words)
    assert main([str(place / "run"), "--out", str(place / "out")]) == 0
    return place / "out"


def test_vectors_prompts_and_modules_come_through_runs(tmp_path: Path) -> None:
    prompts = {"query": QUERY, "document": DOCUMENT}
    start = st_folder(tmp_path, pooling=("cls", "max"), more=(Dense(64, 16), Normalize()), prompts=prompts)
    first = still(tmp_path / "first", start)
    told = (tmp_path / "first" / "run_out_0.txt").read_text()
    assert "has prompts (document 'a passage ', query 'the query '), but texts are trained without any" in told
    second = still(tmp_path / "second", tmp_path / "first" / "run", "--data.source.prompts.anchor", "mine ")
    for out, query in ((first, QUERY), (second, "mine ")):
        ours, theirs = opened(out), opened(start)
        assert ours.prompts == {"query": query, "document": DOCUMENT if out == first else ""}
        for texts in (TEXTS, [query + text for text in TEXTS]):
            found, wanted = ours.encode(texts), theirs.encode(texts)
            assert found.shape == (5, 16) and np.abs(found - wanted).max() <= 1e-6
    kept = json.loads((tmp_path / "second" / "run" / "encoder" / "form.json").read_text())
    assert kept["pooling"] == ["cls", "max"] and kept["head"][0][0] == "Dense"
    told = (tmp_path / "second" / "run_out_0.txt").read_text()
    assert "has prompts" not in told
