"""What a reviewer found to lose work, or to say something wrong, once."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import LSTMCLI, assert_one_line, lstmcli, shell, succeed


@pytest.mark.parametrize("option", ["--input", "--lens", "--weights"])
def test_an_input_that_has_the_partial_name_is_not_overwritten(option: str, case: Case, tmp_path: Path) -> None:
    name = "out.h5.partial"
    given = {"--input": case.x_npy, "--lens": case.lens_npy, "--weights": case.weights}
    (tmp_path / name).write_bytes(given[option].read_bytes())
    given[option] = tmp_path / name
    before = (tmp_path / name).read_bytes()
    options = [text for pair in given.items() for text in pair]
    ran = lstmcli("run", *options, "--output", "out.h5", "--overwrite", cwd=tmp_path)
    assert_one_line(ran, 73, name)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("states", ["out.npy", "out.model.h5", "out.npy.partial"])
def test_two_files_of_a_result_under_one_name(states: str, case: Case, tmp_path: Path) -> None:
    options = ("-i", case.x_npy, "-l", case.lens_npy, "-w", case.weights, "-o", "out.npy", "--states", states)
    assert_one_line(lstmcli("run", *options, "--overwrite", cwd=tmp_path), 2, states)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_meanwhile_costs_no_work(tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.zeros((2000, 100, 64), np.float32))
    command = [*LSTMCLI, "run", "-i", "x.npy", "-u", "256", "-o", "out.h5", "--threads", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        while not (tmp_path / "out.h5.partial").exists():
            assert running.poll() is None
            time.sleep(0.01)
        (tmp_path / "out.h5").write_bytes(b"theirs")
        _, err = running.communicate()
    assert running.returncode == 73
    assert "out.h5.partial" in err
    assert (tmp_path / "out.h5").read_bytes() == b"theirs"
    (tmp_path / "out.h5").unlink()
    (tmp_path / "out.h5.partial").rename(tmp_path / "out.h5")
    assert files.read_result(tmp_path / "out.h5")[0].shape == (2000, 100, 256)


def test_closed_standard_streams(case: Case, tmp_path: Path) -> None:
    run = '--input "$1/x.npy" --lens "$1/lens.npy" --weights "$1/model.h5"'
    whole = succeed("run", *("-i", case.x_npy, "-l", case.lens_npy, "-w", case.weights, "-o", "-"), cwd=tmp_path)
    closed = shell(f"lstmcli run {run} --output - 2>&-", tmp_path, case.folder)
    assert (closed.code, closed.out) == (0, whole.out)
    assert_one_line(shell(f"lstmcli run {run} --output - >&-", tmp_path, case.folder), 74, "standard output")
    failed = shell("lstmcli run --input nowhere.npy --units 3 2>&-", tmp_path)
    assert (failed.code, failed.out) == (66, b"")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["run", "--input", "x.npy", "--units", "3", "--output", ""], 2, ["empty"]),
        (["run", "--input", "x.npy", "--weights", "m.h5", "--seed", "3"], 2, ["--seed"]),
        (["run", "--input", "x.npy", "--units", "3", "--max-memory", "9" * 400], 2, ["--max-memory"]),
        (["run", "--input", "x.npy", "--units", "4000", "--max-memory", "10MB"], 2, ["--max-memory"]),
        (["run", "--input", "no\x1b[31mred.npy", "--units", "3"], 66, ["\\x1b"]),
        (["run", "--input", "x.npy", "--units", "3", "--output", "a\x1b[31mred.txt"], 2, ["\\x1b"]),
    ],
)
def test_wrong_usage(args: list[str], code: int, words: list[str], tmp_path: Path) -> None:
    files.write_npy(tmp_path / "x.npy", np.zeros((2, 3, 4), np.float32))
    assert_one_line(lstmcli(*args, cwd=tmp_path), code, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("args", [[], ["model"]])
def test_no_command_prints_the_help(args: list[str], tmp_path: Path) -> None:
    ran = lstmcli(*args, cwd=tmp_path)
    assert ran.code == 2
    assert ran.err.startswith("Usage: ")
    assert len(ran.err.splitlines()) > 3


def test_strange_slurm_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcli.engine.cpus import available_threads

    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "²")
    assert available_threads() >= 1


@pytest.mark.skipif(sys.platform == "darwin", reason="script(1) takes other options there")
def test_binary_data_to_a_terminal_is_refused(case: Case, tmp_path: Path) -> None:
    line = f"{sys.executable} -m lstmcli run -i {case.x_npy} -u 3 -o -"
    done = subprocess.run(["script", "-qec", line, "/dev/null"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "terminal" in done.stdout
