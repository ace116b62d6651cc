"""The products of an embedding's table with the input weights, computed once: the same bits, and only where it pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

import lstmcli
from lstmcli.blocks import packed_starts
from lstmcli.engine import packed_cell
from lstmcli.engine.chains.prepared_chain import PRODUCT_STEPS, LstmStep, PreparedChain
from lstmcli.errors import SequenceError
from lstmcli.model.chain import Chain
from lstmcli.model.layers import Dense, Embedding, Layer, Pool
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack

WORDS, WIDTH = 30, 24
ROOM = 1 << 30


def cell(units: int, seed: int = 0, **options: object) -> Cell:
    made = lstmcli.init_model(WIDTH, [units], seed, lstmcli.CellOptions(**options)).layers[0]  # type: ignore[arg-type]
    assert isinstance(made, Cell)
    return dataclasses.replace(made, bias=np.random.default_rng(seed).normal(size=4 * units), initial_h=None)


def table(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(7).normal(size=(WORDS, WIDTH)).astype(dtype)


def chain_of(*layers: Layer | Model) -> Chain:
    return Chain(layers, tuple(map(str, range(len(layers)))))


def takes_ids(prepared: PreparedChain) -> bool:
    step = prepared.steps[1]
    assert isinstance(step, LstmStep)
    return step.takes_ids


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 15, 70)
    return rng.integers(0, WORDS, (int(lengths.sum()), 1)), lengths


MODELS = {
    "a cell": cell(17),
    "half a panel": cell(4),
    "a full and half a panel": cell(20),
    "every option": cell(35, peepholes=True, projection=9, cell_clip=0.4, projection_clip=0.2),
    "a stack": Stack((cell(40), lstmcli.init_model(40, [3], 5).layers[0])),
    "both directions": Bidirectional(cell(16), cell(33, 1)),
    "both directions, added": Bidirectional(cell(18), cell(18, 1), merge="sum"),
    "backward": Reverse(Stack((cell(7),))),
    "trees": Bidirectional(Stack((cell(5), lstmcli.init_model(5, [6], 5).layers[0])), Reverse(cell(6, 2))),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_no_bit_changes(name: str, dtype: str) -> None:
    values = table()
    values[3, 5], values[4, 6] = np.nan, np.inf
    ids, lengths = batch()
    chain = chain_of(Embedding(values, mask_zero=True), MODELS[name], Dense(np.eye(MODELS[name].output_size, 3)))
    with np.errstate(invalid="ignore"):
        want = PreparedChain(chain, np.dtype(dtype), 1)(ids, lengths)[0].copy()
        for threads in (1, 3):
            prepared = PreparedChain(chain, np.dtype(dtype), threads)
            prepared.expect(PRODUCT_STEPS * WORDS, ROOM)
            assert takes_ids(prepared)
            assert prepared(ids, lengths)[0].tobytes() == want.tobytes()
            assert prepared(ids, lengths)[0].tobytes() == want.tobytes()  # buffers are used again


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("lanes", [1, 2, 7])
def test_however_the_work_is_split(lanes: int, share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, lengths = batch()
    chain = chain_of(Embedding(table()), cell(70), Pool("mean"))
    prepared = PreparedChain(chain, np.dtype("float32"), 2)
    want = prepared(ids, lengths)[0].copy()
    prepared.expect(PRODUCT_STEPS * WORDS, ROOM)
    split = packed_cell.split_work
    changed = {"threads": 2, "share_steps": share, "lanes": lanes, "ahead": 24}
    monkeypatch.setattr(packed_cell, "split_work", lambda *given: split(*given)._replace(**changed))
    assert prepared(ids, lengths)[0].tobytes() == want.tobytes()


def test_only_where_it_pays() -> None:
    few, many = PRODUCT_STEPS * WORDS - 1, PRODUCT_STEPS * WORDS
    size = WORDS * 4 * 32 * 4
    for model, steps, memory, wanted in [
        (cell(17), few, ROOM, False),
        (cell(17), many, ROOM, True),
        (cell(32), many, size, True),
        (cell(32), many, size - 1, False),
        (cell(2 * WIDTH), many, ROOM, True),
        (cell(2 * WIDTH + 1), many, ROOM, False),  # to read the products takes as long as to compute them
        (Residual(cell(WIDTH)), many, ROOM, False),  # which adds the input itself
        (Bidirectional(cell(WIDTH), Residual(cell(WIDTH))), many, ROOM, False),
    ]:
        prepared = PreparedChain(chain_of(Embedding(table()), model), np.dtype("float32"), 1)
        before = prepared.weight_bytes
        prepared.expect(steps, memory)
        assert takes_ids(prepared) is wanted
        assert (prepared.weight_bytes > before) is wanted  # so that blocks leave room for them
    for layers in ((Embedding(table()), Dense(np.eye(WIDTH))), (cell(3), Pool("last"))):
        PreparedChain(chain_of(*layers), np.dtype("float32"), 1).expect(many, ROOM)


def test_steps_of_earlier_calls_count() -> None:
    prepared = PreparedChain(chain_of(Embedding(table()), cell(5)), np.dtype("float32"), 1)
    for _ in range(PRODUCT_STEPS):
        assert not takes_ids(prepared)
        prepared.expect(WORDS, ROOM)
    assert takes_ids(prepared)


def test_products_that_memory_cannot_hold_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of neither direction: what one has is of no use while the other one wants the rows of the table."""
    ids, lengths = batch()
    prepared = PreparedChain(chain_of(Embedding(table()), Bidirectional(cell(16), cell(33, 1))), np.dtype("float32"), 1)
    want = prepared(ids, lengths)[0].tobytes()
    computed = []

    def shared(function: Callable[[slice], None], rows: int, flops: float) -> None:
        if computed:
            raise MemoryError
        computed.append(rows)
        function(slice(0, rows))

    with monkeypatch.context() as full:
        full.setattr(prepared, "shared", shared)
        with pytest.raises(MemoryError):
            prepared.expect(PRODUCT_STEPS * WORDS, ROOM)
    assert prepared(ids, lengths)[0].tobytes() == want
    prepared.expect(0, ROOM)
    assert takes_ids(prepared)
    assert prepared(ids, lengths)[0].tobytes() == want


@pytest.mark.parametrize("bad", [-1, WORDS])
def test_ids_are_checked_before_they_are_looked_up(bad: int) -> None:
    prepared = PreparedChain(chain_of(Embedding(table()), cell(5)), np.dtype("float32"), 1)
    prepared.expect(PRODUCT_STEPS * WORDS, ROOM)
    ids, lengths = batch()
    row = int(np.flatnonzero(lengths > 1)[9])
    ids[packed_starts(lengths)[row] + 1] = bad
    with pytest.raises(SequenceError) as raised:
        prepared(ids, lengths)
    assert (raised.value.row, raised.value.step) == (row, 1)
