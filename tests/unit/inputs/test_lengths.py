"""Lengths: each form against what it says, each malformed one against its error."""

import os
from contextlib import closing

import h5py
import numpy as np
import pytest
from helpers.sources import as_npy, header, npy_bytes, save_h5, save_npy, stream

from lstmcli.errors import DataError, MissingInputError, UsageError
from lstmcli.inputs.lengths import read_lengths
from lstmcli.inputs.open_input import open_source

LENS = [0, 200, 3, 17]


@pytest.mark.parametrize("dtype", [o + k for o in "<>" for k in ("i2", "i4", "i8", "u2", "u4", "u8")] + ["u1"])
@pytest.mark.parametrize("kind", ["npy", "h5", "h5-gzip", "pipe"])
def test_lengths_of_any_integer_dtype(dtype, kind, source, tmp_path):
    lens, path = np.array(LENS, dtype), tmp_path / "lens"
    if kind == "npy":
        path.write_bytes(as_npy(lens))
        got, name = read_lengths(str(path), source)
        assert name == str(path)
    elif kind == "pipe":
        fd = stream(as_npy(lens))
        got, _ = read_lengths(f"/dev/fd/{fd}", source)
        os.close(fd)
    else:
        save_h5(path, lens, **({"compression": "gzip"} if kind == "h5-gzip" else {}))
        got, name = read_lengths(f"{path}::/x", source)
        assert name == f"{path}::/x"
    np.testing.assert_array_equal(got, np.array(LENS, np.int64), strict=True)


def test_lengths_as_text(source, tmp_path):
    path = tmp_path / "lens.txt"
    for content in ("0\n200\n3\n17", "0\n200\n3\n17\n\n \n", " 0\r\n+200\r\n3 \r\n017\r\n", "\ufeff0\n200\n3\n17\n"):
        path.write_bytes(content.encode())
        np.testing.assert_array_equal(read_lengths(str(path), source)[0], LENS)
    path.write_text("")
    with closing(open_source(save_npy(tmp_path / "none.npy", np.ones((0, 2, 3))))) as empty:
        assert read_lengths(str(path), empty)[0].shape == (0,)


BAD_TEXT = {
    "0\n200\n3.0\n17\n": "line 3: expected one integer, got 3.0",
    "0\n\n3\n17\n": "line 2: expected one integer, got an empty line",
    "0 200 3 17\n": "line 1: expected one integer, got 0 200 3 17",
    "0\n1_0\n3\n17\n": "line 2: expected one integer, got 1_0",
    "0\n\x1b[2J\n3\n17\n": r"line 2: expected one integer, got '\\x1b\[2J'",
    f"0\n{1 << 64}\n3\n17\n": "line 2: expected one integer, got 18446744073709551616",
    "0\n200\n3\n": "expected 4 lengths, one for each sequence of the input, got 3 of them",
    "0\n200\n-3\n17\n": r"row 2: expected 0 <= length <= 200 \(the steps of .*x\.npy\), got -3; rows like that: 1 of 4",
    "0\n" * 100_000: "expected 4 lengths, one a line, got more than",
}


@pytest.mark.parametrize("content", BAD_TEXT, ids=lambda content: repr(content[:12]))
def test_bad_lengths_as_text(content, source, tmp_path):
    (tmp_path / "lens.txt").write_text(content)
    with pytest.raises(DataError, match=BAD_TEXT[content]) as caught:
        read_lengths(str(tmp_path / "lens.txt"), source)
    assert str(caught.value).isprintable()


BAD_LENS = {
    "negative": (np.array([0, -1, -2, 3]), "row 1: expected 0 <= length <= 200 .*, got -1; rows like that: 2 of 4"),
    "too long": (np.array([0, 1, 201, 3]), "row 2: expected 0 <= length <= 200 .*, got 201; rows like that: 1 of 4"),
    "uint64": (np.array([0, 1, 2, 1 << 63], "u8"), "row 3: .*, got 9223372036854775808"),
    "big-endian": (np.array([0, 1, 2, 300], ">u2"), "row 3: .*, got 300"),
    "nan": (np.array([0, 1, np.nan, 2.5]), "row 2: expected a whole number, got nan; rows like that: 2 of 4"),
    "fraction": (np.array([0, 1.5, 2, 3], "f4"), "row 1: expected a whole number, got 1.5; rows like that: 1 of 4"),
    "infinite": (np.array([0, 1, 2, np.inf], "f2"), "row 3: expected a whole number, got inf"),
    "whole floats": (np.array([0.0, 1, 2, 3]), r"integer dtype, got float64; convert them: lengths\.astype\('int64'\)"),
    "bool": (np.array([True] * 4), "expected lengths of an integer dtype, got bool"),
    "complex": (np.ones(4, complex), "expected lengths of an integer dtype, got complex128"),
    "rank 2": (np.ones((4, 1), int), r"expected 4 lengths, .* got shape \(4, 1\)"),
    "rank 0": (np.array(4), r"expected 4 lengths, .* got shape \(\)"),
    "too few": (np.ones(3, int), "expected 4 lengths, one for each sequence of the input, got 3 of them"),
    "too many": (np.ones(90_000, int), "expected 4 lengths, .* got 90000 of them"),
}


