"""A model over blocks of sequences: one kernel call per cell and thread."""

import ctypes
import functools
import struct
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import UsageError
from lstmcli.kernel import compiled
from lstmcli.kernel.layout import JOB_WORDS, SYNC_WORDS, Shape, pack, scratch_words
from lstmcli.model import Cell, Floats, Model, Stack, State
from lstmcli.team import team

Integers = NDArray[np.int64]

MAX_LANES = 48  # per thread: a panel of weights is read once for all of them, and their rows of x and h stay in the cache
MIN_LANES = 6  # with fewer the tile is not full, and the input products of AHEAD steps are computed at once,
STREAMED_BYTES = 16 << 20  # as with weights beyond this, which no cache holds from step to step: half are then read only once
AHEAD = 24
THREAD_FLOPS = 5e6  # less work than this (50 us) is not worth waking another thread
FEW = 64  # values that Python adds up faster than NumPy
JOB = struct.Struct(f"{JOB_WORDS}q")
SHARED_BYTES = 1 << 20  # weights beyond this leave the second-level cache of a core
SHARED_FLOPS = 2e5  # a step of less work than this (2 us) is not worth waiting for each other


class Block(NamedTuple):
    """Sequences without their padding: sequence s is rows[starts[s] : starts[s] + lengths[s]].

    rows (R, features) C-contiguous; starts, lengths (n,) int64. Sequences do not overlap. A padded array (n, T, features)
    is a block too, without a copy: its rows are (n * T, features), and starts[s] = s * T.
    """

    rows: Floats
    starts: Integers
    lengths: Integers

    def like(self, rows: Floats) -> "Block":
        """The same sequences in other rows, packed one after the other."""
        return Block(rows, packed_starts(self.lengths), self.lengths)


def packed_starts(lengths: Integers) -> Integers:
    starts = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts


@dataclass(frozen=True)
class Layer:
    """A cell ready for the kernel: its weights packed, and the names of its state."""

    h: str
    c: str
    inputs: int
    units: int
    panels: Floats
    biases: Floats
    count: int  # of panels
    panels_at: int
    biases_at: int

    @property
    def flops(self) -> int:
        """Of one step of one sequence."""
        return 8 * self.units * (self.inputs + self.units)

    @classmethod
    def of(cls, path: str, cell: Cell, shape: Shape) -> "Layer":
        panels, biases = pack(cell.input_kernel, cell.recurrent_kernel, cell.bias, cell.forget_bias, shape)
        sizes = (cell.input_size, cell.units)
        return cls(f"{path}/h", f"{path}/c", *sizes, panels, biases, len(panels), address(panels), address(biases))


