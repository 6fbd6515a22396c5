"""Process 1 of a pid namespace that holds a SLURM of two nodes: when it ends, the kernel ends everything in it.

    python supervisor.py FOLDER

Prints `ready` or `failed`, then waits for the end of its input. Imports the standard library only.
"""

import os
import pwd
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

NODES = ("n1", "n2")
PATIENCE_SECONDS = 30.0

CONF = """
ClusterName=tokamak
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
JobRequeue=1
KillWait={kill_wait}
MinJobAge=600
SlurmdTimeout=20
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000\n"
KILL_WAIT_SECONDS = 8  # from TERM to KILL; sites have 30


def main(folder: Path) -> None:
    """Start the daemons, say how that went, and stay until nobody needs them."""
    threading.Thread(target=_reap, daemon=True).start()
    print("ready" if _start(folder) else "failed", flush=True)
    sys.stdin.read()
    os._exit(0)


def _start(folder: Path) -> bool:
    conf = str(_write_configuration(folder))
    files = [
        f"--{name}={folder}/munge{end}"
        for name, end in (
            ("socket", ".sock"),
            ("key-file", ".key"),
            ("pid-file", ".pid"),
            ("log-file", ".log"),
            ("seed-file", ".seed"),
        )
    ]
    daemons = [_daemon(folder, "munged", "-F", *files)]
    if not _until(lambda: (folder / "munge.sock").exists(), daemons):
        return False
    daemons.append(_daemon(folder, "slurmctld", "-D", "-f", conf))
    daemons += [_daemon(folder, "slurmd", "-D", "-N", name, "-f", conf) for name in NODES]
    sinfo = ["sinfo", "-h", "-N", "-o", "%T"]
    environment = {**os.environ, "SLURM_CONF": conf}

    def idle() -> bool:
        done = subprocess.run(sinfo, env=environment, capture_output=True, text=True)
        return done.stdout.split() == ["idle"] * len(NODES)

    return _until(idle, daemons)


def _write_configuration(folder: Path) -> Path:
    with ExitStack() as held:  # all at once, so that they differ
        sockets = [held.enter_context(socket.socket()) for _ in range(1 + len(NODES))]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    host, user = socket.gethostname().split(".")[0], pwd.getpwuid(os.geteuid()).pw_name
    words = CONF.format(host=host, user=user, folder=folder, ports=ports, kill_wait=KILL_WAIT_SECONDS)
    words += "".join(NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports[1:], strict=True))
    (folder / "state").mkdir()
    (folder / "cgroup.conf").touch()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(words)
    return folder / "slurm.conf"


def _daemon(folder: Path, *command: str) -> int:
    with (folder / f"{len(list(folder.glob('*.out')))}_{command[0]}.out").open("w") as output:
        return os.posix_spawnp(command[0], command, os.environ, file_actions=[
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, output.fileno(), 2)])  # fmt: skip


def _until(done, daemons: list[int]) -> bool:
    """Wait, for as long as every daemon is alive."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and all(Path(f"/proc/{pid}").exists() for pid in daemons):
        if done():
            return True
        time.sleep(0.05)
    return False


def _reap() -> None:
    """Take in what is orphaned in the namespace."""
    while True:
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)
            continue
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
