"""Two ranks as one system of a bench: the system's own process is rank 0, and rank 1 is its child.

Rank 1 has no gate of its own: where rank 0 waits for its turn, rank 1 waits for it in a collective.
"""

import os
import socket
import traceback
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from launch.config.resolved import resolve

if TYPE_CHECKING:
    from launch.benches.rounds import Gate

RANKS = 2


class NoGate:
    """Rank 1's: it never waits."""

    device = "cpu"

    def step(self, **_: float) -> None:
        """Go on."""


def words(single: list[str], strategy: str) -> list[str]:
    """Return the words of a `fit` on one process for two, one micro-batch on each."""
    batch = int(single[single.index("--data.global_batch_size") + 1])
    given = {"data.micro_batch_size": batch // RANKS, "trainer.devices": RANKS, "strategy.backend": "gloo"}
    given |= (
        {"strategy.class": "zero3", "strategy.offload": "true"}
        if strategy.endswith("offload")
        else {"strategy.class": strategy}
    )
    return [*single, *(word for key, value in given.items() for word in (f"--{key}", str(value)))]


def start(gate: "Gate", options: dict[str, Any]) -> None:
    """Run a system on both ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = get_context("spawn").Process(target=run_rank, args=(1, port, NoGate(), options), daemon=True)
    child.start()
    try:
        run_rank(0, port, gate, options)
    except Exception:
        traceback.print_exc()
    finally:
        child.kill()
        os._exit(0)  # torch's process groups would wait for the child; who waits for a turn sees that it never comes


def run_rank(rank: int, port: int, gate: Any, options: dict[str, Any]) -> None:
    """Build everything as `fit` does, and run the system's part on one rank."""
    import torch

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    from launch.cli import Cli

    cli = Cli("fit", resolve(options["words"], "fit"))
    if options["system"] == "bare":
        run_bare(cli, rank, gate, options["strategy"])
    elif options["system"] == "saves":
        from launch.benches import saves

        saves.run(cli, gate)
    else:
        from launch.benches.electra import run_fit

        run_fit(cli, gate)


def run_bare(cli: Any, rank: int, gate: Any, strategy: str) -> None:
    """Run the loop written by hand."""
    from benchmarks.peers import bare_strategies
    from launch.benches.electra import NEVER

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    bare_strategies.begin(strategy)
    cli.datamodule.trainer = cli.trainer  # it asks for the rank
    cli.trainer.strategy.set_world_ranks()
    cli.datamodule.setup()
    with bare_strategies.building(strategy, cli.model):
        cli.model.build(cli.datamodule.tokenizer, cli.datamodule.sequence_length)
    bare_strategies.train(strategy, cli.model, cli.datamodule.train_dataloader(), NEVER, gate.step)
