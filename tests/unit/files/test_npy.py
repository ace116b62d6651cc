"""NPY headers of any kind, most of them malformed, each against its error."""

import warnings
from contextlib import closing, suppress

import numpy as np
import pytest
from helpers.sources import header, npy_bytes, read
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmcli.errors import DataError
from lstmcli.inputs.open_input import open_source

GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4), }"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_npy_versions(version, tmp_path):
    x = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    (tmp_path / "x").write_bytes(npy_bytes(GOOD + "\n", x.tobytes(), version))
    with closing(open_source(str(tmp_path / "x"))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, [3, 3]), x.reshape(6, 4))


@pytest.mark.parametrize(
    "text",
    [
        header(shape="(2L, 3L, 4L)"),
        header(shape="(np.int64(2), np.uint8(3), 4)"),
        header(order="np.False_"),
    ],
)
def test_headers_of_other_writers(text, tmp_path):
    x = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    (tmp_path / "x").write_bytes(npy_bytes(text, x.tobytes()))
    with closing(open_source(str(tmp_path / "x"))) as source:
        np.testing.assert_array_equal(read(source, 0, 0, [3, 3]), x.reshape(6, 4))


BAD_NPY = {
    "empty": (b"", r"x\.npy: expected NPY or HDF5, got an empty file$"),
    "2 bytes": (b"no", r"x\.npy: expected NPY or HDF5, got 2 bytes$"),
    "8 bytes": (b"\x93NUMPY\1\0", r"x\.npy: expected NPY or HDF5, got 8 bytes$"),
    "other magic": (b"GIF89a" + bytes(99), "expected NPY or HDF5 .* begins with b'GIF89a"),
    "NPZ": (b"PK\x03\x04" + bytes(99), "damaged ZIP archive"),
    "bytes of any meaning": (npy_bytes(header("'<V3'"), bytes(72)), r"expected float16, float32 or float64, got \|V3$"),
    "a call": (npy_bytes(header(shape="(np.array(2), 3, 4)"), bytes(96)), "damaged NPY header: malformed node"),
    "version 9": (npy_bytes(GOOD, bytes(96), 1).replace(b"Y\x01", b"Y\x09"), "expected NPY version 1, 2 or 3, got 9"),
    "version 0": (npy_bytes(GOOD, bytes(96), 1).replace(b"Y\x01", b"Y\x00"), "expected NPY version 1, 2 or 3, got 0"),
    "3 GiB header": (npy_bytes(GOOD, bytes(96), 2, 3 << 30), "header of at most 65536 bytes, got 3221225472"),
    "header past the end": (npy_bytes(GOOD, b"", 1, 60_000), r"ended at byte 72, expected \d+ bytes more$"),
    "not a dict": (npy_bytes("[1, 2, 3]"), "damaged NPY header: expected the keys"),
    "no literal": (npy_bytes("{'descr': open('x')}"), "damaged NPY header: malformed node"),
    "odd literal": (npy_bytes("{'descr': '\\d', 'shape': 1or 2}"), "damaged NPY header"),
    "no syntax": (npy_bytes("{'descr': "), "damaged NPY header"),
    "not utf-8": (npy_bytes(b"{'\xff': 1}", b"", 3), "damaged NPY header"),
    "null byte": (npy_bytes("{'descr': '<f4\0'}"), "damaged NPY header"),
    "nested": (npy_bytes("(" * 18_000), "damaged NPY header"),
    "nested minus": (npy_bytes("-" * 60_000 + "1"), "damaged NPY header"),
    "nested sum": (npy_bytes("1+" * 30_000 + "1"), "damaged NPY header"),
    "unhashable key": (npy_bytes("{[]: 1}"), "damaged NPY header"),
    "key missing": (npy_bytes("{'descr': '<f4', 'shape': (2, 3, 4)}"), "expected the keys"),
    "key twice": (npy_bytes(GOOD[:-1] + "'shape': (1, 1, 1)}", bytes(4)), "expected the keys"),
    "key too many": (npy_bytes(GOOD[:-1] + "'more': 1}", bytes(96)), "expected the keys"),
    "order is a number": (npy_bytes(header(order="0"), bytes(96)), "fortran_order is 0"),
    "shape is a list": (npy_bytes(header(shape="[2, 3, 4]"), bytes(96)), r"shape is \[2, 3, 4\]"),
    "dim is a bool": (npy_bytes(header(shape="(True, 3, 4)"), bytes(48)), "shape is .True, 3, 4"),
    "dim is a float": (npy_bytes(header(shape="(2.0, 3, 4)"), bytes(96)), "shape is .2.0"),
    "dim is negative": (npy_bytes(header(shape="(-2, -3, 4)"), bytes(96)), "shape is .-2"),
    "dim is huge": (npy_bytes(header(shape=f"({1 << 64}, 0, 1)")), "shape is .18446744073709551616"),
    "product is huge": (
        npy_bytes(header(shape=f"({1 << 40}, {1 << 40}, 4)"), bytes(96)),
        "expected .* bytes for shape",
    ),
    "bomb of nothing": (npy_bytes(header(shape=f"({1 << 40}, 0, 4)")), "holds only 0 bytes"),
    "cut": (npy_bytes(GOOD, bytes(95)), "expected 168 bytes for shape .* of float32, got 167"),
    "bytes behind": (npy_bytes(GOOD, bytes(97)), "expected 168 bytes for shape .* of float32, got 169"),
    "objects": (npy_bytes(header("'|O'"), bytes(192)), r"got \|O; objects and records are never read"),
    "records": (npy_bytes(header("[('a', '<f4')]"), bytes(96)), "objects and records are never read"),
    "descr a tuple": (npy_bytes(header("('<f4',)"), bytes(96)), "objects and records are never read"),
    "descr unknown": (npy_bytes(header("'<f3'"), bytes(72)), "expected an array of numbers, got <f3"),
    "dates": (npy_bytes(header("'<M8[s]'"), bytes(192)), "expected an array of numbers"),
    "void": (npy_bytes(header("'|V4'"), bytes(96)), "expected float16, float32 or float64, got .*V4"),
    "strings": (npy_bytes(header("'<U1'"), bytes(96)), "expected float16, float32 or float64, got <U1"),
    "long double": (npy_bytes(header("'<f16'"), bytes(384)), "expected float16, float32 or float64, got float128"),
    "complex": (npy_bytes(header("'<c8'"), bytes(192)), "expected float16, float32 or float64, got complex64"),
    "integers": (npy_bytes(header("'<i4'"), bytes(96)), r"got int32; .* with x\.astype\('float32'\)"),
    "bools": (npy_bytes(header("'|b1'"), bytes(24)), "got bool; .* become floats with"),
    "scalar": (npy_bytes(header(shape="()"), bytes(4)), r"expected shape \(sequences, steps, features\), got \(\)"),
    "rank 2": (npy_bytes(header(shape="(2, 3)"), bytes(24)), r"got \(2, 3\)"),
    "rank 4": (npy_bytes(header(shape="(1, 2, 3, 4)"), bytes(96)), r"got \(1, 2, 3, 4\)"),
}


@pytest.mark.parametrize("case", BAD_NPY)
def test_bad_npy(case, tmp_path):
    content, message = BAD_NPY[case]
    (tmp_path / "x.npy").write_bytes(content)
    with (
        warnings.catch_warnings(record=True, action="always") as warned,
        pytest.raises(DataError, match=message) as caught,
    ):
        open_source(str(tmp_path / "x.npy"))
    assert str(caught.value).isprintable()  # and so one line
    assert not warned  # of the parser, about literals


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 90), byte=st.integers(0, 255))
def test_a_damaged_header_raises_nothing_else(at, byte, tmp_path_factory):
    content = bytearray(npy_bytes(GOOD + " " * 17 + "\n", bytes(96)))
    content[at] = byte
    path = tmp_path_factory.mktemp("damaged") / "x.npy"
    path.write_bytes(content)
    with suppress(DataError):
        open_source(str(path)).close()
