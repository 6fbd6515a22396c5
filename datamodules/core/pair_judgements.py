"""Judgements of retrieval in the form of BEIR: which files hold them, and the rows of what they name."""

from pathlib import Path

from datamodules.core.account import Account
from datamodules.core.errors import DataError
from datamodules.core.formats import format_of
from datamodules.core.opening import stem_of

BEIR = ("corpus", "queries", "qrels")
NAMED = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/{}.tsv"}
SPLITS = {"val": ("dev", "validation", "val", "test"), "test": ("test", "dev", "validation", "val")}  # of judgements
UNKNOWN = "of the judgements name documents that are not there, and are never found"
AGAIN = "of the judgements stand there again; the highest grade counts"
Judged = tuple[str, str, float]  # query, document, grade


def beir_files(folder: Path, split: str) -> dict[str, str]:
    """Find corpus, queries and judgements in a folder in the form of BEIR, as far as they are there.

    Of several judgements those of the split are taken; where there are none of it, those of the other one. Corpus and
    queries may be folders, as on the hub.

    Raises:
        DataError: a file is there twice, with two endings.
    """
    found = {}
    for part in BEIR:
        places = [folder / part / name for name in SPLITS[split]] if part == "qrels" else []
        for place in (*places, folder / part):
            fitting = [path for path in sorted(place.parent.glob(f"{place.name}.*")) if is_form_of(path, place.name)]
            if len(fitting) > 1:
                names = " and ".join(path.name for path in fitting)
                raise DataError(f"{place.parent}: {names} could be the {part}; name one in {part} of the set")
            if not fitting and part != "qrels" and place.is_dir():
                fitting = [place]
            if fitting:
                found[part] = str(fitting[0].absolute())
                break
    return found


def is_form_of(path: Path, name: str) -> bool:
    """Say whether a file has a name and the ending of a known format behind it."""
    return path.is_file() and stem_of(path) == name and format_of(path) is not None


def rows_of(
    judged: list[Judged], wanted: set[str], queries: dict[str, int], documents: dict[str, int], account: Account
) -> list[tuple[int, int, float]]:
    """Look up the rows of the queries that are wanted and of their documents; `account` counts what is left out.

    Documents that are not there have numbers below 0.
    """
    rows, unknown, seen = [], dict[str, int](), set[tuple[str, str]]()
    for query, document, grade in judged:
        if query not in wanted:
            account.leave_out("of queries without a relevant document")
        elif query not in queries:
            account.leave_out("of queries that are not there")
        else:
            there = document in documents
            row = documents[document] if there else unknown.setdefault(document, -1 - len(unknown))
            account.note(UNKNOWN, not there)
            account.note(AGAIN, (query, document) in seen)
            account.used += 1
            seen.add((query, document))
            rows.append((queries[query], row, grade))
    return rows
