"""The one form that sequences have between files and kernel, and the types that all rooms share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
State = dict[str, Floats]  # rows (n, width) by the place of their cell and c or h: "0/c", "1/forward/h"
Lengths = NDArray[np.int64]  # of sequences, in steps; also where they start

FLOATS = "float16, float32 or float64"
BFLOAT16 = np.dtype("V2")  # as NumPy reads bfloat16 numbers, which it does not know; ml_dtypes has such a dtype of its own


def is_float(dtype: np.dtype[Any]) -> bool:
    """Says whether values of this dtype are floats that this program converts: FLOATS, of either byte order."""
    return dtype.kind == "f" and dtype.itemsize <= 8


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Says whether this is BFLOAT16, or that of ml_dtypes."""
    return dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None


def holds_floats(dtype: np.dtype[Any]) -> bool:
    """Says whether as_numbers() makes floats of values of this dtype."""
    return is_float(dtype) or is_bfloat16(dtype)


def as_numbers(stored: NDArray[Any]) -> NDArray[Any]:
    """Returns bfloat16 values as float32, of which they are the upper half, little-endian, and others as they are."""
    if not is_bfloat16(stored.dtype):
        return stored
    return (stored.view("<u2").astype(np.uint32) << 16).view(np.float32)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Returns what users call the dtype of stored values."""
    return "bfloat16" if is_bfloat16(dtype) else dtype.name


def read_only(weight: Floats) -> Floats:
    """Returns `weight` itself where neither it nor the array that it is a view of can be written, else a copy."""
    owner = weight.base if isinstance(weight.base, np.ndarray) else weight
    if weight.flags.writeable or owner.flags.writeable:
        weight = weight.copy()
        weight.flags.writeable = False
    return weight


class Block(NamedTuple):
    """Sequences without their padding: sequence s is rows[starts[s] : starts[s] + lengths[s]].

    rows (R, features), each row contiguous; starts, lengths (n,) int64. Sequences do not overlap. A padded array
    (n, T, features) is a block too, without a copy: its rows are (n * T, features), and starts[s] = s * T. So are some columns
    of a block.
    """

    rows: Floats
    starts: Lengths
    lengths: Lengths

    def like(self, rows: Floats) -> "Block":
        """Returns the same sequences in other rows, packed one after the other."""
        return Block(rows, packed_starts(self.lengths), self.lengths)

    def columns(self, first: int, count: int) -> "Block":
        """Returns the same sequences with some of their columns, without a copy."""
        return Block(self.rows[:, first : first + count], self.starts, self.lengths)


def one_nan(rows: Floats) -> None:
    """Makes every NaN in rows that of NumPy, as the kernels do: which sign and payload a sum passes on is the CPU's choice."""
    if np.isnan(rows.max(initial=-np.inf)):
        rows[np.isnan(rows)] = np.nan


class Valid(NamedTuple):
    """The valid steps of padded sequences: starts[s] .. starts[s] + lengths[s] of sequence s. (n,) int64; 0, 0 for none."""

    starts: Lengths
    lengths: Lengths

    @classmethod
    def of_lengths(cls, lengths: Lengths, steps: int, padding: str) -> "Valid":
        """Returns the first `lengths` of so many steps, or with padding "pre" the last ones."""
        starts = np.where(lengths > 0, steps - lengths, 0) if padding == "pre" else np.zeros(len(lengths), np.int64)
        return cls(starts, lengths)

    def part(self, first: int, stop: int) -> "Valid":
        """Returns those of some of the sequences."""
        return Valid(self.starts[first:stop], self.lengths[first:stop])


def packed_starts(lengths: Lengths) -> Lengths:
    """Returns where each sequence begins if they lie one after the other."""
    starts = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts


def runs_to_move_together(begins: Lengths, ends: Lengths, near: int, most: int) -> Iterator[slice]:
    """Cuts runs of rows begins[k] .. ends[k], which ascend, into groups that are moved in one call, with the gaps between them.

    From the end of a run to the end of the next one in its group there are at most `near` rows; a longer run is a group of its
    own. A group of several runs spans at most most + near rows.
    """
    apart = ends[1:] - ends[:-1] > near
    apart |= (ends - begins)[:-1] > near
    apart |= ends[1:] // most != ends[:-1] // most
    if not len(ends):
        return iter(())
    cuts = [0, *(np.flatnonzero(apart) + 1).tolist(), len(ends)]
    return map(slice, cuts[:-1], cuts[1:])


def rows_of_runs(begins: Lengths, ends: Lengths) -> Lengths:
    """Returns the numbers of all rows begins[k] .. ends[k]."""
    counts = ends - begins
    return np.arange(counts.sum()) + np.repeat(begins - packed_starts(counts), counts)


@dataclass(frozen=True)
class Span:
    """Steps start .. stop of the sequences first .. first + count; what is past a sequence's length is not in it."""

    first: int
    count: int
    start: int
    stop: int
    last: bool  # no later span has steps of these sequences

    def valid(self, valid: Valid) -> Valid:
        """Returns which steps are in it, as they lie in the padded array; valid: those of all sequences."""
        return Valid(valid.starts[self.first : self.first + self.count] + self.start, self.lengths(valid.lengths))

    def lengths(self, lengths: Lengths) -> Lengths:
        """Returns how many steps of each of its sequences are in it; lengths: those of all."""
        own = lengths[self.first : self.first + self.count]
        return np.array(own) if self.start == 0 and self.last else np.clip(own, self.start, self.stop) - self.start


def steps_until(span: Span, lengths: Lengths) -> int:
    """Counts the steps in this span and all before it."""
    return int(lengths[: span.first].sum() + np.minimum(lengths[span.first : span.first + span.count], span.stop).sum())
