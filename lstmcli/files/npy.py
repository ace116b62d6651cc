"""The header of an NPY file, read from anybody's file and written for ours (numpy.lib.format has the layout).

It is not read by numpy.lib.format, which takes memory for a header of any announced size (3 GiB of them) before it looks at
one byte, reads from files alone and not by position, lets the second of two equal keys win, accepts negative sizes, and
writes the parser's warnings to stderr.
"""

import ast
import io
import math
import re
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import as_numbers
from lstmcli.errors import DataError, shown
from lstmcli.files.file_kind import NPY_MAGIC

HEADER_LIMIT = 64 << 10  # bytes
FOREIGN = [  # how other writers spell what they mean, and what that is
    (re.compile(r"\b(\d{1,18})L\b"), r"\1"),  # Python 2
    (re.compile(r"\bnp\.u?int\d{1,2}\((\d{1,18})\)"), r"\1"),  # the repr of a scalar of NumPy 2
    (re.compile(r"\bnp\.(True|False)_"), r"\1"),
]


def read_header(fetch: Callable[[memoryview, int], None], name: str) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Reads (dtype, whether in Fortran order, shape, offset of the values) of an NPY file of version 1, 2 or 3.

    fetch: as Bytes.fetch. Raises DataError for what is not NPY, a header that is too long or no plain dict, objects, records,
    and a shape that is none.
    """

    def take(offset: int, count: int) -> bytes:
        taken = bytearray(count)
        fetch(memoryview(taken), offset)
        return bytes(taken)

    magic = take(0, len(NPY_MAGIC))
    if magic != NPY_MAGIC:
        raise DataError(
            f"{name}: expected NPY or HDF5 (HDF5 not in a pipe), got a file that begins with {magic!r}; `lstmcli help inputs` "
            "lists what else is read, and how"
        )
    version, minor = take(6, 2)
    if version not in (1, 2, 3) or minor:
        raise DataError(f"{name}: expected NPY version 1, 2 or 3, got {version}.{minor}")
    layout = "<H" if version == 1 else "<I"
    begin = 8 + struct.calcsize(layout)
    (length,) = struct.unpack(layout, take(8, begin - 8))
    if length > HEADER_LIMIT:
        raise DataError(f"{name}: expected an NPY header of at most {HEADER_LIMIT} bytes, got {length}")
    content = take(begin, length)
    try:
        text = content.decode("utf-8" if version == 3 else "latin-1").strip()
        for pattern, plain in FOREIGN:
            text = pattern.sub(plain, text)
        with warnings.catch_warnings(action="ignore"):  # the parser warns of odd literals, on stderr
            tree = ast.parse(text, mode="eval").body
        header = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise DataError(f"{name}: damaged NPY header: {shown(str(error))[:200]}") from error
    # Three keys in the text as well: literal_eval() lets the last of two equal keys win.
    if not isinstance(tree, ast.Dict) or len(tree.keys) != 3 or set(header) != {"descr", "fortran_order", "shape"}:
        raise DataError(f"{name}: damaged NPY header: expected the keys descr, fortran_order and shape")
    return _dtype(header["descr"], name), *_layout(header, name), begin + length


def _dtype(descr: object, name: str) -> np.dtype[Any]:
    if not (isinstance(descr, str) and re.fullmatch(r"[<>|=]?[biufcSUV]\d{1,4}", descr)):
        what = shown(str(descr))[:100]
        raise DataError(f"{name}: expected an array of numbers, got {what}; objects and records are never read")
    try:
        return np.dtype(descr)
    except TypeError as error:
        raise DataError(f"{name}: expected an array of numbers, got {descr}") from error


def _layout(header: dict[str, object], name: str) -> tuple[bool, tuple[int, ...]]:
    fortran, shape = header["fortran_order"], header["shape"]
    if not isinstance(fortran, bool):
        raise DataError(f"{name}: damaged NPY header: fortran_order is {shown(str(fortran))[:100]}")
    if not isinstance(shape, tuple) or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise DataError(f"{name}: damaged NPY header: shape is {shown(str(shape))[:100]}")
    return fortran, shape


class NpyArray:
    """An array in an NPY file, read by rows: those of the first axis."""

    def __init__(self, fetch: Callable[[memoryview, int], None], name: str) -> None:
        """Reads the header; fetch: as Bytes.fetch. Raises DataError."""
        self.fetch, self.name = fetch, name
        self.dtype, self.fortran, self.shape, self.offset = read_header(fetch, name)

    @property
    def size(self) -> int:
        """How many bytes the whole file has."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def check_size(self, size: int) -> None:
        """Raises DataError unless the file has the size that its header announces."""
        if size != self.size:
            raise DataError(f"{self.name}: expected {self.size} bytes for shape {self.shape} of {self.dtype}, got {size}")

    def rows(self, first: int, count: int) -> NDArray[Any]:
        """Returns rows first .. first + count of an array of rank 1 or 2, as stored, but bfloat16 as float32.

        Raises DataError, StorageError.
        """
        size = self.dtype.itemsize
        if self.fortran and len(self.shape) == 2:  # column by column
            columns = np.empty((self.shape[1], count), self.dtype)
            for k, column in enumerate(columns):
                self.fetch(column.view(np.uint8).data, self.offset + (k * self.shape[0] + first) * size)
            return as_numbers(columns).T
        rows = np.empty((count, *self.shape[1:]), self.dtype)
        if rows.size:
            self.fetch(rows.reshape(-1).view(np.uint8).data, self.offset + first * rows[0].nbytes)
        return as_numbers(rows)


def write_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Returns the header of an NPY file in C order."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return header.getvalue()
