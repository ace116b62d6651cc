"""Padded arrays in a file or a pipe, and how their valid rows are read: any order of the axes, chunks, compressed or not.

Axes: N sequences, T steps (padded), E features. Only valid steps are read, so padding may hold anything; a pipe reads
its padding too, because it cannot seek, and drops it. Nothing is mapped: a mapped file that shrinks kills the process.
"""

import math
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5
from lstmcli.files.positioned_file import Bytes, FileBytes

LARGE = 4 << 30  # bytes that a file may make this program take, however little it holds
STAGING = 1 << 20  # bytes read at a time where values must be converted or moved
CALL = 8 << 10  # bytes that are copied in the time that a call takes: smaller gaps are read, not skipped
TILE = 1 << 16  # rows whose places are worked out at a time

Rows = NDArray[np.float32] | NDArray[np.float64]


class Source:
    """A padded (N, T, E) array of floats in a file or a pipe, read by valid rows only."""

    name: str  # for messages and the summary: "x.h5::/embeddings", "x.npy", "-"
    shape: tuple[int, int, int]
    time_major: bool  # in the file the first two axes are (T, N)
    dtype: np.dtype[Any]  # as stored: float16, 32 or 64 of either byte order
    chunk: tuple[int, int] = (1, 1)  # (sequences, steps) that are decoded at once
    side_by_side: int = 1  # sequences that are best read together, rather than many steps of fewer of them
    sequential: bool = False  # a pipe: blocks in order, each sequence whole or in pieces in order of time
    first: int = 0  # of the sequences in the file
    dataset: Any = None  # the h5py.Dataset behind it, if there is one

    def __init__(
        self,
        data: Bytes,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        stored: int,
        chunk: int = 0,
        time_major: bool = False,
    ) -> None:
        """Checks the file's shape and dtype.

        stored: bytes that really lie in the file; chunk: bytes that are decoded at once; time_major: shape is (T, N, E).
        """
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
            hint = "; convert it with: x.astype('float32')" if dtype.kind in "biu" else ""
            raise DataError(f"{name}: expected float16, float32 or float64, got {dtype}{hint}")
        if len(shape) != 3:
            axes = "steps, sequences" if time_major else "sequences, steps"
            raise DataError(f"{name}: expected shape ({axes}, features), got {shape}")
        if not shape[2]:
            raise DataError(f"{name}: expected at least one feature, got shape {shape}")
        # What takes memory whatever is read: N lengths, and a chunk. A small file must not be able to declare any of it.
        batch, steps = (shape[1], shape[0]) if time_major else shape[:2]
        taken, what = max((8 * batch, f"shape {shape}"), (chunk, f"chunks of {chunk} bytes"))
        if taken > LARGE and taken > 1000 * stored:
            raise DataError(f"{name}: declares {what}, but holds only {stored} bytes of data")
        self.data, self.name, self.dtype = data, name, dtype
        self.shape, self.time_major = (batch, steps, shape[2]), time_major
        self._close: Callable[[], None]

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        return self._turned(self.shape)

    def _turned(self, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
        """From (N, T, E) to the order in the file, and back."""
        return (sizes[1], sizes[0], sizes[2]) if self.time_major else sizes

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
        first += self.first
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


class StridedArray(Source):
    """Values at `offset` in a file in any other order of the axes than (N, T, E).

    What lies together of a step of a sequence is a row here: all its features, or in Fortran order, where the features are
    the slowest axis, one of them. So the file is planes of rows, E or one of them, and a plane is (T, N) or (N, T).
    """

    def __init__(
        self,
        data: Bytes,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        offset: int,
        time_major: bool,
        fortran: bool,
    ) -> None:
        super().__init__(data, name, shape, dtype, math.prod(shape) * dtype.itemsize, time_major=time_major)
        batch, steps, features = self.shape
        self.offset = offset
        self.planes, width = (features, 1) if fortran else (1, features)
        self.row_bytes, self.plane_rows = width * dtype.itemsize, batch * steps
        self.time_outside = time_major != fortran
        # Rows from a sequence to the next one, and from a step to the next one.
        self.strides = (1, batch) if self.time_outside else (steps, 1)
        if self.time_outside:
            self.side_by_side = min(batch, CALL // self.row_bytes)
        # So many planes at once that rows in memory are filled by whole cache lines.
        group = min(self.planes, max(1, 64 // self.row_bytes))
        self.staging = np.empty((group, max(1, STAGING // (group * self.row_bytes)), width), dtype)

    def _read(self, first: int, start: int, lengths: Lengths, rows: Rows) -> None:
        begins = np.cumsum(lengths) - lengths
        for sequences, steps in self._tiles(len(lengths), int(lengths.max())):
            valid = steps < lengths[sequences]
            if not valid.any():
                continue
            index = (first + sequences) * self.strides[0] + (start + steps) * self.strides[1]
            self._gather(index[valid], (begins[sequences] + steps)[valid], rows)

    def _tiles(self, count: int, longest: int) -> Iterator[tuple[Lengths, Lengths]]:
        """All (sequence, step) as pairs of arrays that broadcast to TILE or fewer, in the file's order."""
        sizes = (longest, count) if self.time_outside else (count, longest)
        inner = min(sizes[1], TILE)
        outer = TILE // inner
        for low in range(0, sizes[0], outer):
            for left in range(0, sizes[1], inner):
                slow, fast = np.ogrid[low : min(low + outer, sizes[0]), left : min(left + inner, sizes[1])]
                yield (fast, slow) if self.time_outside else (slow, fast)

    def _gather(self, index: Lengths, places: Lengths, rows: Rows) -> None:
        """Rows `index` (n,), ascending, of each plane to rows[places].

        Short gaps are read as well, and dropped: a call for each run of valid rows would take longer.
        """
        steps = np.diff(index, prepend=index[:1])
        far = steps * self.row_bytes > CALL
        staged_at = np.cumsum(np.where(far, 1, steps))
        group, capacity, width = self.staging.shape
        full = np.flatnonzero(np.diff(staged_at // capacity)) + 1
        for low, high in pairwise([0, *full.tolist(), len(index)]):
            at = staged_at[low:high] - staged_at[low]
            begins = np.r_[0, np.flatnonzero(far[low + 1 : high]) + 1]
            ends = np.r_[begins[1:], high - low] - 1
            runs = list(zip(at[begins].tolist(), (at[ends] + 1).tolist(), index[low + begins].tolist(), strict=True))
            for plane in range(0, self.planes, group):
                staged = self.staging[: self.planes - plane]
                for k, part in enumerate(staged):
                    for begin, end, row in runs:
                        self._fetch(part[begin:end], plane + k, row)
                values = staged.take(at, axis=1).swapaxes(0, 1).reshape(len(at), -1)
                # Not rows[places, columns], which takes a slow way through NumPy.
                rows[:, plane * width :][:, : values.shape[1]][places[low:high]] = values

    def _fetch(self, part: NDArray[Any], plane: int, row: int) -> None:
        offset = self.offset + (plane * self.plane_rows + row) * self.row_bytes
        self.data.fetch(part.reshape(-1).view(np.uint8).data, offset)


class ChunkedArray(Source):
    """An HDF5 dataset that libhdf5 must decode. A chunk is decoded at most once in a read, and only for valid steps."""

    def __init__(self, data: Bytes, name: str, dataset: Any, dtype: np.dtype[Any], time_major: bool) -> None:
        # What has no chunks is compact, or in other files.
        row = max(1, math.prod(dataset.shape[1:]) * dtype.itemsize)
        chunks = dataset.chunks or (max(1, STAGING // row), *dataset.shape[1:])
        chunk = math.prod(chunks) * dtype.itemsize
        super().__init__(data, name, dataset.shape, dtype, dataset.id.get_storage_size(), chunk, time_major)
        self.dataset, self.space = dataset, dataset.id.get_space()
        self.written = hdf5.written_chunks(dataset)
        first, second, third = (max(1, min(extent, size)) for extent, size in zip(chunks, dataset.shape, strict=True))
        self.extent = self._turned((first, second, third))
        self.chunk, self.side_by_side = self.extent[:2], self.extent[0]
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
                    self._pack(part, counts, places, rows[:, left:right])

    def _pack(self, part: NDArray[Any], counts: Lengths, places: Lengths, rows: Rows) -> None:
        """The first counts[s] steps of part[s] to rows[places[s]], ..., in few calls."""
        count, steps, _ = part.shape
        if count <= steps:
            for values, place, valid in zip(part, places.tolist(), counts.tolist(), strict=True):
                rows[place : place + valid] = values[:valid]
        else:
            for step in range(steps):
                going = counts > step
                rows[places[going] + step] = part[going, step]

    def _cuts(self, axis: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """begin .. end, cut where chunks end."""
        extent = self.extent[axis]
        inner = range((begin // extent + 1) * extent, end, extent)
        return pairwise([begin, *inner, end]) if begin < end else iter(())

    def _decode(self, begin: tuple[int, int, int], count: tuple[int, int, int]) -> NDArray[Any]:
        """Part of one chunk, (sequences, steps, features), in memory that the next call reuses."""
        import h5py

        begin, count = self._turned(begin), self._turned(count)
        corner = tuple(at // extent * extent for at, extent in zip(begin, self._turned(self.extent), strict=True))
        where = f"{self.name}, chunk at {corner}"
        if self.written is not None and corner not in self.written:
            raise DataError(f"{where}: was never written, but holds valid steps; was its writer stopped?")
        if not self.staging.size:
            self.staging = np.empty(math.prod(self.extent), self.dtype)
        part = self.staging[: math.prod(count)].reshape(count)
        with hdf5.reading(where):
            self.space.select_hyperslab(begin, count)
            self.dataset.id.read(h5py.h5s.create_simple(count), self.space, part)
        return part.swapaxes(0, 1) if self.time_major else part
