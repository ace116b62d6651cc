"""The states that a run starts from: those of an earlier result, an HDF5 group like its /state, or an NPZ.

Axes: N sequences; W, the width of an array: a cell's units (c) or outputs (h). Only the rows of a block are read at a time.
"""

import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, NamedTuple, Protocol
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import State
from lstmcli.errors import DataError, LstmcliError, StorageError, UsageError, shown
from lstmcli.files import hdf5
from lstmcli.files.npy import read_header
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.open_input import is_hdf5, split_spec
from lstmcli.inputs.padded_arrays import LARGE


class Array(Protocol):
    """(N, W) in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, first: int, count: int) -> NDArray[Any]: ...


class Dataset:
    def __init__(self, item: Any) -> None:
        self.item, self.name, self.shape, self.dtype = item, hdf5.label(item), item.shape, hdf5.dtype_of(item)
        if item.chunks and math.prod(item.chunks) * self.dtype.itemsize > LARGE:
            raise DataError(f"{self.name}: has chunks {item.chunks}, each of which would take more than {LARGE} bytes")
        if hdf5.raw_offset(item) is None and hdf5.written_chunks(item) is not None:
            raise DataError(f"{self.name}: some of its chunks were never written; was its writer stopped?")

    def rows(self, first: int, count: int) -> NDArray[Any]:
        with hdf5.reading(self.name):
            return np.asarray(self.item[first : first + count])


class Member:
    """Of an NPZ, stored or deflated. Reading on is cheap, reading back starts again."""

    def __init__(self, stream: IO[bytes], size: int, name: str) -> None:
        self.stream, self.name = stream, name
        self.dtype, fortran, self.shape, self.offset = read_header(self._fetch, name)
        if fortran:
            raise DataError(f"{name}: is in Fortran order; save np.ascontiguousarray(...) of it")
        if size != (expected := self.offset + math.prod(self.shape) * self.dtype.itemsize):
            raise DataError(f"{name}: expected {expected} bytes for shape {self.shape} of {self.dtype}, got {size}")

    def _fetch(self, view: memoryview, offset: int) -> None:
        with unpacking(self.name):
            self.stream.seek(offset)
            content = self.stream.read(len(view))
        if len(content) < len(view):
            raise DataError(f"{self.name}: ended at byte {offset + len(content)}, expected {len(view) - len(content)} more")
        view[:] = content

    def rows(self, first: int, count: int) -> NDArray[Any]:
        rows = np.empty((count, self.shape[1]), self.dtype)
        if rows.size:
            self._fetch(rows.reshape(-1).view(np.uint8).data, self.offset + first * rows[0].nbytes)
        return rows


@contextmanager
def unpacking(name: str) -> Iterator[None]:
    """Turns what zipfile raises into DataError, or StorageError where the system said no."""
    try:
        yield
    except LstmcliError:
        raise
    except OSError as error:
        if error.errno:
            raise StorageError(f"{name}: reading failed: {error.strerror}") from error
        raise DataError(f"{name}: damaged: {error}") from error
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"{name}: damaged, or neither HDF5 nor NPZ: {shown(str(error))}") from error


class States(NamedTuple):
    """The rows of all arrays of a model's state, by the names in it, such as "0/c"."""

    name: str
    arrays: dict[str, Array]
    dtype: np.dtype[Any]
    data: FileBytes
    files: ExitStack

    def read(self, first: int, count: int) -> State:
        """New arrays (count, W) of `dtype` for the sequences first, first + 1, ... DataError, StorageError."""
        return {name: self._converted(array, first, count) for name, array in self.arrays.items()}

    def _converted(self, array: Array, first: int, count: int) -> NDArray[Any]:
        try:
            with np.errstate(over="raise", invalid="ignore"):
                return np.ascontiguousarray(array.rows(first, count), self.dtype)
        except FloatingPointError as error:
            raise DataError(
                f"{array.name}, sequences {first} to {first + count - 1}: a value is too large for {self.dtype}; "
                "compute in float64"
            ) from error

    def finish(self) -> None:
        """DataError if the file was changed meanwhile."""
        self.data.finish()

    def close(self) -> None:
        self.files.close()


