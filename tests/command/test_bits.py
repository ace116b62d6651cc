"""The same bits, always: nothing but the valid steps and the weights can touch a result of the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import files
from helpers.case import Case
from helpers.command import succeed

Result = tuple[np.ndarray | None, files.Arrays]


def run(case: Case, folder: Path, x: np.ndarray, lengths: np.ndarray, *args: object) -> Result:
    files.write_npy(folder / "x.npy", x)
    files.write_npy(folder / "lens.npy", lengths)
    inputs = ["--input", "x.npy", "--lens", "lens.npy", "--weights", case.weights]
    succeed("run", *inputs, "--output", "out.h5", "--overwrite", "--quiet", *args, cwd=folder)
    return files.read_result(folder / "out.h5")


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30, -0.0, 1e-45])
def test_padding_changes_no_bit(garbage: float, case: Case, tmp_path: Path) -> None:
    x = case.x.copy()
    x[files.padding(x.shape, case.lengths)] = garbage
    files.assert_same_bits(run(case, tmp_path, x, case.lengths), case.result)


def test_more_padding_changes_no_valid_step(case: Case, tmp_path: Path) -> None:
    x = np.full((13, 30, 20), np.nan, np.float32)
    x[:, :17] = case.x
    outputs, state = run(case, tmp_path, x, case.lengths)
    assert outputs is not None
    assert not outputs[:, 17:].any()
    files.assert_same_bits((np.ascontiguousarray(outputs[:, :17]), state), case.result)


def test_permuted_batch_permutes_the_result(case: Case, tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(13)
    got = run(case, tmp_path, case.x[order], case.lengths[order])
    files.assert_same_bits(got, files.rows_of(case.result, order))


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_threads_change_no_bit(threads: int, case: Case, tmp_path: Path) -> None:
    files.assert_same_bits(run(case, tmp_path, case.x, case.lengths, "--threads", threads), case.result)


@pytest.mark.parametrize("row", [0, 1, 2, 12])
def test_a_sequence_alone_is_the_sequence_in_its_batch(row: int, case: Case, tmp_path: Path) -> None:
    one = slice(row, row + 1)
    files.assert_same_bits(run(case, tmp_path, case.x[one], case.lengths[one]), files.rows_of(case.result, one))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_and_threads_change_no_bit_of_a_run_of_many_blocks(dtype: str, case: Case, tmp_path: Path) -> None:
    """12 MB of input within 4 MB."""
    rng = np.random.default_rng(4)
    lengths = rng.integers(0, 301, 500)
    x = rng.normal(size=(500, 300, 20)).astype(np.float32)
    want = run(case, tmp_path, x, lengths, "--dtype", dtype, "--max-memory", "1GB", "--threads", 1)
    for options in [("4MB", 1), ("4MB", 2), ("9MB", 3)]:
        got = run(case, tmp_path, x, lengths, "--dtype", dtype, "--max-memory", options[0], "--threads", options[1])
        files.assert_same_bits(got, want)
    rows = np.array([0, 250, 499])
    files.assert_same_bits(run(case, tmp_path, x[rows], lengths[rows], "--dtype", dtype), files.rows_of(want, rows))


@pytest.mark.parametrize("order", ["C", "F"])
def test_time_major_in_many_blocks_gives_the_same_bits(order: str, case: Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    lengths = rng.integers(0, 301, 500)
    x = rng.normal(size=(500, 300, 20)).astype(np.float32)
    want = run(case, tmp_path, x, lengths)
    for memory in ("4MB", "1GB"):
        got = run(case, tmp_path, np.asarray(x.swapaxes(0, 1), order=order), lengths, "--time-major", "--max-memory", memory)
        files.assert_same_bits(got, want)


def test_pipe_of_many_blocks_gives_the_same_bits(case: Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    lengths = rng.integers(0, 301, 300)
    x = rng.normal(size=(300, 300, 20)).astype(np.float32)
    want = run(case, tmp_path, x, lengths)
    stdin = (tmp_path / "x.npy").read_bytes()
    inputs = ["--input", "-", "--lens", "lens.npy", "--weights", case.weights, "--max-memory", "4MB"]
    ran = succeed("run", *inputs, "--output", "-", "--states", "s.npz", "--quiet", cwd=tmp_path, stdin=stdin)
    (tmp_path / "piped.npy").write_bytes(ran.out)
    files.assert_same_bits((np.load(tmp_path / "piped.npy"), files.read_npz(tmp_path / "s.npz")), want)


def test_nan_in_a_valid_step_stays_in_its_sequence_and_after_it(case: Case, tmp_path: Path) -> None:
    x = case.x.copy()
    x[3, 4, 7] = np.nan
    outputs, state = run(case, tmp_path, x, case.lengths)
    assert outputs is not None
    others = np.arange(13) != 3
    files.assert_same_bits(files.rows_of((outputs, state), others), files.rows_of(case.result, others))
    assert outputs[3, :4].tobytes() == case.outputs[3, :4].tobytes()
    assert np.isnan(outputs[3, 4:9]).all()
    assert not outputs[3, 9:].any()
    assert all(np.isnan(value[3]).all() for value in state.values())
