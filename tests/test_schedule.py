"""Which threads, lanes and blocks compute a number changes no bit of it."""

import numpy as np
import pytest

import lstmcli
from lstmcli.blocks import Block, packed_starts
from lstmcli.forward import Forward

LENGTHS = np.array([9, 1, 4, 0, 9, 7, 2, 9, 5, 3, 8, 1, 6, 0, 9, 2, 7, 4, 1, 5, 3], np.int64)
X = np.random.default_rng(0).normal(size=(len(LENGTHS), 9, 21))
MODEL = lstmcli.init_model(21, [35, 18], seed=4)


def run(dtype, threads=1, rows=slice(None), schedule=None):
    """Outputs and states of the chosen rows, computed as `schedule` (threads, share, lanes, ahead) says."""
    forward = Forward(MODEL, np.dtype(dtype), threads)
    if schedule:
        for layer in forward.layers.values():
            layer.shares = lambda *_: schedule  # type: ignore[method-assign]
    x, lengths = X[rows].astype(dtype), LENGTHS[rows]
    starts = np.arange(len(lengths), dtype=np.int64) * x.shape[1]
    state = {name: np.full((len(lengths), width), 0.25, dtype) for name, width in forward.widths.items()}
    outputs = np.zeros((len(lengths) * x.shape[1], forward.output_size), dtype)
    forward(Block(x.reshape(-1, 21), starts, lengths), Block(outputs, starts, lengths), state)
    return outputs.reshape(len(lengths), -1), state


@pytest.fixture(scope="module", params=["float32", "float64"])
def want(request):
    return request.param, *run(request.param)


def assert_same(got, want, rows=slice(None)):
    _, outputs, state = want
    assert got[0].tobytes() == outputs[rows].tobytes()
    assert all(got[1][name].tobytes() == state[name][rows].tobytes() for name in state)


@pytest.mark.parametrize("lanes", [*range(1, 14), 21, 48, 50])
@pytest.mark.parametrize("ahead", [0, 1, 5, 24])
def test_lanes_and_input_products_in_advance(want, lanes, ahead):
    assert_same(run(want[0], schedule=(1, False, lanes, ahead)), want)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("lanes", "ahead"), [(1, 0), (7, 0), (21, 0), (1, 24), (4, 3)])
def test_threads_that_take_sequences_or_share_steps(want, threads, share, lanes, ahead):
    assert_same(run(want[0], threads, schedule=(threads, share, lanes, ahead)), want)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_blocks(want, size):
    for first in range(0, len(LENGTHS), size):
        rows = slice(first, first + size)
        assert_same(run(want[0], rows=rows), want, rows)


def test_packed_rows_are_the_same_as_padded_ones(want):
    dtype, outputs, _ = want
    forward = Forward(MODEL, np.dtype(dtype), 1)
    rows = X[np.arange(9) < LENGTHS[:, None]].astype(dtype)
    block = Block(rows, packed_starts(LENGTHS), LENGTHS)
    above = block.like(np.empty((len(rows), forward.output_size), dtype))
    state = {name: np.full((len(LENGTHS), width), 0.25, dtype) for name, width in forward.widths.items()}
    forward(block, above, state)
    assert above.rows.tobytes() == outputs.reshape(len(LENGTHS), 9, -1)[np.arange(9) < LENGTHS[:, None]].tobytes()


def test_the_schedule_fits_what_it_is_for():
    """Small work stays in one thread; large weights and few sequences are shared; many sequences are not."""
    for units, count, length, shared in [(7, 5, 10, None), (1024, 8, 50, True), (128, 64, 100, False)]:
        forward = Forward(lstmcli.init_model(units, [units]), np.dtype(np.float32), 2)
        threads, share, lanes, ahead = forward.layers["0"].shares(2, count, count * length, length)
        assert (threads, share) == ((1, False) if shared is None else (2, shared))
        assert 1 <= lanes <= count
        assert ahead >= 0
