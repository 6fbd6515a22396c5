"""Data preparation against the bare tokenizer: `encode_batch_fast` on the same documents, in memory, on one thread.

| system | what it does with the same text |
|---|---|
| bare | encodes it, in batches as ours, and throws the result away; nothing is read, cut or written |
| packed, documents, segments | `prepare` with one process, a kind of `data.examples` each: read, encode, cut, write |
| two processes | `prepare` with two processes, for documents; their start is inside |

The text is the embedded corpus, repeated. Speed counts the bare tokenizer's tokens of that text for every system.
"""

import json
import os
import shutil
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from launch.benches.ratios import Goal, compared
from launch.benches.rounds import Gate, Spec, alternate, records_of, running, speeds_of

if TYPE_CHECKING:
    from launch.bench import Options

MEGABYTES, MEGABYTES_QUICK = 48, 0.1
VOCAB_SIZE, VOCAB_SIZE_QUICK = 30522, 1000
SEQUENCE_LENGTH = 128
BARE = "bare"
PROCESSES = {"packed": 1, "documents": 1, "segments": 1, "two processes": 2}
GOALS = [
    Goal("packed", BARE, 0.9),
    Goal("documents", BARE, 0.9),
    Goal("segments", BARE),
    Goal("two processes", "documents", 1.8),
]


def run(options: "Options") -> dict[str, Any]:
    """Measure and return the results."""
    text, tokenizer = write_text(options), train_tokenizer(options)
    tokens = encode(tokenizer, documents(text))
    options.tell(f"{text.stat().st_size / 1e6:.1f} MB of JSON lines, {tokens:,} tokens")
    shared = {"text": str(text), "tokenizer": str(tokenizer), "tokens": tokens}
    specs = [Spec(name, start, {**shared, "system": name}, lead_in=0) for name in (BARE, *PROCESSES)]
    with running(specs, 1, "cpu", options.folder) as systems:
        rounds = alternate(systems, options.rounds, 1, options.tell, warm_up=1)
    speeds = speeds_of(rounds)
    goals = [goal._replace(least=None) if options.quick else goal for goal in GOALS]
    return {
        "about": [__doc__.strip()],
        "settings": [
            {
                "name": f"{tokens:,} tokens",
                "megabytes": text.stat().st_size / 1e6,
                "tokens_per_s": {name: median(values) for name, values in speeds.items()},
                "rounds": records_of(rounds),
            }
        ],
        "comparisons": [compared(goal, speeds, "preparation") for goal in goals],
    }


def write_text(options: "Options") -> Path:
    """Write the documents of the embedded corpus, again and again, as JSON lines of the wanted size."""
    from datamodules.core.sources import EMBEDDED, Source, locate

    texts = list(Source(locate(EMBEDDED, "train")).texts())
    path, wanted = options.folder / "text.jsonl", 1e6 * (MEGABYTES_QUICK if options.quick else MEGABYTES)
    with path.open("w", encoding="utf-8") as file:
        for number in count():
            if file.tell() >= wanted:
                return path
            file.write(json.dumps({"text": texts[number % len(texts)]}, ensure_ascii=False) + "\n")


def train_tokenizer(options: "Options") -> Path:
    """Train the tokenizer of the paper's size on the embedded corpus."""
    from datamodules.core import wordpiece
    from datamodules.core.sources import EMBEDDED, Source, locate

    wanted = wordpiece.WordPieceTraining(VOCAB_SIZE_QUICK if options.quick else VOCAB_SIZE)
    wordpiece.train(Source(locate(EMBEDDED, "train")), wanted, options.folder / "tokenizer")
    return options.folder / "tokenizer"


def documents(text: Path) -> list[str]:
    """Read all documents into memory."""
    with text.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def encode(tokenizer: Path, texts: list[str]) -> int:
    """Encode texts with the tokenizers library alone, and return how many tokens there are."""
    from tokenizers import Tokenizer

    from datamodules.core.tokenization import DOCUMENTS_PER_BATCH as SIZE

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    opened, tokens = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), 0
    for first in range(0, len(texts), SIZE):
        batch = opened.encode_batch_fast(texts[first : first + SIZE], add_special_tokens=False)
        tokens += sum(map(len, batch))
    return tokens


def start(gate: Gate, options: dict[str, Any]) -> None:
    """Run one system: a step is one pass over all of the text."""
    tokenizer, text, name = Path(options["tokenizer"]), Path(options["text"]), options["system"]
    if name == BARE:
        texts = documents(text)
        while True:
            gate.step(tokens=options["tokens"])
            encode(tokenizer, texts)
    passes = count()
    while True:
        folder = text.parent / f"{name.replace(' ', '_')}_{next(passes)}"
        gate.step(tokens=options["tokens"])
        prepare(tokenizer, text, folder, name)
        shutil.rmtree(folder)


def prepare(tokenizer: Path, text: Path, folder: Path, name: str) -> None:
    """Make a corpus as `prepare` does, from the shards to the manifest."""
    from datamodules.core import wordpiece
    from datamodules.core.corpus import Plan
    from datamodules.core.sources import Source
    from datamodules.core.tokenization import Recipe

    opened = wordpiece.load(str(tokenizer))
    examples = "documents" if name == "two processes" else name
    recipe = Recipe(examples, "split", SEQUENCE_LENGTH, 1, len(opened), opened.cls_token_id, opened.sep_token_id)
    Plan(name, Source((text,)), recipe, opened.backend_tokenizer.to_str(), folder).make(PROCESSES[name])
