"""Masks in memory: each dtype and place against the lengths that it means, each malformed one against its error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.errors import DataError
from lstmcli.inputs.beside.masks import read_mask

DTYPES = ["?", "u1", "<i2", ">i8", "<f2", ">f4", "<f8"]


@given(
    rows=st.lists(st.integers(0, 6).flatmap(lambda n: st.tuples(st.integers(0, 6 - n), st.just(n)))),
    dtype=st.sampled_from(DTYPES),
)
def test_runs_of_ones(rows, dtype):
    mask = np.zeros((len(rows), 6), dtype)
    for row, (start, length) in zip(mask, rows, strict=True):
        row[start : start + length] = 1
    valid = read_mask(mask, "m")
    assert valid.lengths.tolist() == [length for _, length in rows]
    assert valid.starts.tolist() == [start if length else 0 for start, length in rows]
    assert valid.starts.dtype == valid.lengths.dtype == np.int64


def test_no_steps():
    assert read_mask(np.zeros((3, 0), bool), "m").lengths.tolist() == [0, 0, 0]


BAD = {
    "hole": ([[1, 1, 0], [1, 0, 1]], "m, row 11, step 1: expected the ones of a row in one run, got 0 with ones after it"),
    "two holes": ([[0, 1, 0, 1], [1, 0, 1, 1]], "m, row 10, step 2: "),
    "two": ([[1, 1, 0], [1, 2, 0]], "m, row 11, step 1: expected a mask of 0 and 1, got 2"),
    "negative": ([[1, -1, 0]], "m, row 10, step 1: expected a mask of 0 and 1, got -1"),
    "half": ([[1, 0.5, 0]], "m, row 10, step 1: expected a mask of 0 and 1, got 0.5"),
    "NaN": ([[1, np.nan]], "m, row 10, step 1: expected a mask of 0 and 1, got nan"),
    "added to scores": ([[0.0, -np.inf]], "m, row 10, step 1: expected a mask of 0 and 1, got -inf"),
    "text": ([["1", "0"]], "m: expected a mask of bool, or of integers or floats 0 and 1, got <U1"),
    "complex": ([[1j]], "m: expected a mask of bool, .* got complex128"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_masks(case):
    mask, message = BAD[case]
    with pytest.raises(DataError, match=f"^{message}"):
        read_mask(np.array(mask), "m", 10)
