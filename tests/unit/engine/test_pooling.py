"""Pooling goes through the steps in their order, however sequences are cut and however many lie side by side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.engine import pooling

FUNCTIONS = ("mean", "sum", "max", "last")


def naive(function: str, steps: np.ndarray) -> np.ndarray:
    """Of one sequence (length, width), a number at a time."""
    found = []
    for column in steps.T:
        total, largest = 0.0, -np.inf
        for value in column:
            total += float(value)
            largest = max(largest, float(value))
        of = {"sum": total, "mean": total / max(1, len(column)), "max": largest, "last": column[-1] if len(column) else 0.0}
        found.append(of[function] if len(column) else 0.0)
    return np.array(found, steps.dtype)


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=20),
    cuts=st.lists(st.integers(0, 12), max_size=3).map(sorted),
    function=st.sampled_from(FUNCTIONS),
    width=st.integers(1, 3),
    bits=st.sampled_from([32, 64]),
)
def test_cut_anywhere(lengths: list[int], cuts: list[int], function: str, width: int, bits: int) -> None:
    rng = np.random.default_rng(sum(lengths))
    dtype = np.dtype(f"f{bits // 8}")
    sequences = [(rng.normal(size=(n, width)) * 10.0 ** rng.integers(-8, 8, (n, width))).astype(dtype) for n in lengths]
    pooled = pooling.pool_start(function, len(lengths), width, dtype)
    for start, stop in zip([0, *cuts], [*cuts, 12], strict=True):
        parts = [sequence[start:stop] for sequence in sequences]
        steps = np.array([len(part) for part in parts])
        pooling.pool_steps(function, np.concatenate(parts), np.cumsum(steps) - steps, steps, pooled)
    got = pooling.pool_end(function, pooled, np.array(lengths), dtype)
    np.testing.assert_array_equal(got, np.stack([naive(function, one) for one in sequences]), strict=True)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_few_long_sequences(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "PIECE", 64)
    lengths = np.array([1000, 0, 257])
    rows = np.random.default_rng(1).normal(size=(1257, 5)).astype(np.float32)
    pooled = pooling.pool_start(function, 3, 5, rows.dtype)
    pooling.pool_steps(function, rows, np.array([0, 1000, 1000]), lengths, pooled)
    got = pooling.pool_end(function, pooled, lengths, rows.dtype)
    np.testing.assert_array_equal(got, np.stack([naive(function, one) for one in np.split(rows, [1000, 1000])]), strict=True)


def test_the_larger_of_two_zeros_is_plus_zero() -> None:
    for zeros in ([0.0, -0.0], [-0.0, 0.0], [-0.0, -0.0]):
        pooled = pooling.pool_start("max", 1, 1, np.dtype("f4"))
        pooling.pool_steps("max", np.array(zeros, "f4")[:, None], np.array([0]), np.array([2]), pooled)
        assert not np.signbit(pooling.pool_end("max", pooled, np.array([2]), np.dtype("f4"))).any()
