"""What a terminal, a shell and their settings do to a command: Ctrl-C at any time, encodings, long names, deleted folders."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.command import LSTMCLI, SECONDS, assert_one_line, lstmcli, succeed
from helpers.system_tools import under

X = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
MAKE = ["model", "init", "--input-size", 3, "--units", 4, "-o", "made.h5"]


def imports_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """The modules that a process has loaded, as it loads them: what Python says with -X importtime."""
    assert process.stderr
    return (line.split("|")[-1].strip() for line in process.stderr)


# One of the first modules that the program itself loads, and some on the way to its work.
@pytest.mark.parametrize("module", ["lstmcli.errors", "click.types", "lstmcli.cli.main", "numpy.linalg", "h5py.h5s", "h5py"])
def test_ctrl_c_while_modules_are_loaded(module: str, tmp_path: Path) -> None:
    """NumPy makes an ImportError of an exception, h5py swallows it."""
    argv = [sys.executable, "-X", "importtime", *LSTMCLI[1:], *map(str, MAKE)]
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        loaded = imports_of(running)
        next(name for name in loaded if name == module)
        running.send_signal(signal.SIGINT)
        left = list(loaded)
        assert running.wait(SECONDS) == 130, "\n".join(left[-20:])
    assert left[-1] == "lstmcli: interrupted by SIGINT"
    assert not any("Traceback" in line or "ignored" in line for line in left)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_kernel_is_compiled(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", X)
    argv = [sys.executable, "-X", "importtime", *LSTMCLI[1:], "run", "-i", "x.npy", "-u", "3", "-q"]
    env = {**os.environ, "LSTMCLI_NO_CACHE": "1"}
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=env) as running:
        loaded = imports_of(running)
        next(name for name in loaded if name == "lstmcli.kernel.lanes")
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        left = list(loaded)
        assert running.wait(SECONDS) == 130, "\n".join(left[-20:])
    assert left[-1] == "lstmcli: interrupted by SIGINT"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_ctrl_c_while_a_file_is_made_leaves_nothing(tmp_path: Path) -> None:
    argv = [*LSTMCLI, "model", "init", "--input-size", "2000", "--units", "2000,2000,2000", "-o", "made.h5"]
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.001)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) in [(130, "lstmcli: interrupted by SIGINT\n"), (0, "")]
    assert [path.name for path in tmp_path.iterdir()] == ["made.h5"] * (running.returncode == 0)


def test_ctrl_c_that_a_shell_has_switched_off(tmp_path: Path) -> None:
    """A command in the background of a script does not end with what stands in front."""
    with subprocess.Popen(
        [*LSTMCLI, *map(str, MAKE)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as running:
        while running.poll() is None:
            running.send_signal(signal.SIGINT)
            time.sleep(0.02)
    assert running.returncode == 0


def test_a_terminal_that_is_closed_while_the_bar_is_drawn(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.zeros((3000, 60, 32), np.float32))
    master, slave = pty.openpty()
    argv = [
        *LSTMCLI,
        *["run", "-i", "x.npy", "-u", "256", "--threads", "1", "--max-memory", "8MB", "--progress", "bar", "-o", "out.h5"],
    ]
    running = subprocess.Popen(argv, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    with closing(os.fdopen(master, "rb", buffering=0)) as terminal:
        seen = b""
        while b"%" not in seen:
            seen += terminal.read(4096)
    running.send_signal(signal.SIGHUP)  # as the system does it for the session's first process
    assert running.wait(SECONDS) == 75
    succeed("run", *argv[4:-4], "--progress", "none", "-o", "out.h5", "--resume", cwd=tmp_path)


NAME = "é \U0001f600 line\nbreak \udcff [red]\x1b[31m"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict", "utf-8"])
def test_names_that_the_encoding_has_not(encoding: str, tmp_path: Path) -> None:
    """What is done is told, and the exit code is that of what was done."""
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    files.write_npy(tmp_path / f"{NAME}.npy", X)
    for line in (
        ["run", "-i", f"{NAME}.npy", "-u", "3", "-o", f"./{NAME}.h5"],
        ["run", "-i", f"{NAME}.npy", "-u", "3", "-o", f"./{NAME}.h5", "--json", "--overwrite"],
        ["verify", f"./{NAME}.h5"],
        ["plan", "-i", f"{NAME}.npy", "-u", "3", "--shards", "2", "-o", f"./{NAME}.json"],
        ["model", "init", "--input-size", "3", "-u", "3", "-o", f"./{NAME}.model.h5"],
        ["model", "show", f"./{NAME}.model.h5"],
        ["model", "export", f"./{NAME}.model.h5", "-o", f"./{NAME}.safetensors"],
    ):
        argv = [os.fsencode(word) for word in (*LSTMCLI, *line)]
        ran = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, timeout=SECONDS, check=False)
        assert (ran.returncode, ran.stderr) == (0, b""), (line, ran.stderr.decode())
        assert ran.stdout
        assert b"\x1b" not in ran.stdout
    missing = [os.fsencode(word) for word in (*LSTMCLI, "verify", f"./{NAME}.none")]
    ran = subprocess.run(missing, cwd=tmp_path, env=env, capture_output=True, timeout=SECONDS, check=False)
    assert ran.returncode == 66
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("size", [255, 300])
def test_names_that_are_too_long(size: int, tmp_path: Path) -> None:
    """A file of 255 bytes can be there; its .partial, which comes first, cannot be made."""
    files.write_npy(tmp_path / "x.npy", X)
    name, plan = "n" * (size - 3) + ".h5", "n" * (size - 5) + ".json"
    run = ["run", "-i", "x.npy", "-u", 3, "-o"]
    for line in ([*run, name], [*run, name, "--overwrite"], [*run, name, "--resume"], ["plan", *run[1:], plan, "--shards", 2]):
        assert_one_line(lstmcli(*line, cwd=tmp_path), 73, "n" * 200, "too long")
    assert_one_line(lstmcli(*MAKE[:-1], name, cwd=tmp_path), 73, "n" * 200, "too long")
    for line in (["run", "-i", name, "-u", 3, "-o", "o.h5"], ["run", "-i", "x.npy", "-w", name], ["verify", name]):
        assert_one_line(lstmcli(*line, cwd=tmp_path), 66, "n" * 200)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_folder_that_was_deleted(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", X)
    away = ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh"]
    for line, code in [
        (["plan", "-i", "x.npy", "-u", 3, "--shards", 2, "-o", "plan.json"], 66),
        (["plan", "-i", tmp_path / "x.npy", "-u", 3, "--shards", 2, "-o", "plan.json"], 73),
        (["run", "-i", tmp_path / "x.npy", "-u", 3], 73),
        (["run", "-i", "x.npy", "-u", 3], 66),
        (MAKE, 73),
    ]:
        ran = under(away, *line, cwd=tmp_path)
        assert_one_line(ran, code)
        assert "full" not in ran.err
    assert under(away, "run", "-i", tmp_path / "x.npy", "-u", 3, "-o", tmp_path / "out.h5", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    "setting",
    [
        "NUMBA_OPT=0",
        "NUMBA_OPT=none",
        "NUMBA_CPU_FEATURES=foo",
        "NUMBA_CPU_FEATURES=,+avx,foo",
        "NUMBA_DISABLE_JIT=1",
        "NUMBA_BOUNDSCHECK=1",
    ],
)
def test_settings_of_numba_change_no_bit(setting: str, tmp_path: Path) -> None:
    """With a cold cache, where the kernel is compiled; and what it leaves in the cache is as without the setting."""
    files.write_npy(tmp_path / "x.npy", X)
    run = ["run", "-i", "x.npy", "-u", 3, "-q", "-o"]
    succeed(*run, "want.h5", cwd=tmp_path)
    name, _, value = setting.partition("=")
    ran = lstmcli(*run, "out.h5", cwd=tmp_path, env={**os.environ, name: value, "LSTMCLI_CACHE_DIR": str(tmp_path / "cache")})
    assert (ran.code, ran.err) == (0, "")
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "want.h5").read_bytes()


WITHOUT = """
import os
for name in ("fdatasync", "posix_fallocate", "sched_getaffinity", "memfd_create", "posix_fadvise"):
    delattr(os, name)
from lstmcli.__main__ import main
main()
"""


def test_what_macos_lacks(tmp_path: Path) -> None:
    """Also while the kernel is compiled, and when it then comes from the cache."""
    files.write_npy(tmp_path / "x.npy", X)
    (tmp_path / "run.py").write_text(WITHOUT)
    run = ["run", "-i", "x.npy", "-u", "3", "-q", "-o"]
    succeed(*run, "want.h5", cwd=tmp_path)
    env = os.environ | {"LSTMCLI_CACHE_DIR": str(tmp_path / "cache"), "PATH": str(tmp_path)}  # where no linker is
    for output in ("first.h5", "second.h5"):
        command = [sys.executable, "run.py", *run, output]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / output).read_bytes() == (tmp_path / "want.h5").read_bytes()
