"""Texts read without libhdf5 are those that it reads."""

import h5py
import numpy as np
import pytest

from lstmcli.errors import DataError
from lstmcli.files import hdf5
from lstmcli.files.hdf5_bytes.object_headers import addresses_of, attribute_name, read_headers
from lstmcli.files.hdf5_bytes.texts import REFERENCE, from_heaps, read_texts, reference_in
from lstmcli.files.positioned_file import FileBytes

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


@pytest.mark.parametrize("name", ["id", "a_longer_name", "é"])  # the last one makes a message of version 3
def test_texts_of_attributes(name, tmp_path):
    values = ["a", "", "é" * 300, np.array(["one"], object), np.array(["a", "b"], object), np.bytes_("a"), 7, h5py.Empty("f")]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for k, value in enumerate(values):
            file.create_dataset(str(k), data=np.zeros((2, 3))).attrs[name] = value
    with h5py.File(tmp_path / "x.h5") as file:
        data = FileBytes(file.id.get_vfd_handle(), "x")
        (messages,) = zip(*(header.attributes for header in read_headers(data, addresses_of(file)[1])), strict=True)
        assert {attribute_name(message) for message in messages} == {name.encode()}
        found = [reference_in(message) for message in messages]
        assert [len(one) for one in found] == [16] * 4 + [0] * 4
        references = np.frombuffer(b"".join(found), REFERENCE)
        assert from_heaps(data, references, 0) == ["a", "", "é" * 300, "one"]
    assert reference_in(b"") == reference_in(bytes(40)) == b""
