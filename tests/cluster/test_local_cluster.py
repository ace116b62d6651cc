"""--scheduler local:N where its processes cannot start: 69 in one line, soon, or after a minute with an old Dask."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.command import SECONDS, Ran, assert_one_line
from helpers.system_tools import under

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")
DASK = tuple(int(number) for number in distributed.__version__.split(".")[:2])


def run(folder: Path, prefix: list[object], **env: str) -> Ran:
    files.write_npy(folder / "x.npy", np.zeros((3, 4, 2), np.float32))
    options = ["-i", folder / "x.npy", "-u", 3, "--scheduler", "local:1", "-o", folder / "out.h5", "-q"]
    ran = under(prefix, "run", *options, cwd=folder, env={**os.environ, **env})
    assert not (folder / "out.h5").exists()
    return ran


@pytest.mark.parametrize(
    "prefix",
    [
        ["prlimit", "--nofile=20"],
        ["prlimit", "--as=270000000"],  # below 230 MB Dask itself cannot be loaded, and 450 MB are enough for a run
        ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh"],
    ],
    ids=["few open files", "little memory", "a deleted folder"],
)
def test_limits_that_are_too_low(prefix: list[object], tmp_path: Path) -> None:
    ran = run(tmp_path, prefix)
    if DASK < (2026, 8):  # its process may print a traceback of its own before
        ran = replace(ran, err=ran.err[ran.err.rfind("lstmcli: error") :])
    assert_one_line(ran, 69, "local:1", "do not start")


WITHOUT_CALLBACKS = """
import threading
start = threading.Thread.start

def refused(thread):
    if "Callback" in thread.name:
        raise RuntimeError("can't start new thread")
    start(thread)

if __name__ == "__main__":
    threading.Thread.start = refused
    from lstmcli.__main__ import main
    main()
"""


def test_no_thread_for_callbacks_of_dask(tmp_path: Path) -> None:
    """Dask's client loses them where memory ends just then; a run that waits for one waits for ever."""
    files.write_npy(tmp_path / "x.npy", np.zeros((3, 4, 2), np.float32))
    (tmp_path / "run.py").write_text(WITHOUT_CALLBACKS)
    options = ["-i", "x.npy", "-u", "3", "--scheduler", "local:1", "-o", "out.h5", "-q"]
    command = [sys.executable, "run.py", "run", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", range(440, 921, 60))
def test_an_end_comes_whatever_memory_there_is(megabytes: int, tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.zeros((9, 4, 2), np.float32))
    options = ["-i", "x.npy", "-u", 3, "--scheduler", "local:2", "-o", "out.h5", "-q"]
    ran = under(["prlimit", f"--as={megabytes}000000"], "run", *options, cwd=tmp_path)
    assert ran.code in (0, 1, 69), ran.err
    if ran.code:
        assert_one_line(ran, ran.code)
    assert (tmp_path / "out.h5").exists() == (ran.code == 0)


def test_settings_of_dask_that_are_wrong(tmp_path: Path) -> None:
    assert_one_line(run(tmp_path, ["env"], DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="foo"), 69, "local:1", "DASK_")
