"""Runs that are killed, stopped or refused by the system lose nothing, and go on to the bytes of an undisturbed run."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import SECONDS, Ran, assert_one_line, lstmcli, succeed
from helpers.small_run import SOME_LONG, SmallRun
from helpers.system_tools import run_with_faults


@pytest.fixture(scope="module")
def job(small_run: Callable[..., SmallRun]) -> SmallRun:
    options = "--threads 1 --max-memory 60KB -q"
    return small_run(14, 60, 5, features=20, seed=2, lengths=SOME_LONG, formats=("model.h5",), options=options)


def faults_in_turn(
    job: SmallRun, folder: Path, output: str, *args: str, old: bytes | None = None, **options: Any
) -> list[dict[str, Any]]:
    """What run_with_faults tells of runs in `folder`, with an old output there if `old` is given, checked for lies."""
    job.copy_to(folder)
    golden = folder.parent / f"{folder.name}-golden"
    golden.mkdir()
    succeed(*job.words(output), *args, cwd=golden)
    want = hashlib.sha256((golden / output).read_bytes()).hexdigest()
    before = None
    if old is not None:
        (folder / output).write_bytes(old)
        before = hashlib.sha256(old).hexdigest()
    told = run_with_faults(folder, argv=[*job.words(output, folder=Path()), *args], output=output, **options)
    for k, one in enumerate(told, 1):
        where = f"call {k}: {one}"
        assert one["output"] in (before, want), where
        assert one["code"] != 0 or one["output"] == want, where
        assert "Traceback" not in one["stderr"], where
        assert len(one["stderr"].splitlines()) <= 1, where
        if one["code"]:
            # 73: the run had its result named and was killed right afterwards.
            assert one["resumed"] == 0 or (one["resumed"] == 73 and "exists already" in one["resumed_stderr"]), where
            assert one["result"] == want, where
        assert set(one["left"]) <= {path.name for path in golden.iterdir()}, where
    assert told[-1]["code"] == 0
    return told


@pytest.mark.parametrize(("output", "fault", "step"), [("out.h5", "kill", 2), ("out.npy", "kill", 7), ("out.h5", "torn", 8)])
def test_killed_at_each_call_in_turn(output: str, fault: str, step: int, job: SmallRun, tmp_path: Path) -> None:
    told = faults_in_turn(job, tmp_path, output, fault=fault, step=step)
    assert len(told) > 10
    assert all(one["code"] == -9 for one in told[:-1])


def test_killed_with_padding_in_front(job: SmallRun, tmp_path: Path) -> None:
    assert len(faults_in_turn(job, tmp_path, "out.h5", "--padding", "pre", fault="kill", step=7)) > 5


def test_killed_while_it_replaces_an_old_output(job: SmallRun, tmp_path: Path) -> None:
    told = faults_in_turn(job, tmp_path, "out.h5", "--overwrite", old=b"precious", fault="kill", step=9)
    assert len(told) > 5


@pytest.mark.parametrize(("fault", "forever", "step"), [("ENOSPC", False, 5), ("EIO", True, 4)])
def test_each_call_fails_in_turn(fault: str, forever: bool, step: int, job: SmallRun, tmp_path: Path) -> None:
    told = faults_in_turn(job, tmp_path, "out.h5", "--overwrite", old=b"precious", fault=fault, forever=forever, step=step)
    for one in told[:-1]:
        assert one["code"] in (73, 74), one
        assert os.strerror(getattr(errno, fault)) in one["stderr"]
    assert {one["code"] for one in told if one["call"] != "open"} == {0, 74}


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out.h5", "out.npy"])
@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("fault", ["torn", "kill", "ENOSPC", "EIO", "EDQUOT"])
def test_each_call_in_turn_fully(fault: str, forever: bool, output: str, job: SmallRun, tmp_path: Path) -> None:
    told = faults_in_turn(job, tmp_path, output, "--overwrite", old=b"precious", fault=fault, forever=forever)
    every = {"open", "ftruncate", "posix_fallocate", "pwrite", "fdatasync", "fsync", "replace", "unlink", "close"}
    assert every == {one["call"] for one in told[:-1]}


@pytest.mark.slow
@pytest.mark.parametrize("again", range(1, 50, 3))
def test_killed_at_each_call_and_again_while_it_resumes(again: int, job: SmallRun, tmp_path: Path) -> None:
    faults_in_turn(job, tmp_path, "out.h5", fault="kill", again=again, step=3)


def test_killed_again_while_it_resumes(job: SmallRun, tmp_path: Path) -> None:
    faults_in_turn(job, tmp_path, "out.h5", fault="kill", again=20, step=11)


@pytest.fixture(scope="module")
def stopped(job: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs, and a run that was killed after some of its blocks."""
    folder = tmp_path_factory.mktemp("stopped")
    job.copy_to(folder)
    run_with_faults(folder, argv=job.words(folder=Path()), output="out.h5", fault="kill", stop=43)
    last = json.loads((folder / "out.h5.journal").read_text().splitlines()[-1].rpartition(" ")[0])
    assert last[:5] == [6, 3, 22, 44, False]  # steps 22 to 44 of 3 sequences from the sixth on: more are to come
    return folder


