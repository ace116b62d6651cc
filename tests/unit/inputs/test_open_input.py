"""What --input names: each name against what it opens, each malformed file against its error."""

import fcntl
import os
import struct
from contextlib import closing

import h5py
import numpy as np
import pytest
from helpers.sources import packed, padded, read, save_h5, save_npy

from lstmcli.errors import DataError, MissingInputError, StorageError
from lstmcli.inputs.open_input import open_source


def test_user_block(tmp_path):
    x = padded([2, 3], 3, 2)
    for options in ({}, {"chunks": (1, 2, 2), "compression": "gzip"}):
        with h5py.File(tmp_path / "x.h5", "w", userblock_size=1024) as f:
            f.create_dataset("x", data=x, **options)
        with closing(open_source(str(tmp_path / "x.h5"))) as source:
            np.testing.assert_array_equal(read(source, 0, 0, [2, 3]), packed(x, 0, 0, [2, 3], np.float32))


@pytest.mark.parametrize("userblock", [0, 1024])
def test_contiguous_dataset_that_was_never_written(userblock, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=userblock) as f:
        f.create_dataset("x", (2, 3, 4), "f4")
    with pytest.raises(DataError, match="::/x: was never written"):
        open_source(str(tmp_path / "x.h5"))


def test_a_result_with_several_arrays_gives_its_outputs(tmp_path):
    for form in ("lstmcli-result", "another"):
        with h5py.File(tmp_path / f"{form}.h5", "w") as f:
            f.attrs["format"] = form
            for name in ("cells", "layers/0", "outputs"):
                f[name] = np.ones((2, 3, 4))
    with closing(open_source(f"{tmp_path}/lstmcli-result.h5")) as source:
        assert source.name.endswith("::/outputs")
    with pytest.raises(DataError, match="expected one float dataset of rank 3, found 3"):
        open_source(f"{tmp_path}/another.h5")


def test_file_that_another_program_is_writing(tmp_path):
    path = tmp_path / "x.h5"
    save_h5(path, np.ones((2, 3, 4), np.float32))
    with path.open() as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"x\.h5: another program is writing it; run again when that has ended$"):
            open_source(str(path))
    open_source(str(path)).close()


def test_missing_input(tmp_path):
    with pytest.raises(MissingInputError, match="No such file"):
        open_source(str(tmp_path / "no.npy"))
    with pytest.raises(MissingInputError, match="expected a file, got a directory"):
        open_source(str(tmp_path))
    with pytest.raises(MissingInputError, match="No such file"):
        open_source(f"{tmp_path}/no.h5::/x")
    with pytest.raises(MissingInputError, match=r"null (byte|character)"):
        open_source("a\0b")


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    for name in ("a\x1b[2J", "b\nc"):
        with pytest.raises(MissingInputError) as caught:
            open_source(str(tmp_path / name))
        assert str(caught.value).isprintable()
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["a\x1b[2J"] = np.ones((2, 3))
    for spec in ("", "::/a\x1b[2J", "::/b\r"):
        with pytest.raises(DataError) as caught:
            open_source(f"{tmp_path}/x.h5{spec}")
        assert str(caught.value).isprintable()


def test_naming_a_dataset(tmp_path):
    path = tmp_path / "x.npy"  # told by its first bytes, not by its ending
    x = np.ones((2, 3, 4), np.float32)
    with h5py.File(path, "w") as f:
        f["g/x"], f["y"], f["lens"], f["flat"] = x, x[:1], [1, 2], x[0]
    for spec in ("::/g/x", ":/g/x", "::g/x", "::/g//x"):
        with closing(open_source(f"{path}{spec}")) as source:
            assert source.name == f"{path}::/g/x"
            assert source.shape == (2, 3, 4)
    with pytest.raises(DataError, match=r"found 2: /g/x \(2, 3, 4\) float32, /y \(1, 3, 4\) float32; .*: \S*::/g/x$"):
        open_source(str(path))
    with pytest.raises(DataError, match=r"::/z: no such dataset; there is /flat \(3, 4\) float32, /g/x \(2, 3, 4\)"):
        open_source(f"{path}::/z")
    for name in ("/g", "/"):
        with pytest.raises(DataError, match=r"expected a dataset, got a (group|file); there is /flat"):
            open_source(f"{path}::{name}")
    with pytest.raises(DataError, match="no such dataset"):
        open_source(f"{path}::/y/x")


def test_the_only_float_dataset_of_rank_3(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as f:
        f["i"], f["two"] = np.ones((2, 3, 4), int), np.ones((2, 3))
        f["loop"] = f["/"]
    with pytest.raises(DataError, match=r"found 0: /i \(2, 3, 4\) int64, /two \(2, 3\) float64; name the one to read"):
        open_source(str(path))
    with pytest.raises(DataError, match=r"got int64; .* with x\.astype\('float32'\)"):
        open_source(f"{path}::/i")
    with h5py.File(path, "a") as f:
        f["deep/er/x"] = np.ones((2, 3, 4))
        f["again"] = f["deep/er/x"]  # one dataset with two names
    with closing(open_source(str(path))) as source:
        assert source.shape == (2, 3, 4)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(DataError, match="no dataset at all"):
        open_source(str(path))


def test_many_candidates_are_cut(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        for k in range(30):
            f[f"x{k}"] = np.ones((1, 1, 1))
    with pytest.raises(DataError, match=r"found 30: .* and 20 more"):
        open_source(str(tmp_path / "x.h5"))


def test_a_file_whose_name_looks_like_a_spec(tmp_path):
    path = tmp_path / "a::b.npy"
    with closing(open_source(save_npy(path, np.ones((1, 2, 3))))) as source:
        assert source.name == str(path)
    with pytest.raises(DataError, match="dataset /x is named, but this is not an HDF5 file"):
        open_source(f"{save_npy(tmp_path / 'c.npy', np.ones((1, 2, 3)))}::/x")


def test_damaged_hdf5(tmp_path):
    path = tmp_path / "x.h5"
    save_h5(path, np.ones((20, 30, 40), np.float32))
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:600], whole[:8], whole[:100] + bytes(1000) + whole[1100:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.h5"):
            open_source(str(path))


def test_contiguous_data_past_the_end_of_the_file(tmp_path):
    path = tmp_path / "x.h5"
    save_h5(path, np.ones((20, 30, 40), np.float32))
    size = path.stat().st_size - 100
    os.truncate(path, size)
    with path.open("r+b") as f:
        f.seek(40)  # end of file, as the superblock has it
        f.write(struct.pack("<Q", size))
    with pytest.raises(DataError, match=r"x\.h5"):
        open_source(str(path))
