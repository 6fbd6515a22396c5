"""`launch scaling`: what a training step sends on more GPUs and nodes under each strategy, and when to switch.

Nothing runs but arithmetic on the sizes of the weights: the networks are built on the meta device.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from launch.config.errors import ConfigError, short
from launch.config.resolved import resolve

if TYPE_CHECKING:
    from launch.planning.scale import Row

USAGE = """usage: python -m launch scaling --config FILE [--config FILE ...] [--key value ...]

Prints, for numbers of nodes and for every strategy: megabytes that a rank sends in a step, time on the links,
expected efficiency, and memory of a rank; then which strategy to take.

  --nodes LIST             numbers of nodes, with commas; by default 1,2,8,32
  --gpus-per-node N        by default 8
  --link-gbps LIST         all links of a node together, gigabits a second; by default 25,100,400
  --inside-gbps X          from one GPU to another of its node; by default 3600 (NVLink of an H100); PCIe: 200
  --tflops X               operations that one GPU really does, trillions a second; by default 100
  --tokens-per-second X    of one GPU, as measured, in place of --tflops
  --memory-gb X            of one GPU; by default 80
  --vocab-size N           where the configuration names a tokenizer and does not train one
"""
DEFAULTS = {
    "--nodes": "1,2,8,32",
    "--gpus-per-node": "8",
    "--link-gbps": "25,100,400",
    "--inside-gbps": "3600",
    "--tflops": "100",
    "--tokens-per-second": "",
    "--memory-gb": "80",
    "--vocab-size": "",
}
WHOLE = ("--nodes", "--gpus-per-node", "--vocab-size")
GOOD = 0.9  # of the best efficiency: so near to it, the simpler strategy is taken


def main(words: list[str]) -> int:
    """Print the tables.

    Raises:
        ConfigError: mistakes in the words or in the configuration.
    """
    if not words or "--help" in words or "-h" in words:
        print(USAGE, end="")
        return 0
    given, rest = flags(words)
    resolve(rest, "fit")  # its mistakes are told before torch is there
    from launch.planning.scale import Scale

    scale = Scale(rest, given)
    found = [row for nodes in given["--nodes"] for row in scale.rows(int(nodes))]
    print(*scale.head(), "", *table(found, given["--link-gbps"]), "", *advice(found, given["--link-gbps"]), sep="\n")
    return 0


def flags(words: list[str]) -> tuple[dict[str, list[float]], list[str]]:
    """Take the flags of this command out of the words and read their numbers.

    Raises:
        ConfigError: one has no number above 0.
    """
    texts, rest, left = dict(DEFAULTS), [], list(words)
    while left:
        name, has_value, value = (word := left.pop(0)).partition("=")
        if name not in DEFAULTS:
            rest.append(word)
            continue
        texts[name] = value if has_value else (left.pop(0) if left else "")
    return {name: _numbers(name, text) for name, text in texts.items() if text or DEFAULTS[name]}, rest


def _numbers(name: str, text: str) -> list[float]:
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 < number < math.inf for number in found) or (name in WHOLE and any(n % 1 for n in found)):
        kind = "whole numbers" if name in WHOLE else "numbers"
        raise ConfigError(f"{name} = {short(text)}: expected {kind} above 0")
    return found


def table(rows: list["Row"], links: list[float]) -> Iterator[str]:
    """Yield a table in Markdown: time of the calls if nothing hid them, and the efficiency with what hides."""
    heads = ["nodes", "GPUs x passes x sequences", "strategy", "MB sent", "GB"]
    yield f"| {' | '.join([*heads, *(f'{link:g} Gb/s: ms, efficiency' for link in links)])} |"
    yield f"|{' --- |' * (len(heads) + len(links))}"
    for row in rows:
        cells = [str(row.nodes), row.cut, row.strategy, f"{row.estimates[0].sent / 1e6:,.0f}"]
        cells.append(f"{row.memory / 1e9:.1f}" + ("" if row.fits else ", too much"))
        times = [f"{found.seconds * 1e3:,.1f}, {found.efficiency:.0%}" for found in row.estimates]
        yield f"| {' | '.join([*cells, *times])} |"


def advice(rows: list["Row"], links: list[float]) -> Iterator[str]:
    """Yield what to take on each number of nodes: the first strategy that fits and is about as fast as the fastest."""
    for nodes in dict.fromkeys(row.nodes for row in rows):
        fitting = [row for row in rows if row.nodes == nodes and row.fits]
        chosen = [_best(fitting, place) for place in range(len(links))] if fitting else []
        named = [f"{name} at {link:g} Gb/s" for name, link in zip(chosen, links, strict=True)] if chosen else []
        one = f"{chosen[0]} on every link" if len(set(chosen)) == 1 else ", ".join(named)
        yield f"{nodes} nodes: {one or 'nothing fits; a smaller micro-batch, activation checkpointing, or offload'}"


def _best(rows: list["Row"], place: int) -> str:
    most = max(row.estimates[place].efficiency for row in rows)
    return next(row.strategy for row in rows if row.estimates[place].efficiency >= GOOD * most)
