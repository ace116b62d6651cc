"""Padded arrays in HDF5 that libhdf5 must decode: chunks, compressed or not, compact datasets, and data in other files."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.positioned_file import FileBytes, open_readable
from lstmcli.inputs.source import STAGING, Rows, Source, StoredArray


class ChunkedArray(Source):
    """An HDF5 dataset that libhdf5 must decode. A chunk is decoded at most once in a read, and only for valid steps."""

    def __init__(self, array: StoredArray, files: ExitStack | None = None) -> None:
        # What has no chunks is compact, or in other files.
        dataset, shape, dtype = array.dataset, array.shape, array.dtype
        row = max(1, math.prod(shape[1:]) * dtype.itemsize)
        chunks = (*dataset.chunks, 1, 1)[:3] if dataset.chunks else (max(1, STAGING // row), *shape[1:])
        stored = math.prod(shape) * dtype.itemsize if dataset.is_virtual else hdf5.storage_size(dataset)
        super().__init__(array, files, stored, math.prod(chunks) * dtype.itemsize)
        self.space = dataset.id.get_space()
        self.written = hdf5.written_chunks(dataset)
        first, second, third = (max(1, min(extent, size)) for extent, size in zip(chunks, shape, strict=True))
        self.extent = self._from_stored((first, second, third))
        self.chunk, self.side_by_side = self.extent[:2], self.extent[0]
        self.staging = np.empty(0, dtype)
        self.others = []
        for path in hdf5_safety.other_files(dataset):
            fd = open_readable(str(path))
            self.files.callback(os.close, fd)
            self.others.append(FileBytes(fd, shown(str(path))))

    def identity(self) -> dict[str, Any]:
        others = [other.identity() for other in self.others]
        return super().identity() | ({"files": others} if others else {})

    def finish(self) -> None:
        super().finish()
        for other in self.others:
            other.finish()

    def _read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        ends = starts + lengths
        places = np.cumsum(lengths) - ends  # where a sequence's step 0 would lie in rows
        for low, high in self._cuts(0, first, first + len(lengths)):
            group = np.arange(low - first, high - first)
            used = group[lengths[group] > 0]
            if not len(used):
                continue
            for since, until in self._cuts(1, int(starts[used].min()), int(ends[used].max())):
                begins = np.clip(starts[group], since, until)
                counts = np.clip(ends[group], since, until) - begins
                if not counts.any():
                    continue
                for left, right in self._cuts(2, 0, self.shape[2]):
                    part = self._decode((low, since, left), (high - low, until - since, right - left))
                    self._pack(part, begins - since, counts, places[group] + begins, rows[:, left:right])

    def _pack(self, part: NDArray[Any], begins: Lengths, counts: Lengths, places: Lengths, rows: Rows) -> None:
        """Copies steps begins[s] .. begins[s] + counts[s] of part[s] to rows[places[s]], ..., in few calls."""
        count, steps, _ = part.shape
        if count <= steps:
            for values, place, begin, valid in zip(part, places.tolist(), begins.tolist(), counts.tolist(), strict=True):
                rows[place : place + valid] = values[begin : begin + valid]
        else:
            for step in range(steps):
                going = (begins <= step) & (step < begins + counts)
                rows[(places - begins)[going] + step] = part[going, step]

    def _cuts(self, axis: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Cuts begin .. end where chunks end."""
        extent = self.extent[axis]
        inner = range((begin // extent + 1) * extent, end, extent)
        return pairwise(chain([begin], inner, [end])) if begin < end else iter(())

    def _decode(self, begin: tuple[int, int, int], count: tuple[int, int, int]) -> NDArray[Any]:
        """Returns a part of one chunk, (sequences, steps, features), in memory that the next call reuses. Raises DataError."""
        import h5py

        begin, count = self._to_stored(begin), self._to_stored(count)
        rank = self.dataset.ndim  # 2 for token ids
        corner = tuple(at // extent * extent for at, extent in zip(begin, self._to_stored(self.extent), strict=True))[:rank]
        where = f"{self.name}, chunk at {corner}"
        if self.written is not None and corner not in self.written:
            raise DataError(f"{where}: was never written, but holds valid steps; was its writer stopped?")
        if not self.staging.size:
            self.staging = np.empty(math.prod(self.extent), self.dtype)
        part = self.staging[: math.prod(count)].reshape(count)
        with hdf5.reading(where):
            self.space.select_hyperslab(begin[:rank], count[:rank])
            self.dataset.id.read(h5py.h5s.create_simple(count[:rank]), self.space, part)
        return part.transpose([self.axes.index(axis) for axis in "NTE"])
