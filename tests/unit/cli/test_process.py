"""How the process ends after an error."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

import click
import h5py
import pytest

from lstmcli.cli.param_types import FILE_NAME
from lstmcli.cli.process import ending_of, resuming
from lstmcli.errors import DataError, SignalError


def refuse(*args: object, **kwargs: object) -> None:
    raise RuntimeError("none left")


def test_a_thread_that_cannot_start_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever words the system has for it; and no other RuntimeError is taken for it."""
    for name in ("_start_new_thread", "_start_joinable_thread"):  # until Python 3.12, and since
        monkeypatch.setattr(threading, name, refuse, raising=False)
    with pytest.raises(RuntimeError) as caught:
        threading.Thread(target=print).start()
    ending = ending_of(caught.value)
    assert ending
    assert ending.code == 1
    assert "--threads" in ending.message
    with pytest.raises(RuntimeError) as caught:
        refuse()
    assert ending_of(caught.value) is None


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (MemoryError(), 1, "--max-memory"),
        (ModuleNotFoundError("No module named 'h5py'"), 1, "'h5py'; the installation is incomplete: reinstall lstmcli"),
        (ImportError("x.so: failed to map segment from shared object"), 1, "out of memory, or a limit is too low"),
        (ImportError("IMPORTANT: read this\nx.so: cannot allocate memory"), 1, "(ulimit -a): x.so: cannot allocate memory"),
        (caused_by(ImportError("numpy.core failed to import"), MemoryError()), 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), 74, "is something full"),
        (OSError("dlopen failed"), 1, "dlopen failed"),
        (SystemError("a {brace}"), 1, "a {brace}"),
        (DataError("x.npy: {0}"), 65, "x.npy: {0}"),
        (SignalError(15), 143, "SIGTERM"),
        (click.UsageError("no such thing"), 2, "no such thing"),
    ],
)
def test_an_expected_error_has_its_code_and_advice(error: BaseException, code: int, words: str) -> None:
    ending = ending_of(error)
    assert ending
    assert ending.code == code
    assert words in ending.message


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), AssertionError(), RuntimeError("can't start new thread")])
def test_any_other_error_is_a_bug(error: BaseException) -> None:
    assert ending_of(error) is None


def test_the_command_that_goes_on_is_quoted_for_a_shell() -> None:
    argv = ["/usr/bin/lstmcli", "run", "-i", "a b.npy", "it's.h5", "red\x1b[31m", os.fsdecode(b"\xff"), "--resume"]
    line = resuming(argv)
    assert line.isprintable()
    assert line.count("--resume") == 1
    script = line.replace("lstmcli ", "printf '%s\\0' ", 1)
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.split(b"\0")
    assert words[:-1] == [os.fsencode(word) for word in argv[1:]]


def test_no_name_that_a_shell_would_run_is_completed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in (
            "plain-1.x_y",
            "é",
            "$(id)",
            "`id`",
            "a;id",
            "a\nb",
            "\x1b[31m",
            "a b",
            "a'b",
            'a"b',
            "a|b",
            "a>b",
            "a\\b",
        ):
            file[name] = [1.0]
    found = FILE_NAME.shell_complete(click.Context(click.Command("run")), click.Argument(["x"]), f"{tmp_path}/x.h5::")
    assert [item.value.rpartition("::/")[2] for item in found] == ["plain-1.x_y", "é"]
