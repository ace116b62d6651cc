"""What Python and the kernel agree on: the order of the packed weights, and the tables that the kernel is called with."""

from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
from numpy.typing import NDArray

GATES = 4  # input, forget, candidate, output
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Shape:
    """The tile: `rows` sequences times `width` units times GATES accumulators of `bits`-bit floats."""

    bits: int
    width: int
    rows: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f"f{self.bits // 8}")


class FromZero(IntEnum):
    """auto() counts from 0, as the places of an array do."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count


class Job(FromZero):
    """The int64 numbers that one layer's kernel call gets; ..._AT are addresses, ..._STEP are bytes."""

    X_AT = auto()  # rows of the input
    X_STARTS_AT = auto()  # (n,) int64, the first row of each sequence
    X_STEP = auto()  # from a step's row to the next one's
    Y_AT = auto()  # rows of the outputs, which are written
    Y_STARTS_AT = auto()
    Y_STEP = auto()
    H_AT = auto()  # (n, units), before: the initial state; after: the final one
    C_AT = auto()
    LENGTHS_AT = auto()  # (n,) int64
    ORDER_AT = auto()  # (COUNT,) int64, the sequences to run, in the order in which lanes take them; all of length > 0
    COUNT = auto()
    PANELS_AT = auto()  # as pack() makes them
    BIASES_AT = auto()
    INPUTS = auto()
    UNITS = auto()
    LANES = auto()  # of each thread
    AHEAD = auto()  # steps whose input products are computed in advance; 0: none, input and recurrent products are one pass
    THREADS = auto()  # that run the job; the call of thread 0 ends when all are done
    SHARERS = auto()  # threads that share each step, each with a part of the units; 1: each takes whole sequences
    SYNC_AT = auto()  # (SYNC_WORDS,) int64, zeros: counters of sequences that were taken, of steps ended, of threads done
    SCRATCH_AT = auto()  # (threads, SCRATCH_STEP) bytes
    SCRATCH_STEP = auto()


SYNC_WORDS = 24  # three counters that share no cache line


class Column(FromZero):
    """A thread's table of lanes: one column of int64 each, for the running sequence of every lane."""

    X = auto()  # address of the step's input
    H = auto()  # of the previous output
    C = auto()  # of the sequence's c
    Y = auto()  # of the step's output
    BIAS = auto()  # of the biases
    SUMS = auto()  # of the step's paused sums
    HOME = auto()  # of the lane's place for paused sums
    FINAL_H = auto()  # where h goes in the end
    LEFT = auto()  # steps, this one included
    READY = auto()  # steps whose input products are computed, this one included


JOB_WORDS = len(Job)
TABLE_WORDS = len(Column)


def scratch_words(lanes: int, ahead: int, biases: Floats) -> int:
    """What one thread needs: its table of lanes, one for the steps that it computes in advance, and their paused sums."""
    return TABLE_WORDS * lanes + (lanes * ahead * (TABLE_WORDS + biases.nbytes // 8) if ahead else 0) + 8


def pack(
    input_kernel: Floats, recurrent_kernel: Floats, bias: Floats | None, forget_bias: float, shape: Shape
) -> tuple[Floats, Floats]:
    """Packs a cell's weights, with `forget_bias` added to the forget gate's bias.

    input_kernel (E, 4*units), recurrent_kernel (units, 4*units), bias (4*units,) or None: gate blocks in the order i, f, g, o.
    Returns panels (ceil(units/width), E + units, 4, width) and biases (ceil(units/width), 4, width), zero past the last unit.
    """
    units, width, dtype = len(recurrent_kernel), shape.width, shape.dtype
    count = -(-units // width)
    joint = np.zeros((len(input_kernel) + units, GATES, count * width), dtype)
    joint[: len(input_kernel), :, :units] = input_kernel.reshape(-1, GATES, units)
    joint[len(input_kernel) :, :, :units] = recurrent_kernel.reshape(-1, GATES, units)
    joint_bias = np.zeros((GATES, count * width), np.float64)
    if bias is not None:
        joint_bias[:, :units] = bias.reshape(GATES, units)
    joint_bias[1, :units] += forget_bias
    panels = np.ascontiguousarray(joint.reshape(-1, GATES, count, width).transpose(2, 0, 1, 3))
    biases = np.ascontiguousarray(joint_bias.astype(dtype).reshape(GATES, count, width).transpose(1, 0, 2))
    return panels, biases
