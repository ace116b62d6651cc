"""Padded arrays whose axes lie in a file or a pipe as they are read: sequences, steps, features."""

import math
from contextlib import ExitStack

import numpy as np

from lstmcli.blocks import Lengths, as_numbers, rows_of_runs, runs_to_move_together
from lstmcli.inputs.source import CALL, STAGING, Rows, Source, StoredArray


class ContiguousArray(Source):
    """Values in C order, at an offset in a file or a pipe."""

    def __init__(self, array: StoredArray, files: ExitStack | None = None) -> None:
        super().__init__(array, files, math.prod(array.shape) * array.dtype.itemsize)
        assert array.offset is not None
        self.offset = array.offset
        self.row_bytes = self.shape[2] * self.dtype.itemsize
        self.near, self.most = CALL // self.row_bytes, max(1, (STAGING - CALL) // self.row_bytes)  # rows, of a read with gaps
        self.staging = np.empty(STAGING // self.dtype.itemsize, self.dtype)

    def _read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        begins, ends = self._runs(first, starts, lengths)
        at = 0
        for group in runs_to_move_together(begins, ends, self.near, self.most):
            begin, end = int(begins[group.start]), int(ends[group.stop - 1])
            if group.stop - group.start == 1:
                target = rows[at : at + end - begin]
                self._fetch(target.reshape(-1), begin)
            else:  # a call for each run would take longer than to read the short gaps as well, and to drop them
                staged = self.staging[: (end - begin) * self.shape[2]].reshape(end - begin, -1)
                self.data.fetch(staged.reshape(-1).view(np.uint8).data, self.offset + begin * self.row_bytes)
                wanted = rows_of_runs(begins[group], ends[group]) - begin
                target = rows[at : at + len(wanted)]
                target[:] = as_numbers(staged[wanted])
            at += len(target)

    def _runs(self, first: int, starts: Lengths, lengths: Lengths) -> tuple[Lengths, Lengths]:
        """Returns the rows of the (N * T, E) array to read; sequences without padding between them are one run."""
        used = np.flatnonzero(lengths)
        begins = (first + used) * self.shape[1] + starts[used]
        ends = begins + lengths[used]
        cuts = np.flatnonzero(begins[1:] != ends[:-1]) + 1
        return begins[np.r_[0, cuts]], ends[np.r_[cuts - 1, -1]]

    def _fetch(self, target: Rows, row: int) -> None:
        """Reads the values from a row on into target (n,)."""
        offset = self.offset + row * self.row_bytes
        if self.dtype == target.dtype:
            self.data.fetch(target.view(np.uint8).data, offset)
        else:
            self._convert(target, offset)

    def _convert(self, target: Rows, offset: int) -> None:
        """Reads values at `offset` and converts them into target (n,)."""
        for at in range(0, len(target), len(self.staging)):
            part = self.staging[: len(target) - at]
            self.data.fetch(part.view(np.uint8).data, offset + at * self.dtype.itemsize)
            target[at : at + len(part)] = as_numbers(part)
