"""Where arrays lie and how their valid rows are read: NPY files, HDF5 datasets, and an NPY stream in a pipe.

Axes: N sequences, T steps (padded), E features. Only valid steps are read, so padding may hold anything; a pipe reads
its padding too, because it cannot seek, and drops it. Nothing is mapped: a mapped file that shrinks kills the process.
"""

import math
import os
import select
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli import hdf5
from lstmcli.errors import DataError, MissingInputError, StorageError, shown
from lstmcli.npy import read_header

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
HEADER_BEGIN = 10  # bytes of an NPY file before the text of its header, at least
LARGE = 4 << 30  # bytes that a file may make this program take, however little it holds
STOP_CHECK = 200  # milliseconds
SAMPLES, SAMPLE = 16, 64 << 10  # pieces of a file, and bytes of each, that stand for the whole
STAGING = 1 << 20  # bytes read at a time where values must be converted or moved

Lengths = NDArray[np.int64]
Rows = NDArray[np.float32] | NDArray[np.float64]


class Bytes(Protocol):
    """Bytes that can be fetched by their position."""

    def fetch(self, view: memoryview, offset: int) -> None:
        """Fills `view` with the bytes at `offset`. DataError: they end too early. StorageError: the read failed."""

    def stop(self) -> None:
        """Ends a fetch that waits in another thread, and all that follow, with StorageError."""

    def finish(self) -> None:
        """DataError if these are not, or no longer, the bytes that the header announced."""

    def identity(self) -> dict[str, Any]:
        """What differs when the bytes do; JSON."""


class FileBytes:
    """A regular file, in any order. `fd` stays the caller's."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name
        self.opened = os.fstat(fd)

    def fetch(self, view: memoryview, offset: int) -> None:
        while view:
            try:
                count = os.preadv(self.fd, [view], offset)
            except OSError as error:
                raise StorageError(f"{self.name}: reading at byte {offset} failed: {error.strerror}") from error
            if count == 0:
                raise DataError(f"{self.name}: ended at byte {offset}, expected {len(view)} bytes more")
            view, offset = view[count:], offset + count

    def stop(self) -> None:
        """A file never waits for long."""

    def finish(self) -> None:
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self.opened.st_size, self.opened.st_mtime_ns):
            raise DataError(f"{self.name}: was changed while it was read; run again when nothing writes to it")

    def identity(self) -> dict[str, Any]:
        size, checksum = self.opened.st_size, 0
        piece = bytearray(min(size, SAMPLE))
        for k in range(SAMPLES):
            self.fetch(memoryview(piece), (size - len(piece)) * k // (SAMPLES - 1))
            checksum = zlib.crc32(piece, checksum)
        return {"bytes": size, "modified_ns": self.opened.st_mtime_ns, "sample": checksum}


class PipeBytes:
    """A stream, from its start to its end. `fd` stays the caller's."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name
        self.at = 0
        self.size: int | None = None  # known after the header
        self.skipped = memoryview(bytearray(64 << 10))
        self.stopped = False
        self.coming = select.poll()
        self.coming.register(fd, select.POLLIN)

    def read(self, view: memoryview) -> int:
        try:
            while not (self.stopped or self.coming.poll(STOP_CHECK)):
                pass
            if self.stopped:
                raise StorageError(f"{self.name}: reading was stopped at byte {self.at}")
            count = os.readv(self.fd, [view])
        except OSError as error:
            raise StorageError(f"{self.name}: reading at byte {self.at} failed: {error.strerror}") from error
        self.at += count
        return count

    def fill(self, view: memoryview) -> None:
        while view:
            count = self.read(view)
            if count == 0:
                expected = "its header" if self.size is None else f"{self.size} bytes"
                raise DataError(f"{self.name}: the stream ended after {self.at} bytes, expected {expected}")
            view = view[count:]

    def fetch(self, view: memoryview, offset: int) -> None:
        if offset < self.at:
            raise ValueError(f"{self.name}: asked for byte {offset} of a stream after byte {self.at}")
        while offset > self.at:
            self.fill(self.skipped[: offset - self.at])
        self.fill(view)

    def stop(self) -> None:
        self.stopped = True

    def identity(self) -> dict[str, Any]:
        return {}  # it cannot be read twice

    def finish(self) -> None:
        assert self.size is not None
        self.fetch(memoryview(b""), self.size)
        if self.read(self.skipped[:1]):
            raise DataError(f"{self.name}: more bytes follow after the {self.size} that the header announces")


