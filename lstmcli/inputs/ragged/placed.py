"""Sequences each of which lies at a place of its own in a file: what the forms of ragged inputs have in common."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, as_numbers, holds_floats, is_bfloat16, packed_starts
from lstmcli.errors import DataError, shown
from lstmcli.files.positioned_file import Bytes
from lstmcli.inputs.beside.ids import as_id, check_ids
from lstmcli.inputs.source import CALL, STAGING, Rows, Source, StoredArray, no_floats

DECODED = -1  # in the place of an offset: the values do not lie in the file as they are

Decode = Callable[[int, int, int], NDArray[Any]]  # (sequence, first step, steps) to rows (steps, E)


class Sequences(NamedTuple):
    """What the reader of a form says: which sequences there are, and where the rows of each lie."""

    data: Bytes
    name: str  # of the whole, for messages
    ids: Sequence[str] | None
    lengths: Lengths
    width: int
    dtypes: Sequence[np.dtype[Any]]  # of each, all floats or all integers; a single one is that of all
    offsets: Lengths  # (n,) of the rows of each in the data; DECODED: `decode` gives them
    stored: int  # bytes of the file
    decode: Decode | None = None
    decoded_at_once: int = 0  # values
    token_ids: bool = False
    notes: tuple[str, ...] = ()


class Found(NamedTuple):
    """A sequence as a form has it: (L, E); (E,) is a single step. Of token ids: (L,)."""

    name: str  # for messages
    id: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int = DECODED
    read: Callable[[], NDArray[Any]] | None = None  # gives all of it, where there is no offset


class Wholes:
    """Decodes sequences as a whole, and keeps the last one: a sequence that is cut in time is asked for again."""

    def __init__(self, found: Sequence[Found]) -> None:
        self.found, self.number = found, -1

    def __call__(self, number: int, first: int, count: int) -> NDArray[Any]:
        if number != self.number:
            one = self.found[number]
            assert one.read
            self.rows = one.read().reshape(-1, one.shape[-1] if holds_floats(one.dtype) else 1)
            self.number = number
        return self.rows[first : first + count]


def of_one_family(dtype: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Says whether sequences of these dtypes may be in one input: floats of any size, or integers of any size."""
    return dtype == other or (holds_floats(dtype) and holds_floats(other)) or (dtype.kind in "iu" and other.kind in "iu")


def sequences_among(arrays: Sequence[Found], token_ids: bool) -> list[Found]:
    """Returns what is meant as sequences: arrays (L, E), with floats (E,) among them, or else token ids (L,)."""
    found = [one for one in arrays if one.shape and (holds_floats(one.dtype) or len(one.shape) == 2)]
    if any(len(one.shape) == 2 for one in found):
        return found
    return [one for one in arrays if token_ids and one.dtype.kind in "iu" and len(one.shape) == 1]


def gathered(data: Bytes, name: str, arrays: Sequence[Found], stored: int, token_ids: bool) -> Sequences:
    """Makes one thing of sequences that were found one by one. Arrays of numbers or texts beside them are left out.

    token_ids: integers (L,) are taken as well. Raises DataError where sequences do not go together, or there is none.
    """
    found = sequences_among(arrays, token_ids)
    if not found:
        listed = ", ".join(f"{shown(one.id)} {one.shape} {one.dtype}" for one in arrays[:10])
        raise DataError(f"{name}: expected an array (steps, features) for each sequence, got {listed or 'nothing'}")
    left_out = sorted({one.id for one in arrays} - {one.id for one in found})
    first = next((one for one in found if len(one.shape) == 2 and one.shape[1]), found[0])
    takes_ids = token_ids and first.dtype.kind in "iu"
    if not takes_ids and not holds_floats(first.dtype):
        raise no_floats(first.name, first.dtype)
    width = 1 if takes_ids else first.shape[-1]
    for one in found:
        fits = one.shape[1:] == () if takes_ids else len(one.shape) in (1, 2) and one.shape[-1] == width
        fits = fits or one.shape == (0, 0)  # Kaldi's empty matrices
        if not fits or not of_one_family(one.dtype, first.dtype):
            expected = "(steps,)" if takes_ids else f"(steps, {width})"
            raise DataError(
                f"{one.name}: expected a sequence {expected} of {first.dtype}, as {shown(first.id)} is, got {one.shape} of "
                f"{one.dtype}; all sequences have one width, and all are floats or all are integers"
            )
    lengths = [one.shape[0] if takes_ids or len(one.shape) == 2 else 1 for one in found]
    return Sequences(
        data,
        name,
        [as_id(one.id) for one in found],
        np.array(lengths, np.int64),
        width,
        [one.dtype for one in found],
        np.array([one.offset for one in found], np.int64),
        stored,
        Wholes(found) if any(one.offset == DECODED for one in found) else None,
        max((math.prod(one.shape) for one in found if one.offset == DECODED), default=0),
        takes_ids,
        (f"{name}: no sequences, left out: {', '.join(map(shown, left_out[:10]))}",) if left_out else (),
    )


