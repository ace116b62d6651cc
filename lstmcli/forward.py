"""A model over blocks of sequences: one kernel call per cell and thread."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import UsageError
from lstmcli.kernel import compiled
from lstmcli.kernel.layout import pack
from lstmcli.model import Cell, Floats, Model, Stack, State

Integers = NDArray[np.int64]

COLUMNS = 6  # of the kernel's table of work, see kernel/lanes.py
MAX_LANES = 48  # per thread: a panel of weights is read once for all of them, and their rows of x and h stay in the cache
THREAD_FLOPS = 1e7  # less work than this (0.1 ms) is not worth waking another thread


@dataclass(frozen=True)
class Block:
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
    """A cell ready for the kernel: its weights packed, and the path of its state."""

    path: str
    inputs: int
    units: int
    panels: Floats
    biases: Floats


class Forward:
    """A model ready to run: kernel loaded, weights packed, threads at hand. May be called from several threads at once.

    UsageError if the model has a part that the kernel does not run.
    """

    def __init__(self, model: Model, dtype: np.dtype[Any], threads: int) -> None:
        check_supported(model)
        self.kernel = compiled.load(dtype.itemsize * 8)
        self.dtype, self.threads = dtype, threads
        self.layers = [
            Layer(
                path,
                cell.input_size,
                cell.units,
                *pack(cell.input_kernel, cell.recurrent_kernel, cell.bias, cell.forget_bias, self.kernel.shape),
            )
            for path, cell in model.cells()
        ]
        self.pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self.scratch = threading.local()

    def __call__(self, block: Block, outputs: Block, state: State) -> None:
        """Runs all sequences of `block` through the model.

        block    in      rows (R, input size), of this dtype
        outputs  out     rows (R', output size): the steps of each sequence are written, nothing else
        state    in/out  C-contiguous arrays (n, width): before, the initial state; after, the one after the last step,
                         unchanged where the length is 0
        """
        order = np.argsort(-block.lengths, kind="stable")
        order = order[: np.count_nonzero(block.lengths)]
        if not len(order):
            return
        for k, layer in enumerate(self.layers):
            above = outputs if k == len(self.layers) - 1 else block.like(self.between(k, block, layer.units))
            self.run_layer(layer, block, above, state, order)
            block = above

    def between(self, k: int, block: Block, units: int) -> Floats:
        """Rows for the outputs of layer k, which only layer k + 1 reads; reused by the layers and calls that follow."""
        size, name = int(block.lengths.sum()) * units, f"layers{k % 2}"
        rows: Floats | None = getattr(self.scratch, name, None)
        if rows is None or rows.size < size:
            rows = np.empty(size, self.dtype)
            setattr(self.scratch, name, rows)
        return rows[:size].reshape(-1, units)

    def run_layer(self, layer: Layer, block: Block, outputs: Block, state: State, order: Integers) -> None:
        h, c = state[f"{layer.path}/h"], state[f"{layer.path}/c"]
        lengths = block.lengths[order]
        size = self.dtype.itemsize
        work = np.empty((len(order), COLUMNS), np.int64)
        work[:, 0] = block.rows.ctypes.data + block.starts[order] * (layer.inputs * size)
        work[:, 1] = h.ctypes.data + order * (layer.units * size)
        work[:, 2] = c.ctypes.data + order * (layer.units * size)
        work[:, 3] = outputs.rows.ctypes.data + outputs.starts[order] * (layer.units * size)
        work[:, 4] = lengths
        work[:, 5] = work[:, 1]
        threads, lanes = self.share(layer, lengths)
        taken = np.zeros(1, np.int64)
        tables = np.empty((threads, COLUMNS, lanes), np.int64)

        def run(thread: int) -> None:
            self.kernel.call(
                work.ctypes.data, len(work), taken.ctypes.data, layer.panels.ctypes.data, layer.biases.ctypes.data,
                layer.inputs, layer.units, layer.inputs * size, layer.units * size, tables[thread].ctypes.data, lanes,
            )  # fmt: skip

        others = [self.pool.submit(run, thread) for thread in range(1, threads)] if self.pool else []
        try:
            run(0)
        finally:  # also when the user interrupts: the others still write into these arrays
            wait(others)
        for other in others:
            other.result()

    def share(self, layer: Layer, lengths: Integers) -> tuple[int, int]:
        """How many threads, and how many lanes for each: so many that the lanes end together, with the tile full till then."""
        steps = int(lengths.sum())
        flops = 8 * layer.units * (layer.inputs + layer.units) * steps
        threads = max(1, min(self.threads, len(lengths), int(flops / THREAD_FLOPS)))
        rows = self.kernel.shape.rows
        lanes = -(-steps // int(lengths[0])) / threads
        lanes = min(MAX_LANES, rows * int(np.ceil(lanes / rows)))
        return threads, min(lanes, -(-len(lengths) // threads))


def scratch_width(model: Model) -> int:
    """How many floats a step of a block takes between the layers."""
    hidden = [cell.units for _, cell in model.cells()][:-1]
    return max(hidden[0::2], default=0) + max(hidden[1::2], default=0)


# The options of a cell that the kernel runs, and their values there.
PLAIN = {
    "peephole": None,
    "projection": None,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "cell_clip": None,
    "projection_clip": None,
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
