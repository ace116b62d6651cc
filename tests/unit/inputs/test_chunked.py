"""Datasets that libhdf5 must decode."""

import tracemalloc
from contextlib import closing

import h5py
import numpy as np
import pytest
from helpers.sources import packed, padded, padded_from, read, save_h5, save_npy

from lstmcli.errors import DataError
from lstmcli.files import hdf5
from lstmcli.inputs import source as source_module
from lstmcli.inputs.open_input import open_source
from lstmcli.inputs.valid_steps import read_valid_steps


def test_compact_dataset(tmp_path):
    x = padded([2, 3], 3, 2)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space, kind = h5py.h5s.create_simple(x.shape), h5py.h5t.py_create(x.dtype)
        h5py.h5d.create(f.id, b"x", kind, space, properties).write(h5py.h5s.ALL, h5py.h5s.ALL, x)
    with closing(open_source(str(tmp_path / "x.h5"))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, [2, 3]), packed(x, 0, 0, [2, 3], np.float32))


def test_chunk_is_the_extent_in_the_file(tmp_path):
    x = np.zeros((10, 6, 4), np.float32)
    with closing(open_source(save_h5(tmp_path / "x.h5", x, chunks=(3, 4, 2)))) as source:
        assert source.chunk == (3, 4)
    with closing(open_source(save_npy(tmp_path / "x.npy", x))) as source:
        assert source.chunk == (1, 1)


def chunk_at(path, place):
    with h5py.File(path) as f:
        return f["x"].id.get_chunk_info_by_coord(place)


def test_chunks_of_padding_are_not_read(tmp_path):
    path, lengths = tmp_path / "x.h5", [2, 3, 8, 1, 0, 0]
    x = padded(lengths, 8, 4)
    spec = save_h5(path, x, chunks=(2, 4, 2), fletcher32=True)
    spoiled = [(0, 4, 0), (0, 4, 2), (4, 0, 0), (4, 4, 2)]
    places = [chunk_at(path, place) for place in spoiled]
    with path.open("r+b") as f:
        for place in places:
            f.seek(place.byte_offset)
            f.write(b"\xa5" * place.size)
    with closing(open_source(spec)) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
        with pytest.raises(DataError, match=r"x\.h5::/x, chunk at \(0, 4, 0\): damaged"):
            read(source, 0, 0, [5, 0])


def test_chunks_between_valid_steps_are_not_read(tmp_path):
    starts, lengths = [0, 8], [2, 1]
    path, x = tmp_path / "x.h5", padded_from(starts, lengths, 9, 4)
    with h5py.File(path, "w") as f:
        f.create_dataset("x", x.shape, "f4", chunks=(2, 3, 4))
        f["x"][:, :3], f["x"][:, 6:] = x[:, :3], x[:, 6:]
    with closing(open_source(str(path))) as source:
        np.testing.assert_array_equal(read(source, 0, starts, lengths), packed(x, 0, starts, lengths, np.float32))
        with pytest.raises(DataError, match=r"chunk at \(0, 3, 0\): was never written"):
            read(source, 0, [0, 5], [2, 4])


def test_chunks_that_were_never_written(tmp_path):
    path, lengths = tmp_path / "x.h5", [2, 3, 8, 1]
    x = padded(lengths, 8, 4)
    with h5py.File(path, "w") as f:
        f.create_dataset("x", x.shape, "f4", chunks=(2, 4, 4))
        f["x"][:2, :4], f["x"][2:] = x[:2, :4], x[2:]
    with closing(open_source(str(path))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, lengths), packed(x, 0, 0, lengths, np.float32))
        with pytest.raises(DataError, match=r"::/x, chunk at \(0, 4, 0\): was never written"):
            read(source, 0, 0, [2, 5])


def test_a_chunk_is_decoded_once_in_a_read(tmp_path, monkeypatch):
    lengths = [7, 3, 8, 1, 8]
    x = padded(lengths, 8, 4)
    with closing(open_source(save_h5(tmp_path / "x.h5", x, chunks=(2, 3, 3), compression="gzip"))) as source:
        decoded = []
        decode = source._decode

        def counted(begin, count):
            decoded.append(tuple(np.array(begin) // (2, 3, 3)))
            return decode(begin, count)

        monkeypatch.setattr(source, "_decode", counted)
        read(source, 0, 0, lengths)
    assert len(decoded) == len(set(decoded)) == 3 * 3 * 2


def test_a_small_file_that_declares_much(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("x", (1 << 34, 2, 2), "f4", chunks=(1 << 12, 2, 2), compression="gzip")
    with pytest.raises(DataError, match=r"declares shape .* but holds only 0 bytes"):
        open_source(str(tmp_path / "x.h5"))


def test_a_large_array_of_which_little_is_stored(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        x = f.create_dataset("x", (2000, 2000, 400), "f4", chunks=(1000, 1, 400), compression="gzip")
        x[:, 0] = 3
    with closing(open_source(str(tmp_path / "x.h5"))) as source:
        assert (read(source, 1500, 0, [1, 0, 1]) == 3).all()


def test_a_large_chunk_of_which_little_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "LARGE", 1 << 20)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("x", (10, 10, 10), "f4", maxshape=(None, None, None), chunks=(100, 100, 100))
    with pytest.raises(DataError, match=r"declares chunks of 4000000 bytes, but holds only 0 bytes"):
        open_source(str(tmp_path / "x.h5"))


def test_which_chunks_were_written_takes_8_bytes_each(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        x = f.create_dataset("x", (40_000, 2, 3), "f4", chunks=(1, 2, 2))
        x[:20_000] = 1
        x[39_000, :, :2] = 1
    with h5py.File(tmp_path / "x.h5") as f:
        tracemalloc.start()
        try:
            written = hdf5.written_chunks(f["x"])
            assert tracemalloc.get_traced_memory()[0] < 10 * len(written) + 10_000
        finally:
            tracemalloc.stop()
    assert len(written) == 40_001
    places = [(0, 0, 0), (0, 0, 2), (19_999, 0, 2), (20_000, 0, 0), (39_000, 0, 0), (39_000, 0, 2), (39_999, 0, 2)]
    assert [place in written for place in places] == [True, True, True, False, True, False, False]


def test_chunks_far_larger_than_the_lengths_in_them_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["x"] = np.zeros((5, 2, 3), np.float32)
        f.create_dataset("lengths", (5,), "i8", chunks=(10_000_000,), maxshape=(None,), compression="gzip")[:] = 1
    with (
        closing(open_source(f"{tmp_path / 'x.h5'}::/x")) as source,
        pytest.raises(DataError, match=r"80,000,000 bytes, far more"),
    ):
        read_valid_steps(None, None, source)


def test_sequences_of_no_steps_need_data(tmp_path):
    with (tmp_path / "x.npy").open("wb") as f:
        np.lib.format.write_array_header_1_0(f, {"descr": "<f4", "fortran_order": False, "shape": (3 * 10**8, 0, 2)})
    with pytest.raises(DataError, match=r"declares shape .* but holds only 0 bytes"):
        open_source(str(tmp_path / "x.npy"))
