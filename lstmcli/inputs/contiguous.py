"""Padded arrays whose axes lie in a file or a pipe as they are read: sequences, steps, features."""

import math
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

from lstmcli.blocks import Lengths
from lstmcli.inputs.source import STAGING, Rows, Source, StoredArray


class ContiguousArray(Source):
    """Values in C order, at an offset in a file or a pipe."""

    def __init__(self, array: StoredArray, files: ExitStack | None = None) -> None:
        super().__init__(array, files, math.prod(array.shape) * array.dtype.itemsize)
        assert array.offset is not None
        self.offset = array.offset
        self.staging = np.empty(STAGING // self.dtype.itemsize, self.dtype)

    def _read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        width = self.shape[2]
        flat, at = rows.reshape(-1), 0
        target = flat.view(np.uint8).data
        for begin, end in self._runs(first, starts, lengths):
            count = (end - begin) * width
            offset = self.offset + begin * width * self.dtype.itemsize
            if self.dtype == rows.dtype:
                self.data.fetch(target[at * flat.itemsize : (at + count) * flat.itemsize], offset)
            else:
                self._convert(flat[at : at + count], offset)
            at += count

    def _runs(self, first: int, starts: Lengths, lengths: Lengths) -> Iterator[tuple[int, int]]:
        """Yields the rows of the (N * T, E) array to read; sequences without padding between them come as one run."""
        used = np.flatnonzero(lengths)
        begins = (first + used) * self.shape[1] + starts[used]
        ends = begins + lengths[used]
        cuts = np.flatnonzero(begins[1:] != ends[:-1]) + 1
        return zip(begins[np.r_[0, cuts]].tolist(), ends[np.r_[cuts - 1, -1]].tolist(), strict=True)

    def _convert(self, target: Rows, offset: int) -> None:
        """Reads values at `offset` and converts them into target (n,)."""
        for at in range(0, len(target), len(self.staging)):
            part = self.staging[: len(target) - at]
            self.data.fetch(part.view(np.uint8).data, offset + at * self.dtype.itemsize)
            target[at : at + len(part)] = part
