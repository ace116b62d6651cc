"""Windows of W steps, S apart, over the series of another input: their steps are read where they lie, once for a block.

Nothing of a window is kept but its number: 10^7 of them take no memory here.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lstmcli.blocks import Lengths, Valid
from lstmcli.errors import DataError, UsageError
from lstmcli.inputs.source import Rows, Source, StoredArray
from lstmcli.inputs.valid_steps import ValidSteps


class Windows(Source):
    """The whole windows of each series, in its order: steps 0 .. W, S .. S + W, ... of its valid steps."""

    def __init__(self, series: Source, valid_steps: ValidSteps, width: int, stride: int) -> None:
        """Raises DataError where no series has as many steps, and UsageError for a pipe, which cannot go back."""
        if series.sequential:
            raise UsageError(f"--window {width}: {series.name} is a pipe, in which overlapping windows come once; give a file")
        starts, lengths = valid_steps.valid
        longest = int(lengths.max(initial=0))
        if width > longest:
            raise DataError(f"{series.name}: expected series of at least {width} steps, the window, got at most {longest}")
        stride = min(stride, longest)  # which leaves a window of each series; NumPy has no larger numbers than int64
        counts = np.where(lengths < width, 0, (lengths - width) // stride + 1)
        self.series, self.starts, self.ends = series, starts, np.cumsum(counts)
        self.width, self.stride = width, stride
        number = int(counts.sum())
        array = StoredArray(series.data, series.name, (number, width, series.shape[2]), series.dtype)
        super().__init__(array._replace(token_ids=series.token_ids), ExitStack(), 8 * number)
        one = np.zeros(1, np.int64)
        valid = Valid(np.broadcast_to(one, number), np.broadcast_to(one + width, number))
        single = "is taken as one sequence"
        notes = [note for note in valid_steps.notes if single not in note]
        if short := int((counts == 0).sum()):
            notes.append(f"{series.name}: {short} of {len(lengths)} series have fewer steps than a window, and none of them")
        self.valid_steps = ValidSteps(valid, valid_steps.origin, notes=tuple(notes))

    @property
    def decoded_at_once(self) -> int:
        return self.series.decoded_at_once

    def identity(self) -> dict[str, Any]:
        found = self.series.identity() | {"window": [self.width, self.stride]}
        if self.series.ids is not None:
            found["series ids"] = hashlib.sha256("\0".join(self.series.ids).encode()).hexdigest()[:16]
        return found

    def rows(self, first: int, count: int) -> tuple[Lengths, Lengths]:
        """Returns the series of each of the windows first, first + 1, ..., and its first step among the valid ones of that."""
        numbers = np.arange(first, first + count)
        series = np.searchsorted(self.ends, numbers, side="right")
        before = np.append(0, self.ends)[series]
        return series, (numbers - before) * self.stride

    def steps_read(self, first: int, count: int) -> int:
        """Returns how many different steps the windows first, first + 1, ... have."""
        windows = np.diff(np.clip(self.ends, first, first + count), prepend=first)
        windows = windows[windows > 0]
        return int(((windows - 1) * min(self.stride, self.width) + self.width).sum())

    def sequence(self, number: int) -> str:
        (series,), (step,) = self.rows(number, 1)
        return f"window {number} (of {self.series.sequence(int(series))}, from step {step} on)"

    def _read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        series, steps = self.rows(first, len(lengths))
        begins = self.starts[series] + steps + starts
        # Windows of one series of which the same steps are wanted overlap: these are read once.
        alike = (series[1:] == series[:-1]) & (starts[1:] == starts[:-1]) & (lengths[1:] == lengths[:-1])
        cuts = np.flatnonzero(~alike) + 1
        at = 0
        for low, high in zip([0, *cuts.tolist()], [*cuts.tolist(), len(lengths)], strict=True):
            count, length = high - low, int(lengths[low])
            target = rows[at : at + count * length]
            at += count * length
            if not length:
                continue
            if self.stride < length:
                begin, end = int(begins[low]), int(begins[high - 1]) + length
                read = np.empty((end - begin, rows.shape[1]), rows.dtype)
                self._of_series(int(series[low]), begin, end, read)
                windows = sliding_window_view(read, length, axis=0)[:: self.stride]  # (count, E, length)
                target.reshape(count, length, -1)[:] = windows.transpose(0, 2, 1)
            else:
                for k in range(low, high):
                    begin = int(begins[k])
                    self._of_series(int(series[k]), begin, begin + length, target[(k - low) * length :][:length])

    def _of_series(self, series: int, begin: int, end: int, rows: Rows) -> None:
        self.series._read(series, np.array([begin]), np.array([end - begin]), rows)

    def stop(self) -> None:
        self.series.stop()

    def finish(self) -> None:
        self.series.finish()


class WindowColumn:
    """The series (0) or the first step (1) of some windows, made when they are asked for."""

    dtype = np.dtype(np.int64)

    def __init__(self, windows: Windows, which: int, first: int, count: int) -> None:
        self.windows, self.which, self.first, self.shape = windows, which, first, (count,)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Lengths:
        first, stop, _ = part.indices(len(self))
        return self.windows.rows(self.first + first, stop - first)[self.which]


def columns(windows: Windows, first: int, count: int) -> tuple[WindowColumn, WindowColumn, Sequence[str] | None]:
    """Returns what a result says of some windows: the series and the first step of each, and the ids of all series."""
    return WindowColumn(windows, 0, first, count), WindowColumn(windows, 1, first, count), windows.series.ids
