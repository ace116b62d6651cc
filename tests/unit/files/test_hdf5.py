"""HDF5 files of other people: what is found, what is refused, and what libhdf5's errors become."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.sources import save_h5

from lstmcli.errors import DataError, MissingInputError, StorageError
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.inputs.open_input import open_source

LIBHDF5_EIO = "no object (file read failed: time = Mon, errno = 5, error message = 'x', buf = 0x7, offset = 96)"


@pytest.mark.parametrize("raised", [OSError(5, LIBHDF5_EIO), KeyError(LIBHDF5_EIO), RuntimeError(LIBHDF5_EIO)])
def test_device_error_inside_libhdf5(raised):
    message = r"f\.h5: reading at byte 96 failed: Input/output error"
    with pytest.raises(StorageError, match=message), hdf5.reading("f.h5"):
        raise raised


def test_damage_that_h5py_stumbles_over():
    """An IndexError of h5py 3.12, for a deflate filter that has lost its level."""
    with pytest.raises(DataError, match=r"^f\.h5: damaged, or not something this program reads"), hdf5.reading("f.h5"):
        raise IndexError("tuple index out of range")


def test_a_float_whose_exponent_has_no_bias_is_listed_without_a_dtype(tmp_path):
    """h5py takes a bias of 0 for a failure."""
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        strange = h5py.h5t.IEEE_F32LE.copy()
        strange.set_ebias(0)
        h5py.h5d.create(file.id, b"x", strange, h5py.h5s.create_simple((2, 3, 4)))
    with hdf5.open_file(str(path)) as file:
        assert [(entry.name, entry.dtype) for entry in hdf5.entries(file)] == [("/x", None)]
        with pytest.raises(DataError, match=r"f\.h5::/x: damaged, or not something this program reads"):
            hdf5.dtype_of(file["x"])
    with pytest.raises(DataError, match=r"f\.h5"):
        open_source(str(path))


def hostile(path):
    other = path.with_name("other.h5")
    x = np.ones((2, 3, 4), np.float32)
    with h5py.File(other, "w") as f:
        f["x"], f["g/x"] = x, x
    path.with_name("raw.bin").write_bytes(x.tobytes())
    virtual = h5py.VirtualLayout(x.shape, x.dtype)
    virtual[:] = h5py.VirtualSource(str(other), "x", x.shape)
    with h5py.File(path, "w") as f:
        f["x"] = x
        f["external"] = h5py.ExternalLink(str(other), "/x")
        f["group"] = h5py.ExternalLink(str(other), "/g")
        f["soft"], f["dangling"], f["circle"] = h5py.SoftLink("/x"), h5py.SoftLink("/no"), h5py.SoftLink("/circle")
        f.create_dataset("raw", x.shape, "f4", external=[(str(path.with_name("raw.bin")), 0, x.nbytes)])
        f.create_virtual_dataset("virtual", virtual)
        f.create_dataset("scaled", data=x, scaleoffset=3)
        f["empty"], f["text"], f["scalar"] = h5py.Empty("f4"), "abc", 1.0
        f["record"] = np.zeros((2, 3, 4), [("a", "<f4")])
        f["enum"] = np.zeros((2, 3, 4), h5py.enum_dtype({"a": 0}))
        f["complex"] = np.zeros((2, 3, 4), complex)
        f.create_dataset("ragged", x.shape, h5py.vlen_dtype("f4"))
        brain = h5py.h5t.IEEE_F32LE.copy()
        brain.set_fields(15, 7, 8, 0, 7)
        brain.set_precision(16)
        brain.set_size(2)
        h5py.h5d.create(f.id, b"bfloat16", brain, h5py.h5s.create_simple(x.shape))
        plugin = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plugin.set_chunk(x.shape)
        plugin.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(f.id, b"blosc", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(x.shape), plugin)
        f["type"] = np.dtype("f4")


HOSTILE = {
    "external": "external is a soft or external link",
    "group/x": "group is a soft or external link",
    "soft": "soft is a soft or external link",
    "dangling": "soft or external link",
    "circle": "soft or external link",
    "raw": "its data lies in other files",
    "virtual": "its data lies in other files",
    "scaled": r"compressed with scale-offset \(filter 6\); .*, fletcher32, lzf, convert it with: h5repack",
    "blosc": r"compressed with Blosc \(filter 32001\); .* import h5py, hdf5plugin",
    "empty": "a dataset without a shape",
    "text": "damaged|special type",
    "scalar": r"expected shape \(sequences, steps, features\), got \(\)",
    "record": "expected float16, float32 or float64",
    "enum": "expected plain numbers",
    "complex": "got complex128",
    "ragged": "expected plain numbers|damaged|Object dtype",
    "bfloat16": "expected plain numbers",
    "type": "expected a dataset, got a datatype",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_hdf5(name, tmp_path):
    hostile(tmp_path / "x.h5")
    with pytest.raises(DataError, match=HOSTILE[name]) as caught:
        open_source(f"{tmp_path}/x.h5::/{name}")
    assert "\n" not in str(caught.value)


def test_links_are_not_candidates(tmp_path):
    hostile(tmp_path / "x.h5")
    assert {"/external", "/soft", "/group/x"}.isdisjoint(entry.name for entry in hdf5.entries(h5py.File(tmp_path / "x.h5")))


def test_the_command_searches_for_no_filter_plugins(tmp_path):
    """Not even for a file that asks for one: its filter is refused by number."""
    save_h5(tmp_path / "x.h5", np.ones((20, 30, 4), np.float32), chunks=(20, 30, 4))
    code = (
        "import sys; sys.argv = ['lstmcli', 'run', '-i', 'x.h5', '-u', '3', '--dry-run']; import os\n"
        "os._exit = lambda code: print(os.environ['HDF5_PLUGIN_PRELOAD'])\n"
        "from lstmcli.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "::"


def test_import_leaves_the_environment_alone():
    code = "import os; before = dict(os.environ); import lstmcli, lstmcli.files.hdf5; assert os.environ == before"
    env = {name: value for name, value in os.environ.items() if name != "HDF5_PLUGIN_PRELOAD"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_find_and_read_array(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as f:
        f["model/0/bias"] = np.arange(4, dtype=">f4")
        f["model/soft"] = h5py.SoftLink("/model/0")
    with hdf5.open_file(str(tmp_path / "m.h5")) as file:
        cell = hdf5_safety.find(file, "model/0")
        assert hdf5_safety.find(cell, "peephole") is None
        np.testing.assert_array_equal(hdf5.read_array(hdf5_safety.dataset(cell, "bias")), np.arange(4))
        with pytest.raises(DataError, match=r"m\.h5::/model/0/kernel: no such dataset; there is /bias \(4,\) >f4"):
            hdf5_safety.dataset(cell, "kernel")
        with pytest.raises(DataError, match="soft or external link"):
            hdf5_safety.find(file, "/model/soft/bias")


def test_open_file_refuses_what_is_not_hdf5(tmp_path):
    with pytest.raises(MissingInputError):
        hdf5.open_file(str(tmp_path / "no.h5"))
    Path(tmp_path / "x").write_bytes(b"no")
    with pytest.raises(DataError, match="damaged, or not something this program reads"):
        hdf5.open_file(str(tmp_path / "x"))


def test_attributes_are_text_or_numbers(tmp_path: Path) -> None:
    """One flipped bit makes another type of a text of variable length, and libhdf5 crashes where it reads that."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["text"], file.attrs["number"], file.attrs["texts"], file.attrs["yes"] = "é", 2.5, ["a", "b"], True
        sequences, scalar = h5py.h5t.vlen_create(h5py.h5t.NATIVE_INT32), h5py.h5s.create(h5py.h5s.SCALAR)
        h5py.h5a.create(file.id, b"sequences", sequences, scalar)
        file.attrs["reference"] = file.create_group("g").ref
        file.attrs["pair"] = np.zeros((), [("a", "i4"), ("b", "f4")])
        assert hdf5.attribute(file, "text") == "é"
        assert hdf5.attribute(file, "number") == 2.5
        assert list(hdf5.attribute(file, "texts")) == ["a", "b"]
        assert hdf5.attribute(file, "yes")
        assert hdf5.attribute(file, "none") is None
        for name in ("sequences", "reference", "pair"):
            with pytest.raises(DataError, match=rf"attribute {name}: expected text or numbers"):
                hdf5.attribute(file, name)


def test_objects_that_two_links_lead_to_come_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros(3)
        file["g/y"] = file["x"]
        file["g/loop"] = file["g"]
        file["soft"] = h5py.SoftLink("/x")
        assert [entry.name for entry in hdf5.entries(file)] == ["/g/y"]
        assert {name for name, _ in hdf5.objects(file)} == {"g", "g/y"}
