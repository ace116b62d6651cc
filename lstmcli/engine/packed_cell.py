"""One cell over a block of sequences: its weights packed, the work shared out among threads, the kernel called."""

import ctypes
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Block, Schedule, State
from lstmcli.engine.thread_team import team
from lstmcli.kernel import lstm
from lstmcli.kernel.layout import JOB_WORDS, SYNC_WORDS, Job, Options, pack, scratch_words
from lstmcli.model.tree import Cell

MAX_LANES = 48  # per thread: a panel of weights is read once for all of them, and their rows of x and h stay in the cache
MIN_LANES = 4  # almost as fast a sequence as a full tile; with fewer the input products of AHEAD steps are computed at once,
STREAMED_BYTES = 16 << 20  # as with weights beyond this, which no cache holds from step to step: half are then read only once
AHEAD = 24
CACHED_BYTES = 1 << 20  # weights beyond this leave the second-level cache of a core: they are read for as many lanes as can be
TURNS = 5  # sequences that a lane takes in turn, or more: with fewer, and so more lanes, the threads end less together
THREAD_FLOPS = 5e6  # less work than this (50 us) is not worth waking another thread
# What a job says, with what a layer always says from PANELS_AT to GATE_CLIP, and zeros.
JOB = struct.Struct(f"{Job.PANELS_AT}q{8 * (Job.LANES - Job.PANELS_AT)}s{JOB_WORDS - Job.LANES}q{8 * SYNC_WORDS}x")
SHARED_FLOPS = 2e5  # a step of less work than this (2 us) is not worth waiting for each other


class Layer:
    """A cell ready for the kernel. `path` names its state: {path}/c and {path}/h."""

    def __init__(self, path: str, cell: Cell, bits: int) -> None:
        self.kernel = lstm.load(bits, kernel_options(cell))
        self.size = bits // 8
        prefix = f"{path}/" if path else ""
        self.c, self.h = f"{prefix}c", f"{prefix}h"
        self.inputs, self.units, self.outputs = cell.input_size, cell.units, cell.output_size
        kernels = (cell.input_kernel, cell.recurrent_kernel, cell.bias, cell.forget_bias, cell.peephole, cell.projection)
        self.weights = pack(*kernels, self.kernel.shape)
        self.panels = len(self.weights.biases)
        self.flops = 8 * self.units * (self.inputs + self.outputs) + 2 * self.weights.projection.size  # of a step
        self.hidden = self.units * self.size if cell.projection is not None else 0  # bytes of a lane's h before the projection
        clips = (limit or 0.0 for limit in (cell.cell_clip, cell.projection_clip, cell.gate_clip))
        sizes = (self.inputs, self.units, self.outputs)
        self.constants = struct.pack("7q3d", *map(address, self.weights), *sizes, *clips)

    def run(
        self, block: Block, outputs: Block, cells: Block | None, state: State, schedule: Schedule, threads: int, backward: bool
    ) -> None:
        """Runs all sequences of `block`, from the last step to the first where `backward`.

        block    in      rows (R, inputs)
        outputs  out     rows (R', outputs): the steps of each sequence are written, nothing else
        cells    out     rows (R', units) for c at every step, with the starts of `outputs`; None: not kept
        state    in/out  C-contiguous arrays; those of this cell: before, the initial state; after, the final one
        """
        threads, share, lanes, ahead = self.shares(threads, len(schedule.order), schedule.steps, schedule.longest)
        x, y, step = block.starts, outputs.starts, 1
        if backward:  # starts count in steps, so from row 0 downward
            x, y, step = 1 - x - block.lengths, 1 - y - block.lengths, -1
        x_at = address(x)
        each = scratch_words(lanes, ahead, self.weights.biases)
        hidden = lanes * self.hidden
        scratch_at = JOB_WORDS + SYNC_WORDS
        hidden_at = scratch_at + each * threads
        work = np.empty(hidden_at + -(-hidden // 8) * (1 if share else threads), np.int64)
        job_at = address(work)
        JOB.pack_into(
            work.data,
            0,
            *(address(block.rows), x_at, step * block.rows.strides[0]),
            *(address(outputs.rows), x_at if y is x else address(y), step * outputs.rows.strides[0]),
            *(address(state[self.h]), address(state[self.c])),
            *((address(cells.rows), step * cells.rows.strides[0]) if cells else (0, 0)),
            *(address(block.lengths), address(schedule.order), len(schedule.order)),
            self.constants,
            *(lanes, ahead, threads, threads if share else 1),
            *(job_at + 8 * JOB_WORDS, job_at + 8 * scratch_at, 8 * each),
            *(job_at + 8 * hidden_at, 0 if share else -(-hidden // 8) * 8),
        )
        if threads == 1:
            self.kernel.call(job_at, 0)
        else:
            team().run(self.kernel.address, job_at, threads)

    def shares(self, threads: int, count: int, steps: int, longest: int) -> tuple[int, bool, int, int]:
        """How many threads, whether they share each step, the lanes of each, and the steps of input products in advance.

        So many lanes that all can be kept busy till the end. Which of all this is chosen changes no bit.
        """
        flops, rows = self.flops, self.kernel.shape.rows
        if count <= rows and flops * steps < THREAD_FLOPS:
            return 1, False, count, AHEAD if count < MIN_LANES else 0
        weights = self.weights.panels.nbytes
        threads = min(threads, int(flops * steps / THREAD_FLOPS) + 1)
        most = min(count, -(-steps // (longest * rows)) * rows)  # sequences side by side till the end, in full tiles
        few = most < rows * threads or (weights > STREAMED_BYTES and most < MAX_LANES)
        share = threads > 1 and few and flops * most > SHARED_FLOPS and self.panels >= threads
        if share:
            lanes = most
        else:
            threads = min(threads, count)
            lanes = (most if weights > CACHED_BYTES else count // TURNS) // threads // rows * rows
            lanes = min(max(MIN_LANES, lanes), -(-count // threads))
        lanes = min(lanes, MAX_LANES)
        return threads, share, lanes, AHEAD if lanes < MIN_LANES or weights > STREAMED_BYTES else 0


def kernel_options(cell: Cell) -> Options:
    """What the cell's kernel is compiled for."""
    return Options(
        activation=cell.activation,
        recurrent_activation=cell.recurrent_activation,
        peephole=cell.peephole is not None,
        projection=cell.projection is not None,
        cell_clip=cell.cell_clip is not None,
        projection_clip=cell.projection is not None and cell.projection_clip is not None,
        gate_clip=cell.gate_clip is not None,
        input_forget=cell.input_forget,
    )


def address(array: NDArray[Any], of: Any = ctypes.addressof, view: Any = ctypes.c_char.from_buffer) -> int:
    try:
        return of(view(array))  # type: ignore[no-any-return]  # NumPy's own ways take five times as long
    except (TypeError, ValueError):  # read-only, empty, or not contiguous
        return array.ctypes.data
