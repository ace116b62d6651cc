"""Bad input: one line on stderr that says where and what, the right exit code, and no file left behind."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import files
from helpers.command import assert_one_line, lstmcli, refuse, succeed

SHAPE = (5, 10, 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files.write_npy(tmp_path / "x.npy", np.ones(SHAPE, np.float32))
    files.write_npy(tmp_path / "lens.npy", np.array([4, 9, 10, 5, 10]))
    return tmp_path


def refuse_input(folder: Path, code: int, *words: object, source: str = "in.npy") -> None:
    refuse(folder, code, source.split(":")[0], *words, args=["--input", source, "--units", "7"])


class Marker:
    """Unpickling this makes a folder named `unpickled`."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("unpickled",)


def npy_header(header: str, version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def test_marker_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the two tests below could not fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Marker()))
    assert (tmp_path / "unpickled").is_dir()


def test_npy_of_objects_is_never_unpickled(folder: Path) -> None:
    objects = np.empty(SHAPE, object)
    objects[:] = [[[Marker()] * SHAPE[2]] * SHAPE[1]] * SHAPE[0]
    np.save(folder / "in.npy", objects, allow_pickle=True)
    refuse_input(folder, 65)
    refuse(folder, 65, args=["--input", "-", "--units", "7"], stdin=(folder / "in.npy").read_bytes())
    np.save(folder / "bad.npy", objects[:, 0, 0], allow_pickle=True)
    refuse(folder, 65, "bad.npy", args=["--input", "x.npy", "--lens", "bad.npy", "--units", "7"])


def test_bare_pickle_is_never_unpickled(folder: Path) -> None:
    (folder / "in.npy").write_bytes(pickle.dumps(Marker()))
    refuse_input(folder, 65)


@pytest.mark.parametrize("source", ["missing.npy", "missing.h5", "missing.h5::/x", "no/such/folder/x.h5"])
def test_missing_input(source: str, folder: Path) -> None:
    refuse_input(folder, 66, source=source)


def test_missing_lengths(folder: Path) -> None:
    refuse(folder, 66, "missing.npy", args=["--input", "x.npy", "--lens", "missing.npy", "--units", "7"])


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93", b"hello, world\n" * 100, b"<!DOCTYPE html><html></html>", b"\x1f\x8b\x08\x00" * 20, bytes(4096)],
    ids=["empty", "one byte", "text", "html", "gzip", "zeros"],
)
def test_neither_hdf5_nor_npy(content: bytes, folder: Path) -> None:
    (folder / "in.npy").write_bytes(content)
    refuse_input(folder, 65)


@pytest.mark.parametrize("content", [b"", b"hello, world\n" * 100], ids=["empty", "text"])
def test_stdin_that_is_not_npy(content: bytes, folder: Path) -> None:
    refuse(folder, 65, "-: ", args=["--input", "-", "--units", "7"], stdin=content)


def test_folder_as_input(folder: Path) -> None:
    (folder / "in.npy").mkdir()
    before = files.snapshot(folder)
    ran = lstmcli("run", "--input", "in.npy", "--units", 7, cwd=folder)
    assert_one_line(ran, ran.code, "in.npy")
    assert ran.code in (65, 66)
    assert files.snapshot(folder) == before


@pytest.mark.parametrize("size", [7, 9, 60, 127, 128, 1000, 4127])
def test_truncated_npy(size: int, folder: Path) -> None:
    whole = (folder / "x.npy").read_bytes()
    assert len(whole) == 128 + 4000
    (folder / "in.npy").write_bytes(whole[:size])
    refuse_input(folder, 65)
    refuse(folder, 65, "-: ", args=["--input", "-", "--units", "7"], stdin=whole[:size])


