"""`python -m launch <command>`: every command imports its own module, so that the light ones answer at once."""

import importlib
import os
import signal
import sys

from launch import output
from launch.leaving import run_and_exit

RUNS = ("fit", "validate", "test", "predict")
COMMANDS = {
    "fit": "train, or go on from the newest checkpoint of the run's folder",
    "validate": "evaluate a checkpoint on the validation data",
    "test": "evaluate a checkpoint on the test data",
    "predict": "write a checkpoint's predictions for the prediction data",
    "config": "print the resolved configuration, each value with the file or flag that set it",
    "methods": "list the methods with their configs and claims",
    "doctor": "check this machine, its versions and the run's folder before a run is queued",
    "plan": "estimate memory, steps, tokens, disk and time, without a GPU",
    "scaling": "estimate what more GPUs and nodes cost in traffic, under each strategy",
    "slurm": "write a batch script for SLURM and submit it",
    "prepare": "tokenise a corpus ahead of training",
    "export": "turn a run's checkpoint into a Hugging Face folder",
    "claim": "run a method against its baseline at equal compute, over seeds",
    "bench": "measure the speed against bare PyTorch and other trainers",
}


def main(words: list[str]) -> int:
    """Run one command line and return the exit code: 0 done, 75 stopped and resumable, 3 diverged, 1 error."""
    output.install()
    try:
        os.getcwd()
    except OSError:
        print("error: the working directory is gone; go to one that is there", file=sys.stderr)
        return 1
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("-V", "--version"):
        print(f"tokamak {version()}")
        return 0
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        from launch.config.errors import meant

        print(f"error: {command}: no such command{meant(command, [*COMMANDS])}\n\n{usage()}", file=sys.stderr)
        return 1
    if command == "fit":
        from lightning_modules.core import stop  # before the imports that take seconds

        stop.install()
        if os.path.exists(os.environ.get("TOKAMAK_STOP_REQUESTED", "")):  # a batch script was warned before that
            os.kill(os.getpid(), signal.SIGUSR1)
    try:
        return dispatch(command, rest)
    except KeyboardInterrupt:
        return 130


def dispatch(command: str, words: list[str]) -> int:
    """Import the command's module and run it; a mistake that all ranks make is told by one of them."""
    from launch.config.errors import ConfigError, HostError, one_line
    from launch.ranks import process_rank

    try:
        if command in (*RUNS, "config"):
            from launch.help import main as show_help

            if "--help" in words or "-h" in words:
                return show_help(command, words)
        if command in RUNS:
            from launch.run import main as run

            return run(command, words)
        module = "launch.config.resolved" if command == "config" else f"launch.{command}"
        return importlib.import_module(module).main(words)
    except ConfigError as error:
        if process_rank() == 0 or isinstance(error, HostError):
            print(*(f"error: {one_line(problem)}" for problem in error.problems), sep="\n", file=sys.stderr)
        return 1


def version() -> str:
    """Return the version that is installed, or say that none is."""
    from importlib import metadata

    try:
        return metadata.version("tokamak")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m launch <command> --config FILE [--config FILE ...] [--key value ...]",
            "",
            *lines,
            "",
            "python -m launch fit --config configs/electra/debug.yaml --help   shows every key of that configuration",
        ]
    )


def command() -> None:
    """Be the command `tokamak`, which is what `python -m launch` is."""
    run_and_exit(main)


if __name__ == "__main__":
    command()
