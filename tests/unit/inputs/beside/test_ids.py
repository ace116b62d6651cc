"""Ids: read where a file has them, as any kind of strings or numbers; refused where two are the same."""

from contextlib import closing

import h5py
import numpy as np
import pytest

from lstmcli.errors import DataError
from lstmcli.inputs.beside.ids import as_id, check_ids, rows_by_id
from lstmcli.inputs.ragged.open_sequences import open_sequences
from lstmcli.inputs.valid_steps import read_valid_steps

X = np.zeros((3, 4, 2), np.float32)
NAMES = ["ä/1", "two, three", "P-3"]


def with_ids(path, **datasets):
    with h5py.File(path, "w") as file:
        file["g/x"] = X
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return open_sequences(f"{path}::/g/x")


@pytest.mark.parametrize("name", ["ids", "keys", "names", "texts", "g__ids", "g__texts"])
@pytest.mark.parametrize("kind", ["variable", "fixed", "ascii", "numbers", "wide"])
def test_beside_a_padded_input(kind, name, tmp_path):
    values, wanted = {
        "variable": (NAMES, NAMES),
        "fixed": (np.array([text.encode() for text in NAMES]), NAMES),
        "ascii": (np.array(["a", "b", "c"], h5py.string_dtype("ascii")), ["a", "b", "c"]),
        "numbers": (np.array([7, -1, 9], np.int16), ["7", "-1", "9"]),
        "wide": (np.array([2**63, 1, 2], np.uint64), [str(2**63), "1", "2"]),
    }[kind]
    source = with_ids(tmp_path / "x.h5", **{name: values})
    assert source.ids == wanted
    assert source.ids_origin == f"{tmp_path}/x.h5::/{name.replace('__', '/')}"


def test_the_nearest_and_surest_counts(tmp_path):
    assert with_ids(tmp_path / "x.h5", ids=["r", "s", "t"], g__names=NAMES).ids == NAMES
    assert with_ids(tmp_path / "x.h5", g__keys=["r", "s", "t"], g__names=NAMES).ids == ["r", "s", "t"]


def test_what_are_no_ids(tmp_path):
    others = {
        "ids": np.zeros(3),
        "keys": ["too", "few"],
        "names": ["same", "same", "other"],
        "g__ids": [4, 4, 5],
        "g__keys/inside": NAMES,
    }
    assert with_ids(tmp_path / "x.h5", **others).ids is None
    assert with_ids(tmp_path / "x.h5", **others, texts=NAMES).ids == NAMES


def test_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.h5::/ids: sequences 0 and 2 have the same id, a; ids must differ"):
        with_ids(tmp_path / "x.h5", ids=["a", "b", "a"])
    with pytest.raises(DataError, match="ids is a soft or external link"):
        with_ids(tmp_path / "x.h5", ids=h5py.SoftLink("/g/x"))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = X
        file.create_dataset("ids", (3,), h5py.string_dtype(), chunks=(1,))[1] = "a"
    with pytest.raises(DataError, match="/ids: some of its chunks were never written"):
        open_sequences(f"{tmp_path}/x.h5")
    with pytest.raises(DataError, match=r"the id 'a\\x00' holds a NUL"):
        check_ids(["b", "a\0"], "x")


def test_bytes_that_are_no_text(tmp_path):
    source = with_ids(tmp_path / "x.h5", ids=np.array([b"a\xff", b"b", b"c"]))
    assert source.ids == ["a\\xff", "b", "c"]
    assert as_id(b"a\xff") == "a\\xff"
    assert as_id("a\udcff") == "a\\udcff"
    assert as_id("ä") == "ä"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["ids", "keys", "names", "texts"])
def test_beside_an_array_of_an_npz(name, save, tmp_path):
    for values, wanted in [
        (np.array(NAMES), NAMES),
        (np.array(NAMES, ">U12"), NAMES),
        (np.array([text.encode() for text in NAMES]), NAMES),
        (np.array([b"a\xff", b"b", b"c"]), ["a\\xff", "b", "c"]),
        (np.array([7, -1, 9], np.int16), ["7", "-1", "9"]),
        (np.array([2**63, 1, 2], np.uint64), [str(2**63), "1", "2"]),
    ]:
        save(tmp_path / "x.npz", x=X, lens=np.array([4, 0, 1]), **{name: values})
        source = open_sequences(f"{tmp_path}/x.npz")
        assert source.ids == wanted
        assert source.ids_origin == f"{tmp_path}/x.npz::{name}"


def test_beside_a_flat_array_of_an_npz(tmp_path):
    np.savez(tmp_path / "f.npz", x=X[0], ids=NAMES)
    np.save(tmp_path / "lens.npy", [3, 0, 1])
    assert open_sequences(f"{tmp_path}/f.npz::x", f"{tmp_path}/lens.npy").ids == NAMES


