"""The contract of what a run reads: a padded array in a file or a pipe, of which the valid rows alone are asked for.

Axes: N sequences, T steps (padded), E features. Padding may hold anything. What is read of it is dropped: all of it in a pipe,
which cannot seek; in files short gaps, and the rest of a chunk.
Nothing is mapped: a mapped file that shrinks kills the process.
"""

import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import FLOATS, Lengths, holds_floats, is_bfloat16
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5
from lstmcli.files.hdf5 import LARGE
from lstmcli.files.positioned_file import Bytes, Data, FileBytes, as_bytes

STAGING = 1 << 20  # bytes read at a time where values must be converted or moved
MANY_LENGTHS = 64 << 20  # bytes of lengths, for which there must be data
CALL = 8 << 10  # bytes that are copied in the time that a call takes: smaller gaps are read, not skipped

WORDS = 512  # in a block that is summed
BLOCK = 8 * WORDS
SUMMED = 256 * BLOCK  # bytes that are summed twice while they are in a cache

AXES = {"N": "sequences", "T": "steps", "E": "features"}

Rows = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64] | NDArray[np.uint64]
Sizes = tuple[int, int, int]


class StoredArray(NamedTuple):
    """An array where it lies."""

    data: Bytes
    name: str  # for messages and the summary: "x.h5::/embeddings", "x.npy", "-"
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None = 0  # of the values in the data; None: libhdf5 must decode them
    axes: str = "NTE"  # what the axes of the shape are
    fortran: bool = False  # the first axis is the fastest one, not the last
    dataset: Any = None  # the h5py.Dataset, if it is one
    token_ids: bool = False  # integers, one a step; the shape ends with a 1 that a dataset of rank 2 has not
    archive: FileBytes | None = None  # the NPZ, if it is an array of one
    lengths_beside: str | None = None  # what --lens would name, of lengths or a mask beside it in an NPZ

    @property
    def order(self) -> str:
        """The axes as they lie in the file, from the slowest to the fastest."""
        return self.axes[::-1] if self.fortran else self.axes

    def place(self) -> dict[str, Any]:
        """Returns where in the data the values lie, and how, ready for JSON."""
        at = {"header_at": hdf5.header_offset(self.dataset)} if self.dataset is not None else {}
        return at | {"values_at": self.offset, "order": self.order}


def no_floats(name: str, dtype: np.dtype[Any]) -> DataError:
    """Returns the error of an array that is neither floats nor the token ids that were asked for."""
    hint = ""
    if dtype.kind in "biu":
        hint = "; token ids are for lstmcli predict and the whole model; features become floats with x.astype('float32')"
    return DataError(f"{name}: expected {FLOATS}, got {dtype}{hint}")


