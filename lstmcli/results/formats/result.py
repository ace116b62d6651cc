"""A result that is filled span by span, whatever its format: its neighbours lay one out."""

import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, Span, Valid, packed_starts
from lstmcli.errors import SequenceError
from lstmcli.files.positioned_file import as_bytes
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.model.tree import Model
from lstmcli.results.formats.fields import PADDED, Checksums, Field, Store

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain


class TableForm(NamedTuple):
    """What a table shows.

    top: only the classes with the largest values, the largest first, each with its value; None: all of them.
    labels: names of the classes; None: their numbers. first: the number of the first sequence, where sequences have no ids.
    """

    top: int | None = None
    labels: tuple[str, ...] | None = None
    first: int = 0

    def identity(self) -> dict[str, Any]:
        """Returns what tells the texts of this table from those of another one, ready for JSON."""
        return {"top": self.top, "labels": zlib.crc32(json.dumps(self.labels).encode())}


class WindowRows(NamedTuple):
    """Which windows over series the sequences are; series, first_steps: arrays (N,) int64, or what gives parts of them."""

    series: Any
    first_steps: Any
    series_ids: Sequence[str] | None

    def names(self, first: int, count: int) -> list[str]:
        """Returns what to call the series of each of some windows."""
        numbers = self.series[first : first + count].tolist()
        return [str(number) if self.series_ids is None else self.series_ids[number] for number in numbers]


