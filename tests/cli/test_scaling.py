"""`launch scaling` as a user types it."""

import pytest

from tests.cli.launching import ROOT, errors, launch, light

DEBUG = ["--config", "configs/electra/debug.yaml"]


def test_a_table_for_nodes_and_links() -> None:
    done = launch(
        "scaling", *DEBUG, "--nodes", "1,2", "--gpus-per-node", "2", "--link-gbps=0.001,100", "--tflops", "0.001"
    )
    assert done.returncode == 0, done.stderr
    head, table, advice = done.stdout.split("\n\n")
    assert head.startswith("electra: 68,345 parameters, a step of 8 x 32 tokens\none GPU: ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0][5:] == ["0.001 Gb/s: ms, efficiency", "100 Gb/s: ms, efficiency"]
    assert [row[2] for row in rows[2:]] == ["ddp", "zero1", "zero2", "zero3", "fsdp"] * 2
    assert rows[2][:4] == ["1", "2 x 2 x 2", "ddp", "0"] and rows[7][:3] == ["2", "4 x 1 x 2", "ddp"]
    sent = 68_345 * 4 * 2 * 3 / 4
    assert rows[7][5].startswith(f"{sent / 125_000 * 1e3:,.1f}, ") and rows[7][6].endswith(", 100%")
    assert advice.splitlines()[0] == "1 nodes: ddp on every link"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--nodes", "two"], "--nodes = two: expected whole numbers above 0"),
        (["--nodes", "1.5"], "--nodes = 1.5: expected whole numbers above 0"),
        (["--link-gbps", "100,0"], "--link-gbps = 100,0: expected numbers above 0"),
        (["--tflops"], "--tflops = : expected numbers above 0"),
        (["--data.micro_batch", "1"], "data.micro_batch = 1 (--data.micro_batch): not an option of TextCorpus"),
    ],
)
def test_mistakes_are_told_without_torch(words: list[str], complaint: str) -> None:
    (line,) = errors(light("scaling", *DEBUG, *words))
    assert line.startswith(complaint)


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    (line,) = errors(launch("scaling", *DEBUG, "--nodes", "3"))
    assert line.startswith("--nodes: data.global_batch_size = 8 cannot be cut into 24 equal parts; give --data.global")


def test_the_page_has_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    (command,) = [line.strip() for line in page.splitlines() if line.startswith("    python -m launch scaling")]
    done = launch(*command.split()[3:])
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("\n\n")[1]
    assert table in page