class Source:
    """A padded (N, T, E) array of floats in a file or a pipe, read by valid rows only."""

    name: str  # for messages and the summary: "x.h5::/embeddings", "x.npy", "-"
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]  # as stored: float16, 32 or 64 of either byte order
    chunk: tuple[int, int] = (1, 1)  # (sequences, steps) that are best read together
    sequential: bool = False  # a pipe: blocks in order, each sequence whole or in pieces in order of time
    first: int = 0  # of the sequences in the file
    dataset: Any = None  # the h5py.Dataset behind it, if there is one

    def __init__(
        self, data: Bytes, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], stored: int, chunk: int = 0
    ) -> None:
        """Checks shape and dtype; `stored`: bytes that really lie in the file, `chunk`: bytes that are decoded at once."""
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
            hint = "; convert it with: x.astype('float32')" if dtype.kind in "biu" else ""
            raise DataError(f"{name}: expected float16, float32 or float64, got {dtype}{hint}")
        if len(shape) != 3:
            raise DataError(f"{name}: expected shape (sequences, steps, features), got {shape}")
        if not shape[2]:
            raise DataError(f"{name}: expected at least one feature, got shape {shape}")
        # What takes memory whatever is read: N lengths, and a chunk. A small file must not be able to declare any of it.
        taken, what = max((8 * shape[0], f"shape {shape}"), (chunk, f"chunks of {chunk} bytes"))
        if taken > LARGE and taken > 1000 * stored:
            raise DataError(f"{name}: declares {what}, but holds only {stored} bytes of data")
        self.data, self.name, self.dtype = data, name, dtype
        self.shape = (shape[0], shape[1], shape[2])
        self._close: Callable[[], None]

    def restrict(self, first: int, stop: int) -> None:
        """To the sequences first .. stop: from now on these are all."""
        self.first, self.shape = self.first + first, (stop - first, *self.shape[1:])

    def identity(self) -> dict[str, Any]:
        """What tells this input from another one, and from itself after a change."""
        return self.data.identity()

    def read(self, first: int, start: int, lengths: Lengths, rows: Rows) -> None:
        """Packs steps start .. start + lengths[s] of the sequences first, first + 1, ... one after another into `rows`.

        lengths  (n,)               int64           in   start + lengths[s] <= T
        rows     (sum(lengths), E)  float32 or 64   out  C-contiguous, native byte order; written in full

        DataError: the file ends early, is damaged, a chunk was never written, or a value does not fit float32.
        StorageError: the system could not read.
        """
        if not rows.size:
            return
        try:
            with np.errstate(over="raise", invalid="ignore"):
                self._read(self.first + first, start, lengths, rows)
        except FloatingPointError as error:
            raise DataError(
                f"{self.name}, sequences {first} to {first + len(lengths) - 1}: a value is too large for {rows.dtype}; "
                "compute in float64, or rescale the input"
            ) from error

    def _read(self, first: int, start: int, lengths: Lengths, rows: Rows) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Ends a read in another thread that waits for a pipe, and all later ones, with StorageError. Files never wait."""
        self.data.stop()

    def finish(self) -> None:
        """After the last read: DataError if the file changed meanwhile, or if a pipe holds too little or too much."""
        self.data.finish()

    def close(self) -> None:
        self._close()


class CArray(Source):
    """Values in C order, at `offset` in a file or a pipe."""

    def __init__(self, data: Bytes, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> None:
        super().__init__(data, name, shape, dtype, math.prod(shape) * dtype.itemsize)
        self.offset = offset
        self.staging = np.empty(STAGING // dtype.itemsize, dtype)

    def _read(self, first: int, start: int, lengths: Lengths, rows: Rows) -> None:
        width = self.shape[2]
        flat, at = rows.reshape(-1), 0
        target = flat.view(np.uint8).data
        for begin, end in self._runs(first, start, lengths):
            count = (end - begin) * width
            offset = self.offset + begin * width * self.dtype.itemsize
            if self.dtype == rows.dtype:
                self.data.fetch(target[at * flat.itemsize : (at + count) * flat.itemsize], offset)
            else:
                self._convert(flat[at : at + count], offset)
            at += count

    def _runs(self, first: int, start: int, lengths: Lengths) -> Iterator[tuple[int, int]]:
        """Rows of the (N * T, E) array to read; sequences without padding between them come as one run."""
        used = np.flatnonzero(lengths)
        begins = (first + used) * self.shape[1] + start
        ends = begins + lengths[used]
        cuts = np.flatnonzero(begins[1:] != ends[:-1]) + 1
        return zip(begins[np.r_[0, cuts]].tolist(), ends[np.r_[cuts - 1, -1]].tolist(), strict=True)

    def _convert(self, target: Rows, offset: int) -> None:
        """target  (n,)  out"""
        for at in range(0, len(target), len(self.staging)):
            part = self.staging[: len(target) - at]
            self.data.fetch(part.view(np.uint8).data, offset + at * self.dtype.itemsize)
            target[at : at + len(part)] = part


class FortranArray(Source):
    """Values in Fortran order at `offset` in a file: the batch axis is the contiguous one."""

    def __init__(self, data: Bytes, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> None:
        super().__init__(data, name, shape, dtype, math.prod(shape) * dtype.itemsize)
        self.offset = offset
        self.staging = np.empty(STAGING // dtype.itemsize, dtype)

    def _read(self, first: int, start: int, lengths: Lengths, rows: Rows) -> None:
        begins = np.cumsum(lengths) - lengths
        for low in range(0, len(lengths), len(self.staging)):
            part = slice(low, low + len(self.staging))
            self._read_columns(first + low, start, lengths[part], begins[part], rows)

    def _read_columns(self, first: int, start: int, lengths: Lengths, begins: Lengths, rows: Rows) -> None:
        """Like _read, for few enough sequences that one step of one feature fits the staging buffer."""
        count, longest = len(lengths), int(lengths.max())
        steps = len(self.staging) // count
        for low in range(0, longest, steps):
            time = np.arange(low, min(low + steps, longest))[:, None]
            valid = time < lengths
            places = (begins + time)[valid]
            part = self.staging[: valid.size].reshape(valid.shape)
            for feature in range(self.shape[2]):
                self._fetch(part, first, start + low, feature)
                rows[places, feature] = part[valid]

    def _fetch(self, part: NDArray[Any], first: int, start: int, feature: int) -> None:
        """part  (steps, sequences)  out  one feature, from sequence `first` and step `start` on"""
        batch, total, _ = self.shape
        for step in [part] if len(part[0]) == batch else part:
            offset = self.offset + ((feature * total + start) * batch + first) * self.dtype.itemsize
            self.data.fetch(step.reshape(-1).view(np.uint8).data, offset)
            start += 1


class ChunkedArray(Source):
    """An HDF5 dataset that libhdf5 must decode. A chunk is decoded at most once in a read, and only for valid steps."""

    def __init__(self, data: Bytes, name: str, dataset: Any, dtype: np.dtype[Any]) -> None:
        # What has no chunks is compact, or in other files.
        chunks = dataset.chunks or (
            max(1, STAGING // max(1, math.prod(dataset.shape[1:]) * dtype.itemsize)),
            *dataset.shape[1:],
        )
        chunk = math.prod(chunks) * dtype.itemsize
        super().__init__(data, name, dataset.shape, dtype, dataset.id.get_storage_size(), chunk)
        self.dataset, self.space = dataset, dataset.id.get_space()
        self.written = hdf5.written_chunks(dataset)
        self.extent = tuple(max(1, min(extent, size)) for extent, size in zip(chunks, dataset.shape, strict=True))
        self.chunk = self.extent[:2]
        self.staging = np.empty(0, dtype)
        self.others = [FileBytes(hdf5.open_readable(str(path)), shown(str(path))) for path in hdf5.other_files(dataset)]

    def identity(self) -> dict[str, Any]:
        return super().identity() | {other.name: other.identity() for other in self.others}

    def finish(self) -> None:
        super().finish()
        for other in self.others:
            other.finish()

    def close(self) -> None:
        for other in self.others:
            os.close(other.fd)
        super().close()

    def _read(self, first: int, start: int, lengths: Lengths, rows: Rows) -> None:
        begins = np.cumsum(lengths) - lengths
        for low, high in self._cuts(0, first, first + len(lengths)):
            group = slice(low - first, high - first)
            for since, until in self._cuts(1, start, start + int(lengths[group].max())):
                counts = np.clip(lengths[group] + (start - since), 0, until - since)
                places = begins[group] + (since - start)
                for left, right in self._cuts(2, 0, self.shape[2]):
                    part = self._decode((low, since, left), (high - low, until - since, right - left))
                    for values, place, count in zip(part, places.tolist(), counts.tolist(), strict=True):
                        rows[place : place + count, left:right] = values[:count]

    def _cuts(self, axis: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """begin .. end, cut where chunks end."""
        extent = self.extent[axis]
        inner = range((begin // extent + 1) * extent, end, extent)
        return pairwise([begin, *inner, end]) if begin < end else iter(())

    def _decode(self, begin: tuple[int, int, int], count: tuple[int, int, int]) -> NDArray[Any]:
        """Part of one chunk, in memory that the next call reuses."""
        import h5py

        corner = tuple(at // extent * extent for at, extent in zip(begin, self.extent, strict=True))
        where = f"{self.name}, chunk at {corner}"
        if self.written is not None and corner not in self.written:
            raise DataError(f"{where}: was never written, but holds valid steps; was its writer stopped?")
        if not self.staging.size:
            self.staging = np.empty(math.prod(self.extent), self.dtype)
        part = self.staging[: math.prod(count)].reshape(count)
        with hdf5.reading(where):
            self.space.select_hyperslab(begin, count)
            self.dataset.id.read(h5py.h5s.create_simple(count), self.space, part)
        return part


def open_source(spec: str, follow_links: bool = False) -> Source:
    """Opens the input that `spec` names: a path (NPY or HDF5, told by its first bytes), `file.h5::/dataset`, or `-`.

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
                source = _open_dataset(file, dataset, follow_links)
            else:
                source = _open_npy(FileBytes(fd, shown(path)), shown(path))
        else:
            source = _open_npy(PipeBytes(fd, shown(path)), shown(path))
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


def _open_npy(data: FileBytes | PipeBytes, name: str) -> Source:
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
    source = (FortranArray if fortran else CArray)(data, name, shape, dtype, offset)
    source.sequential = isinstance(data, PipeBytes)
    return source


def _open_dataset(file: Any, name: str | None, follow_links: bool) -> Source:
    dataset = hdf5.dataset(file, name or _only_candidate(file), follow_links)
    where = hdf5.label(dataset)
    dtype, offset = hdf5.dtype_of(dataset), hdf5.raw_offset(dataset)
    data = FileBytes(dataset.file.id.get_vfd_handle(), where)
    if offset is None:
        return ChunkedArray(data, where, dataset, dtype)
    if offset + dataset.nbytes > data.opened.st_size:
        raise DataError(f"{where}: ends at byte {offset + dataset.nbytes}, the file at {data.opened.st_size}; it was cut")
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
