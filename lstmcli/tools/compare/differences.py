"""How two arrays differ, in one pass over both and in bounded memory."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths

PIECE = 4 << 20  # bytes of each array that are read and compared at a time
Values = NDArray[Any]


class Array:
    """An array of a file: rows (R, width), of which each sequence has some. One without steps has a row for each sequence."""

    lengths: Lengths | None = None  # the steps of each sequence; None: it has no steps

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """shape: (N, T, width), or without steps any."""
        self.name, self.shape, self.dtype = name, shape, dtype.newbyteorder("=")
        self.count = (shape or (1,))[0]  # of sequences
        self.width = math.prod(shape[1:])

    def read(self, piece: "Piece", buffer: Values) -> Values:
        """Returns the rows of a piece, (rows, width), in `buffer` (at least so large) if it is of use."""
        raise NotImplementedError


@dataclass
class Piece:
    """Steps start .. start + lengths[s] of the sequences first + s; lengths None: whole rows, `count` of them."""

    first: int
    count: int
    start: int
    lengths: Lengths | None

    @property
    def rows(self) -> int:
        return self.count if self.lengths is None else int(self.lengths.sum())


class Difference:
    """What was found in the values of two arrays. Differences of values are taken in float64."""

    def __init__(self, tolerance: float | None) -> None:
        self.tolerance = tolerance
        self.compared = self.differing = self.beyond = self.nonfinite = 0
        self.absolute = self.relative = 0.0
        self.ulps: int | None = 0  # None where the dtypes differ
        self.first: dict[str, Any] | None = None

    def add(self, a: Values, b: Values, piece: Piece) -> None:
        """Compares the rows (R, width) of a piece."""
        self.compared += a.size
        if a.dtype == b.dtype:
            if same_bytes(a, b):
                return
            bits = np.dtype(f"u{a.dtype.itemsize}")
            differ = a.view(bits) != b.view(bits)
        else:
            differ, self.ulps = ~((a == b) | ((a != a) & (b != b))), None
        if not (count := int(np.count_nonzero(differ))):
            return
        rows, columns = np.nonzero(differ)
        ours, theirs = a[rows, columns], b[rows, columns]
        if self.first is None:
            self.first = place(piece, int(rows[0]), int(columns[0])) | {"a": shortest(ours[0]), "b": shortest(theirs[0])}
        self.differing += count
        self._measure(ours, theirs)

    def _measure(self, ours: Values, theirs: Values) -> None:
        if self.ulps is not None and ours.dtype.kind == "f":
            apart = ordered(ours), ordered(theirs)
            self.ulps = max(self.ulps, int((np.maximum(*apart) - np.minimum(*apart)).max()))
        x, y = ours.astype(np.float64), theirs.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            absolute = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
            relative = np.where(absolute == 0, 0.0, absolute / np.maximum(np.abs(x), np.abs(y)))
        finite = np.isfinite(absolute)
        self.nonfinite += int(np.count_nonzero(~finite))
        self.absolute = max(self.absolute, float(absolute[finite].max(initial=0)))
        self.relative = max(self.relative, float(relative[finite].max(initial=0)))
        if self.tolerance is not None:
            self.beyond += int(np.count_nonzero(~((absolute <= self.tolerance) | (finite & (relative <= self.tolerance)))))

    def facts(self) -> dict[str, Any]:
        """Returns what was found, ready for JSON. nonfinite: values that are finite, or a number, on one side alone."""
        return {
            "compared": self.compared,
            "differing": self.differing,
            "max_absolute": self.absolute,
            "max_relative": self.relative,
            "max_ulp": self.ulps,
            "nonfinite": self.nonfinite,
            "beyond_tolerance": None if self.tolerance is None else self.beyond,
            "first": self.first,
        }


def compare_values(a: Array, b: Array, tolerance: float | None) -> Difference:
    """Compares two arrays of one width, as far as both have sequences and steps. Raises DataError, StorageError."""
    found = Difference(tolerance)
    row = max(a.width * a.dtype.itemsize, b.width * b.dtype.itemsize, 1)
    rows = max(1, PIECE // row)
    buffers = [np.empty((rows, array.width), array.dtype) for array in (a, b)]
    with ThreadPoolExecutor(1) as other:  # both are read at the same time
        for piece in pieces(a, b, rows):
            coming = other.submit(b.read, piece, buffers[1])
            ours = a.read(piece, buffers[0])
            found.add(ours, coming.result(), piece)
    return found


def pieces(a: Array, b: Array, rows: int) -> Iterator[Piece]:
    """Cuts what both have into pieces of at most so many rows: whole sequences, or steps of one that is longer."""
    count = min(a.count, b.count)
    if a.lengths is None or b.lengths is None:
        yield from (Piece(first, min(rows, count - first), 0, None) for first in range(0, count, rows))
        return
    lengths = np.minimum(a.lengths[:count], b.lengths[:count])
    ends, first = np.cumsum(lengths), 0
    while first < count:
        before = int(ends[first] - lengths[first])
        fitting = int(np.searchsorted(ends, before + rows, side="right")) - first
        if fitting:
            yield Piece(first, fitting, 0, lengths[first : first + fitting])
        for start in range(0, 0 if fitting else int(lengths[first]), rows):
            yield Piece(first, 1, start, np.minimum(lengths[first : first + 1] - start, rows))
        first += max(1, fitting)


def place(piece: Piece, row: int, unit: int) -> dict[str, Any]:
    """Returns the sequence, the step counted from its first valid one (None: no steps) and the unit of a value in a piece."""
    if piece.lengths is None:
        return {"row": piece.first + row, "step": None, "unit": unit}
    ends = np.cumsum(piece.lengths)
    sequence = int(np.searchsorted(ends, row, side="right"))
    step = piece.start + row - int(ends[sequence] - piece.lengths[sequence])
    return {"row": piece.first + sequence, "step": step, "unit": unit}


def same_bytes(a: Values, b: Values) -> bool:
    """Says whether two C-contiguous arrays of one dtype hold the same bytes."""
    octets = [np.ascontiguousarray(values).reshape(-1).view(np.uint8) for values in (a, b)]
    whole = len(octets[0]) // 8 * 8
    words, rest = [values[:whole].view(np.uint64) for values in octets], [values[whole:] for values in octets]
    return np.array_equal(words[0], words[1]) and np.array_equal(rest[0], rest[1])


def ordered(values: Values) -> NDArray[np.uint64]:
    """Returns floats as whole numbers in their order, with neighbours 1 apart."""
    bits = values.view(f"u{values.dtype.itemsize}").astype(np.uint64)
    sign = np.uint64(1 << (8 * values.dtype.itemsize - 1))
    return np.where(bits & sign, sign - (bits & (sign - np.uint64(1))), bits | sign)


def shortest(value: Any) -> Any:
    """Returns a value as the Python number with the fewest digits that is the same in its dtype."""
    return float(str(value)) if isinstance(value, np.floating) else value.item()
