"""Padded arrays in a file or a pipe, and how their valid rows are read: any order of the axes, chunks, compressed or not.

Axes: N sequences, T steps (padded), E features. Only valid steps are read, so padding may hold anything; a pipe reads
its padding too, because it cannot seek, and drops it. Nothing is mapped: a mapped file that shrinks kills the process.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli import hdf5
from lstmcli.errors import DataError
from lstmcli.raw import Bytes

LARGE = 4 << 30  # bytes that a file may make this program take, however little it holds
STAGING = 1 << 20  # bytes read at a time where values must be converted or moved

Lengths = NDArray[np.int64]
Rows = NDArray[np.float32] | NDArray[np.float64]


class Source:
    """A padded (N, T, E) array of floats in a file or a pipe, read by valid rows only."""

    name: str  # for messages and the summary: "x.h5::/embeddings", "x.npy", "-"
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]  # as stored: float16, 32 or 64 of either byte order
    chunk: tuple[int, int] = (1, 1)  # (sequences, steps) that are best read together
    sequential: bool = False  # a pipe: blocks in order, each sequence whole or in pieces in order of time
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
                self._read(first, start, lengths, rows)
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
        chunk = math.prod(dataset.chunks or dataset.shape) * dtype.itemsize
        super().__init__(data, name, dataset.shape, dtype, dataset.id.get_storage_size(), chunk)
        self.dataset, self.space = dataset, dataset.id.get_space()
        self.written = hdf5.written_chunks(dataset)
        extents = zip(dataset.chunks or dataset.shape, dataset.shape, strict=True)
        self.extent = tuple(max(1, min(extent, size)) for extent, size in extents)
        self.chunk = self.extent[:2]
        self.staging = np.empty(0, dtype)

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
