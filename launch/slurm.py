"""`python -m launch slurm`: a configuration as a batch script, RUN/job.sbatch. Imports nothing heavy."""

import hashlib
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from launch.config.errors import ConfigError, one_line, short
from launch.config.overlay import PROJECT, expanded
from launch.config.resolved import Resolved, resolve
from launch.config.show import named
from launch.config.tasks import Tasks
from launch.jobs import attempt, code, script, sweep
from launch.jobs.options import Given, parse, seconds_of, usage
from launch.ranks import environment_for_children
from launch.run_folder import write_whole

SCRIPT = "job.sbatch"
CLOCK_SECONDS = 30  # SLURM looks this often whether a job's time is up
MOST_SECONDS = 65535  # of a warning, as sbatch takes it
SAVE_SECONDS = 90  # taken for a run that was never stopped
MARGIN = 1.5  # over the longest stop so far
LEAST_WORK_SECONDS = 60  # before the warning
MOST_SETUP = 256 << 10


def main(words: list[str]) -> int:
    """Write the script and, with --submit, submit it; `table RUN` shows a sweep, `begin` and `end` are the script's.

    Raises:
        ConfigError: what the words, the configuration or the folder do not allow.
    """
    if not words or "--help" in words or "-h" in words:
        print(usage(), end="")
        return 0
    if words[0] in ("begin", "end"):
        return attempt.main(words)
    if words[0] == "table":
        if len(words) != 2:
            raise ConfigError("slurm table: give the folder of a sweep, and nothing else")
        print(sweep.table(expanded(words[1], "DIR")), end="")
        return 0
    given = parse(words)
    if "submit" in given.switches and shutil.which("sbatch") is None:
        raise ConfigError("--submit: there is no sbatch here; run the command on a login node, or without --submit")
    job = plan(given)
    file = write(job)
    print(f"{file}: {_size(job)}, warned {job.lead} s before the end of --time {job.time}; {job.code}")
    if "submit" in given.switches:
        print(_submit(file))
    else:
        print(f"submit it with: sbatch {shlex.quote(str(file))}")
    return 0


def plan(given: Given) -> script.Job:
    """Check everything, and return what the script will say.

    Raises:
        ConfigError: all mistakes that can be told apart.
    """
    tasks, gpus = _tasks(given.values), given.values.get("gpus-per-node")
    members = sweep.members(given.lists.get("array", []))
    if "array-limit" in given.values and not members:
        raise ConfigError("--array-limit: is for sweeps; give --array KEY=VALUE,VALUE,... too")
    resolved = [resolve([*given.rest, *member.words], "fit", tasks) for member in members or [sweep.Member("", {})]]
    base = resolved[0]
    if problems := [problem for one in resolved for problem in _unfit(one, gpus)]:
        raise ConfigError(*dict.fromkeys(problems))
    print(*base.notes, sep="\n", end="\n" if base.notes else "")
    run = Path(os.path.abspath(base.run_dir))
    if one_line(run) != str(run):
        raise ConfigError(f"run.dir = {short(run)}: a folder's name must be on one line")
    _check_fresh(base, run)
    values, lead = given.values, _lead(given.values, run)
    setup = _read(values["setup"]) if "setup" in values else ""
    copied, config = _keep(base, run, copy="snapshot" in given.switches)
    return script.Job(
        run=run,
        name=values.get("job-name") or re.sub(r"[^\w.-]", "_", "-".join(run.parts[-2:])),
        tasks=tasks,
        time=values["time"],
        lead=lead,
        launch=[sys.executable, *([str(copied)] if copied else ["-m", "launch"])],
        config=config,
        steps=[one.get("trainer.max_steps") for one in resolved],
        gpus=gpus,
        members=members,
        limit=int(values["array-limit"]) if "array-limit" in values else None,
        site={name: values[name] for name in (*script.SITE, "cpus-per-task") if name in values},
        lines=given.lists.get("sbatch", []),
        setup=setup,
        python_path="" if copied else str(PROJECT),
        code=f"code: {copied or PROJECT}, {code.described()}",
        attempts=int(values.get("attempts", 3)),
        wait=int(values.get("wait", 60)),
    )


def write(job: script.Job) -> Path:
    """Write RUN/job.sbatch, and for a sweep which runs it has; return the script's path.

    Raises:
        ConfigError: bash cannot read it, or the folder takes no files.
    """
    text = script.text(job)
    script.check(text)
    try:
        if job.members:
            sweep.write_members(job.run, job.members)
        write_whole(job.run / SCRIPT, text)
    except OSError as error:
        raise ConfigError(f"{error.filename or job.run}: cannot be written: {error.strerror}") from None
    return job.run / SCRIPT


