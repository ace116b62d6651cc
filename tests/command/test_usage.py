"""Options and commands that are wrong: exit code 2 and one line that names them, before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import assert_one_line, lstmcli, succeed


@pytest.mark.parametrize(
    "args",
    [
        ["--units", "0"],
        ["--units", "x"],
        ["--units", "7,0"],
        ["--units", "7,,3"],
        ["--units", ""],
        ["--units=-1"],
        ["--units", "2.5"],
        [],
        ["--units", "7", "--weights", "model.h5"],
        ["--units", "7", "--dtype", "float16"],
        ["--units", "7", "--threads", "0"],
        ["--units", "7", "--max-memory", "plenty"],
        ["--units", "7", "--save", "everything"],
        ["--units", "7", "--no-such-option"],
    ],
    ids=" ".join,
)
def test_usage_errors(args: list[str], case: Case, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(case.weights.read_bytes())
    before = files.snapshot(tmp_path)
    ran = lstmcli("run", "--input", case.x_npy, "--lens", case.lens_npy, *args, "--output", "out.h5", cwd=tmp_path)
    assert_one_line(ran, 2)
    assert files.snapshot(tmp_path) == before


def test_usage_error_names_option_and_value(case: Case, tmp_path: Path) -> None:
    assert_one_line(lstmcli("run", "--input", case.x_npy, "--units", "7,x", cwd=tmp_path), 2, "--units", "x")
    assert_one_line(lstmcli("run", "--units", 7, cwd=tmp_path), 2, "--input")
    assert_one_line(lstmcli("nonsense", cwd=tmp_path), 2, "nonsense")


def test_an_input_may_be_a_plain_argument(case: Case, tmp_path: Path) -> None:
    succeed("run", case.x_npy, "--units", 7, "-o", "plain.h5", cwd=tmp_path)
    succeed("run", "--units", 7, "-o", "named.h5", "--input", case.x_npy, cwd=tmp_path)
    assert (tmp_path / "plain.h5").read_bytes() == (tmp_path / "named.h5").read_bytes()
    assert_one_line(lstmcli("predict", "x.h5", "-w", "model.pt", cwd=tmp_path), 66, "x.h5")
    assert_one_line(lstmcli("run", "x.h5", "-i", "y.h5", "-u", 7, cwd=tmp_path), 2, "x.h5", "--input")
    assert_one_line(lstmcli("run", case.x_npy, "-", "-u", 7, cwd=tmp_path), 2, "standard input")


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
