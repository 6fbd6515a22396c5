"""The batch script. What goes into it is quoted or was checked; bash has read it before anybody submits it."""

import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from launch.config.errors import ConfigError
from launch.config.tasks import Tasks
from launch.jobs.sweep import Member

TEMPLATE = Path(__file__).with_name("template.sbatch")
# Around the commands of --setup: a job that they end must not look as if it were done, nor `set -e` end it later.
ENDED = "trap 'echo \"the commands of --setup ended the job\" >&2; exit 1' EXIT"
GOES_ON = "set +eu; case $(trap -p EXIT) in *--setup*) trap - EXIT ;; esac"
SITE = ("partition", "account", "qos", "constraint", "mem")


@dataclass(frozen=True)
class Job:
    """All that a batch script says.

    `launch` starts our command line, `python_path` is where it is found; `site` are values of sbatch by option; `steps`
    are those of the run or, in the order of `members`, of each run of a sweep.
    """

    run: Path
    name: str
    tasks: Tasks
    time: str
    lead: int
    launch: list[str]
    config: Path
    steps: list[int]
    gpus: str | None = None
    members: list[Member] = field(default_factory=list)
    limit: int | None = None
    site: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    cwd: Path = field(default_factory=Path.cwd)
    setup: str = ""
    python_path: str = ""
    code: str = ""
    attempts: int = 3
    wait: int = 60


def text(job: Job) -> str:
    """Return the script."""
    values = {
        "HEADER": "\n".join(f"#SBATCH {line}" for line in _header(job)),
        "CODE": job.code,
        "CWD": shlex.quote(str(job.cwd)),
        "SETUP": _setup(job),
        "LAUNCH": shlex.join(job.launch),
        "RUN": _runs(job),
        "ATTEMPTS": str(job.attempts),
        "WAIT": str(job.wait),
        "CONFIG": shlex.quote(str(job.config)),
    }
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], TEMPLATE.read_text(encoding="utf-8"))


# At the beginning of a command: another program in the place of the shell, nothing executed any more, no guard.
ENDS = re.compile(
    r"(?:^|[;&|]|\b(?:do|then|else)\b)\s*"
    r"(exec\s+(?![0-9{<>&])\S+|set\s+(?:-\w*n\w*\b|-o\s+noexec)|trap\s+(?:-|''|\"\")\s[^;&|]*\b(?:EXIT|0)\b)"
)


def check_setup(text: str) -> None:
    """Refuse commands after which the job's own would not be run, and the job would look as if it were done.

    Raises:
        ConfigError: naming the line.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if found := ENDS.search(line):
            raise ConfigError(
                f"--setup: line {number}: {found[1]!r} would end the job as if it were done; leave it out"
            )


def check(script: str) -> None:
    """Let bash read a script, or the commands of a setup file, without running it.

    Raises:
        ConfigError: it is no script, which only the setup file can bring about; also one that leaves something open.
    """
    try:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    except OSError:
        return  # no bash here; the nodes have one
    if done.returncode or done.stderr.strip():  # bash warns of a here-document that the end of the file ends
        raise ConfigError(f"--setup: the script is not one that bash can read: {' '.join(done.stderr.split())}")


def _header(job: Job) -> list[str]:
    log = str(job.run).replace("%", "%%") + ("/slurm-%A_%a.out" if job.members else "/slurm-%j.out")
    lines = [f"--job-name={job.name}", f"--nodes={job.tasks.nodes}", f"--ntasks-per-node={job.tasks.per_node}"]
    lines += [f"--gres=gpu:{job.gpus}"] if job.gpus else []
    lines += [f"--time={job.time}", f"--signal=B:USR1@{job.lead}", "--requeue", "--open-mode=append", f"--output={log}"]
    if job.members:
        lines.append(f"--array=0-{len(job.members) - 1}" + (f"%{job.limit}" if job.limit else ""))
    lines += [f"--{name}={job.site[name]}" for name in (*SITE, "cpus-per-task") if name in job.site]
    return [shlex.quote(line) if re.search(r"[^\w./:@=,%+-]", line) else line for line in [*lines, *job.lines]]


def _setup(job: Job) -> str:
    lines = ["", ENDED, job.setup.rstrip("\n"), "", GOES_ON] if job.setup else []
    if job.python_path:
        lines.append(f"export PYTHONPATH={shlex.quote(job.python_path)}${{PYTHONPATH:+:$PYTHONPATH}}")
    if "cpus-per-task" in job.site:
        lines.append("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not ask sbatch")
    return "\n".join(lines)


def _runs(job: Job) -> str:
    """Say which run this is: the folder, its steps, and what it changes in the configuration."""
    run = f"run={shlex.quote(str(job.run))}"
    if not job.members:
        return f"{run} steps={job.steps[0]} values=()"
    cases = [
        f"    {index}) run+=/{shlex.quote(member.name)} steps={steps} values=({shlex.join(member.words)}) ;;"
        for index, (member, steps) in enumerate(zip(job.members, job.steps, strict=True))
    ]
    return "\n".join([run, "case $SLURM_ARRAY_TASK_ID in", *cases, "    *) exit 1 ;;", "esac"])
