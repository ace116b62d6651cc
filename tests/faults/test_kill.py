"""The real command, killed by strace at each of its system calls that change something, and by a clock at any moment."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.command import SECONDS, SYNCING, Ran
from helpers.system_tools import injected, need

CALLS = ("pwrite64", "write", "fallocate", "fsync", "fdatasync", "rename", "link", "unlink", "ftruncate")
RUN = [
    "run",
    "-i",
    "../x.npy",
    "-l",
    "../lens.npy",
    "-u",
    "24",
    "--threads",
    "2",
    "--max-memory",
    "200KB",
    "-q",
    "-o",
    "out.h5",
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """An empty folder in one with the inputs, and the bytes of an undisturbed run."""
    folder = tmp_path_factory.mktemp("job") / "out"
    folder.mkdir()
    rng = np.random.default_rng(6)
    files.write_npy(folder.parent / "x.npy", rng.normal(size=(60, 40, 16)).astype(np.float32))
    files.write_npy(folder.parent / "lens.npy", rng.integers(0, 41, 60))
    assert run(folder).code == 0
    content = (folder / "out.h5").read_bytes()
    (folder / "out.h5").unlink()
    return folder, content


def run(folder: Path, *args: str) -> Ran:
    done = subprocess.run([*SYNCING, *RUN, *args], cwd=folder, capture_output=True, timeout=SECONDS, check=False)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def traced(folder: Path, call: str, what: str, *args: str, on: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    need("strace")
    command = [*map(str, injected(call, what, *on)), *SYNCING, *RUN, *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)


def check(folder: Path, want: bytes, code: int, err: str) -> bool:
    """What must hold after every fault; whether the run was complete."""
    content = (folder / "out.h5").read_bytes() if (folder / "out.h5").exists() else None
    assert content in (None, want)
    assert code not in (-6, -7, -11, 120, 134, 135, 139), err
    assert "Traceback" not in err
    assert code != 0 or content == want
    assert {path.name for path in folder.iterdir()} <= {"out.h5", "out.h5.partial", "out.h5.journal"}
    return content is not None


def finish(folder: Path, want: bytes, whole: bool) -> None:
    ran = run(folder, "--resume")
    assert ran.code == 0 or (whole and ran.code == 73), ran.err
    assert (folder / "out.h5").read_bytes() == want
    for path in folder.iterdir():
        path.unlink()


def numbers(step: int) -> Iterator[int]:
    return iter(range(1, 2000, step))


@pytest.mark.slow
@pytest.mark.parametrize("args", [(), ("--resume",)])
@pytest.mark.parametrize("call", CALLS)
def test_killed_by_strace(call: str, args: tuple[str, ...], job: tuple[Path, bytes]) -> None:
    """With --resume: a run is killed, and the one that goes on with it, too."""
    folder, want = job
    for number in numbers(1):
        if args:
            traced(folder, "fdatasync", "signal=KILL:when=4")
        done = traced(folder, call, f"signal=KILL:when={number}", *args)
        whole = check(folder, want, done.returncode, done.stderr)
        finish(folder, want, whole)
        if done.returncode == 0:
            return
    raise AssertionError(f"{call}: never ran to the end")


REFUSALS = {"pwrite64": "ENOSPC", "fdatasync": "EIO", "fsync": "EIO", "link": "EROFS", "fallocate": "ENOSPC", "unlink": "EIO"}


@pytest.mark.slow
@pytest.mark.parametrize("forever", ["", "+"])
@pytest.mark.parametrize(("call", "error"), [*REFUSALS.items(), ("pwrite64", "EDQUOT")])
def test_refused_by_strace(call: str, error: str, forever: str, job: tuple[Path, bytes]) -> None:
    folder, want = job
    for number in numbers(9 if call == "pwrite64" else 1):
        done = traced(folder, call, f"error={error}:when={number}{forever}")
        whole = check(folder, want, done.returncode, done.stderr)
        assert done.returncode in (0, 74), done.stderr
        if done.returncode == 0:
            finish(folder, want, whole)
            return
        assert len(done.stderr.splitlines()) == 1
        finish(folder, want, whole)
    raise AssertionError(f"{call}: never ran to the end")


@pytest.mark.slow
def test_interrupted_system_calls_change_nothing(job: tuple[Path, bytes]) -> None:
    folder, want = job
    # Not on libraries: what loads them does not try again.
    on = [folder.parent / "x.npy", folder.parent / "lens.npy", folder / "out.h5.partial", folder / "out.h5.journal"]
    done = traced(folder, "pread64,pwrite64,preadv,preadv2,fdatasync,fsync", "error=EINTR:when=1+3", on=on)
    assert (done.returncode, done.stderr) == (0, "")
    assert check(folder, want, 0, "")
    finish(folder, want, whole=True)


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS"])
def test_file_systems_without_locks(name: str, job: tuple[Path, bytes]) -> None:
    folder, want = job
    done = traced(folder, "flock", f"error={name}")
    assert (done.returncode, done.stderr) == (0, "")
    finish(folder, want, check(folder, want, 0, ""))


def killed_at_random(job: tuple[Path, bytes], count: int, seed: int) -> None:
    folder, want = job
    began = time.monotonic()
    finish(folder, want, whole=False)
    whole_run = time.monotonic() - began
    clock = random.Random(seed)
    for _ in range(count):
        for args in ((), ("--resume",)):
            running = subprocess.Popen([*SYNCING, *RUN, *args], cwd=folder, stderr=subprocess.PIPE, text=True)
            try:
                _, err = running.communicate(timeout=clock.uniform(0.3, 1.1) * whole_run)
            except subprocess.TimeoutExpired:
                running.kill()
                _, err = running.communicate()
            whole = check(folder, want, running.returncode, err)
            if whole:
                break
        finish(folder, want, whole)


def test_killed_at_a_few_moments(job: tuple[Path, bytes]) -> None:
    killed_at_random(job, 3, 1)


@pytest.mark.slow
def test_killed_at_300_moments(job: tuple[Path, bytes]) -> None:
    killed_at_random(job, 300, 2)
