"""The embedded corpus is the one that its script makes, divided by title, with its licence beside it."""

import hashlib
import json
import lzma

import pytest

from datamodules.samples.build_wiki import FOLDER, SPLITS, SUMS, as_jsonl, split_of


def text(split: str) -> bytes:
    return lzma.decompress((FOLDER / f"wiki_{split}.jsonl.xz").read_bytes())


def test_files_and_the_text_inside_have_the_recorded_hashes() -> None:
    sums = dict(reversed(line.split("  ")) for line in SUMS.read_text().splitlines())
    assert len(sums) == 6
    for name, expected in sums.items():
        path = FOLDER / name
        content = path.read_bytes() if path.exists() else lzma.decompress((FOLDER / f"{name}.xz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == expected, name
    assert sum((FOLDER / f"wiki_{split}.jsonl.xz").stat().st_size for split in SPLITS) < 2 << 20


@pytest.mark.parametrize(("split", "count"), [("train", 9014), ("val", 199), ("test", 309)])
def test_articles_stand_in_the_split_of_their_title(split: str, count: int) -> None:
    articles = [json.loads(line) for line in text(split).splitlines()]
    assert len(articles) == count
    assert all(split_of(article["title"]) == split and article["text"].strip() for article in articles)
    titles = [article["title"] for article in articles]
    assert titles == sorted(set(titles))
    assert as_jsonl(articles) == text(split)


def test_some_titles_are_in_no_file() -> None:
    titles = [f"title {number}" for number in range(2000)]
    splits = [split_of(title) for title in titles]
    assert 50 < splits.count(None) < 150 and set(splits) == {"train", "val", "test", None}


def test_licence_and_changes_are_stated() -> None:
    notice = (FOLDER / "ATTRIBUTION.md").read_text()
    for statement in ("Attribution-ShareAlike 4.0", "https://en.wikipedia.org/wiki/TITLE", "0.0.7", "What was changed"):
        assert statement in notice
