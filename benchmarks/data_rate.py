"""How fast text becomes shards, against the bare tokenizer, and how fast the train loader hands out batches.

Run `python -m benchmarks.data_rate`. The text is the embedded training corpus, repeated; the bare tokenizer encodes
the same sentences in one thread and throws the ids away. All variants alternate; ratios are medians over the rounds.
Wall time needs idle cores; processor time, printed beside it, needs them less.
"""

import argparse
import itertools
import json
import lzma
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from datamodules.core.processes import one_thread
from datamodules.core.segments import sentences_of
from datamodules.core.sources import SAMPLES
from datamodules.core.tokenization import DOCUMENTS_PER_BATCH, for_text
from datamodules.core.wordpiece import TokenizerOptions, WordPieceTraining
from datamodules.text import TextCorpus


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Measure wall seconds, and processor seconds with those of ended child processes."""
    wall, processor = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - wall, sum(os.times()[:4]) - processor


def bare(tokenizer_json: str, sentences: list[list[str]]) -> None:
    """Encode the sentences of all documents, in batches as preparation makes them."""
    tokenizer = for_text(tokenizer_json)
    with one_thread():
        for start in range(0, len(sentences), DOCUMENTS_PER_BATCH):
            batch = list(itertools.chain.from_iterable(sentences[start : start + DOCUMENTS_PER_BATCH]))
            tokenizer.encode_batch_fast(batch, add_special_tokens=False)


def prepared(source: Path, cache: Path, tokenizer: str, num_processes: int) -> TextCorpus:
    """Prepare the corpus from nothing."""
    data = TextCorpus(
        TokenizerOptions(name=tokenizer),
        32,
        32,
        str(source),
        validation_fraction=0.0,
        num_prepare_processes=num_processes,
        cache_dir=str(cache),
    )
    data.prepare_data()
    return data


def preparation(source: Path, sentences: list[list[str]], tokenizer: str, folder: Path, rounds: int) -> None:
    """Print the rates of the bare tokenizer and of preparation with one and two processes."""
    tokens = prepared(source, folder / "warm", tokenizer, 1)
    tokens.setup()
    count, text = tokens.corpora["train"].num_tokens, tokens.tokenizer.backend_tokenizer.to_str()
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "1": [], "2": []}
    for number in range(rounds):
        times["bare"].append(timed(lambda: bare(text, sentences)))
        for processes in (1, 2):
            cache = folder / f"{number}_{processes}"
            work = lambda cache=cache, n=processes: prepared(source, cache, tokenizer, n)  # noqa: E731
            times[str(processes)].append(timed(work))
    base = times["bare"]
    print(f"{count:,} tokens, {rounds} rounds; bare: {count / statistics.median(w for w, _ in base):,.0f} tokens/s")
    for name in ("1", "2"):
        ratio = statistics.median(b[0] / t[0] for b, t in zip(base, times[name], strict=True))
        rate = count / statistics.median(wall for wall, _ in times[name])
        print(f"prepare, {name} process(es): {rate:,.0f} tokens/s, {ratio:.2f} of the bare tokenizer")
        share = statistics.median(b[1] / t[1] for b, t in zip(base, times[name], strict=True))
        print(f"    by processor time: {share:.2f} for each process, {share * int(name):.2f} on as many idle cores")


def loading(source: Path, cache: Path, tokenizer: str, steps: int) -> None:
    """Print the rate of the train loader at sequence length 128 and 32 sequences a batch, in this process."""
    data = prepared(source, cache, tokenizer, 1)
    data.setup()
    batches = iter(data.train_dataloader())
    list(itertools.islice(batches, 200))
    tokens = 0

    def work() -> None:
        nonlocal tokens
        tokens = sum(len(batch["ids_T"]) for step in itertools.islice(batches, steps) for batch in step)

    wall, processor = timed(work)
    print(f"train loader: {tokens / wall:,.0f} real tokens/s, {tokens / processor:,.0f} by processor time")


def main() -> None:
    """Measure on repeated embedded text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=4, help="how often the embedded text is repeated (5 MB each)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    lines = lzma.decompress((SAMPLES / "wiki_train.jsonl.xz").read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [f"{row['text']} {copy}" for copy in range(args.copies) for row in rows]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "text.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        trained = TextCorpus(TokenizerOptions(train=WordPieceTraining(8192)), 32, 32, cache_dir=str(folder))
        tokenizer = str(trained.preparation.make_tokenizer())
        preparation(source, [sentences_of(text, "unicode") for text in texts], tokenizer, folder, args.rounds)
        loading(source, folder / "warm", tokenizer, 3000)


if __name__ == "__main__":
    main()
