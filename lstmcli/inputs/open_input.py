"""What --input names, opened: an NPY file, an HDF5 dataset, or an NPY stream in a pipe."""

import math
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lstmcli.errors import DataError, MissingInputError, UsageError, shown
from lstmcli.files import hdf5
from lstmcli.files.npy import read_header
from lstmcli.files.positioned_file import FileBytes, PipeBytes
from lstmcli.inputs.padded_arrays import CArray, ChunkedArray, Source, StridedArray

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
HEADER_BEGIN = 10  # bytes of an NPY file before the text of its header, at least


def open_source(spec: str, time_major: bool = False, follow_links: bool = False) -> Source:
    """Opens the input that `spec` names: a path (NPY or HDF5, told by its first bytes), `file.h5::/dataset`, or `-`.

    time_major: its axes are (steps, sequences, features). UsageError for such a pipe, which would have to be read as a whole.
    follow_links: an HDF5 dataset may be a link or lie in other files.
    MissingInputError: no such file. DataError: not an array that can be read; the message says what is there.
    """
    path, dataset = split_spec(spec)
    with ExitStack() as stack:
        fd = _stdin() if path == "-" else hdf5.open_readable(path)
        stack.callback(os.close, fd)
        if stat.S_ISREG(os.fstat(fd).st_mode) and path != "-":
            if is_hdf5(fd, shown(path)):
                file = stack.enter_context(hdf5.open_file(path))
                source = _open_dataset(file, dataset, time_major, follow_links)
            else:
                source = _open_npy(FileBytes(fd, shown(path)), shown(path), time_major)
        elif time_major:
            raise UsageError(
                f"{shown(path)}: a pipe in time-major order holds the first sequence's last step only near its end; "
                "give a file, or write it as (sequences, steps, features) and leave --time-major out"
            )
        else:
            source = _open_npy(PipeBytes(fd, shown(path)), shown(path), time_major)
        if dataset is not None and source.dataset is None:
            raise DataError(f"{source.name}: dataset {shown(dataset)} is named, but this is not an HDF5 file")
        source._close = stack.pop_all().close
    return source


def split_spec(spec: str) -> tuple[str, str | None]:
    """(path, dataset) of `path`, `path::/dataset` or `path:/dataset`; an existing file named like that comes first."""
    if not os.path.lexists(spec):
        path, mark, name = spec.rpartition("::")
        if mark:
            return path, "/" + name.lstrip("/")
        path, mark, name = spec.rpartition(":/")
        if mark and Path(path).is_file():
            return path, "/" + name.lstrip("/")
    return spec, None


def is_hdf5(fd: int, name: str) -> bool:
    """Whether a regular file has the HDF5 signature at byte 0, 512, 1024, 2048, ..."""
    data, at, begin = FileBytes(fd, name), 0, bytearray(len(HDF5_MAGIC))
    while at + len(begin) <= data.opened.st_size:
        data.fetch(memoryview(begin), at)
        if begin == HDF5_MAGIC:
            return True
        at = max(512, 2 * at)
    return False


def _stdin() -> int:
    try:
        return os.dup(0)
    except OSError as error:
        raise MissingInputError("-: standard input is closed") from error


def _open_npy(data: FileBytes | PipeBytes, name: str, time_major: bool) -> Source:
    if isinstance(data, FileBytes) and (found := data.opened.st_size) < HEADER_BEGIN:
        raise DataError(f"{name}: expected NPY or HDF5, got {f'{found} bytes' if found else 'an empty file'}")
    dtype, fortran, shape, offset = read_header(data.fetch, name)
    size = offset + math.prod(shape) * dtype.itemsize
    if isinstance(data, PipeBytes):
        data.size = size
        if fortran:
            raise DataError(
                f"{name}: is in Fortran order, so every sequence is spread over the whole stream; "
                "write it with np.save(..., np.ascontiguousarray(x)), or give a file"
            )
    elif size != data.opened.st_size:
        raise DataError(f"{name}: expected {size} bytes for shape {shape} of {dtype}, got {data.opened.st_size}")
    if fortran or time_major:
        return StridedArray(data, name, shape, dtype, offset, time_major, fortran)
    source = CArray(data, name, shape, dtype, offset)
    source.sequential = isinstance(data, PipeBytes)
    return source


def _open_dataset(file: Any, name: str | None, time_major: bool, follow_links: bool) -> Source:
    dataset = hdf5.dataset(file, name or _only_candidate(file), follow_links)
    where = hdf5.label(dataset)
    dtype, offset = hdf5.dtype_of(dataset), hdf5.raw_offset(dataset)
    data = FileBytes(dataset.file.id.get_vfd_handle(), where)
    if offset is None:
        return ChunkedArray(data, where, dataset, dtype, time_major)
    if offset + dataset.nbytes > data.opened.st_size:
        raise DataError(f"{where}: ends at byte {offset + dataset.nbytes}, the file at {data.opened.st_size}; it was cut")
    source: Source
    if time_major:
        source = StridedArray(data, where, dataset.shape, dtype, offset, time_major, fortran=False)
    else:
        source = CArray(data, where, dataset.shape, dtype, offset)
    source.dataset = dataset
    return source


def _only_candidate(file: Any) -> str:
    """Name of the only float dataset of rank 3."""
    found = hdf5.entries(file)
    fitting = [e for e in found if e.dtype is not None and e.dtype.kind == "f" and e.shape and len(e.shape) == 3]
    if len(fitting) != 1:
        path = shown(file.filename)
        example = shown(fitting[0].name) if fitting else "/dataset"
        raise DataError(
            f"{path}: expected one float dataset of rank 3, found {len(fitting)}: {hdf5.listed(fitting or found)}; "
            f"name the one to read: {path}::{example}"
        )
    return fitting[0].name