@pytest.mark.parametrize("size", [20, 600, 4000])
def test_truncated_hdf5(size: int, folder: Path) -> None:
    files.write_h5(folder / "in.h5", x=np.ones(SHAPE, np.float32))
    with (folder / "in.h5").open("r+b") as file:
        file.truncate(size)
    refuse_input(folder, 65, source="in.h5")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (65536, 65536, 64)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 10, 20)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 10, 20)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 'abc'}",
        "{'descr': ('<f4',), 'fortran_order': False, 'shape': (1, 1, 1)}",
        "{'descr': '<f4', 'shape': (1, 1, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1)",
        "__import__('os').mkdir('unpickled')",
        "[" * 9000,
    ],
)
def test_npy_headers_that_lie(header: str, folder: Path) -> None:
    (folder / "in.npy").write_bytes(npy_header(header) + bytes(64))
    refuse_input(folder, 65)


@pytest.mark.parametrize("start", [b"\x93NUMPY\x02\x00\xff\xff\xff\xbf{", b"\x93NUMPY\x09\x00\x76\x00{"])
def test_npy_of_another_version_or_with_a_huge_header(start: bytes, folder: Path) -> None:
    (folder / "in.npy").write_bytes(start + b" " * 200)
    refuse_input(folder, 65)


@pytest.mark.parametrize("axes", [(), ("--axes", "ETN")])
@pytest.mark.parametrize("source", ["in.npy", "in.h5", "in.h5::/x"])
def test_one_sequence(source: str, axes: tuple[str, ...], folder: Path) -> None:
    """An array (steps, features) is one, which a note says; with other axes it is none."""
    files.write_npy(folder / "in.npy", np.ones((10, 20), np.float32))
    files.write_h5(folder / "in.h5", x=np.ones((10, 20), np.float32))
    if axes:
        refuse(folder, 65, (10, 20), args=["--input", source, "--units", "7", *axes])
    else:
        ran = succeed("run", "--input", source, "--units", 7, "--save", "states", "--json", cwd=folder)
        assert ran.json["input"]["shape"] == [1, 10, 20]
        assert "(10, 20) is taken as one sequence; --lens or --offsets divides it" in ran.json["notes"][0]


@pytest.mark.parametrize("shape", [(5,), (), (2, 5, 10, 20)])
def test_wrong_rank(shape: tuple[int, ...], folder: Path) -> None:
    files.write_npy(folder / "in.npy", np.ones(shape, np.float32))
    files.write_h5(folder / "in.h5", x=np.ones(shape, np.float32))
    refuse_input(folder, 65, shape)
    refuse_input(folder, 65, shape, source="in.h5::/x")


@pytest.mark.parametrize("dtype", ["i4", "u1", "?", "c8", "S4", "M8[s]"])
def test_not_floats(dtype: str, folder: Path) -> None:
    array = np.zeros(SHAPE, dtype)
    files.write_npy(folder / "in.npy", array)
    refuse_input(folder, 65, "expected")
    if not dtype.startswith("M8"):  # HDF5 has no such type
        files.write_h5(folder / "in.h5", x=array)
        refuse_input(folder, 65, "float", source="in.h5::/x")


def test_structured_npy(folder: Path) -> None:
    files.write_npy(folder / "in.npy", np.zeros(SHAPE, [("a", "f4"), ("b", "f4")]))
    refuse_input(folder, 65)


def test_no_such_dataset_lists_the_candidates_with_their_shapes(folder: Path) -> None:
    with h5py.File(folder / "in.h5", "w") as file:
        file["x"] = np.ones(SHAPE, np.float32)
        file["deep/y"] = np.ones((2, 3, 4), np.float64)
        file["labels"] = np.ones(5, np.int64)
    refuse_input(folder, 65, "/z", "x", "(5, 10, 20)", "deep/y", "(2, 3, 4)", source="in.h5::/z")


