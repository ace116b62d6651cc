"""A model over blocks of sequences: one kernel call per cell and thread."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lstmcli.errors import DataError, UsageError
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
    """A model ready to run: kernel loaded, weights packed, threads at hand. Not for two calls at once.

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
        self.scratch: dict[int, Floats] = {}

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
        size = int(block.lengths.sum()) * units
        if k % 2 not in self.scratch or self.scratch[k % 2].size < size:
            self.scratch[k % 2] = np.empty(size, self.dtype)
        return self.scratch[k % 2][:size].reshape(-1, units)

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
        run(0)
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


def check_supported(model: Model) -> None:
    if not isinstance(model, Stack) or not all(isinstance(layer, Cell) for layer in model.layers):
        kinds = {type(node).kind for node in (model, *model.children().values())} - {"stack", "cell"}
        raise UsageError(f"the model has a {kinds.pop() if kinds else 'nested stack'}; this version runs stacks of plain cells")
    plain = Cell(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32))
    for path, cell in model.cells():
        for name in ("peephole", "projection", "activation", "recurrent_activation", "cell_clip", "projection_clip"):
            if (
                (value := getattr(cell, name)) is not None
                and value is not getattr(plain, name)
                and value != getattr(plain, name)
            ):
                shown = value if isinstance(value, str | float) else value.shape
                raise UsageError(f"cell {path} has {name} {shown}; this version runs plain cells only")


def available_threads() -> int:
    """The CPUs that this process may use: its affinity, the quota of its control group, SLURM_CPUS_PER_TASK."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [affinity, cgroup_cpus()]
    if (slurm := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():
        limits.append(int(slurm))
    return max(1, min(limits))


def cgroup_cpus() -> int:
    """The quota of this process's control group in whole CPUs; a large number where there is none."""
    unlimited = 1 << 20
    try:
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        quota, period = Path(f"/sys/fs/cgroup{group}/cpu.max").read_text().split()
        return unlimited if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return unlimited


_ready: WeakKeyDictionary[Model, dict[tuple[str, int], Forward]] = WeakKeyDictionary()


def run_padded(
    model: Model,
    x: ArrayLike,
    lengths: ArrayLike | None,
    initial_state: Mapping[str, ArrayLike] | None,
    threads: int | None,
) -> tuple[Floats, State]:
    """Model.__call__: checks its arguments and runs the padded arrays as blocks, without a copy where x is as needed."""
    x = np.asarray(x)
    if x.ndim != 3 or x.dtype.kind != "f" or x.dtype.itemsize > 8 or x.shape[2] != model.input_size:
        raise DataError(f"x: expected float16, float32 or float64 (batch, time, {model.input_size}), got {x.dtype} {x.shape}")
    dtype = np.dtype(np.float64 if x.dtype.itemsize == 8 else np.float32)
    batch, time, _ = x.shape
    threads = available_threads() if threads is None else threads
    if threads < 1:
        raise UsageError(f"threads: expected 1 or more, got {threads}")
    ready = _ready.setdefault(model, {})
    if (forward := ready.get((dtype.str, threads))) is None:
        forward = ready[dtype.str, threads] = Forward(model, dtype, threads)
    steps = check_lengths(lengths, batch, time)
    state = start_state(model, batch, dtype, initial_state)
    outputs = np.zeros((batch, time, model.output_size), dtype)
    starts = np.arange(batch, dtype=np.int64) * time
    rows = np.ascontiguousarray(x, dtype).reshape(batch * time, -1)
    forward(Block(rows, starts, steps), Block(outputs.reshape(batch * time, -1), starts, steps), state)
    return outputs, state


def check_lengths(lengths: ArrayLike | None, batch: int, time: int) -> Integers:
    if lengths is None:
        return np.full(batch, time, np.int64)
    given = np.asarray(lengths)
    if given.shape != (batch,) or given.dtype.kind not in "iu":
        raise DataError(f"lengths: expected {batch} integers, got {given.dtype} {given.shape}")
    bad = np.flatnonzero((given < 0) | (given > time))
    if len(bad):
        raise DataError(
            f"lengths, row {bad[0]}: expected 0 <= length <= {time}, got {given[bad[0]]}; {len(bad)} such rows in all"
        )
    return given.astype(np.int64)


def start_state(model: Model, batch: int, dtype: np.dtype[Any], given: Mapping[str, ArrayLike] | None) -> State:
    """The initial state as new arrays: a copy of what is given, or zeros."""
    widths = model.state_widths()
    if given is None:
        return {name: np.zeros((batch, width), dtype) for name, width in widths.items()}
    if set(given) != set(widths):
        raise DataError(f"initial_state: expected {', '.join(widths)}, got {', '.join(given) or 'nothing'}")
    state = {name: np.array(given[name], dtype, order="C") for name in widths}
    for name, width in widths.items():
        if state[name].shape != (batch, width):
            raise DataError(f"initial_state, {name}: expected shape {(batch, width)}, got {state[name].shape}")
    return state
