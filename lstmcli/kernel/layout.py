"""What Python and the kernel agree on: the order of the packed weights, and the tables that the kernel is called with."""

import math
import struct
from enum import IntEnum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.kernel.native.target import Target

GATES = 4  # input, forget, candidate, output
LINE_BYTES = 64  # of the cache
BLOCK = 32  # inputs whose products bfloat16.py sums from zero
Floats = NDArray[np.floating]


class Shape(NamedTuple):
    """The tile: `rows` sequences times `width` units times GATES sums of `bits`-bit floats.

    It computes `together` gates at a time, so many that all their sums stay in registers.
    """

    bits: int
    width: int
    rows: int
    together: int
    amx: int = False  # whether amx.py writes it: then two blocks of so many rows are a tile

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f"f{self.bits // 8}")

    @property
    def half(self) -> int:
        """The last panel has two gates in a vector if it has no more units than this: else half of a vector would be zeros."""
        return self.width // 2 if self.width > 2 else 0


def tile_shape(target: Target, bits: int, bfloat16: bool = False, amx: bool = False) -> Shape:
    """Choose the widest vectors, and tiles of 24 vectors where the CPU has 32 registers, of 12 where it has 16.

    With bfloat16, two vectors are one chain. With AMX, the weights are those of a CPU with AVX-512.
    """
    if amx:
        return Shape(32, width=16, rows=16, together=2, amx=True)
    together = (4 if target.vector_registers == 32 else 2) // (2 if bfloat16 else 1)
    return Shape(bits, target.vector_bytes * 8 // bits, rows=6, together=together)


class Options(NamedTuple):
    """The options of a cell that are compiled in, so that what a cell does not have costs nothing."""

    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    peephole: bool = False
    projection: bool = False
    cell_clip: bool = False
    projection_clip: bool = False
    gate_clip: bool = False
    input_forget: bool = False
    bfloat16: bool = False  # products as bfloat16.py says; the floats are float32


class FromZero(IntEnum):
    """auto() counts from 0, as the places of an array do."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count


class Argument(FromZero):
    """The int64 numbers in the table of one kernel call, which runs one cell; ..._AT are addresses, ..._STEP are bytes."""

    X_AT = auto()  # rows of the input
    X_STARTS_AT = auto()  # (n,) int64, the row of each sequence's first step is X_AT + start * X_STEP
    X_STEP = auto()  # from a step's row to the next one's; negative where the steps are taken backward
    Y_AT = auto()  # rows of the outputs, which are written
    Y_STARTS_AT = auto()
    Y_STEP = auto()
    H_AT = auto()  # (n, OUTPUTS), before: the initial state; after: the final one
    C_AT = auto()  # (n, units), the same
    CELLS_AT = auto()  # rows for c at every step, with the starts of the outputs
    CELLS_STEP = auto()  # 0: c is not kept
    LENGTHS_AT = auto()  # (n,) int64
    ORDER_AT = auto()  # (COUNT,) int64, the sequences to run, in the order in which lanes take them; all of length > 0
    COUNT = auto()
    PADDED = (
        auto()
    )  # rows that each sequence has in the outputs, which are one piece then: zeros go past its length; 0: nothing
    PANELS_AT = auto()  # as Weights has them
    BIASES_AT = auto()
    PEEPHOLES_AT = auto()
    PROJECTION_AT = auto()
    INPUTS = auto()
    UNITS = auto()
    OUTPUTS = auto()  # width of h: that of the projection, or units
    CELL_CLIP = auto()  # the bits of a float64, as the two that follow
    PROJECTION_CLIP = auto()
    GATE_CLIP = auto()
    LANES = auto()  # of each thread
    FETCHES = auto()  # whether the tiles of a panel fetch the panel that is next
    AHEAD = auto()  # steps whose input products are computed in advance; 0: none, input and recurrent products are one pass
    THREADS = auto()  # that make this call; the call of thread 0 ends when all are done
    SHARERS = auto()  # threads that share each step, each with a part of the units; 1: each takes whole sequences
    SYNC_AT = auto()  # (SYNC_WORDS,) int64, zeros: what the threads share, see Sync
    SCRATCH_AT = auto()  # (threads, SCRATCH_STEP) bytes
    SCRATCH_STEP = auto()
    HIDDEN_AT = auto()  # (LANES, units) of each thread, or of all that share: h before the projection
    HIDDEN_STEP = auto()  # bytes from thread to thread; 0 where they share
    ROUNDED_STEP = auto()  # from lane to lane in a thread's scratch memory, with bfloat16
    PRODUCTS_AT = auto()  # (V, panels, GATES, width) paused sums of each token id, of which X has one at a step; 0: X is input


ARGUMENTS = len(Argument)
SYNC_WORDS = 48


class Sync(IntEnum):
    """What the threads of a call share, by its place in bytes. What different threads write lies in different cache lines."""

    NEXT = 0  # how many sequences were taken after those that were dealt out
    HANDS = 64  # how many of the hands that were dealt out have been taken
    DONE = 128  # how many of them are done
    WAITING = 192  # how often a thread has come to join thread 0
    ARRIVED = 256  # arrivals at the meetings of all threads since they joined; upper half: the meeting at which they leave
    JOINS = 320  # how often they joined; -1: no more
    ACTIVE, ROOM, TAKEN, STEPS = 328, 336, 344, 352  # where thread 0 was then
    LOST = 360  # ns, for which it has waited before it sent them away


# The arguments that all calls of a cell have in common, from PANELS_AT to GATE_CLIP, are one piece, packed once.
CELL = struct.Struct(f"{Argument.CELL_CLIP - Argument.PANELS_AT}q{Argument.LANES - Argument.CELL_CLIP}d")
CALL = struct.Struct(f"{Argument.PANELS_AT}q{CELL.size}s{ARGUMENTS - Argument.LANES}q{8 * SYNC_WORDS}x")
Numbers = tuple[int, ...]


def pack_cell(weights: Numbers, sizes: Numbers, clips: tuple[float, ...]) -> bytes:
    """Pack the arguments that are the same in every call of a cell: PANELS_AT .., INPUTS .., CELL_CLIP .. as they follow."""
    return CELL.pack(*weights, *sizes, *clips)


def write_call(
    table: memoryview,
    x: Numbers,
    y: Numbers,
    state: Numbers,
    cells: Numbers,
    sequences: Numbers,
    cell: bytes,
    split: Numbers,
    memory: Numbers,
) -> None:
    """Write the table of a call, and the zeros of SYNC_AT behind it.

    x, y       (.._AT, .._STARTS_AT, .._STEP)
    state      (H_AT, C_AT)
    cells      (CELLS_AT, CELLS_STEP)
    sequences  (LENGTHS_AT, ORDER_AT, COUNT, PADDED)
    cell       of pack_cell()
    split      (LANES, FETCHES, AHEAD, THREADS, SHARERS)
    memory     (SYNC_AT, SCRATCH_AT, SCRATCH_STEP, HIDDEN_AT, HIDDEN_STEP, ROUNDED_STEP, PRODUCTS_AT)

    Groups, because a name for each number would take a call of a small batch a tenth longer (1.7 us of 13).
    """
    CALL.pack_into(table, 0, *x, *y, *state, *cells, *sequences, cell, *split, *memory)


class Column(FromZero):
    """A thread's table of lanes: one column of int64 each, for the running sequence of every lane."""

    X = auto()  # address of the step's input
    ROUNDED = auto()  # with bfloat16, of the step's x and h, rounded; then of h before the projection
    H = auto()  # of the previous output
    C = auto()  # of c before the step
    NEW_C = auto()  # of c after it: the same place, or the step's row of the cells
    HIDDEN = auto()  # of the lane's h before the projection
    Y = auto()  # of the step's output
    BIAS = auto()  # of the biases
    SUMS = auto()  # of the step's paused sums: at HOME, or in a row of PRODUCTS_AT
    HOME = auto()  # of the lane's place for paused sums
    FINAL_H = auto()  # where h goes in the end
    FINAL_C = auto()
    LEFT = auto()  # steps, this one included
    READY = auto()  # steps whose input products are computed, this one included


TABLE_WORDS = len(Column)


def scratch_words(lanes: int, ahead: int, biases: Floats, shape: Shape, rounded: int = 0) -> int:
    """Return how many words a thread needs: for its lanes, the steps that it computes in advance, and their paused sums.

    rounded  bytes of a rounded row, which bfloat16 has for each lane and each of these steps

    With AMX, a tile may have more rows than lanes, and reads them; and rows begin with a cache line.
    """
    slots = lanes * ahead
    rows = lanes + slots + (shape.rows if shape.amx else 0)
    return TABLE_WORDS * (lanes + slots) + slots * (biases.nbytes // 8) + rows * (rounded // 8) + 8


def rounded_bytes(inputs: int, units: int, outputs: int, shape: Shape) -> int:
    """Return how far apart bfloat16's rows of a step's x and h lie, or of h before the projection, rounded.

    A line more than they need: at a multiple of 4096 bytes they would take each other's place in the first-level cache.
    """
    return rounded_size(shape) * max(padded(inputs) + padded(outputs), padded(units)) + LINE_BYTES


def rounded_size(shape: Shape) -> int:
    """Return the bytes of a number in such a row: it is a float32, or as AMX takes it."""
    return 2 if shape.amx else 4


class Weights(NamedTuple):
    """A cell's weights in the order in which the tile reads them; zero past the last unit.

    panels      (ceil(units / width), groups, E + P, together, width)  gates i, f, g, o in groups of `together`; the last one,
                where it has no more than `half` units: (E + P, 2, width) with the gates i and f, g and o in a vector, or
                (2, E + P, 1, width) where `together` is 1
    biases      (ceil(units / width), GATES, width); likewise (2, width)
    peepholes   (ceil(units / width), 3, width)  rows i, f, o
    projection  (ceil(P / (GATES * width)), groups, units, together, width), columns in order; empty: none

    With bfloat16 a float is a word of two weights: for E stands padded(E) / 2, and so for P and for the units of a projection.
    """

    panels: Floats
    biases: Floats
    peepholes: Floats
    projection: Floats


def pack(
    input_kernel: Floats,
    recurrent_kernel: Floats,
    bias: Floats | None,
    forget_bias: float,
    peephole: Floats | None,
    projection: Floats | None,
    shape: Shape,
    bfloat16: bool = False,
) -> Weights:
    """Packs a cell's weights, with `forget_bias` added to the forget gate's bias.

    input_kernel (E, 4*units), recurrent_kernel (P, 4*units), bias (4*units,) or None: gate blocks in the order i, f, g, o.
    peephole (3, units) or None, projection (units, P) or None.
    """
    (inputs, columns), (outputs, _) = input_kernel.shape, recurrent_kernel.shape
    units, width, dtype = columns // GATES, shape.width, shape.dtype
    count = -(-units // width)
    joint = np.zeros((inputs + outputs, GATES, count * width), dtype)
    joint[:inputs, :, :units] = input_kernel.reshape(-1, GATES, units)
    joint[inputs:, :, :units] = recurrent_kernel.reshape(-1, GATES, units)
    if bfloat16:
        joint = np.concatenate([pairs(joint[:inputs]), pairs(joint[inputs:])])
    vectors = np.zeros((GATES + 3, count * width), np.float64)
    if bias is not None:
        vectors[:GATES, :units] = bias.reshape(GATES, units)
    vectors[1, :units] += forget_bias
    if peephole is not None:
        vectors[GATES:, :units] = peephole
    vectors = vectors.astype(dtype).reshape(-1, count, width).transpose(1, 0, 2)
    panels, biases = in_panels(joint, shape), np.ascontiguousarray(vectors[:, :GATES])
    if 0 < units % width <= shape.half:
        together = min(2, shape.together)
        last = joint[..., -width : -width + shape.half].reshape(len(joint), 2 // together, together * width).swapaxes(0, 1)
        panels = in_lines(np.concatenate([panels[:-1].reshape(-1), last.reshape(-1)]))
        biases[-1].reshape(-1)[: GATES * shape.half] = biases[-1, :, : shape.half].reshape(-1)
    return Weights(
        panels,
        biases,
        np.ascontiguousarray(vectors[:, GATES:]),
        np.zeros(0, dtype) if projection is None else projection_panels(projection, shape, bfloat16),
    )


def padded(count: int) -> int:
    """Return how many inputs there are with the zeros that fill up the last block."""
    return -(-count // BLOCK) * BLOCK


def rounded(values: Floats) -> NDArray[np.uint16]:
    """Return the bfloat16 bits of float32 numbers: to nearest, ties to even, one NaN, subnormal numbers to zero."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    found = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    found = np.where(bits & 0x7F800000 == 0, bits >> 16 & 0x8000, found)
    found[bits & 0x7FFFFFFF > 0x7F800000] = 0x7FC0
    return found.astype(np.uint16)


def pairs(rows: Floats) -> Floats:
    """Return weights (K, ...) as words (padded(K) / 2, ...) of two bfloat16 numbers each, with the dtype float32."""
    halves = np.zeros((padded(len(rows)), *rows.shape[1:]), np.uint32)
    halves[: len(rows)] = rounded(rows)
    words: Floats = (halves[::2] | halves[1::2] << 16).view(np.float32)
    return words


def projection_panels(projection: Floats, shape: Shape, bfloat16: bool) -> Floats:
    """Pack a projection (units, P): GATES * width columns are a panel, as if they were the gates of `width` units."""
    units, outputs = projection.shape
    count = -(-outputs // (GATES * shape.width))
    columns = np.zeros((units, count * GATES * shape.width), shape.dtype)
    columns[:, :outputs] = projection
    if bfloat16:
        columns = pairs(columns)
    return in_panels(columns.reshape(-1, count, GATES, shape.width).transpose(0, 2, 1, 3), shape)


def in_panels(columns: Floats, shape: Shape) -> Floats:
    """Turn (K, GATES, count * width) or (K, GATES, count, width) into (count, groups, K, together, width)."""
    split = columns.reshape(len(columns), GATES // shape.together, shape.together, -1, shape.width)
    return in_lines(split.transpose(3, 1, 0, 2, 4))


def paused_columns(input_kernel: Floats, shape: Shape) -> Floats:
    """Return an input kernel (E, 4*units) with its columns where the sums of a step pause: (E, panels * GATES * width)."""
    inputs, columns = input_kernel.shape
    units, width = columns // GATES, shape.width
    count = -(-units // width)
    joint = np.zeros((inputs, GATES, count * width), shape.dtype)
    joint[:, :, :units] = input_kernel.reshape(-1, GATES, units)
    panels = joint.reshape(inputs, GATES, count, width).transpose(0, 2, 1, 3).reshape(inputs, count, GATES * width)
    if 0 < units % width <= shape.half:
        panels[:, -1, : GATES * shape.half] = joint[..., -width : -width + shape.half].reshape(inputs, -1)
    return panels.reshape(inputs, -1)


def in_lines(values: Floats) -> Floats:
    """Copy so that it begins with a cache line, and no load of a vector needs two: a lone sequence takes 4 % less time."""
    aligned = lines(values.shape, values.dtype)
    np.copyto(aligned, values)
    return aligned


def lines(shape: tuple[int, ...], dtype: np.dtype) -> Floats:
    """Return memory that begins with a cache line."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + LINE_BYTES, np.uint8)
    first = -room.ctypes.data % LINE_BYTES
    return room[first : first + size].view(dtype).reshape(shape)
