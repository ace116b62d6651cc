"""The fast CRC-32 is zlib's."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.kernel import crc32


@pytest.mark.parametrize("much", [False, True])
@given(
    lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    width=st.sampled_from([1, 3, 4, 28]),
    seed=st.integers(0, 99),
)
def test_like_zlib(much, lengths, width, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (sum(lengths), width), np.uint8)
    sums = rng.integers(0, 1 << 32, len(lengths), np.uint32)
    ends = np.cumsum(np.array(lengths, np.int64))
    want = [zlib.crc32(rows[end - n : end].tobytes(), int(v)) for end, n, v in zip(ends, lengths, sums, strict=True)]
    crc32.crc32_rows(rows, ends, sums, much)
    assert sums.tolist() == want


def test_no_rows():
    sums = np.array([7, 8], np.uint32)
    crc32.crc32_rows(np.zeros((0, 5), np.float32), np.zeros(2, np.int64), sums, True)
    assert sums.tolist() == [7, 8]


def test_a_cpu_that_cannot(monkeypatch):
    monkeypatch.setattr(crc32, "compile_rows", lambda: None)
    rows, sums = np.ones((4000, 2), np.float32), np.zeros(1, np.uint32)
    crc32.crc32_rows(rows, np.array([4000]), sums, True)
    assert sums[0] == zlib.crc32(rows.tobytes())
