"""Files of rows, and what a folder of them leads to."""

import json
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from datamodules.core.sources import locate

ROWS = [{"text": f"row {number}", "label": number % 2} for number in range(20)]


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def names(folder: Path, split: str = "train") -> list[str]:
    return [path.relative_to(folder).as_posix() for path in locate(str(folder), split)]
