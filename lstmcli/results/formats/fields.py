"""The arrays of a result by their place in a file, and how packed rows get there.

Only valid steps are written. The padding is zeros because nothing was ever written there, but for gaps that are smaller than a
page of memory: the system writes their page with the steps around them, so that zeros over these zeros cost neither space nor
time, and a call for each short sequence would take most of a run. The layouts flat and per-sequence have no padding.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, Valid, rows_of_runs, runs_to_move_together
from lstmcli.files.hdf5 import Extent
from lstmcli.files.positioned_file import Data, as_bytes

PAGE = 4096  # bytes
CACHE = 1 << 19  # bytes that are summed and then written while they are still in the cache

Checksums = NDArray[np.uint32]  # (N,) the CRC-32 of the bytes of each row: of its valid steps where the array has steps
Arrays = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shapes, those of the padded layout, and dtypes by name
LAYOUTS = PADDED, FLAT, PER_SEQUENCE = "padded", "flat", "per-sequence"  # how the steps of the sequences lie in a result


def has_steps(name: str) -> bool:
    """Says whether an array of a result, called so, has a row for each step in the layouts without padding."""
    return name != "pooled" and not name.startswith("state/")


class Store(Protocol):
    """A file that takes bytes at any position: Partial; or from its start to its end: StandardOutput."""

    def reserve(self, size: int) -> None: ...
    def write(self, data: Data, offset: int) -> None: ...
    def start_sync(self) -> None: ...
    def sync(self) -> None: ...
    def seal(self) -> None: ...
    def publish(self) -> None: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


class Field(NamedTuple):
    """One array of a result in C order: (N, T, D), which has steps, or (N, D), which has a row for each sequence."""

    store: Any  # a Store, or FileBytes of a finished result, which is read alone
    offset: int  # bytes into the store
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begins: Lengths | None = None  # bytes into the store where the steps of each sequence begin; None: T steps apart

    def extents(self, lengths: Lengths) -> list[Extent]:
        """Returns which bytes of the store it has. lengths: of all sequences."""
        if self.begins is None:
            return [Extent(self.offset, math.prod(self.shape) * self.dtype.itemsize)]
        begins, ends = self._runs(0, Valid(np.zeros_like(lengths), lengths))
        return [Extent(begin, end - begin) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]

    @property
    def has_steps(self) -> bool:
        return len(self.shape) == 3

    def groups(self, steps: Lengths) -> Iterator[slice]:
        """Cuts sequences of `steps` steps into groups with about as many bytes as a cache holds."""
        if not len(steps):
            return
        width = max(1, self.shape[-1] * self.dtype.itemsize)
        sizes = np.cumsum(steps if self.has_steps else np.ones(len(steps), np.int64)) * width
        cuts = np.searchsorted(sizes, np.arange(CACHE, sizes[-1], CACHE)) + 1
        # np.unique() would load numpy.ma, which takes longer than a small run.
        yield from itertools.starmap(slice, itertools.pairwise(sorted({0, *cuts.tolist(), len(steps)})))

    def put(self, first: int, valid: Valid, rows: NDArray[Any], whole: bool = False) -> None:
        """Stores the valid steps of the sequences first, first + 1, ..., packed in rows (R, D).

        Where the field has no steps, rows (n, D) are those of the sequences. Where it has no padding, the first step of a
        sequence has the number 0. whole: these are all steps of the sequences, so what lies between them is padding.
        """
        if not self.has_steps:
            self.put_rows(first, rows)
            return
        view, at = as_bytes(rows), 0
        for begin, end, size, places in self._groups(first, valid, whole):
            data: Data = view[at : at + size]
            if places is not None:
                data = np.zeros((end - begin) // self.row_bytes, row := np.dtype((np.void, self.row_bytes)))
                data[places] = np.frombuffer(view[at : at + size], row)
            self.store.write(data, begin)
            at += size

    def put_rows(self, first: int, rows: NDArray[Any]) -> None:
        """Stores whole rows of a field without steps."""
        rows = np.ascontiguousarray(rows, self.dtype)
        self.store.write(rows, self.offset + first * rows[:1].nbytes)

    def clear_padding(self, valid: Valid) -> None:
        """Makes zeros of what is not zero in the padding of all sequences: damage to a file that an earlier run has left."""
        if not self.has_steps or self.begins is not None:
            return
        batch, longest, _ = self.shape
        width = self.shape[2] * self.dtype.itemsize
        ends = valid.starts + valid.lengths
        for first in range(0, batch * longest, count := max(1, CACHE // max(1, width))):
            sequences, steps = np.divmod(np.arange(first, min(first + count, batch * longest)), longest)
            padding = (steps < valid.starts[sequences]) | (steps >= ends[sequences])
            offset, size = self.offset + first * width, len(steps) * width
            if not size or not padding.any() or not self.store.has_data(offset, size):
                continue
            rows = np.frombuffer(self.store.take(offset, size), np.uint8).reshape(len(steps), width)
            for step in np.flatnonzero(padding & rows.any(axis=1)).tolist():
                self.store.write(bytes(width), offset + step * width)

    def get(self, first: int, valid: Valid) -> NDArray[Any]:
        """Returns what put() has stored. Raises StorageError."""
        count = int(valid.lengths.sum()) if self.has_steps else len(valid.lengths)
        rows = np.empty((count, *self.shape[2 if self.has_steps else 1 :]), self.dtype)
        self.get_into(rows, first, valid)
        return rows

    def get_into(self, rows: NDArray[Any], first: int, valid: Valid) -> None:
        """Fills rows, C-contiguous and of this dtype, with what put() has stored. Raises StorageError."""
        view, at = as_bytes(rows), 0
        if not self.has_steps:
            view[:] = self.store.take(self.offset + first * rows[:1].nbytes, len(view))
            return
        for begin, end, size, places in self._groups(first, valid, together=True):
            taken = self.store.take(begin, end - begin)
            if places is not None:
                taken = np.frombuffer(taken, np.dtype((np.void, self.row_bytes)))[places].tobytes()
            view[at : at + size] = taken
            at += size

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] * self.dtype.itemsize

    def _groups(self, first: int, valid: Valid, together: bool) -> Iterator[tuple[int, int, int, Lengths | None]]:
        """Yields what to move in one call: its begin and end in the store, how many bytes of it are steps, and which rows are.

        Those are None where all of it is steps. together: padding of less than a page is moved with the steps around it.
        """
        begins, ends = self._runs(first, valid)
        near = PAGE if together and self.begins is None else 0
        for group in runs_to_move_together(begins, ends, near, CACHE):
            begin, end = int(begins[group.start]), int(ends[group.stop - 1])
            if group.stop - group.start == 1:
                yield begin, end, end - begin, None
            else:
                places = rows_of_runs((begins[group] - begin) // self.row_bytes, (ends[group] - begin) // self.row_bytes)
                yield begin, end, len(places) * self.row_bytes, places

    def _runs(self, first: int, valid: Valid) -> tuple[Lengths, Lengths]:
        """Returns where sequences that have no padding between them begin and end in the store."""
        starts, steps = valid
        used = np.flatnonzero(steps if self.row_bytes else 0 * steps)
        if self.begins is None:
            begins = self.offset + ((first + used) * self.shape[1] + starts[used]) * self.row_bytes
        else:
            begins = self.begins[first + used] + starts[used] * self.row_bytes
        ends = begins + steps[used] * self.row_bytes
        is_far = begins[1:] != ends[:-1]
        return begins[np.r_[True, is_far][: len(used)]], ends[np.r_[is_far, True][: len(used)]]
