"""Small files of pairs, a tokenizer whose ids can be read off the words, and where real sets are."""

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path

import pytest

from datamodules.core.batches import NO_TEXT, PairBatch
from datamodules.core.wordpiece import TokenizerOptions
from datamodules.pairs import TextPairs
from tests.text import word_tokenizer

REAL = Path(os.environ.get("TOKAMAK_DATA_ROOT", Path(__file__).parents[2] / "shared" / "data"))
needs_real_sets = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data sets in {REAL}; set TOKAMAK_DATA_ROOT")


def words(*numbers: int) -> str:
    """Write a text of the words w5, w6, ..."""
    return " ".join(f"w{number}" for number in numbers)


def jsonl(path: Path, rows: list) -> str:
    """Write records as JSON lines, compressed where the name says so."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text)
    return str(path)


@lru_cache
def saved_tokenizer(folder: Path) -> str:
    """Save the tokenizer of words with BERT's template and return its folder."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_tokenizer(400)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def pairs(folder: Path, seed: int = 7, **options: object) -> TextPairs:
    """Set up pairs with the tokenizer of words, which knows no articles, and a cache in the folder."""
    sizes = {"global_batch_size": 8, "micro_batch_size": 4, "sequence_length": 16}
    settings = {**sizes, "accept": ["unknown"], **options}
    name = settings.pop("tokenizer", None) or TokenizerOptions(saved_tokenizer(folder / "tokenizer"))
    made = TextPairs(name, cache_dir=str(folder / "cache"), **settings)
    made.seed = seed
    made.setup()
    return made


def texts_of(batch: PairBatch, made: TextPairs) -> list[tuple[str, ...]]:
    """Read the texts of every example of a micro-batch, in the order of the columns; negatives may lack."""
    bounds = batch["layout"].cu_seqlens.tolist()
    table = {}
    for row, slot in enumerate(batch["slot_B"].tolist()):
        ids = batch["ids_T"][bounds[row] : bounds[row + 1]]
        table[slot] = made.tokenizer.decode(ids, skip_special_tokens=True)
    num_examples = len(batch["label_P"])
    assert sorted(table) == (batch["key_CP"].flatten() != NO_TEXT).nonzero()[:, 0].tolist()
    slots = [range(example, batch["num_columns"] * num_examples, num_examples) for example in range(num_examples)]
    return [tuple(table[slot] for slot in column if slot in table) for column in slots]
