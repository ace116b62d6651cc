"""Padded arrays in Fortran order, or with time or features first: gathered in the order of the file, then put in place."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, as_numbers
from lstmcli.inputs.source import CALL, STAGING, Rows, Source, StoredArray

TILE = 1 << 16  # rows whose places are worked out at a time


class StridedArray(Source):
    """Values at an offset in a file whose features are the fastest axis or the slowest one, but not in the order NTE.

    What lies together of a step of a sequence is a row here: all its features, or one of them where they are the slowest
    axis. So the file is planes of rows: one plane, or E of them, each of them (T, N) or (N, T).

        order TNE   one plane    step 0: n0 n1 n2 ...   step 1: n0 n1 n2 ...       a row: E features
        order ETN   E planes     step 0: n0 n1 n2 ...   step 1: n0 n1 n2 ...       a row: one feature
        order ENT   E planes     sequence 0: t0 t1 ...  sequence 1: t0 t1 ...      a row: one feature
    """

    def __init__(self, array: StoredArray, files: ExitStack | None = None) -> None:
        super().__init__(array, files, math.prod(array.shape) * array.dtype.itemsize)
        assert array.offset is not None
        batch, steps, features = self.shape
        self.offset = array.offset
        self.planes, width = (features, 1) if array.order[0] == "E" else (1, features)
        self.row_bytes, self.plane_rows = width * self.dtype.itemsize, batch * steps
        self.time_outside = array.order.index("T") < array.order.index("N")
        # Rows from a sequence to the next one, and from a step to the next one.
        self.strides = (1, batch) if self.time_outside else (steps, 1)
        if self.time_outside:
            self.side_by_side = min(batch, CALL // self.row_bytes)
        # So many planes at once that rows in memory are filled by whole cache lines.
        group = min(self.planes, max(1, 64 // self.row_bytes))
        self.staging = np.empty((group, max(1, STAGING // (group * self.row_bytes)), width), self.dtype)

    def _read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        ends = starts + lengths
        places = np.cumsum(lengths) - ends  # where a sequence's step 0 would lie in rows
        used = lengths > 0
        for sequences, steps in self._tiles(len(lengths), int(starts[used].min()), int(ends[used].max())):
            valid = (starts[sequences] <= steps) & (steps < ends[sequences])
            if not valid.any():
                continue
            index = (first + sequences) * self.strides[0] + steps * self.strides[1]
            self._gather(index[valid], (places[sequences] + steps)[valid], rows)

    def _tiles(self, count: int, begin: int, end: int) -> Iterator[tuple[Lengths, Lengths]]:
        """Yields `count` sequences and steps begin .. end as pairs of arrays that broadcast to TILE or fewer, in file order."""
        sequences, steps = (0, count), (begin, end)
        outside, inside = (steps, sequences) if self.time_outside else (sequences, steps)
        inner = min(inside[1] - inside[0], TILE)
        outer = TILE // inner
        for low in range(*outside, outer):
            for left in range(*inside, inner):
                slow, fast = np.ogrid[low : min(low + outer, outside[1]), left : min(left + inner, inside[1])]
                yield (fast, slow) if self.time_outside else (slow, fast)

    def _gather(self, index: Lengths, places: Lengths, rows: Rows) -> None:
        """Reads the rows `index` (n,), which ascend, of each plane into rows[places].

        Short gaps are read as well and dropped: a call for each run of valid rows would take longer.
        """
        gap_before = np.diff(index, prepend=index[:1])  # rows from one wanted row to the next
        is_far = gap_before * self.row_bytes > CALL
        staged_at = np.cumsum(np.where(is_far, 1, gap_before))  # a far row follows at once, a near one keeps its distance
        group, capacity, width = self.staging.shape
        full = np.flatnonzero(np.diff(staged_at // capacity)) + 1
        for low, high in pairwise([0, *full.tolist(), len(index)]):
            at = staged_at[low:high] - staged_at[low]
            run_begins = np.append(0, np.flatnonzero(is_far[low + 1 : high]) + 1)
            run_ends = np.append(run_begins[1:], high - low) - 1
            runs = list(
                zip(at[run_begins].tolist(), (at[run_ends] + 1).tolist(), index[low + run_begins].tolist(), strict=True)
            )
            for plane in range(0, self.planes, group):
                staged = self.staging[: self.planes - plane]
                for k, part in enumerate(staged):
                    for begin, end, row in runs:
                        self._fetch(part[begin:end], plane + k, row)
                values = as_numbers(staged.take(at, axis=1)).swapaxes(0, 1).reshape(len(at), -1)
                columns = rows[:, plane * width : plane * width + values.shape[1]]
                columns[places[low:high]] = values  # not rows[places, columns], which takes a slow way through NumPy

    def _fetch(self, part: NDArray[Any], plane: int, row: int) -> None:
        offset = self.offset + (plane * self.plane_rows + row) * self.row_bytes
        self.data.fetch(part.reshape(-1).view(np.uint8).data, offset)
