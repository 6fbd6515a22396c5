"""The two moments at which a batch script asks what to do: before srun, and after it. Imports nothing heavy.

    launch slurm begin RUN STEPS ATTEMPTS               prints where the ranks meet; nothing if all is done
    launch slurm end RUN ATTEMPTS CODE ASKED SECONDS    prints `requeue`, or nothing; exits with the run's code

What happens is written into RUN/ledger.jsonl: a line `job_start` and a line `job_end` for every attempt of a job.
"""

import os
import sys
from pathlib import Path
from typing import Any

from launch.config.errors import ConfigError
from launch.jobs.rendezvous import meeting_place, scontrol
from launch.jobs.sweep import SWEEP, write_table
from launch.run_folder import RunFolder, read_json
from launch.surroundings import commit
from lightning_modules.core import stop

STOP_REQUESTED = "stop_requested"  # the batch script makes it when SLURM warns: ranks may not have a handler yet
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


def main(words: list[str]) -> int:
    """Run `begin` or `end` and return the exit code for the batch script.

    Raises:
        ConfigError: the words are not those that a batch script gives, or the folder takes no files.
    """
    command, *given = words
    try:
        if command == "begin":
            run, steps, attempts = given
            values = [int(steps), int(attempts)]
        else:
            run, attempts, code, asked, seconds = given
            values = [int(attempts), int(code), asked, int(seconds)]
    except ValueError:
        raise ConfigError(f"slurm {command}: is called by a batch script; write one with --time ...") from None
    try:
        return {"begin": begin, "end": end}[command](RunFolder(Path(run)), *values)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None


def begin(folder: RunFolder, steps: int, attempts: int) -> int:
    """Print address and port; nothing if the run is finished. Exit with 1 if the job has had its attempts."""
    done = folder.finished_at()
    if done >= steps and folder.holds(done):
        _say(f"{folder.path}: finished at step {done}")
        return 0
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / STOP_REQUESTED).unlink(missing_ok=True)
    step = folder.newest_step()
    if _attempts_from(folder, step) >= attempts:
        _say(_capped(folder, step, attempts))
        _note(folder, "job_end", step=step, then="capped")
        _write_table(folder)
        return 1
    folder.forget_holder(_is_over)
    address, port = meeting_place()
    _note(folder, "job_start", step=step, nodes=os.environ.get("SLURM_JOB_NODELIST", ""), commit=commit())
    print(address, port)
    return 0


def end(folder: RunFolder, attempts: int, srun: int, asked: str, seconds: int) -> int:
    """Decide whether the job is requeued, and return the code of the run: rank 0's word goes before srun's number."""
    code, step = _code(folder, srun), folder.newest_step()
    then = "over"
    if code == stop.RESUMABLE and asked == "USR1":
        then = "capped" if _attempts_from(folder, step) >= attempts else "requeue"
    facts = {"asked": asked, "stop_seconds": seconds} if asked else {}
    _note(folder, "job_end", step=step, code=code, srun=srun, **facts, then=then)
    _write_table(folder)
    if then == "requeue":
        print(then)
    _say(_capped(folder, step, attempts) if then == "capped" else f"{folder.path}: step {step}, code {code}: {then}")
    return code


def longest_stop(run: Path) -> int | None:
    """Return how many seconds it took at most from SLURM's word to the end of the ranks; None if it never happened."""
    folders = [RunFolder(file.parent) for file in (run / "ledger.jsonl", *run.glob("*/ledger.jsonl"))]
    lines = [line for folder in folders for line in folder.job_lines() if line.get("code") == stop.RESUMABLE]
    return max((line["stop_seconds"] for line in lines if isinstance(line.get("stop_seconds"), int)), default=None)


def _code(folder: RunFolder, srun: int) -> int:
    """Return the code that rank 0 wrote down in this attempt of the job, or else srun's.

    srun gives the highest code of its tasks, and another one where it had to kill some after the run had ended.
    """
    outcome = read_json(folder.path / "outcome.json") or {}
    began = max((line["attempt"] for line in folder.job_lines() if line["event"] == "job_start"), default=0)
    is_ours = isinstance(outcome.get("attempt"), int) and outcome["attempt"] >= began
    return outcome["code"] if is_ours and isinstance(outcome.get("code"), int) else srun


def _attempts_from(folder: RunFolder, step: int) -> int:
    """Count how often this job has begun at this step or later: being preempted is normal, standing still is not."""
    job = os.environ.get("SLURM_JOB_ID", "")
    begun = [line for line in folder.job_lines() if line["event"] == "job_start" and line.get("job") == job]
    return sum(line.get("step", 0) >= step for line in begun)


def _note(folder: RunFolder, event: str, **facts: Any) -> None:
    job = {"job": os.environ.get("SLURM_JOB_ID", ""), "restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0)}
    folder.note_job(event, **job, **facts)


def _write_table(folder: RunFolder) -> None:
    if (folder.path.parent / SWEEP).exists():
        write_table(folder.path.parent)


def _capped(folder: RunFolder, step: int, attempts: int) -> str:
    return (
        f"{folder.path}: {attempts} attempts of this job have not come beyond step {step}; it is not started again. "
        "Look at the log, then submit the script anew"
    )


def _is_over(job: str) -> bool:
    """Tell whether SLURM has ended a job, or knows it no more."""
    told = scontrol("show", "job", "-o", job)
    return "Invalid job id" in told or any(f"JobState={state} " in told for state in OVER)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