def test_what_are_no_ids_in_an_npz(tmp_path):
    others = {"ids": np.zeros(3), "keys": ["too", "few"], "names": ["same", "same", "other"]}
    np.savez(tmp_path / "x.npz", x=X, **others)
    source = open_sequences(f"{tmp_path}/x.npz")
    assert source.ids is None
    assert "x.npz::names: holds same more than once, so it is not taken for the ids" in source.notes[0]
    np.savez(tmp_path / "x.npz", x=X, **others, texts=NAMES)
    assert open_sequences(f"{tmp_path}/x.npz").ids == NAMES
    np.savez(tmp_path / "x.npz", x=X, ids=np.array(NAMES, object))  # pickled, and never read
    assert open_sequences(f"{tmp_path}/x.npz").ids is None
    np.savez(tmp_path / "x.npz", x=X, ids=np.array([4, 4, 5]))
    assert "holds 4 more than once" in open_sequences(f"{tmp_path}/x.npz").notes[0]


def test_refused_in_an_npz(tmp_path):
    np.savez(tmp_path / "x.npz", x=X, ids=["a", "b", "a"])
    with pytest.raises(DataError, match=r"x\.npz::ids: sequences 0 and 2 have the same id, a; ids must differ"):
        open_sequences(f"{tmp_path}/x.npz")
    np.savez(tmp_path / "x.npz", x=X, ids=np.array([2**31, 1, 2], np.uint32).view("U1"))
    with pytest.raises(DataError, match=r"x\.npz::ids: damaged"):
        open_sequences(f"{tmp_path}/x.npz")


def test_a_dataset_for_each_sequence(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        for name in ("b", "a/1", "a/c/d"):
            file[name] = X[0]
        file["b"].attrs["original_id"] = "sp|B|β"
        file["a/1"].attrs["original_id"] = np.bytes_("1")
    assert open_sequences(f"{tmp_path}/s.h5").ids == ["1", "a/c/d", "sp|B|β"]
    assert open_sequences(f"{tmp_path}/s.h5::/a").ids == ["1", "c/d"]
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["b"].attrs["original_id"] = "a/c/d"
    with pytest.raises(DataError, match="sequences 1 and 2 have the same id, a/c/d"):
        open_sequences(f"{tmp_path}/s.h5")


@pytest.mark.parametrize("options", [{}, {"chunks": True}])
def test_an_id_in_an_array_of_one(options, tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        for k, value in enumerate((np.array(["a"], object), np.array([b"b"]), 7)):
            file.create_dataset(str(k), data=X[0], **options).attrs["original_id"] = value
    assert open_sequences(f"{tmp_path}/s.h5").ids == ["a", "b", "7"]


def test_a_damaged_heap_of_ids(tmp_path):
    """libhdf5 would never end: it stays at a free object of size 0."""
    with h5py.File(tmp_path / "s.h5", "w") as file:
        for k in range(2):
            file.create_dataset(str(k), data=X[0]).attrs["original_id"] = f"id {k}"
    content = bytearray((tmp_path / "s.h5").read_bytes())
    at = content.index(b"GCOL") + 16
    content[at : at + 16] = bytes(16)
    (tmp_path / "s.h5").write_bytes(content)
    with pytest.raises(
        DataError, match=r"s.h5::/, attributes original_id: damaged: the heap of texts at byte .* does not add up"
    ):
        open_sequences(f"{tmp_path}/s.h5")


def test_a_flat_input(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"], file["lengths"], file["ids"] = X[0], [3, 0, 1], NAMES
    assert open_sequences(f"{tmp_path}/f.h5").ids == NAMES
    assert open_sequences(f"{tmp_path}/f.h5").sequence(1) == "sequence 1 (two, three)"


def test_rows_by_id():
    assert rows_by_id(["c", "a"], ["a", "b", "c"], "s") == [2, 0]
    with pytest.raises(DataError, match="s: has no d, sequence 1 of the input; ids like that: 1 of 2"):
        rows_by_id(["a", "d"], ["a", "b", "c"], "s")


@pytest.mark.parametrize("form", ["padded", "flat", "ragged"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "h5", "npz"])
def test_lengths_of_the_same_ids_in_another_order(form, kind, tmp_path):
    def write(lengths, ids):
        if kind == "h5":
            with h5py.File(lens, "w") as file:
                file["lengths"], file["keys"] = lengths, ids
        elif kind == "npz":
            np.savez(lens, lens=lengths, keys=ids)
        else:
            mark = "," if kind == "csv" else "\t"
            lens.write_text("".join(f"{a}{mark}{b}\n" for a, b in [("Id", "length"), *zip(ids, lengths, strict=True)]))

    def opened():
        with closing(open_sequences(str(tmp_path / "x.h5"), str(lens))) as source:
            return read_valid_steps(str(lens), None, source).valid.lengths.tolist()

    lens, ids = tmp_path / f"lens.{kind}", ["a", "b", "c"]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if form == "ragged":
            for length, name in enumerate(ids, 1):
                file[name] = X[0, :length]
        else:
            file["x"], file["ids"] = X if form == "padded" else X.reshape(-1, 2)[:6], ids
    write([1, 2, 3], ids)
    assert opened() == [1, 2, 3]
    write([1, 2, 3], ["a", "B", "c"])  # other ids say nothing about the order
    assert opened() == [1, 2, 3]
    write([1, 3, 2], ["a", "c", "b"])
    with pytest.raises(DataError, match=r"row 1: expected the id b, which that sequence of the input has, got c; put the rows"):
        opened()