class Metadata(NamedTuple):
    """What a result says besides its arrays. Nothing in it may depend on threads, memory, time or place: the same run gives the
    same bytes."""

    model: "Model | Chain"
    valid: Valid
    attributes: dict[str, Any]
    nonfinite: Nonfinite | None  # None: nobody looks for NaN and Inf
    table: TableForm = TableForm()
    ids: Sequence[str] | None = None  # of the sequences, where the input says them
    layout: str = PADDED  # one of LAYOUTS
    windows: "WindowRows | None" = None  # where the sequences are windows over series

    @property
    def placed(self) -> Valid:
        """The valid steps as the fields of the result count them: from 0 on where there is no padding."""
        return self.valid if self.layout == PADDED else Valid(np.zeros_like(self.valid.lengths), self.valid.lengths)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of an array as it is stored; shape: that of the padded layout."""
        return stored_shape(shape, self.layout, int(self.valid.lengths.sum()))

    def flat_begins(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Lengths | None:
        """Returns Field.begins of an array that lies in one piece at this offset."""
        if self.layout == PADDED or len(shape) != 3:
            return None
        return offset + packed_starts(self.valid.lengths) * shape[2] * dtype.itemsize


def stored_shape(shape: tuple[int, ...], layout: str, steps: int) -> tuple[int, ...]:
    """Returns the shape of an array as it is stored, of sequences that have `steps` steps together."""
    return shape if layout == PADDED or len(shape) != 3 else (steps, shape[2])


class Result:
    """The arrays of a result and the files that hold them."""

    def __init__(
        self,
        stores: Sequence[Store],
        fields: dict[str, Field],
        checksums: dict[str, Field],
        valid: Valid,
        checked: bool = True,
    ) -> None:
        """fields: the arrays by name. checksums: where those of the rows go, by the names of the arrays.

        valid: the steps of all sequences, as Metadata.placed.
        checked: whether anybody will ask for checksums, in the file or to resume the run.
        """
        self.stores, self.fields, self.checksums = stores, fields, checksums
        self.valid, self.checked = valid, checked
        self.running: dict[str, Checksums] = {}  # those of the sequences of the last span, up to its end

    def put(self, span: Span, arrays: dict[str, NDArray[Any]]) -> int:
        """Stores a span and returns its checksum; called in the order of the spans.

        arrays: packed steps (R, D) of the fields that have steps; rows (count, D), which are final when the span is the last of
        its sequences, of the others. Those that the result does not hold are left out. Raises SequenceError for a value that is
        too large for the dtype of its field, unless NumPy is told to ignore that.
        """
        valid = span.valid(self.valid)
        packed = np.r_[0, np.cumsum(valid.lengths)]
        self._begin(span)
        for name, field in self._fields_of(span):
            for group in field.groups(valid.lengths):
                # Summed right before it is written, so that it comes from memory once.
                rows = arrays[name][packed[group.start] : packed[group.stop]] if field.has_steps else arrays[name][group]
                places = valid.part(group.start, group.stop)
                try:
                    rows = rows.astype(field.dtype, copy=False)
                except FloatingPointError as error:
                    raise too_large(name, rows, field, span.start, group.start, places.lengths) from error
                self._sum(name, field, rows, places.lengths, group)
                field.put(span.first + group.start, places, rows, whole=span.start == 0 and span.last)
        return self._end(span)

    def clear_padding(self) -> None:
        """Makes the padding zeros again, in files that an earlier run has left."""
        for field in self.fields.values():
            field.clear_padding(self.valid)

    def check(self, span: Span) -> int:
        """Returns the checksum of a span from what the files hold now; called in the order of the spans."""
        valid = span.valid(self.valid)
        self._begin(span)
        for name, field in self._fields_of(span):
            for group in field.groups(valid.lengths):
                places = valid.part(group.start, group.stop)
                rows = field.get(span.first + group.start, places)
                self._sum(name, field, rows, places.lengths, group)
        return self._end(span)

    def _begin(self, span: Span) -> None:
        if span.start == 0:
            self.running = {name: np.zeros(span.count, np.uint32) for name in self.fields}

    def _fields_of(self, span: Span) -> list[tuple[str, Field]]:
        return [(name, field) for name, field in self.fields.items() if field.has_steps or span.last]

    def _sum(self, name: str, field: Field, rows: NDArray[Any], steps: Lengths, group: slice) -> None:
        if self.checked:
            ends = np.cumsum(steps) if field.has_steps else np.arange(1, len(steps) + 1)
            crc32_rows(rows, ends, self.running[name][group])

    def _end(self, span: Span) -> int:
        whole = 0
        for name, sums in self.running.items():
            if span.last and name in self.checksums:
                self.checksums[name].put_rows(span.first, sums)
            whole = zlib.crc32(as_bytes(sums), whole)
        return whole

    def start_sync(self) -> None:
        """Lets the system begin to put on disk what was written."""
        for store in self.stores:
            store.start_sync()

    def sync(self) -> None:
        """Puts all on disk that was written. Raises StorageError."""
        for store in self.stores:
            store.sync()

    def seal(self, nonfinite: Nonfinite | None) -> None:
        """Completes the files and puts them on disk, still without their names. nonfinite: what was found in all spans."""
        for store in self.stores:
            store.seal()

    def publish(self) -> None:
        """Gives the files their names, the outputs last: when they are there, all is."""
        for store in reversed(self.stores):
            store.publish()

    def close(self) -> None:
        for store in self.stores:
            store.close()

    def discard(self) -> None:
        for store in self.stores:
            store.discard()


def too_large(name: str, rows: NDArray[Any], field: Field, start: int, first: int, lengths: Lengths) -> SequenceError:
    """Returns the error about the first value that is too large for a field.

    rows: of the sequences `first`, `first` + 1, ... of a span whose first step is `start`, with so many steps each.
    """
    with np.errstate(over="ignore"):
        wrong = np.isinf(rows.astype(field.dtype)) & np.isfinite(rows)
    at = int(wrong.any(axis=1).argmax())
    value, row, step = rows[at][wrong[at]][0], at, None
    if field.has_steps:
        row = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        step = start + at - int(lengths[:row].sum())
    text = f"{value} of /{name} is too large for {field.dtype}; use --store float32, or --nonfinite pass, which stores Inf"
    return SequenceError(first + row, step, text)


def crc32_rows(rows: NDArray[Any], ends: NDArray[np.int64], sums: Checksums) -> None:
    """Carries on the CRC-32 (that of zlib, PNG and ZIP) of each sequence: rows ends[s - 1] .. ends[s] are those of sequence s.

    rows  (R, ...)  in      C-contiguous
    ends  (n,)      in
    sums  (n,)      in/out

    zlib takes 0.3 ns a byte, and a call half a microsecond. Carry-less multiplication takes a third of that, and a single
    call for all sequences. But a run of 2000 x 100 x 128 to 128 units needs 0.64 s of CPU time with either, merging 205 MB
    0.46 s; 300,000 sequences of at most 8 steps take 5 % more CPU time, and the same time (medians of 15 pairs of whole
    processes).
    """
    places = (ends * (rows.nbytes // max(1, len(rows)))).tolist()
    octets = rows.reshape(-1).view(np.uint8).data
    parts = map(slice, [0, *places], places)
    sums[:] = [zlib.crc32(octets[part], before) for part, before in zip(parts, sums.tolist(), strict=True)]
