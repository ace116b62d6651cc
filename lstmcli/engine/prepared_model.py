"""A model over blocks of sequences: the walk through its tree, one kernel call per cell and thread."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmcli.blocks import Block, Floats, State, one_nan
from lstmcli.engine.lanes_and_threads import Schedule
from lstmcli.engine.packed_cell import PackedCell, Shared, kernel_options
from lstmcli.errors import DataError
from lstmcli.kernel import lstm
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain

NOTHING: Mapping[str, Block] = MappingProxyType({})
BEYOND_BFLOAT16 = 2.0**128 * (1 - 2.0**-9)  # from here on a number is rounded to Inf


class PreparedModel:
    """A model ready to run: kernels loaded, weights packed. It may be called from several threads at once."""

    def __init__(self, model: Model, dtype: np.dtype[Any], threads: int, bfloat16: bool = False) -> None:
        check_range(model, dtype)
        if bfloat16:
            check_bfloat16(model)
        self.model, self.dtype, self.threads = model, dtype, threads
        self.widths, self.input_size, self.output_size = model.state_widths(), model.input_size, model.output_size
        self.learned = model.learned_state()
        self.cells = {path: PackedCell(path, cell, dtype.itemsize * 8, bfloat16) for path, cell in model.cells()}
        self.tile_rows = max(cell.size.tile_rows for cell in self.cells.values())  # sequences that fill a tile
        self.flops = sum(cell.size.flops for cell in self.cells.values())  # of one step of one sequence
        packed_bytes = sum(weights.nbytes for cell in self.cells.values() for weights in cell.weights)
        self.weight_bytes = (3 if bfloat16 else 2) * packed_bytes  # the model's own as well, which bfloat16 halves
        self.pointwise = model.pointwise
        self.scratch_widths = scratch_widths(model)
        self.scratch = threading.local()
        self.single_cell: PackedCell | None = None  # where the model is no more than that
        match model:
            case Cell() | Stack([Cell()]):
                (self.single_cell,) = self.cells.values()

    def __call__(
        self, block: Block, outputs: Block, state: State, saved: Mapping[str, Block] = NOTHING, padded: int = 0
    ) -> None:
        """Run all sequences of `block` through the model.

        block    in      rows (R, input size), of this dtype
        outputs  out     rows (R', output size): the steps of each sequence are written, nothing else
        state    in/out  C-contiguous arrays (n, width): before, the initial state; after, the one after the last step,
                         unchanged where the length is 0
        saved    out     what else to keep of each step: "cells" with the starts of `outputs`, c of the top layer, and
                         "layers/...", packed, the outputs of the layers of model.layers_by_name()
        padded           rows that each sequence has in C-contiguous `outputs`, where `single_cell` alone is run: those past
                         a length > 0 become zeros; 0: they are not written

        With `saved` layers, or with a model that is pointwise, block and outputs must be packed.
        """
        schedule = Schedule.of(block.lengths)
        if schedule.steps and self.single_cell and not saved:  # a walk through the tree would take a small batch a tenth longer
            self.single_cell.run(block, outputs, None, state, schedule, self.threads, False, padded)
        elif schedule.steps:
            Pass(self, schedule, state, saved).walk(self.model, "", block, outputs, saved.get("cells"))
            if "layers/0" in saved and not self.model.layers_by_name():  # it is one layer itself
                np.copyto(saved["layers/0"].rows, outputs.rows)

    def initial_state(self, batch: int) -> State:
        """Return new arrays for `batch` sequences to start from: zeros, or what the model has learned."""
        state = {name: np.zeros((batch, width), self.dtype) for name, width in self.widths.items()}
        for name, learned in self.learned.items():
            state[name][:] = learned
        return state

    def take_table(self, table: Floats, shared: Shared) -> None:
        """Make blocks hold token ids (R, 1) int64 instead of the rows of an embedding's table (V, inputs).

        shared  calls a function with slices of rows, in several threads
        """
        cells = [self.cells[path] for path in lowest_cells(self.model)]
        products = [cell.products_of(table, shared) for cell in cells]  # all of them, before any cell takes ids
        for cell, product in zip(cells, products, strict=True):
            cell.take_products(product)
        self.flops = sum(cell.size.flops for cell in self.cells.values())

    def product_bytes(self, words: int) -> int:
        """Return how large the products of a table of so many rows are; 0 where they gain nothing.

        That is where a residual layer needs the input itself, where the input is so narrow that to read its products, 4 *
        units numbers, takes as long as to compute them, and with bfloat16, in whose order no kernel computes them.
        """
        cells = [self.cells[path] for path in lowest_cells(self.model)]
        return sum(cell.product_bytes(words) for cell in cells) if all(cell.is_wide for cell in cells) else 0

    def buffer(self, key: tuple[int, int], steps: int, width: int) -> Floats:
        """Return rows that only the next layer or a merge reads. They are used again by later layers in this thread."""
        buffers = self.scratch.__dict__
        name, size = str(key), steps * width
        rows: Floats | None = buffers.get(name)
        if rows is None or rows.size < size:
            rows = buffers[name] = np.empty(size, self.dtype)
        return rows[:size].reshape(-1, width)


@dataclass(slots=True)  # not frozen, which would take a small batch a tenth longer
class Pass:
    """One pass of a block through the tree of a model."""

    prepared: PreparedModel
    schedule: Schedule
    state: State
    saved: Mapping[str, Block]

    def walk(
        self, node: Model, path: str, block: Block, outputs: Block, cells: Block | None, backward: bool = False, depth: int = 0
    ) -> None:
        """Run the tree `node`.

        path      of its state: "0/forward" for 0/forward/c and 0/forward/h
        block     in   the input
        outputs   out  rows (R', output size)
        cells     out  rows for c at every step; None: not kept
        backward  from the last step to the first
        depth     keeps the buffers of nested trees apart
        """
        if isinstance(node, Cell):
            self.prepared.cells[path].run(block, outputs, cells, self.state, self.schedule, self.prepared.threads, backward)
        elif isinstance(node, Stack):
            self.stack(node, path, block, outputs, cells, backward, depth)
        elif isinstance(node, Bidirectional):
            self.bidirectional(node, path, block, outputs, cells, backward, depth)
        elif isinstance(node, Reverse):
            self.walk(node.inner, path, block, outputs, cells, not backward, depth)
        elif isinstance(node, Residual):
            self.walk(node.inner, path, block, outputs, cells, backward, depth)
            np.add(outputs.rows, block.rows, out=outputs.rows)
            one_nan(outputs.rows)

    def stack(
        self, node: Stack, path: str, block: Block, outputs: Block, cells: Block | None, backward: bool, depth: int
    ) -> None:
        top = len(node.layers) - 1
        for k, layer in enumerate(node.layers):
            name = join(path, str(k))
            target = outputs if k == top else self.scratch((depth, k % 2), block, layer.output_size)
            self.walk(layer, name, block, target, cells if k == top else None, backward, depth + 1)
            if self.saved and (kept := self.saved.get(f"layers/{name}")):
                np.copyto(kept.rows, target.rows)
            block = target

    def bidirectional(
        self, node: Bidirectional, path: str, block: Block, outputs: Block, cells: Block | None, backward: bool, depth: int
    ) -> None:
        width = node.forward.output_size
        first, second = outputs, outputs
        if node.merge == "concat":
            first, second = outputs.columns(0, width), outputs.columns(width, node.backward.output_size)
        else:
            second = self.scratch((depth, 0), block, width)
        cells_width = node.forward.cells_width
        first_cells = cells and cells.columns(0, cells_width)
        second_cells = cells and cells.columns(cells_width, node.backward.cells_width)
        self.walk(node.forward, join(path, "forward"), block, first, first_cells, backward, depth + 1)
        self.walk(node.backward, join(path, "backward"), block, second, second_cells, not backward, depth + 1)
        if node.merge == "mul":
            np.multiply(first.rows, second.rows, out=first.rows)
        elif node.merge != "concat":
            np.add(first.rows, second.rows, out=first.rows)
        if node.merge == "mean":
            np.multiply(first.rows, self.prepared.dtype.type(0.5), out=first.rows)
        if node.merge != "concat":
            one_nan(first.rows)

    def scratch(self, key: tuple[int, int], block: Block, width: int) -> Block:
        return block.like(self.prepared.buffer(key, self.schedule.steps, width))


def kernels_are_cached(model: Model, dtype: np.dtype[Any], bfloat16: bool) -> bool:
    """Whether PreparedModel will find all kernels in the cache."""
    kinds = {kernel_options(cell, bfloat16) for _, cell in model.cells()}
    return all(lstm.is_cached(dtype.itemsize * 8, kind) for kind in kinds)


def lowest_cells(node: Model, path: str = "") -> list[str]:
    """Return the places of the cells that take the input; none where a residual layer adds it."""
    match node:
        case Cell():
            return [path]
        case Stack():
            return lowest_cells(node.layers[0], join(path, "0"))
        case Bidirectional():
            sides = [lowest_cells(tree, join(path, side)) for side, tree in node.children().items()]
            return sides[0] + sides[1] if all(sides) else []
        case Reverse():
            return lowest_cells(node.inner, path)
    return []


def join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def check_range(model: "Model | Chain", dtype: np.dtype[Any]) -> None:
    """Raises DataError where a weight or an option of a model is too large for the dtype of a computation."""
    wider = [("a weight", weight) for weight in model.arrays() if weight.dtype.itemsize > dtype.itemsize]
    options = [(name, np.array(value)) for name, value in numbers_in(model.config())] if dtype.itemsize < 8 else []
    for name, values in (*wider, *options):
        try:
            with np.errstate(over="raise", invalid="ignore"):
                values.astype(dtype)
        except FloatingPointError as error:
            largest = np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max()
            raise DataError(
                f"{name} of the model, {largest:g}, is too large for {dtype}; compute in float64, or rescale the model"
            ) from error


def check_bfloat16(model: Model) -> None:
    """Raises DataError where a weight of an LSTM that fits float32 would be rounded to Inf."""
    for _, cell in model.cells():
        for weight in (cell.input_kernel, cell.recurrent_kernel, cell.projection):
            largest = 0 if weight is None else np.abs(weight).max(initial=0, where=np.isfinite(weight))
            if np.float32(largest) >= BEYOND_BFLOAT16:  # which is what is rounded
                raise DataError(f"a weight of the model, {largest:g}, is too large for bfloat16; compute in float32")


def numbers_in(config: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yields the floats in a model's configuration, each with the name of its option."""
    if isinstance(config, dict | list | tuple):
        parts = config.items() if isinstance(config, dict) else ((name, part) for part in config)
        for key, part in parts:
            yield from numbers_in(part, key)
    elif isinstance(config, float):
        yield name, config


def scratch_widths(node: Model, depth: int = 0) -> dict[tuple[int, int], int]:
    """Return the width of each buffer that Pass takes for `node`, by depth and number."""
    widths: dict[tuple[int, int], int] = {}
    if isinstance(node, Stack):
        for k, layer in enumerate(node.layers[:-1]):
            widths[depth, k % 2] = max(widths.get((depth, k % 2), 0), layer.output_size)
    elif isinstance(node, Bidirectional) and node.merge != "concat":
        widths[depth, 0] = node.output_size
    below = depth if isinstance(node, Reverse | Residual) else depth + 1
    for child in node.children().values():
        for key, width in scratch_widths(child, below).items():
            widths[key] = max(widths.get(key, 0), width)
    return widths