def test_two_candidates_are_listed_with_their_shapes(folder: Path) -> None:
    with h5py.File(folder / "in.h5", "w") as file:
        file["first"] = np.ones(SHAPE, np.float32)
        file["deep/second"] = np.ones((2, 3, 4), np.float64)
    refuse_input(folder, 65, "first", "(5, 10, 20)", "deep/second", "(2, 3, 4)", source="in.h5")


def test_no_candidate(folder: Path) -> None:
    files.write_h5(folder / "in.h5", labels=np.ones(5, np.int64))
    refuse_input(folder, 65, source="in.h5")


@pytest.mark.parametrize("name", ["group", "null", "scalar", "text", "compound", "dangling", "loop"])
def test_hdf5_objects_that_hold_no_batch(name: str, folder: Path) -> None:
    with h5py.File(folder / "in.h5", "w") as file:
        file.create_group("group")
        file["null"] = h5py.Empty("f4")
        file["scalar"] = 1.0
        file["text"] = np.array([[["a", "b"]]], h5py.string_dtype())
        file["compound"] = np.zeros((2, 2, 2), [("a", "f4"), ("b", "f4")])
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["loop"] = h5py.SoftLink("/loop")
    refuse_input(folder, 65, name, source=f"in.h5::/{name}")


@pytest.mark.parametrize("name", ["link", "folder/x", "raw", "virtual", "virtual_missing"])
def test_hdf5_never_reads_another_file(name: str, folder: Path) -> None:
    """External links, also on the way to a dataset, external storage and virtual datasets are refused."""
    files.write_h5(folder / "other.h5", x=np.ones(SHAPE, np.float32))
    (folder / "secret.bin").write_bytes(bytes(4000))
    with h5py.File(folder / "in.h5", "w") as file:
        file["link"] = h5py.ExternalLink("other.h5", "/x")
        file["folder"] = h5py.ExternalLink("other.h5", "/")
        file.create_dataset("raw", SHAPE, "<f4", external=[("secret.bin", 0, 4000)])
        for virtual, source in [("virtual", "other.h5"), ("virtual_missing", "missing.h5")]:
            layout = h5py.VirtualLayout(SHAPE, "f4")
            layout[:] = h5py.VirtualSource(source, "x", SHAPE)
            file.create_virtual_dataset(virtual, layout, fillvalue=7)
    refuse_input(folder, 65, name.split("/")[0], source=f"in.h5::/{name}")


def test_damaged_chunk(folder: Path) -> None:
    with h5py.File(folder / "in.h5", "w") as file:
        x = file.create_dataset("x", data=np.ones(SHAPE, np.float32), chunks=(1, 10, 20), fletcher32=True)
        x.id.write_direct_chunk((3, 0, 0), b"damaged!" * 100 + bytes(4))
        with pytest.raises(OSError, match=r"filter|Fletcher32"):
            x[3]
    before = files.snapshot(folder)
    ran = lstmcli("run", "--input", "in.h5", "--units", 7, "--output", "out.h5", cwd=folder)
    assert_one_line(ran, ran.code, "in.h5")
    assert ran.code in (65, 74)
    assert files.snapshot(folder) == before


BAD_LENGTHS = {
    "negative": (np.array([4, -1, 10, -2, 10]), "row 1", "-1"),
    "beyond the steps": (np.array([4, 9, 10, 11, 99]), "row 3", "11"),
    "beyond int64": (np.array([4, 9, 2**63 + 5, 5, 10], np.uint64), "row 2", str(2**63 + 5)),
    "fractional": (np.array([4, 9, 2.5, 5, 10]), "row 2", "2.5"),
    "nan": (np.array([4, 9, 10, 5, np.nan]), "row 4", "nan"),
    "infinite": (np.array([np.inf, 9, 10, 5, 10], np.float32), "row 0", "inf"),
    "text": (np.array(["4", "9", "10", "5", "10"]),),
    "complex": (np.array([4, 9, 10, 5, 10 + 1j]),),
    "boolean": (np.array([True, True, False, True, True]),),
    "rank 2": (np.array([[4, 9], [9, 9], [10, 1], [5, 5], [10, 0]]), "(5, 2)"),
    "scalar": (np.array(5),),
    "four of them": (np.array([4, 9, 10, 5]), "4", "5"),
    "six of them": (np.array([4, 9, 10, 5, 10, 1]), "6", "5"),
    "none of them": (np.array([], np.int64), "0", "5"),
}