class Forward:
    """A model ready to run: kernel loaded, weights packed. May be called from several threads at once.

    UsageError if the model has a part that the kernel does not run.
    """

    def __init__(self, model: Model, dtype: np.dtype[Any], threads: int) -> None:
        check_supported(model)
        self.kernel = compiled.load(dtype.itemsize * 8)
        self.dtype, self.threads = dtype, threads
        self.widths, self.input_size, self.output_size = model.state_widths(), model.input_size, model.output_size
        hidden = [cell.units for _, cell in model.cells()][:-1]
        self.scratch_width = max(hidden[0::2], default=0) + max(hidden[1::2], default=0)  # floats a step between the layers
        self.layers = [Layer.of(path, cell, self.kernel.shape) for path, cell in model.cells()]
        self.flops = sum(layer.flops for layer in self.layers)
        self.weight_bytes = 2 * sum(layer.panels.nbytes for layer in self.layers)  # the model's own and the packed ones
        self.scratch = threading.local()

    def __call__(self, block: Block, outputs: Block, state: State) -> None:
        """Runs all sequences of `block` through the model.

        block    in      rows (R, input size), of this dtype
        outputs  out     rows (R', output size): the steps of each sequence are written, nothing else
        state    in/out  C-contiguous arrays (n, width): before, the initial state; after, the one after the last step,
                         unchanged where the length is 0
        """
        if len(block.lengths) <= FEW:
            values = block.lengths.tolist()
            steps, longest, count = sum(values), max(values, default=0), len(values) - values.count(0)
        else:
            steps, longest = int(block.lengths.sum()), int(block.lengths.max())
            count = int(np.count_nonzero(block.lengths))
        if not longest:
            return
        order = (-block.lengths).argsort(kind="stable")[:count]  # longest first, so that the lanes end together
        last = len(self.layers) - 1
        for k, layer in enumerate(self.layers):
            above = outputs if k == last else block.like(self.between(k, steps, layer.units))
            self.run_layer(layer, block, above, state, order, steps, longest)
            block = above

    def between(self, k: int, steps: int, units: int) -> Floats:
        """Rows for the outputs of layer k, which only layer k + 1 reads; reused by the layers and calls that follow."""
        size, name = steps * units, f"layers{k % 2}"
        rows: Floats | None = getattr(self.scratch, name, None)
        if rows is None or rows.size < size:
            rows = np.empty(size, self.dtype)
            setattr(self.scratch, name, rows)
        return rows[:size].reshape(-1, units)

    def run_layer(
        self, layer: Layer, block: Block, outputs: Block, state: State, order: Integers, steps: int, longest: int
    ) -> None:
        threads, share, lanes, ahead = self.schedule(layer, len(order), steps, longest)
        size = self.dtype.itemsize
        each = scratch_words(lanes, ahead, layer.biases)
        work = np.empty(JOB_WORDS + SYNC_WORDS + each * threads, np.int64)
        job_at = address(work)
        sync_at = job_at + 8 * JOB_WORDS
        JOB.pack_into(
            work.data,
            0,
            *(address(block.rows), address(block.starts), layer.inputs * size),
            *(address(outputs.rows), address(outputs.starts), layer.units * size),
            *(address(state[layer.h]), address(state[layer.c]), address(block.lengths), address(order), len(order)),
            *(layer.panels_at, layer.biases_at, layer.inputs, layer.units),
            *(lanes, ahead, threads, threads if share else 1, sync_at, sync_at + 8 * SYNC_WORDS, 8 * each),
        )
        work[JOB_WORDS : JOB_WORDS + SYNC_WORDS] = 0
        if threads == 1:
            self.kernel.call(job_at, 0)
        else:
            team().run(functools.partial(self.kernel.call, job_at), threads, (work, block, outputs, state, order, layer))

    def schedule(self, layer: Layer, count: int, steps: int, longest: int) -> tuple[int, bool, int, int]:
        """How many threads, whether they share each step, the lanes of each, and the steps of input products in advance.

        So many lanes that they end together, with the tile full till then. Which of all this is chosen changes no bit.
        """
        flops = layer.flops
        threads = min(self.threads, int(flops * steps / THREAD_FLOPS) + 1)
        rows = self.kernel.shape.rows
        lanes = -(-steps // longest)
        lanes = min(count, MAX_LANES * threads, -(-lanes // rows) * rows)
        share = False
        if threads > 1:
            few = lanes < rows * threads or (layer.panels.nbytes > SHARED_BYTES and lanes < MAX_LANES)
            share = few and flops * lanes > SHARED_FLOPS and layer.count >= threads
        if share:
            lanes = min(lanes, MAX_LANES)
        else:
            threads = min(threads, count)
            lanes = -(-lanes // threads)
        return threads, share, lanes, AHEAD if lanes < MIN_LANES or layer.panels.nbytes > STREAMED_BYTES else 0


def address(array: NDArray[Any], of: Any = ctypes.addressof, view: Any = ctypes.c_char.from_buffer) -> int:
    try:
        return of(view(array))  # type: ignore[no-any-return]  # NumPy's own ways take five times as long
    except (TypeError, ValueError):  # read-only, or empty
        return array.ctypes.data


# The options of a cell that the kernel runs, and their values there.
PLAIN = {
    "peephole": None,
    "projection": None,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "cell_clip": None,
    "projection_clip": None,
    "gate_clip": None,
    "input_forget": False,
}


def check_supported(model: Model, path: str = "model") -> None:
    """UsageError for the first part of the tree that the kernel does not run."""
    if not isinstance(model, Stack | Cell):
        raise UsageError(f"{path} is of kind {model.kind}, which this version does not run; it runs stacks of plain cells")
    for name, child in model.children().items():
        check_supported(child, f"{path}/{name}")
    if not isinstance(model, Cell):
        return
    found = {name: getattr(model, name) for name in PLAIN}
    found = {
        name: value for name, value in found.items() if value is not None and (PLAIN[name] is None or value != PLAIN[name])
    }
    if found:
        shown = ", ".join(f"{k} {v.shape if isinstance(v, np.ndarray) else v}" for k, v in found.items())
        raise UsageError(f"{path} has {shown}, which this version does not run; it runs stacks of plain cells")
