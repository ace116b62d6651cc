"""A real Slurm: the one that runs here, or one of a single node that is started for the tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from helpers.command import SECONDS
from helpers.system_tools import need

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
TaskPluginParam=Cores
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000
PartitionName=main Nodes=ALL Default=YES
"""


def ask(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def until(is_so: object, seconds: float = SECONDS) -> None:
    """Waits; is_so: a call that says whether it may end."""
    assert callable(is_so)
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, is_so
        time.sleep(0.05)


def idle() -> bool:
    found = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, timeout=SECONDS, check=False)
    return "idle" in found.stdout


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """folder: for what it needs, if it has to be started."""
    need("sbatch", "scontrol")
    if idle():
        yield
        return
    if os.geteuid():
        pytest.skip("only root may start a Slurm")
    need("munged", "slurmctld", "slurmd")
    (folder / "spool").mkdir()
    host = os.uname().nodename.split(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, cpus=os.cpu_count()))
    (folder / "key").touch(mode=0o600)
    (folder / "key").write_bytes(os.urandom(1024))
    names = {"key-file": "key", "socket": "munge", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "seed"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            ask("munged", "--force", *(f"--{option}={folder / name}" for option, name in names.items()))
            ask("slurmctld")
            ask("slurmd")
            until(idle, 30)
            yield
        finally:
            for name in ("slurmd", "slurmctld", "munged"):
                with suppress(OSError, ValueError):
                    os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)


def submit(script: Path) -> str:
    """The number of the job, whose tasks run in the folder of the script and print to slurm-JOB_TASK.out there."""
    return ask("sbatch", "--parsable", "--chdir", script.parent, "--output", script.parent / "slurm-%A_%a.out", script)


def left(job: str) -> str:
    """Its tasks in the queue. One that was requeued would wait for two minutes; some seconds are enough."""
    tasks = ask("squeue", "--noheader", "--array", "--format", "%i %r", "--jobs", job)
    for task in re.findall(r"(\S+) BeginTime", tasks):
        time.sleep(3)  # the node refuses it in the second in which it was requeued
        ask("scontrol", "update", f"JobId={task}", "StartTime=now")
    return tasks


def wait(job: str) -> None:
    """Until it has left the queue."""
    until(lambda: not left(job))