class Source:
    """A padded array in a file or a pipe, read by valid rows only: floats (N, T, E), or token ids (N, T) taken as (N, T, 1)."""

    chunk: tuple[int, int] = (1, 1)  # (sequences, steps) that are decoded at once
    lengths: Lengths | None = None  # of the sequences of a ragged input, which has them itself; none of it is padding
    lengths_origin: str | None = None  # the file or dataset that says them
    ids: Sequence[str] | None = None  # of the sequences, all different; None: nothing says any
    ids_origin: str | None = None  # what says them
    notes: tuple[str, ...] = ()  # what the user should know of the input
    side_by_side: int = 1  # sequences that are best read together, rather than many steps of fewer of them

    def __init__(self, array: StoredArray, files: ExitStack | None, stored: int, chunk: int = 0) -> None:
        """Checks shape and dtype. Raises DataError.

        files: closed with the source; stored: bytes that really lie in the file; chunk: bytes that are decoded at once.
        """
        name, shape, dtype = array.name, array.shape, array.dtype
        opaque = is_bfloat16(dtype) and array.dataset is not None  # which HDF5 says of bytes of any meaning
        if opaque or not (holds_floats(dtype) or array.token_ids):
            raise no_floats(name, dtype)
        if len(shape) != 3:
            expected = ", ".join(AXES[axis] for axis in array.axes)
            raise DataError(f"{name}: expected shape ({expected}), got {shape}")
        self.axes = array.axes
        self.shape = batch, _, features = self._from_stored((shape[0], shape[1], shape[2]))
        if not features:
            raise DataError(f"{name}: expected at least one feature, got shape {shape}")
        # What takes memory whatever is read: N lengths, a step, a chunk. A small file must not be able to declare any of it.
        for taken, limit, what in [
            (8 * batch, MANY_LENGTHS, f"shape {shape}"),
            (features * dtype.itemsize, LARGE, f"shape {shape}"),
            (chunk, LARGE, f"chunks of {chunk} bytes"),
        ]:
            if taken > limit and taken > 1000 * stored:
                raise DataError(f"{name}: declares {what}, but holds only {stored} bytes of data")
        self.data, self.name, self.dataset = array.data, name, array.dataset
        self.archive, self.lengths_beside = array.archive, array.lengths_beside
        self.array = array
        self.dtype = dtype  # as stored: float16, 32 or 64 of either byte order, bfloat16, or integers
        self.token_ids = array.token_ids
        self.files = files or ExitStack()

    @property
    def sequential(self) -> bool:
        """Whether it is a pipe: blocks come in order, each sequence whole or in pieces in the order of time."""
        return self.data.sequential

    @property
    def exact_dtype(self) -> np.dtype[Any]:
        """The smallest dtype that read() can fill with the values as they are."""
        if self.token_ids:
            return np.dtype(np.uint64 if self.dtype.str[1:] == "u8" else np.int64)
        return np.dtype(np.float32) if is_bfloat16(self.dtype) else self.dtype.newbyteorder("=")

    @property
    def decoded_at_once(self) -> int:
        """How many values lie in a chunk that is decoded; 0 where nothing is."""
        return 0 if self.chunk == (1, 1) else self.chunk[0] * self.chunk[1] * self.shape[2]

    def sequence(self, number: int) -> str:
        """Returns what a message calls a sequence: its number, and its id where it has one."""
        return f"sequence {number}{f' ({shown(self.ids[number])})' if self.ids else ''}"

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        return self._to_stored(self.shape)

    def _to_stored(self, sizes: Sizes) -> Sizes:
        """Turns sizes (N, T, E) to the order of the stored axes."""
        first, second, third = (sizes["NTE".index(axis)] for axis in self.axes)
        return first, second, third

    def _from_stored(self, sizes: Sizes) -> Sizes:
        """Turns sizes in the order of the stored axes to (N, T, E)."""
        batch, steps, features = (sizes[self.axes.index(axis)] for axis in "NTE")
        return batch, steps, features

    def identity(self) -> dict[str, Any]:
        """Returns what tells this input from another one, and from itself after a change, ready for JSON."""
        return self.data.identity() | self.array.place()

    def read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        """Packs steps starts[s] .. starts[s] + lengths[s] of the sequences first + s, one after another, into `rows`.

        starts, lengths  (n,)               int64          in   starts[s] + lengths[s] <= T
        rows             (sum(lengths), E)  float32 or 64  out  C-contiguous, native byte order; written in full;
                                            token ids: int64 or uint64

        Raises DataError where the file ends early, is damaged, a chunk was never written, or a value does not fit float32;
        StorageError where the system could not read.
        """
        if not rows.size:
            return
        try:
            with np.errstate(over="raise", invalid="ignore"):
                self._read(first, starts, lengths, rows)
        except FloatingPointError as error:
            raise DataError(
                f"{self.name}, sequences {first} to {first + len(lengths) - 1}: a value is too large for {rows.dtype}; "
                "compute in float64, or rescale the input"
            ) from error

    def _read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Ends a read in another thread that waits for a pipe, and all later ones, with StorageError. Files never wait."""
        self.data.stop()

    def finish(self) -> None:
        """Raises DataError, after the last read, if the file changed meanwhile, or if a pipe holds too little or too much."""
        self.data.finish()

    def close(self) -> None:
        self.files.close()


class Checksum:
    """A checksum of what is read for a span, which comes in pieces cut anywhere: of its rows, and the state it begins with.

    Words of 64 bits are summed by block and by place in the block, modulo 2^64: so a value that changed shows, and so do two
    that were swapped, wherever they are. That takes 0.05 ns a byte; CRC-32 takes 0.23 ns, which made a run with 128 units 3 %
    slower, and one with 32 units 6 %.
    """

    def __init__(self) -> None:
        self.left = b""  # bytes after the last whole block
        self.places = np.zeros(WORDS, np.uint64)
        self.blocks = 0  # the CRC-32 of the sums of the blocks

    def add(self, data: Data) -> None:
        """Takes the next bytes."""
        view = as_bytes(data)
        if self.left:
            missing = BLOCK - len(self.left)
            self.left, view = self.left + bytes(view[:missing]), view[missing:]
            if len(self.left) < BLOCK:
                return
            self._sum(memoryview(self.left))
        whole = len(view) // BLOCK * BLOCK
        for at in range(0, whole, SUMMED):
            self._sum(view[at : min(at + SUMMED, whole)])
        self.left = bytes(view[whole:])

    def _sum(self, blocks: memoryview) -> None:
        words = np.frombuffer(blocks, "<u8").reshape(-1, WORDS)
        self.places += words.sum(axis=0)
        self.blocks = zlib.crc32(as_bytes(words.sum(axis=1)), self.blocks)

    def value(self) -> int:
        """Returns the checksum of all that came."""
        return zlib.crc32(as_bytes(self.places), zlib.crc32(self.left, self.blocks))
