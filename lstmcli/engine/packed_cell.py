"""One cell over a block of sequences: its weights packed, the work shared out among threads, the kernel called."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Block, Floats, State
from lstmcli.engine.lanes_and_threads import CellSize, Schedule, split_work
from lstmcli.kernel import lstm
from lstmcli.kernel.layout import (
    ARGUMENTS,
    SYNC_WORDS,
    Options,
    lines,
    pack,
    pack_cell,
    paused_columns,
    rounded_bytes,
    scratch_words,
    write_call,
)
from lstmcli.model.tree import Cell

Shared = Callable[[Callable[[slice], None], int, float], None]


class PackedCell:
    """A cell ready to run: its kernel loaded, its weights packed. `path` names its state: {path}/c and {path}/h."""

    def __init__(self, path: str, cell: Cell, bits: int, bfloat16: bool = False) -> None:
        self.cell, self.products_at, self.bfloat16 = cell, 0, bfloat16
        self.kernel = lstm.load(bits, kernel_options(cell, bfloat16))
        self.float_bytes = bits // 8
        prefix = f"{path}/" if path else ""
        self.c, self.h = f"{prefix}c", f"{prefix}h"
        kernels = (cell.input_kernel, cell.recurrent_kernel, cell.bias, cell.forget_bias, cell.peephole, cell.projection)
        self.weights = pack(*kernels, self.kernel.shape, bfloat16)
        sizes = inputs, units, outputs = cell.input_size, cell.units, cell.output_size
        clips = (cell.cell_clip or 0.0, cell.projection_clip or 0.0, cell.gate_clip or 0.0)
        self.packed = pack_cell(tuple(map(address, self.weights)), sizes, clips)
        flops = 8 * units * (inputs + outputs) + 2 * self.weights.projection.size * (2 if bfloat16 else 1)
        self.size = CellSize(flops, self.weights.panels.nbytes, len(self.weights.biases), self.kernel.shape.rows)
        self.rounded_bytes = rounded_bytes(inputs, units, outputs, self.kernel.shape) if bfloat16 else 0
        # Bytes of a lane's h before the projection.
        self.hidden_bytes = units * self.float_bytes if cell.projection is not None else 0

    def products_of(self, table: Floats, shared: Shared) -> Floats:
        """Return the input products of all rows of an embedding's table, for take_products().

        table   (V, inputs), C-contiguous, of the dtype of the computation
        shared  calls a function with slices of rows, in several threads
        """
        from lstmcli.kernel.heads.call import Dense

        dense = Dense(
            paused_columns(self.cell.input_kernel, self.kernel.shape), self.weights.biases.reshape(-1), 8 * table.itemsize
        )
        products = lines((len(table), dense.outputs), table.dtype)
        shared(lambda part: dense.run(table[part], products[part]), len(table), 2.0 * dense.inputs * dense.outputs)
        return products

    def take_products(self, products: Floats) -> None:
        """Make blocks hold token ids (R, 1) int64 from now on."""
        self.products, self.products_at = products, products.ctypes.data
        self.size = self.size._replace(flops=self.size.flops - 8 * self.cell.units * self.cell.input_size)

    @property
    def is_wide(self) -> bool:
        """Whether the products of an input take longer to be computed than to be read: measured for 16 to 512 units.

        Of bfloat16 they are never computed once: no kernel does that in its order of sums.
        """
        return 2 * self.cell.input_size >= self.cell.units and not self.bfloat16

    def product_bytes(self, words: int) -> int:
        """Return how large the products are of a table of so many rows."""
        return words * self.weights.biases.nbytes

    def run(
        self,
        block: Block,
        outputs: Block,
        cells: Block | None,
        state: State,
        schedule: Schedule,
        threads: int,
        backward: bool,
        padded: int = 0,
    ) -> None:
        """Run all sequences of `block` in at most `threads` threads, from the last step to the first where `backward`.

        block    in      rows (R, inputs); after take_products() the token ids (R, 1)
        outputs  out     rows (R', outputs): the steps of each sequence are written, nothing else
        cells    out     rows (R', units) for c at every step, with the starts of `outputs`; None: not kept
        state    in/out  C-contiguous arrays; those of this cell: before, the initial state; after, the final one
        padded           rows that each sequence has in `outputs`, C-contiguous then: those past its length become zeros; 0:
                         they are not written
        """
        split = split_work(self.size, schedule, threads)
        if self.products_at:
            split = split._replace(ahead=0)
        x_starts, y_starts, step = block.starts, outputs.starts, 1
        if backward:  # starts count in steps, so from row 0 downward
            x_starts, y_starts, step = 1 - x_starts - block.lengths, 1 - y_starts - block.lengths, -1
        x_starts_at = address(x_starts)
        y_starts_at = x_starts_at if y_starts is x_starts else address(y_starts)

        # One array for the table of the call, its counters, and the memory of all threads, in words of 8 bytes.
        hidden_words = -(-split.lanes * self.hidden_bytes // 8)
        scratch = scratch_words(split.lanes, split.ahead, self.weights.biases, self.kernel.shape, self.rounded_bytes)
        scratch_first = ARGUMENTS + SYNC_WORDS
        hidden_first = scratch_first + scratch * split.threads
        sharers, owners = (split.threads, 1) if split.share_steps else (1, split.threads)
        work = np.empty(hidden_first + hidden_words * owners, np.int64)
        table_at = address(work)
        write_call(
            work.data,
            x=(address(block.rows), x_starts_at, step * block.rows.strides[0]),
            y=(address(outputs.rows), y_starts_at, step * outputs.rows.strides[0]),
            state=(address(state[self.h]), address(state[self.c])),
            cells=(address(cells.rows), step * cells.rows.strides[0]) if cells else (0, 0),
            sequences=(address(block.lengths), address(schedule.order), len(schedule.order), padded),
            cell=self.packed,
            split=(split.lanes, split.fetches, split.ahead, split.threads, sharers),
            memory=(
                table_at + 8 * ARGUMENTS,
                table_at + 8 * scratch_first,
                8 * scratch,
                table_at + 8 * hidden_first,
                0 if split.share_steps else 8 * hidden_words,
                self.rounded_bytes,
                self.products_at,
            ),
        )
        if split.threads == 1:
            self.kernel.call(table_at, 0)
        else:
            from lstmcli.engine.worker_threads import worker_threads

            worker_threads().run(self.kernel.call, table_at, split.threads, work)


def kernel_options(cell: Cell, bfloat16: bool = False) -> Options:
    """Return what the cell's kernel is compiled for."""
    return Options(
        activation=cell.activation,
        recurrent_activation=cell.recurrent_activation,
        peephole=cell.peephole is not None,
        projection=cell.projection is not None,
        cell_clip=cell.cell_clip is not None,
        projection_clip=cell.projection is not None and cell.projection_clip is not None,
        gate_clip=cell.gate_clip is not None,
        input_forget=cell.input_forget,
        bfloat16=bfloat16,
    )


def address(array: NDArray[Any], of: Any = ctypes.addressof, view: Any = ctypes.c_char.from_buffer) -> int:
    """Return where the array's first element lies. NumPy's own ways take five times as long, as would two global names."""
    try:
        return of(view(array))  # type: ignore[no-any-return]
    except (TypeError, ValueError):  # read-only, empty, or not contiguous
        return array.ctypes.data