class PlacedSequences(Source):
    """Sequences that lie as they are, anywhere in a file or in several that count as one, or that have to be decoded.

    Each may have a dtype of its own; that of the source is the largest of them, which has all values of the others:
    float32, as bfloat16 is read, those of float16.
    """

    def __init__(self, found: Sequences, files: ExitStack) -> None:
        """Raises DataError, also where two ids are the same."""
        steps = int(found.lengths.max(initial=0))
        numbers = {dtype: number for number, dtype in enumerate(dict.fromkeys(found.dtypes))}
        self.dtypes = list(numbers)
        dtype = max(self.dtypes, key=lambda one: (one.itemsize, is_bfloat16(one)))
        array = StoredArray(found.data, found.name, (len(found.lengths), steps, found.width), dtype)
        super().__init__(array._replace(token_ids=found.token_ids), files, found.stored)
        if found.ids is not None:
            check_ids(found.ids, found.name)
        self.lengths, self.lengths_origin = found.lengths, found.name
        self.ids, self.ids_origin = found.ids, found.name if found.ids is not None else None
        self.offsets, self.decode, self.notes = found.offsets, found.decode, found.notes
        self.decoded = found.decoded_at_once
        self.kinds = np.zeros(len(found.lengths), np.uint8)  # the number of the dtype of each
        if len(numbers) > 1:
            self.kinds[:] = [numbers[one] for one in found.dtypes]
        self.row_bytes = np.array([found.width * one.itemsize for one in self.dtypes])  # of each dtype
        self.staging = np.empty(max(STAGING, found.width * dtype.itemsize), np.uint8)

    @property
    def decoded_at_once(self) -> int:
        return self.decoded

    def identity(self) -> dict[str, Any]:
        import hashlib  # as in FlatSequences

        assert self.lengths is not None
        places = hashlib.sha256(self.offsets.tobytes() + self.lengths.tobytes())
        if len(self.dtypes) > 1:
            places.update(self.kinds.tobytes() + " ".join(one.str for one in self.dtypes).encode())
        return super().identity() | {"sequences": places.hexdigest()[:16]}

    def _read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        used = np.flatnonzero(lengths)
        counts, places = lengths[used], packed_starts(lengths[used])
        offsets = self.offsets[first + used]
        kinds = self.kinds[first + used]
        row_bytes = self.row_bytes[kinds]
        begins = np.where(offsets == DECODED, DECODED, offsets + starts[used] * row_bytes)
        ends = begins + counts * row_bytes
        gaps = begins[1:] - ends[:-1]
        is_near = (begins[1:] != DECODED) & (begins[:-1] != DECODED) & (gaps >= 0) & (gaps <= CALL)
        # Where a read that begins with a sequence may end: with the last of those that lie close to one another behind it.
        last_of_run = np.append(np.flatnonzero(~is_near), len(used) - 1)
        run_ends = ends[last_of_run[np.searchsorted(last_of_run, np.arange(len(used)))]]
        staged = range(0)  # bytes of the file that are in the staging memory
        each = (used + first, starts[used], counts, places, begins, ends, run_ends, kinds)
        for number, start, count, place, begin, end, run_end, kind in zip(*(values.tolist() for values in each), strict=True):
            target = rows[place : place + count]
            if begin == DECODED:
                assert self.decode
                target[:] = as_numbers(self.decode(number, start, count))
            elif end - begin > CALL:
                self._read_long(begin, target, self.dtypes[kind])
                staged = range(0)  # which that may have used
            else:
                if not (staged.start <= begin and end <= staged.stop):
                    staged = range(begin, min(run_end, begin + len(self.staging)))
                    self.data.fetch(self.staging[: len(staged)].data, begin)
                values = self.staging[begin - staged.start : end - staged.start].view(self.dtypes[kind])
                target[:] = as_numbers(values).reshape(count, -1)

    def _read_long(self, begin: int, target: Rows, dtype: np.dtype[Any]) -> None:
        """Reads the rows of a dtype that lie from a byte on, many at a time, into target (steps, E)."""
        if dtype == target.dtype:
            self.data.fetch(target.reshape(-1).view(np.uint8).data, begin)
            return
        row_bytes = target.shape[1] * dtype.itemsize
        piece = len(self.staging) // row_bytes
        for at in range(0, len(target), piece):
            part = target[at : at + piece]
            values = self.staging[: len(part) * row_bytes]
            self.data.fetch(values.data, begin + at * row_bytes)
            part[:] = as_numbers(values.view(dtype)).reshape(part.shape)
