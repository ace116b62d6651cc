"""Arrays with time first or in Fortran order."""

import os
from contextlib import closing

import numpy as np
import pytest
from helpers import files
from helpers.sources import ORDERS, open_layout, packed, padded, read

from lstmcli.inputs import strided


@pytest.mark.parametrize(("layout", "axes"), ORDERS)
def test_more_than_the_staging_buffer_holds(layout, axes, tmp_path):
    lengths = np.random.default_rng(1).integers(0, 51, 600)
    x = padded(lengths, 50, 16, ">f8")
    with closing(open_layout(layout, tmp_path / "x.npy", x, axes)) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
        np.testing.assert_array_equal(read(source, 9, 0, lengths[9:]), packed(x, 9, 0, lengths[9:], np.float32))


@pytest.mark.parametrize(("layout", "axes"), ORDERS)
def test_more_sequences_than_the_staging_buffer_holds(layout, axes, tmp_path):
    x = np.arange(300_000 * 2, dtype="<f4").reshape(-1, 2, 1)
    lengths = np.random.default_rng(2).integers(0, 3, len(x))
    with closing(open_layout(layout, tmp_path / "x.npy", x, axes)) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), x[~files.padding(x.shape, lengths)])


@pytest.mark.parametrize(("layout", "axes"), ORDERS)
def test_many_neighbours_without_a_step(layout, axes, tmp_path, monkeypatch):
    monkeypatch.setattr(strided, "TILE", 8)
    lengths = [0] * 20 + [4] + [0] * 20 + [1, 2] + [0] * 20
    x = padded(lengths, 6, 3)
    with closing(open_layout(layout, tmp_path / "x.npy", x, axes)) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))


@pytest.mark.parametrize(("layout", "axes"), ORDERS[1:])
@pytest.mark.parametrize("stored", ["<f4", ">f8"])
def test_wide_gaps_are_not_read(layout, axes, stored, tmp_path, monkeypatch):
    lengths = [1, 0, 2, 2, 0, 1]
    x = padded(lengths, 4, 3, stored)
    read_bytes = []
    preadv = os.preadv

    def counted(fd, views, offset):
        read_bytes.append(preadv(fd, views, offset))
        return read_bytes[-1]

    with closing(open_layout(layout, tmp_path / "x.npy", x, axes)) as source:
        monkeypatch.setattr(os, "preadv", counted)
        monkeypatch.setattr(strided, "CALL", x.itemsize)
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
    assert sum(read_bytes) == sum(lengths) * 3 * x.itemsize
