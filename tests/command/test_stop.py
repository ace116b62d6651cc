"""Signals and --stop-after end a run in order, and the command that is printed goes on with it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.command import LSTMCLI, SECONDS, assert_one_line, lstmcli, shell, succeed
from helpers.small_run import SmallRun
from helpers.system_tools import started

NAME = "it's\n2.npy"  # as awkward for a shell as a name can be


def small_run_of_that_name(small_run: Callable[..., SmallRun], sequences: int, steps: int) -> SmallRun:
    """256 units over 32 features, every sequence of full length."""
    options = "--threads 1 --max-memory 8MB --progress none"
    return small_run(sequences, steps, 256, features=32, lengths=np.full(sequences, steps), options=options, x_name=NAME)


@pytest.fixture(scope="module")
def job(small_run: Callable[..., SmallRun]) -> SmallRun:
    """Takes about two seconds."""
    return small_run_of_that_name(small_run, 1500, 60)


@contextmanager
def begun(job: SmallRun, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The run, when it has computed some blocks."""
    with started(*job.words(x=NAME), cwd=folder, partial=folder / "out.h5.partial") as running:
        time.sleep(0.2)
        yield running


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_signal_stops_the_run_and_the_printed_command_goes_on(name: str, job: SmallRun, tmp_path: Path) -> None:
    with begun(job, tmp_path) as running:
        began = time.monotonic()
        running.send_signal(signal.Signals[name])
        out, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 75, err
    assert time.monotonic() - began < 5
    assert out == ""
    assert len(err.splitlines()) == 1
    told = re.search(rf"stopped by {name} after ([\d,]+) of 90,000 steps; go on with: (lstmcli run .* --resume)$", err.rstrip())
    assert told, err
    assert not (tmp_path / "out.h5").exists()
    if name != "SIGTERM":
        return
    done = shell(f"{told[2]} --json", tmp_path)
    assert done.code == 0, done.err
    assert done.json["resumed_steps"] == int(told[1].replace(",", "")) > 0
    assert (tmp_path / "out.h5").read_bytes() == job.result


def test_sequences_that_were_stopped_midway_go_on_from_there(small_run: Callable[..., SmallRun], tmp_path: Path) -> None:
    """Several of their blocks come between two lines of the journal that have a state."""
    job = small_run_of_that_name(small_run, 24, 5000)
    with begun(job, tmp_path) as running:
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=SECONDS)
    told = re.search(r"stopped by SIGTERM after ([\d,]+) of", err)
    assert told, err
    done = succeed(*job.words(x=NAME), "--resume", "--json", cwd=tmp_path)
    assert done.json["resumed_steps"] == int(told[1].replace(",", "")) > 0
    assert (tmp_path / "out.h5").read_bytes() == job.result


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_a_second_signal_ends_it_at_once(name: str, code: int, job: SmallRun, tmp_path: Path) -> None:
    with begun(job, tmp_path) as running:
        running.send_signal(signal.Signals[name])
        time.sleep(0.003)
        running.send_signal(signal.Signals[name])
        _, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, err) == (code, "") or running.returncode == 75  # it was done with the block by then
    if name == "SIGINT":
        succeed(*job.words(x=NAME), "--resume", cwd=tmp_path)
        assert (tmp_path / "out.h5").read_bytes() == job.result


def test_stop_after(job: SmallRun, tmp_path: Path) -> None:
    for _ in range(100):
        ran = lstmcli(*job.words(x=NAME), "--resume", "--stop-after", "0.8s", cwd=tmp_path)
        if ran.code == 0:
            break
        assert_one_line(ran, 75, "stopped by --stop-after", "--resume")
        assert ran.err.count("--resume") == 1
    assert (tmp_path / "out.h5").read_bytes() == job.result


@pytest.mark.parametrize("text", ["", "5x", "-1s", "1h 5m", "m"])
def test_times_that_are_none(text: str, tmp_path: Path) -> None:
    assert_one_line(lstmcli("run", "-i", "x.npy", "-u", 3, "--stop-after", text, cwd=tmp_path), 2, "--stop-after")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_what_cannot_be_resumed_leaves_nothing(name: str, code: int, tmp_path: Path) -> None:
    command = [*LSTMCLI, "run", "-i", "-", "-u", "3", "-o", "out.h5"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdin
        header = (
            np.lib.format.magic(1, 0)
            + b"\x46\x00"
            + b"{'descr': '<f4', 'fortran_order': False, 'shape': (9, 9, 9)}".ljust(69)
            + b"\n"
        )
        os.write(running.stdin.fileno(), header)
        while running.poll() is None and not (tmp_path / "out.h5.partial").exists():
            time.sleep(0.005)
        time.sleep(0.1)
        running.send_signal(signal.Signals[name])
        assert running.wait(SECONDS) == code
        assert running.stderr
        assert running.stderr.read() == f"lstmcli: interrupted by {name}\n"
    assert list(tmp_path.iterdir()) == []
