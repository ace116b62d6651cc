"""Which threads, lanes and blocks compute a number changes no bit of it."""

from typing import Any

import numpy as np
import pytest
from helpers import files

import lstmcli
from lstmcli.blocks import Block, packed_starts
from lstmcli.engine import call, packed_cell
from lstmcli.engine.lanes_and_threads import Schedule, WorkSplit, split_work
from lstmcli.engine.prepared_model import PreparedModel
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack

LENGTHS = np.array([9, 1, 4, 0, 9, 7, 2, 9, 5, 3, 8, 1, 6, 0, 9, 2, 7, 4, 1, 5, 3], np.int64)
X = np.random.default_rng(0).normal(size=(len(LENGTHS), 9, 21))


def everything() -> Model:
    """Peepholes, projections, clips, both directions, a residual layer, a coupled gate: all that a schedule may get wrong."""
    rng = np.random.default_rng(2)

    def cell(inputs: int, units: int, width: int, **options: Any) -> Cell:
        shapes: dict[str, tuple[int, ...]]
        shapes = {"input_kernel": (inputs, 4 * units), "recurrent_kernel": (width, 4 * units), "bias": (4 * units,)}
        weights = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
        return Cell(
            **weights, peephole=rng.normal(0, 0.3, (3, units)), projection=rng.normal(0, 0.3, (units, width)), **options
        )

    clips = {"cell_clip": 0.3, "projection_clip": 0.1, "gate_clip": 0.8}
    both = Bidirectional(cell(21, 35, 18), cell(21, 19, 18, **clips, activation="softplus"), merge="mean")
    coupled = cell(18, 10, 18, input_forget=True, recurrent_activation="hard_sigmoid", activation="elu")
    return Stack((both, Residual(Reverse(coupled)), cell(18, 40, 70, **clips)))


MODELS = {"plain": lstmcli.init_model(21, [35, 18], seed=4), "everything": everything()}


def run(kind, threads=1, rows=slice(None), split=None):
    """Outputs, c at each step and states of the chosen rows, computed as `split` (threads, share_steps, lanes, ahead) says."""
    model, dtype = kind
    forward = ready(model, dtype, threads)
    lengths = LENGTHS[rows]
    x = X[rows][~files.padding(X.shape, lengths)].astype(dtype)
    state = {name: np.full((len(lengths), width), 0.25, dtype) for name, width in forward.widths.items()}
    block = Block(x, packed_starts(lengths), lengths)
    outputs, cells = (
        block.like(np.empty((len(x), width), dtype)) for width in (forward.output_size, forward.model.cells_width)
    )
    with pytest.MonkeyPatch.context() as patch:
        if split:
            patch.setattr(packed_cell, "split_work", lambda *_: WorkSplit(*split))
        forward(block, outputs, state, {"cells": cells})
    return by_row(outputs), by_row(cells), state


def ready(model, dtype, threads):
    return PreparedModel(MODELS[model], np.dtype(dtype), threads)


def by_row(block):
    return [block.rows[start : start + length] for start, length in zip(block.starts, block.lengths, strict=True)]


@pytest.fixture(scope="module", params=[(model, dtype) for model in MODELS for dtype in ("float32", "float64")], ids="-".join)
def want(request):
    return request.param, *run(request.param)


def assert_rows(got, want, rows=slice(None)):
    _, *arrays, state = want
    for array, other in zip(got[:2], arrays, strict=True):
        assert [row.tobytes() for row in array] == [row.tobytes() for row in other[rows]]
    assert all(got[2][name].tobytes() == state[name][rows].tobytes() for name in state)


@pytest.mark.parametrize("lanes", [*range(1, 14), 21, 48, 50])
@pytest.mark.parametrize("ahead", [0, 1, 5, 24])
def test_lanes_and_input_products_in_advance(want, lanes, ahead):
    assert_rows(run(want[0], split=(1, False, lanes, ahead)), want)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("lanes", "ahead"), [(1, 0), (7, 0), (21, 0), (1, 24), (4, 3)])
def test_threads_that_take_sequences_or_share_steps(want, threads, share, lanes, ahead):
    assert_rows(run(want[0], threads, split=(threads, share, lanes, ahead)), want)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_blocks(want, size):
    for first in range(0, len(LENGTHS), size):
        rows = slice(first, first + size)
        assert_rows(run(want[0], rows=rows), want, rows)


def test_packed_rows_are_the_same_as_padded_ones(want):
    (model, dtype), outputs, _, state = want
    start = {name: np.full((len(LENGTHS), width), 0.25, dtype) for name, width in MODELS[model].state_widths().items()}
    padded, after = MODELS[model](X.astype(dtype), LENGTHS, initial_state=start)
    assert padded[~files.padding(X.shape, LENGTHS)].tobytes() == np.concatenate(outputs).tobytes()
    assert not padded[files.padding(X.shape, LENGTHS)].any()
    assert all(after[name].tobytes() == state[name].tobytes() for name in state)


def test_the_split_fits_what_it_is_for():
    """Small work stays in one thread; large weights and few sequences are shared; many sequences are not."""
    for units, count, length, shared in [(7, 5, 10, None), (1024, 8, 50, True), (128, 64, 100, False)]:
        forward = PreparedModel(lstmcli.init_model(units, [units]), np.dtype(np.float32), 2)
        threads, share, lanes, ahead, _ = split_work(forward.cells["0"].size, Schedule.of(np.full(count, length)), 2)
        assert (threads, share) == ((1, False) if shared is None else (2, shared))
        assert 1 <= lanes <= count
        assert ahead >= 0


@pytest.mark.parametrize(
    "lengths", [LENGTHS, np.maximum(LENGTHS, 1), np.full(len(LENGTHS), 9)], ids=["some empty", "none", "full"]
)
@pytest.mark.parametrize("split", [(1, False, 3, 0), (2, False, 4, 0), (2, True, 5, 3)])
def test_padding_becomes_zeros_in_memory_that_held_other_numbers(split, lengths, monkeypatch):
    model, x = lstmcli.init_model(21, [35], seed=4), X.astype(np.float32)
    with monkeypatch.context() as large:
        large.setattr(call, "SYSTEM_ZEROS", 0)  # as if the outputs were large: NumPy's zeros
        want, _ = model(x, lengths, threads=1)
    monkeypatch.setattr(packed_cell, "split_work", lambda *_: WorkSplit(*split))
    monkeypatch.setattr(call, "FEW_ZEROS", 0)
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, 7, dtype))
    got, _ = model(x, lengths, threads=2)
    assert got.tobytes() == want.tobytes()
    assert not got[files.padding(got.shape, lengths)].view(np.uint32).any()