@pytest.fixture
def left(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def resume(job: SmallRun, left: Path) -> Callable[..., Ran]:
    """Runs the command in that copy, with more options, of which --json may be one."""
    words = [word for word in job.words(folder=Path()) if word != "-q"]
    return lambda *args: lstmcli(*words, "--progress", "none", *args, cwd=left)


def test_inspect_says_what_is_done(left: Path) -> None:
    before = files.snapshot(left)
    for name in ("out.h5", "out.h5.partial", "out.h5.journal"):
        facts = succeed("inspect", "--json", name, cwd=left).json
        assert facts["what"] == "result of a run that was stopped: 6 of 14 sequences are on disk"
        assert facts["stopped"]["partial_bytes"] == (left / "out.h5.partial").stat().st_size
        assert (facts["stopped"]["being_written"], facts["made_of"]["options"]["dtype"]) == (False, "float32")
        assert "--resume goes on" in facts["notes"][0]
    assert files.snapshot(left) == before
    with (left / "out.h5.journal").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a run that writes has it
        assert "that goes on: 6 of 14" in succeed("inspect", "out.h5", cwd=left).text
    (left / "out.h5.journal").unlink()
    assert_one_line(lstmcli("inspect", "out.h5", cwd=left), 65, "out.h5.journal is missing")


def test_what_was_stopped_is_neither_taken_nor_lost(left: Path, resume: Callable[..., Ran]) -> None:
    before = files.snapshot(left)
    assert_one_line(resume(), 73, "out.h5.partial", "--resume", "--overwrite")
    assert files.snapshot(left) == before
    with pytest.raises(OSError, match="signature"):
        h5py.File(left / "out.h5.partial")
    assert_one_line(lstmcli("verify", "out.h5.partial", cwd=left), 65, "never completed")


def test_other_padding_is_another_run(left: Path, resume: Callable[..., Ran]) -> None:
    before = files.snapshot(left)
    ran = resume("--resume", "--padding", "pre")
    assert_one_line(ran, 65, "out.h5.journal: belongs to another run", "lengths was", "is now")
    assert files.snapshot(left) == before
    assert resume("--resume", "--padding", "post").code == 0


def test_resumed_with_other_threads_and_memory(job: SmallRun, left: Path, resume: Callable[..., Ran]) -> None:
    ran = resume("--resume", "--threads", 2, "--max-memory", "1GB", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["resumed_steps"] == 3 + 2 + 1 + 5 + 60 + (41 + 44)  # all that was noted
    assert (left / "out.h5").read_bytes() == job.result
    assert sorted(path.name for path in left.iterdir()) == ["lens.npy", "model.h5", "out.h5", "x.npy"]


def test_overwrite_begins_anew(job: SmallRun, left: Path, resume: Callable[..., Ran]) -> None:
    assert resume("--overwrite").code == 0
    assert (left / "out.h5").read_bytes() == job.result
    assert not list(left.glob("out.h5.*"))


def test_resume_begins_where_there_is_nothing(job: SmallRun, tmp_path: Path) -> None:
    job.copy_to(tmp_path)
    assert lstmcli(*job.words(folder=Path()), "--resume", cwd=tmp_path).code == 0
    assert (tmp_path / "out.h5").read_bytes() == job.result


def change_x(folder: Path) -> None:
    x = np.load(folder / "x.npy")
    x[5, 0, 0] += 1
    files.write_npy(folder / "x.npy", x)


def touch_x(folder: Path) -> None:
    (folder / "x.npy").touch()


def change_x_in_secret(folder: Path) -> None:
    before = (folder / "x.npy").stat()
    change_x(folder)
    os.utime(folder / "x.npy", ns=(before.st_atime_ns, before.st_mtime_ns))


def change_lengths(folder: Path) -> None:
    files.write_npy(folder / "lens.npy", np.load(folder / "lens.npy")[::-1])


def change_weights(folder: Path) -> None:
    with h5py.File(folder / "model.h5", "a") as file:
        file["model/0/bias"][2] += 0.5


@pytest.mark.parametrize(
    ("change", "args", "words"),
    [
        (change_x, [], ["input modified", "input sample"]),
        (change_x_in_secret, [], ["input sample"]),
        (touch_x, [], ["input modified"]),
        (change_lengths, [], ["lengths"]),
        (change_weights, [], ["model"]),
        (None, ["--dtype", "float64"], ["dtype was float32, is now float64"]),
        (None, ["--save", "states"], ["save"]),
        (None, ["--layout", "flat"], ["layout was None, is now flat"]),
        (None, ["--nonfinite", "pass"], ["nonfinite was warn, is now pass"]),
    ],
)
def test_another_run_is_not_continued(
    change: Any, args: list[str], words: list[str], left: Path, resume: Callable[..., Ran]
) -> None:
    if change:
        change(left)
    before = files.snapshot(left)
    assert_one_line(resume("--resume", *args), 65, "out.h5.journal", "--overwrite", *words)
    assert files.snapshot(left) == before


def test_another_version_does_not_go_on(left: Path, job: SmallRun) -> None:
    code = (
        "import sys, lstmcli.version; lstmcli.version.__version__ = '9.9'; sys.argv[0] = 'lstmcli'; "
        "from lstmcli.cli.main import main; main()"
    )
    call = [sys.executable, "-c", code, *job.words(folder=Path()), "--resume"]
    done = subprocess.run(call, cwd=left, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert_one_line(Ran(done.returncode, done.stdout.encode(), done.stderr), 65, "lstmcli was", "is now 9.9")


def test_every_difference_is_listed(left: Path, resume: Callable[..., Ran]) -> None:
    change_lengths(left)
    change_weights(left)
    assert_one_line(resume("--resume", "--dtype", "float64"), 65, "lengths was", "model was", "dtype was")


def test_a_journal_that_is_gone(left: Path, resume: Callable[..., Ran]) -> None:
    (left / "out.h5.journal").unlink()
    before = files.snapshot(left)
    assert_one_line(resume("--resume"), 65, "out.h5.journal", "missing", "--overwrite")
    assert files.snapshot(left) == before


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_data_that_are_not_what_was_stored_are_computed_again(
    damage: str, job: SmallRun, left: Path, resume: Callable[..., Ran]
) -> None:
    partial, want = left / "out.h5.partial", job.result
    content = bytearray(partial.read_bytes())
    place = next(k for k in range(len(content)) if content[k] and content[k] == want[k])
    content[place] ^= 16
    partial.write_bytes(content if damage == "flipped" else content[:place] if damage == "cut" else b"")
    if damage == "gone":
        partial.unlink()
    ran = resume("--resume", "--json")
    assert ran.code == 0
    assert ran.json["resumed_steps"] < 10
    assert partial.with_suffix("").read_bytes() == want


@pytest.mark.parametrize("name", ["out.h5.journal", "out.h5.partial"])
@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_names_that_were_planted_are_not_followed(name: str, option: str, left: Path, resume: Callable[..., Ran]) -> None:
    (left / name).rename(left / "elsewhere")
    (left / name).symlink_to(left / "elsewhere")
    before = files.snapshot(left)
    assert_one_line(resume(option), 73, name)
    assert files.snapshot(left)["elsewhere"] == before["elsewhere"]


@pytest.mark.parametrize("args", [["-i", "-", "-o", "out.h5"], ["-i", "x.npy", "-o", "-"]])
@pytest.mark.parametrize("option", [["--resume"], ["--stop-after", "5m"]])
def test_pipes_cannot_be_resumed(args: list[str], option: list[str], job: SmallRun, tmp_path: Path) -> None:
    shutil.copy(job.folder / "x.npy", tmp_path)
    ran = lstmcli("run", *args, "-u", 3, *option, cwd=tmp_path, stdin=(job.folder / "x.npy").read_bytes())
    assert_one_line(ran, 2, option[0], "pipe")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_second_run_is_refused_while_the_first_lives(left: Path, resume: Callable[..., Ran]) -> None:
    with (left / "out.h5.journal").open("rb") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        for option in ("--resume", "--overwrite"):
            before = files.snapshot(left)
            assert_one_line(resume(option), 73, "out.h5", "another run")
            assert files.snapshot(left) == before
    assert resume("--resume").code == 0


def test_all_that_was_noted_of_long_sequences_is_kept(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2, 100000, 8)).astype(np.float32))
    run = ["run", "-i", "x.npy", "-u", "64", "-o", "out.h5", "--threads", "1", "--max-memory", "300KB"]
    ran = lstmcli(*run, "--stop-after", "1s", cwd=tmp_path)
    assert ran.code == 75, ran.err
    told = re.search(r"after ([\d,]+) of 200,000 steps", ran.err)
    assert told
    assert succeed(*run, "--resume", "--json", cwd=tmp_path).json["resumed_steps"] == int(told[1].replace(",", "")) > 0
