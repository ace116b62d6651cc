"""The lengths of the sequences: found, read and checked before any work."""

import codecs
import os
import posixpath
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths
from lstmcli.errors import DataError, StorageError, UsageError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import NPY_MAGIC, FileKind, open_by_kind, split_spec
from lstmcli.files.npy import HEADER_LIMIT, read_header
from lstmcli.inputs.source import Source

NAMES = ("lengths", "lens", "sequence_length")


def read_lengths(spec: str | None, source: Source, follow_links: bool = False) -> tuple[Lengths, str | None]:
    """Lengths (N,) int64, all of them 0 .. T, and where they came from; None: nowhere, every sequence is full.

    spec: an NPY file, a text with one integer a line, `file.h5::/dataset`, `none`; or None to take the dataset
    `lengths`, `lens` or `sequence_length` beside an HDF5 input (or in the root of its file) if there is one.
    DataError: anything but N integers in 0 .. T. MissingInputError: no such file. UsageError: `-`.
    """
    batch, steps, _ = source.shape
    try:
        if spec is None:
            found = _beside(source, follow_links)
        elif spec == "none":
            found = None
        else:
            found = _named(spec, batch, follow_links)
        if found is None:
            return np.full(batch, steps, np.int64), None
        values, name = found
        return _checked(values, name, source), name
    except DataError as error:
        if spec is not None:
            raise
        raise DataError(f"{error}; it lies beside the input, --lens none ignores it") from error


def _beside(source: Source, follow: bool) -> tuple[NDArray[Any], str] | None:
    if source.dataset is None:
        return None
    file, group = source.dataset.file, posixpath.dirname(source.dataset.name)
    for name in (f"{folder}/{name}" for folder in (group, "") for name in NAMES):
        if hdf5_safety.find(file, name, follow) is not None:
            return _from_dataset(hdf5_safety.dataset(file, name, follow), source.shape[0])
    return None


def _named(spec: str, batch: int, follow: bool) -> tuple[NDArray[Any], str]:
    if spec == "-":
        raise UsageError("--lens -: only --input may be -; give a file, or /dev/stdin")
    path, dataset = split_spec(spec)
    with open_by_kind(path) as (file, kind):
        if kind is FileKind.HDF5:
            with hdf5.open_file(path) as container:
                return _from_dataset(hdf5_safety.dataset(container, dataset or _likely_name(container), follow), batch)
        name = file.name
        if dataset is not None:
            raise DataError(f"{name}: dataset {shown(dataset)} is named, but this is not an HDF5 file")
        limit = 2 * HEADER_LIMIT + 32 * batch
        try:
            with os.fdopen(os.dup(file.fd), "rb") as stream:
                content = stream.read(limit + 1)
        except OSError as error:
            raise StorageError(f"{name}: reading failed: {error.strerror}") from error
    if content.startswith(NPY_MAGIC):
        return _from_npy(content, batch, name), name
    if len(content) > limit:
        raise DataError(f"{name}: expected {batch} lengths, one a line, got more than {limit} bytes")
    return _from_text(content, batch, name), name


def _likely_name(file: Any) -> str:
    found = hdf5.entries(file)
    names = [entry.name for entry in found]
    for name in (f"/{name}" for name in NAMES):
        if name in names:
            return name
    fitting = [e for e in found if e.dtype is not None and e.dtype.kind in "iu" and e.shape and len(e.shape) == 1]
    if len(fitting) != 1:
        raise DataError(
            f"{shown(file.filename)}: expected a dataset {', '.join(NAMES)} or one integer dataset of rank 1, "
            f"found {len(fitting)}: {hdf5.listed(fitting or found)}; name the one to read: FILE::/dataset"
        )
    return fitting[0].name


def _from_dataset(item: Any, batch: int) -> tuple[NDArray[Any], str]:
    name = hdf5.label(item)
    _check_form(item.shape, hdf5.dtype_of(item), batch, name)
    return hdf5.read_array(item), name


def _from_npy(content: bytes, batch: int, name: str) -> NDArray[Any]:
    def fetch(view: memoryview, offset: int) -> None:
        part = content[offset : offset + len(view)]
        if len(part) < len(view):
            raise DataError(f"{name}: ended at byte {len(content)}, inside its header")
        view[:] = part

    dtype, _, shape, offset = read_header(fetch, name)
    _check_form(shape, dtype, batch, name)
    size = offset + batch * dtype.itemsize
    if len(content) != size:
        more = "more" if len(content) > size else str(len(content))
        raise DataError(f"{name}: expected {size} bytes for {batch} lengths of {dtype}, got {more}")
    return np.frombuffer(content, dtype, offset=offset)


def _from_text(content: bytes, batch: int, name: str) -> NDArray[np.int64]:
    lines = content.removeprefix(codecs.BOM_UTF8).rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(rb"\s*[+-]?\d{1,18}\s*", line):
            got = shown(line[:40].decode("utf-8", "backslashreplace"))
            raise DataError(f"{name}, line {number}: expected one integer, got {got or 'an empty line'}")
    _check_form((len(lines),), np.dtype(np.int64), batch, name)
    return np.array(list(map(int, lines)), np.int64)


def _check_form(shape: tuple[int, ...], dtype: np.dtype[Any], batch: int, name: str) -> None:
    """Before the values are read. Floats pass: their values make a better message."""
    if shape != (batch,):
        got = f"{shape[0]} of them" if len(shape) == 1 else f"shape {shape}"
        raise DataError(f"{name}: expected {batch} lengths, one for each sequence of the input, got {got}")
    if dtype.kind not in "iuf":
        raise DataError(f"{name}: expected lengths of an integer dtype, got {dtype}")


def _checked(values: NDArray[Any], name: str, source: Source) -> Lengths:
    """values  (N,)  any integer or float dtype"""
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            _refuse(~np.isfinite(values) | (np.trunc(values) != values), values, name, "expected a whole number")
        raise DataError(
            f"{name}: expected lengths of an integer dtype, got {values.dtype}; convert them: lengths.astype('int64')"
        )
    steps = source.shape[1]
    expected = f"expected 0 <= length <= {steps} (the steps of {source.name})"
    _refuse((values < 0) | (values > steps), values, name, expected)
    return values.astype(np.int64)


def _refuse(bad: NDArray[np.bool_], values: NDArray[Any], name: str, expected: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{name}, row {row}: {expected}, got {values[row]}; rows like that: {bad.sum()} of {len(bad)}")
