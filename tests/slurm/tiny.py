"""A rank that takes no time to start: it counts steps in a real run folder and ends as the trained ones do.

    python tiny.py STEPS BEHAVIOUR ... --run.dir RUN

Behaviours: `trains` (a step every .1 s; saves and stops on request), `late` (the same, but deaf at first), `slow` (its
stop takes five seconds), `stands` (no step is made), `fails` (rank 1 exits with 1), `loses` (rank 0 says that it
stopped, then rank 1 is killed).
"""

import os
import signal
import sys
import time
from pathlib import Path

from launch.run_folder import RunFolder

steps, behaviour, run = int(sys.argv[1]), sys.argv[2], Path(sys.argv[-1])
rank = int(os.environ["SLURM_PROCID"])
folder = RunFolder(run)
asked: list[int] = []


def save(step: int) -> None:
    """Leave what newest_step() looks for."""
    if rank == 0:
        target = folder.checkpoints / f"step_{step:08d}"
        target.mkdir(parents=True, exist_ok=True)
        (target / "manifest.json").write_text("{}")


def over(code: int, step: int) -> None:
    """Write down how it ended, as rank 0, and end."""
    if rank == 0:
        folder.attempt = 1 + max((line["attempt"] for line in folder.ledger()), default=0)
        folder.end(code, step, "tiny")
    print(f"rank {rank} ends at step {step} with {code}", flush=True)
    sys.exit(code)


if behaviour == "late":
    print("deaf", flush=True)
    time.sleep(3)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))
if os.path.exists(os.environ["TOKAMAK_STOP_REQUESTED"]):
    asked.append(signal.SIGUSR1)

step = folder.newest_step()
print(
    f"rank {rank} begins at step {step} of {steps}, {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", flush=True
)
if behaviour == "fails" and rank == 1:
    sys.exit(1)
while step < steps and behaviour != "fails":
    time.sleep(0.1)
    if asked and behaviour == "stands":
        over(75, step)
    step += behaviour != "stands"
    if asked:
        time.sleep(5.0 * (behaviour == "slow"))
        save(step)
        if behaviour == "loses" and rank == 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        over(75, step)
save(step)
over(0 if behaviour != "fails" else 1, step)
