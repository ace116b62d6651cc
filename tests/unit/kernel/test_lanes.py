"""The lanes, which fill and empty places of a tile, run by Python: the code that Numba compiles is plain code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers import lanes_in_python

import lstmcli
from lstmcli.blocks import Block, packed_starts
from lstmcli.engine import packed_cell
from lstmcli.engine.lanes_and_threads import Schedule, WorkSplit
from lstmcli.engine.packed_cell import PackedCell
from lstmcli.engine.worker_threads import WorkerThreads
from lstmcli.kernel import lanes
from lstmcli.kernel.layout import Options, Shape


@pytest.mark.parametrize(
    ("lane_count", "ahead", "ids"),
    [(1, 0, False), (3, 0, False), (7, 0, False), (2, 3, False), (3, 24, False), (1, 0, True), (3, 0, True)],
)
def test_in_python_as_in_machine_code(lane_count: int, ahead: int, ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = lstmcli.init_model(5, [31], seed=1).layers[0]
    assert isinstance(cell, lstmcli.Cell)
    lengths = np.array([3, 1, 0, 4, 2, 4, 1], np.int64)
    block = Block(np.random.default_rng(0).normal(size=(lengths.sum(), 5)), packed_starts(lengths), lengths)
    monkeypatch.setattr(packed_cell, "split_work", lambda *_: WorkSplit(1, False, lane_count, ahead))

    def run(packed: PackedCell) -> list[np.ndarray]:
        outputs, cells = (block.like(np.zeros((len(block.rows), 31))) for _ in range(2))
        state = {name: np.full((len(lengths), 31), 0.25) for name in ("c", "h")}
        packed.run(block, outputs, cells, state, Schedule.of(lengths), 1, backward=False)
        return [outputs.rows, cells.rows, state["c"], state["h"]]

    packed = PackedCell("", cell, 64)
    want = run(packed)
    if ids:  # the same inputs as the rows of a table, in another order
        order = np.random.default_rng(1).permutation(len(block.rows))
        products = packed.products_of(block.rows[order], lambda function, rows, flops: function(slice(0, rows)))
        packed.take_products(products)
        block = block.like(np.argsort(order)[:, None])
        for one, other in zip(run(packed), want, strict=True):
            np.testing.assert_array_equal(one, other)
    for name, function in lanes_in_python.PYTHON.items():
        monkeypatch.setattr(lanes, name, function)
    packed.kernel = packed.kernel._replace(call=lanes.define(packed.kernel.shape, Options()))
    for one, other in zip(run(packed), want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-14)


def test_a_thread_that_is_alone_leaves_input_products_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It did those of 24 steps before it looked for them: half of the work of these steps."""
    cell = lstmcli.init_model(5, [31], seed=1).layers[0]
    assert isinstance(cell, lstmcli.Cell)
    lengths = np.array([60, 50], np.int64)
    block = Block(np.random.default_rng(0).normal(size=(lengths.sum(), 5)), packed_starts(lengths), lengths)
    outputs = block.like(np.zeros((len(block.rows), 31)))
    state = {name: np.zeros((2, 31)) for name in ("c", "h")}
    monkeypatch.setattr(packed_cell, "split_work", lambda *_: WorkSplit(2, True, 2, 24))
    monkeypatch.setattr(WorkerThreads, "run", lambda self, kernel, table, threads, memory: kernel(table, 0))
    packed = PackedCell("", cell, 64)
    for name, function in lanes_in_python.PYTHON.items():
        monkeypatch.setattr(lanes, name, function)
    in_advance, done = [0], []

    def tile_call(shape: Shape, options: Options) -> Callable[..., None]:
        tile = lanes_in_python.tile_call(shape, options)

        def counted(rows, *others):  # type: ignore[no-untyped-def]
            *_, unit, _, _, pause = others
            if unit == 0 and pause:
                in_advance[-1] += rows
            elif unit == 0:
                done.append(rows)
                in_advance.append(0)
            tile(rows, *others)

        return counted

    monkeypatch.setattr(lanes, "tile_call", tile_call)
    packed.kernel = packed.kernel._replace(call=lanes.define(packed.kernel.shape, Options()))
    packed.run(block, outputs, None, state, Schedule.of(lengths), 2, backward=False)
    assert sum(done) == lengths.sum()
    assert [rows for rows in in_advance if rows] == [2, 4, 8, 16, 18, 48, 14]