@pytest.mark.parametrize("case", BAD_LENS)
@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_bad_lengths(case, kind, source, tmp_path):
    lens, message = BAD_LENS[case]
    spec = save_npy(tmp_path / "lens.npy", lens) if kind == "npy" else save_h5(tmp_path / "lens.h5", lens)
    with pytest.raises(DataError, match=message):
        read_lengths(spec, source)


def test_bad_lengths_files(source, tmp_path):
    path = tmp_path / "lens.npy"
    whole = as_npy(np.array(LENS))
    for content, message in [
        (whole[:-1], "expected 160 bytes for 4 lengths of int64, got 159"),
        (whole + b"!", "expected 160 bytes for 4 lengths of int64, got more"),
        (whole[:50], "ended at byte 50, inside its header"),
        (npy_bytes(header("'|O'", shape="(4,)"), bytes(32)), "objects and records are never read"),
        (as_npy(np.array(["a"] * 4)), "expected lengths of an integer dtype, got <U1"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_lengths(str(path), source)
    with pytest.raises(MissingInputError):
        read_lengths(str(tmp_path / "no.npy"), source)
    with pytest.raises(MissingInputError):
        read_lengths(str(tmp_path), source)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="not an HDF5 file"):
        read_lengths(f"{path}::/x", source)


def test_lengths_are_not_read_from_standard_input(source):
    with pytest.raises(UsageError, match=r"^--lens -: only --input may be -"):
        read_lengths("-", source)


def test_lengths_in_hdf5_without_a_name(source, tmp_path):
    path = tmp_path / "lens.h5"
    with h5py.File(path, "w") as f:
        f["any"], f["x"] = LENS, np.ones((4, 2))
    assert read_lengths(str(path), source)[1] == f"{path}::/any"
    with h5py.File(path, "a") as f:
        f["other"] = [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"found 2: /any \(4,\) int64, /other \(4,\) int64; name the one"):
        read_lengths(str(path), source)
    with h5py.File(path, "a") as f:
        f["lens"] = [4, 3, 2, 1]
    np.testing.assert_array_equal(read_lengths(str(path), source)[0], [4, 3, 2, 1])


def test_lengths_that_were_never_written(source, tmp_path):
    path = tmp_path / "lens.h5"
    for options in ({}, {"chunks": (2,)}):
        with h5py.File(path, "w") as f:
            f.create_dataset("lens", (4,), "i8", **options)
            if options:
                f["lens"][:2] = 1
        with pytest.raises(DataError, match=r"::/lens: .*written"):
            read_lengths(str(path), source)


def test_lengths_beside_the_input(tmp_path):
    path = tmp_path / "x.h5"
    x = np.ones((4, 200, 3), np.float32)
    for layout in ({}, {"compression": "gzip"}):
        with h5py.File(path, "w") as f:
            f.create_dataset("g/x", data=x, **layout)
        with closing(open_source(str(path))) as source:
            lengths, name = read_lengths(None, source)
            assert name is None
            np.testing.assert_array_equal(lengths, np.full(4, 200), strict=True)
        for added, expected in [("sequence_length", 3), ("g/lens", 5), ("g/lengths", 7)]:
            with h5py.File(path, "a") as f:
                f[added] = np.full(4, expected, ">i2")
            with closing(open_source(str(path))) as source:
                lengths, name = read_lengths(None, source)
                assert name == f"{path}::/{added}"
                np.testing.assert_array_equal(lengths, np.full(4, expected), strict=True)
                assert read_lengths("none", source)[1] is None
                assert read_lengths("none", source)[0].tolist() == [200] * 4


def test_bad_lengths_beside_the_input_are_not_ignored(tmp_path):
    path = tmp_path / "x.h5"
    for lens in (np.ones(3, int), np.ones(4), h5py.SoftLink("/y"), np.array([1, 2, 3, 999])):
        with h5py.File(path, "w") as f:
            f["x"], f["lengths"] = np.ones((4, 200, 3)), lens
        with closing(open_source(str(path))) as source:
            with pytest.raises(DataError, match="lies beside the input, --lens none ignores it"):
                read_lengths(None, source)
            assert read_lengths("none", source)[1] is None


def test_no_lengths(source):
    for spec in (None, "none"):
        lengths, name = read_lengths(spec, source)
        assert name is None
        np.testing.assert_array_equal(lengths, np.full(4, 200, np.int64), strict=True)
