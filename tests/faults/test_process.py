"""Many runs at once, and processes that may have less than they need: memory, threads, open files, a home."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.command import LSTMCLI, SECONDS, Ran, assert_one_line, lstmcli, succeed
from helpers.small_run import SmallRun
from helpers.system_tools import injected, need_mounts, started, under

ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}  # it prints lines of its own about threads that it cannot have


@pytest.fixture(scope="module")
def job(small_run: Callable[..., SmallRun]) -> SmallRun:
    return small_run(90, 40, 24, seed=3)


def assert_whole_or_resumable(ran: Ran, job: SmallRun, folder: Path, *codes: int) -> None:
    """Complete, or one line and no output; and then another run goes on to the same bytes, and leaves nothing else."""
    assert ran.code in (0, *codes), ran.err
    if ran.code:
        assert_one_line(ran, ran.code)
        assert not (folder / "out.h5").exists()
        assert len(list(folder.iterdir())) in (0, 2)
        succeed(*job.words(), "--resume", cwd=folder)
    assert (folder / "out.h5").read_bytes() == job.result
    assert [path.name for path in folder.iterdir()] == ["out.h5"]
    (folder / "out.h5").unlink()


def test_little_memory_for_the_process(job: SmallRun, tmp_path: Path) -> None:
    """Too little to begin, too little to go on, enough: the limits lie on both sides of what a run takes."""
    codes = set()
    for megabytes in (100, 170, 185, 220, 2000):
        ran = under(["prlimit", f"--as={megabytes}000000"], *job.words(), cwd=tmp_path, env=ONE_BLAS_THREAD)
        codes.add(ran.code)
        assert_whole_or_resumable(ran, job, tmp_path, 1)
    assert codes == {0, 1}


def test_blocks_that_memory_cannot_hold(job: SmallRun, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.zeros((4000, 100, 64), np.float32))
    args = ["run", "-i", "x.npy", "-u", 512, "--save", "states", "--max-memory", "8GB", "--threads", 1, "-o", "out.h5", "-q"]
    ran = under(["prlimit", "--as=270000000"], *args, cwd=tmp_path, env=ONE_BLAS_THREAD)
    assert_one_line(ran, 1, "out of memory")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_threads_that_cannot_be_had(job: SmallRun, tmp_path: Path) -> None:
    codes = []
    for number in (1, 2, 4, 9, 1000):
        ran = under(injected("clone,clone3", f"error=EAGAIN:when={number}+"), *job.words(), cwd=tmp_path, env=ONE_BLAS_THREAD)
        codes.append(ran.code)
        if ran.code:
            assert "thread" in ran.err
        assert_whole_or_resumable(ran, job, tmp_path, 1)
    assert codes[0] == 1
    assert codes[-1] == 0


@pytest.mark.parametrize("number", [5, 8, 12])
def test_few_open_files(number: int, job: SmallRun, tmp_path: Path) -> None:
    ran = under(["prlimit", f"--nofile={number}"], *job.words(), cwd=tmp_path)
    if ran.code:
        assert "Too many open files" in ran.err
    assert ran.code == 0 or number < 12
    assert_whole_or_resumable(ran, job, tmp_path, 66, 73, 74)


@pytest.mark.parametrize(
    "env",
    [
        {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "LSTMCLI_CACHE_DIR": ""},
        {"MALLOC_PERTURB_": "255"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "LANG": "C"},
    ],
    ids=["no home", "memory full of garbage", "no locale"],
)
def test_surroundings_change_nothing(
    env: dict[str, str], job: SmallRun, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    env = env | {"TMPDIR": str(tmp_path_factory.mktemp("temporary"))}  # where kernels without a home go
    ran = under(["env", *[f"{name}={value}" for name, value in env.items()]], *job.words(), cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert_whole_or_resumable(ran, job, tmp_path)


@pytest.mark.root
def test_read_only_root(job: SmallRun, tmp_path: Path) -> None:
    """Only the folder of the output can be written."""
    # bind: in this process's view alone.
    script = 'mount --bind . . && mount -o remount,bind,ro / && cd "$PWD" && ! touch /read-only 2>&- && exec "$@"'
    need_mounts()
    ran = under(["unshare", "-m", "sh", "-c", script, "sh"], *job.words(), cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert_whole_or_resumable(ran, job, tmp_path)


def test_no_sockets(job: SmallRun, tmp_path: Path) -> None:
    trace = ["strace", "-f", "-o", tmp_path / "trace", "-e", "trace=network"]
    assert under(trace, *job.words(tmp_path / "out.h5"), cwd=tmp_path).code == 0
    calls = [line for line in (tmp_path / "trace").read_text().splitlines() if "(" in line]
    assert calls == []


def many(count: int, job: SmallRun, folder: Path, *options: str) -> list[int]:
    """Exit codes of so many runs on one output at once."""
    command = [*LSTMCLI, *map(str, job.words()), *options]
    running = [subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) for _ in range(count)]
    for process in running:
        _, err = process.communicate(timeout=SECONDS)
        assert len(err.splitlines()) == (process.returncode != 0), err
    assert (folder / "out.h5").read_bytes() == job.result
    assert [path.name for path in folder.iterdir()] == ["out.h5"]
    return sorted(process.returncode for process in running)


def test_some_runs_on_one_output(job: SmallRun, tmp_path: Path) -> None:
    assert many(6, job, tmp_path) == [0, *[73] * 5]


@pytest.mark.slow
def test_50_runs_on_one_output(job: SmallRun, tmp_path: Path) -> None:
    for option in ([], ["--resume"]):
        assert many(50, job, tmp_path, *option) == [0, *[73] * 49]
        (tmp_path / "out.h5").unlink()
    codes = many(50, job, tmp_path, "--overwrite")
    assert codes[0] == 0
    assert set(codes) <= {0, 73}


@pytest.mark.slow
def test_50_runs_with_a_cold_cache(job: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTMCLI_CACHE_DIR", str(tmp_path / "cache"))
    running = []
    for number in range(50):
        command = [*LSTMCLI, *map(str, job.words(tmp_path / f"{number}.h5"))]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for number, process in enumerate(running):
        _, err = process.communicate(timeout=10 * SECONDS)
        assert (process.returncode, err) == (0, "")
        assert (tmp_path / f"{number}.h5").read_bytes() == job.result
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_second_run_where_there_are_no_locks(job: SmallRun, tmp_path: Path) -> None:
    """It sees what the first one has begun."""
    without = [str(word) for word in injected("flock", "error=ENOLCK")]
    files.write_npy(tmp_path / "x.npy", np.zeros((4000, 60, 32), np.float32))
    args = ["run", "-i", "x.npy", "-u", 512, "--save", "states", "--threads", 1, "--max-memory", "8MB", "-q", "-o", "out.h5"]
    with started(*args, cwd=tmp_path, partial=tmp_path / "out.h5.partial", prefix=without) as running:
        assert_one_line(under(without, *args, cwd=tmp_path), 73, "out.h5.partial", "--resume", "--overwrite")
        _, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (0, "")
    succeed("verify", "out.h5", cwd=tmp_path)


def test_a_run_that_is_suspended_keeps_its_output(job: SmallRun, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2000, 60, 32)).astype(np.float32))
    args = ["run", "-i", "x.npy", "-u", 256, "--threads", 1, "--max-memory", "8MB", "-q", "-o"]
    with started(*args, "out.h5", cwd=tmp_path, partial=tmp_path / "out.h5.partial") as running:
        running.send_signal(signal.SIGSTOP)
        for option in ([], ["--overwrite"], ["--resume"]):
            assert_one_line(lstmcli(*args, "out.h5", *option, cwd=tmp_path), 73, "out.h5", "another run")
        running.send_signal(signal.SIGCONT)
        _, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (0, "")
    succeed(*args, "want.h5", cwd=tmp_path)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "want.h5").read_bytes()
