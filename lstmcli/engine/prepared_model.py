"""A model over blocks of sequences: the walk through its tree, one kernel call per cell and thread."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmcli.blocks import Block, Floats, State
from lstmcli.engine.packed_cell import Layer, kernel_options
from lstmcli.engine.work_split import Schedule
from lstmcli.kernel import lstm
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack

NOTHING: Mapping[str, Block] = MappingProxyType({})


class Forward:
    """A model ready to run: kernels loaded, weights packed. May be called from several threads at once."""

    def __init__(self, model: Model, dtype: np.dtype[Any], threads: int) -> None:
        self.model, self.dtype, self.threads = model, dtype, threads
        self.widths, self.input_size, self.output_size = model.state_widths(), model.input_size, model.output_size
        self.learned = model.learned_state()
        self.layers = {path: Layer(path, cell, dtype.itemsize * 8) for path, cell in model.cells()}
        self.rows = max(layer.kernel.shape.rows for layer in self.layers.values())  # sequences that fill a tile
        self.flops = sum(layer.flops for layer in self.layers.values())  # of one step of one sequence
        # The model's own weights and the packed ones.
        self.weight_bytes = 2 * sum(weights.nbytes for layer in self.layers.values() for weights in layer.weights)
        self.pointwise = model.pointwise
        self.scratch_widths = scratch_widths(model)
        self.scratch = threading.local()
        self.only: Layer | None = None  # all there is to run
        match model:
            case Cell() | Stack([Cell()]):
                (self.only,) = self.layers.values()

    def __call__(self, block: Block, outputs: Block, state: State, saved: Mapping[str, Block] = NOTHING) -> None:
        """Runs all sequences of `block` through the model.

        block    in      rows (R, input size), of this dtype
        outputs  out     rows (R', output size): the steps of each sequence are written, nothing else
        state    in/out  C-contiguous arrays (n, width): before, the initial state; after, the one after the last step,
                         unchanged where the length is 0
        saved    out     what else to keep of each step: "cells" with the starts of `outputs`, c of the top layer, and
                         "layers/...", packed, the outputs of the layers of model.layers_by_name()

        With `saved` layers, or with a model that is pointwise, block and outputs must be packed.
        """
        schedule = Schedule.of(block.lengths)
        if schedule.steps and self.only and not saved:  # the walk to it would be a tenth of the call of a small batch
            self.only.run(block, outputs, None, state, schedule, self.threads, backward=False)
        elif schedule.steps:
            Call(self, schedule, state, saved).walk(self.model, "", block, outputs, saved.get("cells"))
            if "layers/0" in saved and not self.model.layers_by_name():  # it is one layer itself
                np.copyto(saved["layers/0"].rows, outputs.rows)

    def initial_state(self, batch: int) -> State:
        """New arrays that `batch` sequences start from where nothing else is given: zeros, or what the model has learned."""
        state = {name: np.zeros((batch, width), self.dtype) for name, width in self.widths.items()}
        for name, learned in self.learned.items():
            state[name][:] = learned
        return state

    def buffer(self, key: tuple[int, int], steps: int, width: int) -> Floats:
        """Rows that only the next layer or a merge reads; reused by what follows in this thread."""
        buffers = self.scratch.__dict__
        name, size = str(key), steps * width
        rows: Floats | None = buffers.get(name)
        if rows is None or rows.size < size:
            rows = buffers[name] = np.empty(size, self.dtype)
        return rows[:size].reshape(-1, width)


@dataclass(slots=True)  # not frozen: for a small batch that would be a tenth of the call
class Call:
    """One pass of a block through the tree."""

    forward: Forward
    schedule: Schedule
    state: State
    saved: Mapping[str, Block]

    def walk(
        self, node: Model, path: str, block: Block, above: Block, cells: Block | None, backward: bool = False, depth: int = 0
    ) -> None:
        """Runs the tree `node`, whose state is named `path`; `depth` keeps the buffers of nested trees apart."""
        if isinstance(node, Cell):
            self.forward.layers[path].run(block, above, cells, self.state, self.schedule, self.forward.threads, backward)
        elif isinstance(node, Stack):
            self.stack(node, path, block, above, cells, backward, depth)
        elif isinstance(node, Bidirectional):
            self.both(node, path, block, above, cells, backward, depth)
        elif isinstance(node, Reverse):
            self.walk(node.inner, path, block, above, cells, not backward, depth)
        elif isinstance(node, Residual):
            self.walk(node.inner, path, block, above, cells, backward, depth)
            np.add(above.rows, block.rows, out=above.rows)

    def stack(
        self, node: Stack, path: str, block: Block, above: Block, cells: Block | None, backward: bool, depth: int
    ) -> None:
        top = len(node.layers) - 1
        for k, layer in enumerate(node.layers):
            name = join(path, str(k))
            target = above if k == top else self.scratch((depth, k % 2), block, layer.output_size)
            self.walk(layer, name, block, target, cells if k == top else None, backward, depth + 1)
            if self.saved and (kept := self.saved.get(f"layers/{name}")):
                np.copyto(kept.rows, target.rows)
            block = target

    def both(
        self, node: Bidirectional, path: str, block: Block, above: Block, cells: Block | None, backward: bool, depth: int
    ) -> None:
        width = node.forward.output_size
        first, second = above, above
        if node.merge == "concat":
            first, second = above.columns(0, width), above.columns(width, node.backward.output_size)
        else:
            second = self.scratch((depth, 0), block, width)
        split = node.forward.cells_width
        first_cells = cells and cells.columns(0, split)
        second_cells = cells and cells.columns(split, node.backward.cells_width)
        self.walk(node.forward, join(path, "forward"), block, first, first_cells, backward, depth + 1)
        self.walk(node.backward, join(path, "backward"), block, second, second_cells, not backward, depth + 1)
        if node.merge == "mul":
            np.multiply(first.rows, second.rows, out=first.rows)
        elif node.merge != "concat":
            np.add(first.rows, second.rows, out=first.rows)
        if node.merge == "mean":
            np.multiply(first.rows, self.forward.dtype.type(0.5), out=first.rows)

    def scratch(self, key: tuple[int, int], block: Block, width: int) -> Block:
        return block.like(self.forward.buffer(key, self.schedule.steps, width))


def kernels_are_cached(model: Model, dtype: np.dtype[Any]) -> bool:
    """Whether Forward will have nothing to compile."""
    kinds = {kernel_options(cell) for _, cell in model.cells()}
    return all(lstm.is_cached(dtype.itemsize * 8, kind) for kind in kinds)


def join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def scratch_widths(node: Model, depth: int = 0) -> dict[tuple[int, int], int]:
    """The width of each buffer that Call takes for `node`."""
    found: dict[tuple[int, int], int] = {}
    if isinstance(node, Stack):
        for k, layer in enumerate(node.layers[:-1]):
            found[depth, k % 2] = max(found.get((depth, k % 2), 0), layer.output_size)
    elif isinstance(node, Bidirectional) and node.merge != "concat":
        found[depth, 0] = node.output_size
    below = depth if isinstance(node, Reverse | Residual) else depth + 1
    for child in node.children().values():
        for key, width in scratch_widths(child, below).items():
            found[key] = max(found.get(key, 0), width)
    return found
