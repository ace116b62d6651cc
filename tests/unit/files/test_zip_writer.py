"""NPZ files by position, read by NumPy and by the system's unzip rules as Python's zipfile has them."""

import zipfile

import numpy as np

from lstmcli.files.zip_writer import Npz


def test_numpy_and_zipfile_read_it(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"0/c": rng.normal(size=(1000, 7)), "0/h": rng.normal(size=(1000, 3)).astype("f4"), "empty": np.zeros((0, 5))}
    npz = Npz(tmp_path / "s.npz", {name: (array.shape, array.dtype) for name, array in arrays.items()}, overwrite=False)
    npz.reserve(npz.size)
    for name in reversed(arrays):  # in any order
        npz.write(arrays[name], npz.offsets[name])
    npz.seal()
    npz.publish()
    npz.close()
    with np.load(tmp_path / "s.npz") as loaded:
        assert loaded.files == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array, strict=True)
    with zipfile.ZipFile(tmp_path / "s.npz") as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_more_than_4_gib_and_the_rows_at_their_end(tmp_path):
    shape = (1 << 31, 3)  # sparse: 6 GiB that are never written
    npz = Npz(tmp_path / "s.npz", {"a": (shape, np.dtype("u1")), "b": ((2,), np.dtype("f4"))}, overwrite=False)
    npz._checksum = lambda start, size: 0  # type: ignore[method-assign]  # do not read it
    npz.write(np.array([[1, 2, 3]], "u1"), npz.offsets["a"] + ((1 << 31) - 1) * 3)
    npz.write(np.array([4, 5], "f4"), npz.offsets["b"])
    npz.seal()
    npz.publish()
    npz.close()
    with zipfile.ZipFile(tmp_path / "s.npz") as archive:
        a, b = archive.infolist()
        assert (a.filename, a.file_size, b.filename) == ("a.npy", 128 + 3 * (1 << 31), "b.npy")
        assert b.header_offset > 1 << 32