def open_states(spec: str, widths: dict[str, int], batch: int, dtype: np.dtype[Any]) -> States:
    """Opens the initial state of `batch` sequences: a result, `file.h5::/group`, or an NPZ such as --states makes.

    widths: of the model's states by name, as Model.state_widths. NaN passes, as it does in a model called from Python.
    MissingInputError: no such file. DataError: the state of another model or batch, or no state at all.
    """
    path, group = split_spec(spec)
    if path == "-":
        raise UsageError("--initial-state -: only --input may be -; give a file")
    with ExitStack() as files:
        fd = hdf5.open_readable(path)
        files.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DataError(f"{shown(path)}: expected a file, got a pipe or a device")
        if is_hdf5(fd, shown(path)):
            name, arrays = hdf5_arrays(files.enter_context(hdf5.open_file(path)), group or "/state")
        elif group is None:
            name, arrays = shown(path), npz_arrays(files, fd, shown(path))
        else:
            raise DataError(f"{shown(path)}: group {shown(group)} is named, but this is not an HDF5 file")
        check(name, arrays, widths, batch)
        return States(name, {n: arrays[n] for n in widths}, dtype, FileBytes(fd, shown(path)), files.pop_all())


def hdf5_arrays(file: Any, name: str) -> tuple[str, dict[str, Array]]:
    group = hdf5.find(file, name)
    if group is None or not hasattr(group, "keys"):
        got = "no such group" if group is None else "a dataset"
        raise DataError(
            f"{hdf5.label(file).rstrip('/')}{shown(name)}: expected a group of states, as in a result (unless it was made "
            f"with --save outputs), got {got}; name another one: FILE::/group"
        )
    names = [entry.name.removeprefix("/") for entry in hdf5.entries(group)]
    return hdf5.label(group), {name: Dataset(hdf5.dataset(group, name)) for name in names}


def npz_arrays(files: ExitStack, fd: int, path: str) -> dict[str, Array]:
    with unpacking(path):
        archive = files.enter_context(ZipFile(files.enter_context(os.fdopen(os.dup(fd), "rb"))))
        arrays: dict[str, Array] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            where = f"{path}, {shown(name)}"
            if name in arrays:
                raise DataError(f"{where}: is there twice; save the states again with np.savez")
            if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise DataError(f"{where}: expected what np.savez or np.savez_compressed writes, got another compression")
            arrays[name] = Member(files.enter_context(archive.open(info)), info.file_size, where)
    return arrays


def check(name: str, arrays: dict[str, Array], widths: dict[str, int], batch: int) -> None:
    """DataError if these are not the states of `batch` sequences in a model whose states have these widths."""
    if arrays.keys() != widths.keys():
        missing = sorted(widths.keys() - arrays.keys())
        surplus = sorted(arrays.keys() - widths.keys())
        found = [f"{what} {listed(names)}" for what, names in (("no", missing), ("also", surplus)) if names]
        raise DataError(
            f"{name}: the state of another model: expected {listed(list(widths))}, found {' and '.join(found)}; "
            "give the result of a run with the same --weights"
        )
    for cell, width in widths.items():
        array = arrays[cell]
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise DataError(f"{array.name}: expected float16, float32 or float64, got {array.dtype}")
        if len(array.shape) == 2 and array.shape[1] == width:
            if array.shape[0] != batch:
                raise DataError(
                    f"{array.name}: expected the states of {batch} sequences, as in the input, got {array.shape[0]}"
                )
        elif array.shape != (batch, width):
            raise DataError(
                f"{array.name}: the state of another model: expected shape {(batch, width)} for {cell}, got {array.shape}"
            )


def listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(shown, names[:8])) + more
