"""NaN and Inf in valid steps are counted and named; what stands in the padding is nobody's business."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import Ran, assert_one_line, lstmcli
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.inputs.nonfinite import PIECE, Nonfinite, find_nonfinite


def run(case: Case, folder: Path, x: np.ndarray, *args: object) -> Ran:
    files.write_npy(folder / "x.npy", x)
    inputs = ["-i", "x.npy", "--lens", case.lens_npy, "--weights", case.weights]
    return lstmcli("run", *inputs, "-o", "out.h5", "--overwrite", *args, cwd=folder)


@pytest.fixture
def spoilt(case: Case) -> np.ndarray:
    x = case.x.copy()
    x[files.padding(x.shape, case.lengths)] = np.nan
    x[4, 16, 0] = np.inf
    x[3, 8, 7] = np.nan
    x[3, 8, 9] = -np.inf
    return x


@pytest.mark.parametrize("memory", ["1GB", "40KB"])
def test_warn_is_the_default(memory: str, case: Case, spoilt: np.ndarray, tmp_path: Path) -> None:
    ran = run(case, tmp_path, spoilt, "--json", "--max-memory", memory)
    assert ran.code == 0
    assert "x.npy: NaN or Inf in 2 of 101 valid steps, first in sequence 3, step 8" in ran.err
    assert ran.json["nonfinite"] == {"steps": 2, "row": 3, "step": 8}
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["nonfinite_steps"] == 2
        assert file.attrs["nonfinite_first"].tolist() == [3, 8]


def test_nothing_is_said_of_finite_input(case: Case, tmp_path: Path) -> None:
    x = case.x.copy()
    x[0, 0, 0] = 3e38  # its square is not finite
    x[files.padding(x.shape, case.lengths)] = np.nan
    ran = run(case, tmp_path, x, "--json", "--progress", "none")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["nonfinite"] == {"steps": 0, "row": -1, "step": -1}
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["nonfinite_steps"] == 0


def test_error(case: Case, spoilt: np.ndarray, tmp_path: Path) -> None:
    assert_one_line(run(case, tmp_path, spoilt, "--nonfinite", "error"), 65, "x.npy, sequence 3, step 8", "NaN or Inf")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_pass_does_not_look(case: Case, spoilt: np.ndarray, tmp_path: Path) -> None:
    ran = run(case, tmp_path, spoilt, "--nonfinite", "pass", "--json", "--progress", "none")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["nonfinite"] is None
    with h5py.File(tmp_path / "out.h5") as file:
        assert "nonfinite_steps" not in file.attrs


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    bad=st.lists(st.integers(0, 10**6), max_size=4),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    dtype=st.sampled_from([np.float32, np.float64]),
    huge=st.booleans(),
)
def test_like_isfinite(lengths, bad, value, dtype, huge):
    lengths = np.array(lengths, np.int64)
    rows = np.zeros((lengths.sum(), 37), dtype)
    if huge and rows.size:
        rows[-1] = np.finfo(dtype).max
    for k in bad if rows.size else []:
        rows.reshape(-1)[k % rows.size] = value
    steps = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    got = find_nonfinite(rows, 5, np.full(len(lengths), 100), lengths)
    if not len(steps):
        assert got == Nonfinite(0, -1, -1)
        return
    sequence = np.repeat(np.arange(len(lengths)), lengths)[steps[0]]
    assert got == Nonfinite(len(steps), 5 + sequence, 100 + steps[0] - lengths[:sequence].sum())


def test_the_last_value_of_a_piece_and_the_first_of_the_next():
    for at in (PIECE - 1, PIECE, 3 * PIECE - 1):
        rows = np.zeros((3 * PIECE, 1), np.float32)
        rows[at] = np.inf
        assert find_nonfinite(rows, 0, np.array([0]), np.array([3 * PIECE])) == Nonfinite(1, 0, at)


def test_the_first_of_two():
    assert Nonfinite(2, 3, 9) + Nonfinite(1, 3, 4) == Nonfinite(3, 3, 4)
    assert Nonfinite() + Nonfinite(1, 3, 4) == Nonfinite(1, 3, 4) == Nonfinite(1, 3, 4) + Nonfinite()
