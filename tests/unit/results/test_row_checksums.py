"""The checksum of each sequence of a block is zlib's CRC-32."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmcli.results.formats.result import crc32_rows


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@given(
    lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    width=st.sampled_from([1, 3, 4, 28]),
    seed=st.integers(0, 99),
)
def test_like_zlib(dtype, lengths, width, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (sum(lengths), width * dtype().itemsize), np.uint8).view(dtype)
    sums = rng.integers(0, 1 << 32, len(lengths), np.uint32)
    ends = np.cumsum(np.array(lengths, np.int64))
    want = [zlib.crc32(rows[end - n : end].tobytes(), int(v)) for end, n, v in zip(ends, lengths, sums, strict=True)]
    crc32_rows(rows, ends, sums)
    assert sums.tolist() == want


def test_no_rows():
    sums = np.array([7, 8], np.uint32)
    crc32_rows(np.zeros((0, 5), np.float32), np.zeros(2, np.int64), sums)
    assert sums.tolist() == [7, 8]


def test_sums_are_carried_on():
    rows, sums = np.arange(8, dtype=np.float32).reshape(4, 2), np.zeros(1, np.uint32)
    for part in (rows[:3], rows[3:]):
        crc32_rows(part, np.array([len(part)]), sums)
    assert sums[0] == zlib.crc32(rows.tobytes())