@pytest.mark.parametrize("kind", ["npy", "h5"])
@pytest.mark.parametrize("what", BAD_LENGTHS)
def test_bad_lengths(what: str, kind: str, folder: Path) -> None:
    lengths, *words = BAD_LENGTHS[what]
    if kind == "npy":
        files.write_npy(folder / "bad.npy", lengths)
    else:
        files.write_h5(folder / "bad.h5", n=lengths if lengths.dtype.kind != "U" else lengths.astype("S"))
    lens = "bad.npy" if kind == "npy" else "bad.h5::/n"
    refuse(folder, 65, f"bad.{kind}", *words, args=["--input", "x.npy", "--lens", lens, "--units", "7"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4\n9\n-10\n5\n10\n", ["row 2", "-10"]),
        ("4\n9\n10\n5\n11\n", ["row 4", "11"]),
        ("4\n9\n10\n5.5\n10\n", ["line 4", "5.5"]),
        ("4\nnan\n10\n5\n10\n", ["line 2", "nan"]),
        ("4\n9\nten\n5\n10\n", ["line 3", "ten"]),
        ("4\n9\n10\n5\n", ["4", "5"]),
        ("", []),
    ],
)
def test_bad_lengths_as_text(text: str, words: list[str], folder: Path) -> None:
    (folder / "bad.txt").write_text(text)
    refuse(folder, 65, "bad.txt", *words, args=["--input", "x.npy", "--lens", "bad.txt", "--units", "7"])


def test_own_lengths_of_the_input_are_checked_too(folder: Path) -> None:
    files.write_h5(folder / "in.h5", x=np.ones(SHAPE, np.float32), lengths=np.array([4, 9, 10, 5, 11]))
    refuse_input(folder, 65, "lengths", "row 4", "11", source="in.h5")


def test_lengths_dataset_that_is_not_there(folder: Path) -> None:
    files.write_h5(folder / "n.h5", lens=np.array([4, 9, 10, 5, 10]))
    refuse(folder, 65, "n.h5", "absent", args=["--input", "x.npy", "--lens", "n.h5::/absent", "--units", "7"])


def test_odd_names_stay_on_one_line_and_unstyled(folder: Path) -> None:
    ran = lstmcli("run", "--input", "[red]no\nsuch\x1b[31m.npy", "--units", 7, cwd=folder)
    assert_one_line(ran, 66, "[red]no")
    assert "\x1b" not in ran.err


def test_time_major(folder: Path) -> None:
    pipe = (folder / "x.npy").read_bytes()
    refuse(folder, 2, "-: a pipe in time-major order", args=["--input", "-", "--time-major", "--units", "7"], stdin=pipe)
    refuse(folder, 65, "expected 10 lengths", args=["--input", "x.npy", "--lens", "lens.npy", "--time-major", "--units", "7"])
    files.write_npy(folder / "in.npy", np.ones((5, 10), np.float32))
    refuse(folder, 65, "(steps, sequences, features)", args=["--input", "in.npy", "--time-major", "--units", "7"])
    refuse(folder, 65, "(features, steps, sequences)", args=["--input", "in.npy", "--axes", "ETN", "--units", "7"])
    both = ["--input", "x.npy", "--time-major", "--axes", "ETN", "--units", "7"]
    refuse(folder, 2, "--time-major is --axes TNE, not ETN; leave one of them out", args=both)
    refuse(folder, 2, "-: a pipe in order ETN", args=["--input", "-", "--axes", "ETN", "--units", "7"], stdin=pipe)