def _tasks(values: dict[str, str]) -> Tasks:
    gpus, tasks = values.get("gpus-per-node"), values.get("tasks-per-node")
    problems = [] if "time" in values else ["--time: required, the time limit of one attempt, as 8:00:00"]
    if (gpus is None) == (tasks is None):
        problems.append("--gpus-per-node G for jobs on GPUs, --tasks-per-node T for all others: give one of them")
    if problems:
        raise ConfigError(*problems)
    return Tasks(int(values.get("nodes", 1)), int(tasks or gpus.rpartition(":")[2]))


def _unfit(resolved: Resolved, gpus: str | None) -> list[str]:
    """Return complaints about what a job that is stopped and started again cannot have."""
    table, problems = resolved.table, []
    for name, reason in (
        ("checkpoint", "every attempt would go on from there; start the first one by hand"),
        ("max_wall_time", "the job is told when its time is nearly up; give --time"),
    ):
        if resolved.get(f"run.{name}") is not None:
            problems.append(f"{named(('run', name), table[('run', name)])}: not for a job: {reason}")
    if not resolved.get("callbacks.checkpoint.save_last"):
        problems.append("callbacks.checkpoint: a job that is stopped must save; keep it, with save_last: true")
    key = ("trainer", "accelerator")
    kind = resolved.get("trainer.accelerator", "auto")
    if gpus and kind == "cpu":
        problems.append(f"{named(key, table[key])}: --gpus-per-node {gpus} would lie idle; give --tasks-per-node T")
    if not gpus and kind in ("gpu", "cuda"):
        problems.append(f"{named(key, table[key])}: the job has no GPU; give --gpus-per-node G")
    return problems


def _check_fresh(resolved: Resolved, run: Path) -> None:
    if resolved.get("run.fresh") and (run / "run.json").exists():
        raise ConfigError(f"run.fresh = true: {run} exists; give another --run.dir, or delete the folder")


def _lead(values: dict[str, str], run: Path) -> int:
    """Return how many seconds before its end a job is warned: SLURM's clock, and the time that a stop takes."""
    longest = attempt.longest_stop(run)
    lead = CLOCK_SECONDS + (SAVE_SECONDS if longest is None else math.ceil(MARGIN * longest) + 15)
    lead = int(values.get("lead", lead))
    if not CLOCK_SECONDS < lead <= MOST_SECONDS:
        reason = f"SLURM looks at its clock every {CLOCK_SECONDS} s, and takes no more than {MOST_SECONDS}"
        raise ConfigError(f"--lead {lead}: must be above {CLOCK_SECONDS}: {reason}")
    if seconds_of(values["time"]) < lead + LEAST_WORK_SECONDS:
        needed = f"{lead} s are kept for the end of an attempt and {LEAST_WORK_SECONDS} s for its work"
        raise ConfigError(f"--time {values['time']}: too short: {needed}; give more, or a smaller --lead")
    return lead


def _keep(resolved: Resolved, run: Path, copy: bool) -> tuple[Path | None, Path]:
    """Copy the code, if that is wanted, and write the configuration, so that a job that waits sees no later one.

    Both are named by the hash of what is in them: an earlier job may still need the earlier ones.
    """
    text = resolved.run_text()
    config = run / f"job-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_whole(config, text)
        return (code.snapshot(run) if copy else None), config
    except OSError as error:
        raise ConfigError(f"run.dir = {short(run)}: cannot be used: {error.strerror}; give another one") from None


def _read(file: str) -> str:
    """Return the commands of a setup file, which must be whole: they become part of a script.

    Raises:
        ConfigError: it is no regular file, too large, no text, or bash finds something open at its end.
    """
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # reading a pipe may wait for ever
            raise ConfigError(f"--setup {short(file)}: is not a regular file; save the commands in one")
        with open(file, "rb") as opened:
            data = opened.read(MOST_SETUP + 1)
        if len(data) > MOST_SETUP:
            raise ConfigError(f"--setup {short(file)}: is over {MOST_SETUP >> 10} KiB; let it call a script of yours")
        commands = data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--setup {short(file)}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if found := re.search("[\x00-\x08\x0b-\x1f\x7f]", commands):
        line, kind = commands.count("\n", 0, found.start()) + 1, "lines end as on Windows; save it with LF"
        kind = kind if found[0] == "\r" else f"control character {found[0]!r}"
        raise ConfigError(f"--setup {short(file)}:{line}: {kind}")
    script.check(commands)
    script.check_setup(commands)
    return commands


def _size(job: script.Job) -> str:
    nodes, each = job.tasks.nodes, job.tasks.per_node
    runs = f"{len(job.members)} runs, each on " if job.members else ""
    return f"{runs}{nodes} node{'s' * (nodes > 1)} x {each} task{'s' * (each > 1)}"


def _submit(file: Path) -> str:
    """Hand the script to SLURM; what the shell knows of another job stays here."""
    command = ["sbatch", "--parsable", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_for_children())
    if done.returncode:
        raise ConfigError(f"sbatch refused {file}: {' '.join(done.stderr.split())}")
    return f"submitted as job {done.stdout.split(';')[0].strip()}; its output goes to {file.parent}/slurm-*.out"
