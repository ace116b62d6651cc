"""Texts read without libhdf5 are those that it reads."""

import h5py
import numpy as np
import pytest

from lstmcli.errors import DataError
from lstmcli.files import hdf5
from lstmcli.files.hdf5_bytes.texts import read_texts

TEXTS = np.array([*["a", "", "cd", "é" * 3] * 50, "z" * 5000], object)  # the last one has a heap of its own
FORMS = {
    "contiguous": {},
    "chunks": {"chunks": (7,)},
    "gzip": {"compression": "gzip", "shuffle": True},
    "growing": {"maxshape": (None,)},
}


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_what_libhdf5_says(libver, userblock, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w", libver=libver, userblock_size=userblock) as file:
        for name, form in FORMS.items():
            file.create_dataset(name, data=TEXTS, **form)
        file["fixed"], file["bytes"] = np.array([b"a", b"bcd"]), np.array([b"\xffx"], h5py.string_dtype())
        file.create_dataset("none", (0,), h5py.string_dtype())
        shown = h5py.VirtualLayout(TEXTS.shape, h5py.string_dtype())
        shown[:] = h5py.VirtualSource(".", "contiguous", TEXTS.shape)
        file.create_virtual_dataset("virtual", shown)
    with h5py.File(tmp_path / "x.h5") as file:
        for name, item in file.items():
            assert read_texts(item) == list(item.asstr("utf-8", "backslashreplace")[:]), name
        assert hdf5.header_offset(item) == h5py.h5o.get_info(item.id).addr


def test_texts_longer_than_the_file(tmp_path):
    """As where many refer to one: a small file must not take all memory."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["ids"] = np.array(["x" * 3000] * 10, object)
        at = file["ids"].id.get_offset()
    whole = bytearray((tmp_path / "x.h5").read_bytes())
    for row in range(10):
        whole[at + 16 * row : at + 16 * row + 4] = (30_000).to_bytes(4, "little")
    (tmp_path / "x.h5").write_bytes(whole)
    with h5py.File(tmp_path / "x.h5") as file, pytest.raises(DataError, match="longer than the file"):
        read_texts(file["ids"])
