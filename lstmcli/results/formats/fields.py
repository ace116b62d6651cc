"""The arrays of a result by their place in a file, and how packed rows get there.

Only valid steps are written. The padding is zeros because nothing was ever written there; the layouts flat and per-sequence
have none.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, Valid
from lstmcli.files.positioned_file import Data, as_bytes

CACHE = 1 << 19  # bytes that are summed and then written while they are still in the cache

Checksums = NDArray[np.uint32]  # (N,) the CRC-32 of the bytes of each row: of its valid steps where the array has steps
Arrays = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shapes, those of the padded layout, and dtypes by name
LAYOUTS = PADDED, FLAT, PER_SEQUENCE = "padded", "flat", "per-sequence"  # how the steps of the sequences lie in a result


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


class Extent(NamedTuple):
    """Some bytes of a file."""

    offset: int
    size: int


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
        runs = self._runs(0, Valid(np.zeros_like(lengths), lengths))
        return [Extent(offset, end - begin) for offset, begin, end in runs]

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

    def put(self, first: int, valid: Valid, rows: NDArray[Any]) -> None:
        """Stores the valid steps of the sequences first, first + 1, ..., packed in rows (R, D).

        Where the field has no steps, rows (n, D) are those of the sequences. Where it has no padding, the first step of a
        sequence has the number 0.
        """
        if not self.has_steps:
            self.put_rows(first, rows)
            return
        view = as_bytes(rows)
        for offset, begin, end in self._runs(first, valid):
            self.store.write(view[begin:end], offset)

    def put_rows(self, first: int, rows: NDArray[Any]) -> None:
        """Stores whole rows of a field without steps."""
        rows = np.ascontiguousarray(rows, self.dtype)
        self.store.write(rows, self.offset + first * rows[:1].nbytes)

    def get(self, first: int, valid: Valid) -> NDArray[Any]:
        """Returns what put() has stored. Raises StorageError."""
        count = int(valid.lengths.sum()) if self.has_steps else len(valid.lengths)
        rows = np.empty((count, *self.shape[2 if self.has_steps else 1 :]), self.dtype)
        self.get_into(rows, first, valid)
        return rows

    def get_into(self, rows: NDArray[Any], first: int, valid: Valid) -> None:
        """Fills rows, C-contiguous and of this dtype, with what put() has stored. Raises StorageError."""
        view = as_bytes(rows)
        runs = self._runs(first, valid) if self.has_steps else [(self.offset + first * rows[:1].nbytes, 0, len(view))]
        for offset, begin, end in runs:
            view[begin:end] = self.store.take(offset, end - begin)

    def _runs(self, first: int, valid: Valid) -> Iterator[tuple[int, int, int]]:
        """Yields (offset in the store, begin, end in the packed bytes) of sequences that have no padding between them."""
        starts, steps = valid
        width = self.shape[2] * self.dtype.itemsize
        used = np.flatnonzero(steps)
        if not len(used) or not width:
            return
        ends = np.cumsum(steps)[used]
        begins = ends - steps[used]
        if self.begins is None:
            places = self.offset + ((first + used) * self.shape[1] + starts[used]) * width
        else:
            places = self.begins[first + used] + starts[used] * width
        cuts = np.flatnonzero(places[1:] != places[:-1] + steps[used[:-1]] * width) + 1
        heads, tails = np.r_[0, cuts], np.r_[cuts, len(used)] - 1
        yield from zip(
            places[heads].tolist(),
            (begins[heads] * width).tolist(),
            (ends[tails] * width).tolist(),
            strict=True,
        )
