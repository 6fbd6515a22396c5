"""The table of docs/reliability.md counts the mistakes that are tried."""

import re

from tests.bad.configurations import COMMANDS, ENVIRONMENT, FILES, FLAGS, VALUES
from tests.bad.data import FOLDERS, LABELLED, PAIRED, SETS, TEXT
from tests.bad.folders import RUNS
from tests.bad.models import MODELS
from tests.cli.launching import ROOT

KINDS = {
    "configuration files": FILES, "values of options": VALUES, "flags": FLAGS, "commands": COMMANDS,
    "the environment": ENVIRONMENT, "files of text": TEXT, "folders of text": FOLDERS, "labelled data": LABELLED,
    "pairs": PAIRED, "sets to judge by": SETS, "models to begin with": MODELS, "folders of runs": RUNS,
}  # fmt: skip


def test_the_docs_count_the_mistakes() -> None:
    section = (ROOT / "docs/reliability.md").read_text().split("## Bad input\n")[1].split("\n## ")[0]
    rows = {kind: int(count) for kind, count in re.findall(r"^\| ([^|]+?) \| (\d+) \|", section, re.MULTILINE)}
    assert rows == {kind: len(table) for kind, table in KINDS.items()}
    total = sum(rows.values())
    assert total >= 300 and f"**{total} mistakes**" in section
