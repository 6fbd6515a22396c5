"""Small corpora and plans for the tests of the data layer."""

import random
from functools import lru_cache
from pathlib import Path

from datamodules.core.corpus import Plan
from datamodules.core.sources import Source
from datamodules.core.tokenization import Recipe
from tests.text import word_tokenizer

WORDS = 400


def texts(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Write documents of sentences of the words w5, w6, ..."""
    source = random.Random(seed)
    out = []
    for _ in range(count):
        sentences = [
            [f"w{source.randrange(5, WORDS)}" for _ in range(source.randrange(1, 20))]
            for _ in range(source.randrange(1, longest // 6))
        ]
        out.append(" ".join(" ".join(words).capitalize() + "." for words in sentences))
    return out


def txt(path: Path, documents: list[str]) -> Path:
    """Write documents to a text file, blank lines between them."""
    path.write_text("\n\n".join(documents) + "\n")
    return path


@lru_cache
def tokenizer_json() -> str:
    """Give a tokenizer whose ids can be read off the words."""
    return word_tokenizer(WORDS).backend_tokenizer.to_str()


def recipe(examples: str = "segments", length: int = 32, seed: int = 0, vocab_size: int = WORDS) -> Recipe:
    """Give a recipe for the tokenizer above."""
    return Recipe(examples, "split", length, seed, vocab_size, 2, 3)


def plan(file: Path, cache: Path, **options: object) -> Plan:
    """Plan a corpus of one file."""
    return Plan("train", Source((file,)), recipe(**options), tokenizer_json(), cache)
