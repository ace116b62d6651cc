"""HDF5 headers read by their addresses say what libhdf5 says, or nothing."""

import struct

import h5py
import numpy as np
import pytest

from lstmcli.errors import DataError
from lstmcli.files.hdf5_bytes.object_headers import addresses_of, attribute_name, read_headers
from lstmcli.files.positioned_file import FileBytes


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_what_libhdf5_says(libver, userblock, tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "x.h5", "w", libver=libver, userblock_size=userblock) as file:
        for k in range(40):
            shape = tuple(rng.integers(1, 4, rng.integers(1, 4)))
            dtype = ("<f4", ">f8", "<i2")[k % 3] if k > 20 else "<f4"
            item = file.create_dataset(f"d{k:02}", data=rng.normal(size=shape).astype(dtype))
            for name in range(rng.integers(0, 3) * (k > 10)):
                item.attrs[f"a{name}"] = "text" * rng.integers(1, 300)
        file.create_dataset("e1", data=np.zeros((3, 4)), chunks=(1, 4))
        file.create_dataset("e2", data=np.zeros((3, 4)), compression="gzip")
        file.create_dataset("e3", data=np.zeros((3, 4)), maxshape=(None, 4))
        file.create_dataset("e4", (3, 4), "f4")
        file.create_dataset("e5", data=np.zeros((0, 4)))
        file["e6"] = 1.0
        file.create_group("e7")
        file["e8"] = h5py.SoftLink("d01")
    with h5py.File(tmp_path / "x.h5") as file:
        names, addresses, other = addresses_of(file)
        assert other == b"e8"
        data = FileBytes(file.id.get_vfd_handle(), "x")
        for name, header in zip(names, read_headers(data, addresses, userblock), strict=True):
            if name >= b"e" and name not in (b"e4", b"e5"):
                assert header is None
            elif libver == "earliest":
                item = file[name]
                assert header.shape == item.shape
                assert header.address == (None if name >= b"e" else item.id.get_offset())
                assert header.size == item.nbytes
                assert sorted(map(attribute_name, header.attributes)) == sorted(key.encode() for key in item.attrs)
        types = {}
        for name, header in zip(names, read_headers(data, addresses, userblock), strict=True):
            if header is not None:
                assert types.setdefault(header.datatype, file[name].dtype) == file[name].dtype


def test_addresses_that_lead_nowhere(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(256)) * 20)
    with (tmp_path / "x").open("rb") as file:
        assert list(read_headers(FileBytes(file.fileno(), "x"), [0, 5, 5119, 5120, 1 << 60, -3])) == [None] * 6


def test_addresses_beyond_what_files_can_have(tmp_path):
    """Their objects are not opened, and numbers beyond int64 break what walks through the links."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["g/x"] = np.ones((3, 2), np.float32)
        address = h5py.h5o.get_info(file["g/x"].id).addr
    content = (tmp_path / "f.h5").read_bytes()
    (tmp_path / "f.h5").write_bytes(content.replace(struct.pack("<Q", address), struct.pack("<Q", 1 << 63)))
    with h5py.File(tmp_path / "f.h5") as file, pytest.raises(DataError, match=r"f\.h5::/g: damaged: an object at byte 922337"):
        addresses_of(file["g"])


def test_damaged_headers_are_left_to_libhdf5(tmp_path):
    """Or describe something; nothing is raised, and no address is believed."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for k in range(3):
            file[f"d{k}"] = np.zeros((3, 4))
    with h5py.File(tmp_path / "x.h5") as file:
        _, addresses, _ = addresses_of(file)
    content, rng = (tmp_path / "x.h5").read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(content)
        for at in rng.integers(addresses[1], addresses[1] + 300, rng.integers(1, 5)):
            bad[at] = rng.integers(256)
        (tmp_path / "bad").write_bytes(bad)
        with (tmp_path / "bad").open("rb") as file:
            assert len(list(read_headers(FileBytes(file.fileno(), "x"), addresses))) == 3
