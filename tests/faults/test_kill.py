"""The real command, killed by strace at each of its system calls that change something, and by a clock at any moment."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from helpers.command import LSTMCLI, SECONDS, SYNCING, Ran, succeed
from helpers.small_run import SmallRun
from helpers.system_tools import injected, need

CALLS = ("pwrite64", "write", "fallocate", "fsync", "fdatasync", "rename", "link", "unlink", "ftruncate")


@pytest.fixture(scope="module")
def job(small_run: Callable[..., SmallRun]) -> SmallRun:
    return small_run(60, 40, 24, seed=6, options="--threads 2 --max-memory 200KB -q")


def run(job: SmallRun, folder: Path, *args: str) -> Ran:
    done = subprocess.run([*SYNCING, *job.words(), *args], cwd=folder, capture_output=True, timeout=SECONDS, check=False)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def traced(
    job: SmallRun, folder: Path, call: str, what: str, *args: str, on: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    need("strace")
    command = [*map(str, injected(call, what, *on)), *SYNCING, *job.words(), *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)


def check(job: SmallRun, folder: Path, code: int, err: str) -> bool:
    """What must hold after every fault; whether the run was complete."""
    content = (folder / "out.h5").read_bytes() if (folder / "out.h5").exists() else None
    assert content in (None, job.result)
    assert code not in (-6, -7, -11, 120, 134, 135, 139), err
    assert "Traceback" not in err
    assert code != 0 or content == job.result
    assert {path.name for path in folder.iterdir()} <= {"out.h5", "out.h5.partial", "out.h5.journal"}
    return content is not None


def finish(job: SmallRun, folder: Path, whole: bool) -> None:
    ran = run(job, folder, "--resume")
    assert ran.code == 0 or (whole and ran.code == 73), ran.err
    assert (folder / "out.h5").read_bytes() == job.result
    for path in folder.iterdir():
        path.unlink()


def numbers(step: int) -> Iterator[int]:
    return iter(range(1, 2000, step))


@pytest.mark.slow
@pytest.mark.parametrize("args", [(), ("--resume",)])
@pytest.mark.parametrize("call", CALLS)
def test_killed_by_strace(call: str, args: tuple[str, ...], job: SmallRun, tmp_path: Path) -> None:
    """With --resume: a run is killed, and the one that goes on with it, too."""
    for number in numbers(1):
        if args:
            traced(job, tmp_path, "fdatasync", "signal=KILL:when=4")
        done = traced(job, tmp_path, call, f"signal=KILL:when={number}", *args)
        whole = check(job, tmp_path, done.returncode, done.stderr)
        finish(job, tmp_path, whole)
        if done.returncode == 0:
            return
    raise AssertionError(f"{call}: never ran to the end")


REFUSALS = {"pwrite64": "ENOSPC", "fdatasync": "EIO", "fsync": "EIO", "link": "EROFS", "fallocate": "ENOSPC", "unlink": "EIO"}


@pytest.mark.slow
@pytest.mark.parametrize("forever", ["", "+"])
@pytest.mark.parametrize(("call", "error"), [*REFUSALS.items(), ("pwrite64", "EDQUOT")])
def test_refused_by_strace(call: str, error: str, forever: str, job: SmallRun, tmp_path: Path) -> None:
    for number in numbers(9 if call == "pwrite64" else 1):
        done = traced(job, tmp_path, call, f"error={error}:when={number}{forever}")
        whole = check(job, tmp_path, done.returncode, done.stderr)
        assert done.returncode in (0, 74), done.stderr
        if done.returncode == 0:
            finish(job, tmp_path, whole)
            return
        assert len(done.stderr.splitlines()) == 1
        finish(job, tmp_path, whole)
    raise AssertionError(f"{call}: never ran to the end")


@pytest.mark.slow
def test_interrupted_system_calls_change_nothing(job: SmallRun, tmp_path: Path) -> None:
    # Not on libraries: what loads them does not try again.
    on = [*job.folder.iterdir(), tmp_path / "out.h5.partial", tmp_path / "out.h5.journal"]
    done = traced(job, tmp_path, "pread64,pwrite64,preadv,preadv2,fdatasync,fsync", "error=EINTR:when=1+3", on=on)
    assert (done.returncode, done.stderr) == (0, "")
    assert check(job, tmp_path, 0, "")
    finish(job, tmp_path, whole=True)


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS"])
def test_file_systems_without_locks(name: str, job: SmallRun, tmp_path: Path) -> None:
    done = traced(job, tmp_path, "flock", f"error={name}")
    assert (done.returncode, done.stderr) == (0, "")
    finish(job, tmp_path, check(job, tmp_path, 0, ""))


def killed_at_random(job: SmallRun, tmp_path: Path, count: int, seed: int) -> None:
    began = time.monotonic()
    finish(job, tmp_path, whole=False)
    whole_run = time.monotonic() - began
    clock = random.Random(seed)
    for _ in range(count):
        for args in ((), ("--resume",)):
            running = subprocess.Popen([*SYNCING, *job.words(), *args], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
            try:
                _, err = running.communicate(timeout=clock.uniform(0.3, 1.1) * whole_run)
            except subprocess.TimeoutExpired:
                running.kill()
                _, err = running.communicate()
            whole = check(job, tmp_path, running.returncode, err)
            if whole:
                break
        finish(job, tmp_path, whole)


def test_killed_at_a_few_moments(job: SmallRun, tmp_path: Path) -> None:
    killed_at_random(job, tmp_path, 3, 1)


@pytest.mark.slow
def test_killed_at_300_moments(job: SmallRun, tmp_path: Path) -> None:
    killed_at_random(job, tmp_path, 300, 2)


@pytest.mark.parametrize("call", ["pwrite64", "fsync", "link", "unlink"])
@pytest.mark.parametrize("words", [("convert", "x.npy"), ("model", "import", "out.model.h5")], ids=["convert", "import"])
def test_other_commands_that_write_files(words: tuple[str, ...], call: str, job: SmallRun, tmp_path: Path) -> None:
    """The name is given to the whole file, and what is left goes when the command is given again."""
    need("strace")
    job.copy_to(tmp_path)
    succeed(*job.words("out.npy", folder=Path()), cwd=tmp_path)
    command = [*words, *["-o"][: words[0] == "model"], "made.h5"]
    succeed(*command, cwd=tmp_path)
    whole = (tmp_path / "made.h5").read_bytes()
    (tmp_path / "made.h5").unlink()
    before = {path.name for path in tmp_path.iterdir()}
    killed = [*map(str, injected(call, "signal=KILL:when=1")), *LSTMCLI, *command]
    assert subprocess.run(killed, cwd=tmp_path, timeout=SECONDS, check=False).returncode == -9
    named = ["made.h5"] if call == "unlink" else []
    assert {path.name for path in tmp_path.iterdir()} - before == {"made.h5.partial", *named}
    assert [(tmp_path / name).read_bytes() for name in named] == [whole] * len(named)
    succeed(*command, "--overwrite", cwd=tmp_path)
    assert (tmp_path / "made.h5").read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == before | {"made.h5"}
