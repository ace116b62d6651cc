"""Same bits, always, in this process: batches of many shapes, against the same batch run another way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from helpers import files
from hypothesis import given
from hypothesis import strategies as st

import lstmcli

Result = tuple[np.ndarray, files.Arrays]


@dataclass(frozen=True)
class Batch:
    x: np.ndarray  # (N, T, E) float32
    lengths: np.ndarray
    units: list[int]
    rng: np.random.Generator

    def run(self, x: np.ndarray | None = None, lengths: np.ndarray | None = None, threads: int | None = 1) -> Result:
        model = lstmcli.init_model(input_size=self.x.shape[2], units=self.units, seed=7)
        x, lengths = self.x if x is None else x, self.lengths if lengths is None else lengths
        outputs, state = model(x, lengths=lengths, threads=threads)
        return outputs, dict(state)


@st.composite
def batches(draw: st.DrawFn, features: int | None = None) -> Batch:
    """Sizes on both sides of every vector width, row count and lane count that a kernel is likely to have."""
    n, steps = draw(st.integers(1, 70)), draw(st.integers(1, 40))
    width, units = features or draw(st.integers(1, 40)), draw(st.lists(st.integers(1, 70), min_size=1, max_size=2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["random", "full", "one long", "mostly empty"]))
    lengths = {
        "random": rng.integers(0, steps + 1, n),
        "full": np.full(n, steps),
        "one long": np.where(np.arange(n) == n // 2, steps, 1),
        "mostly empty": np.where(rng.random(n) < 0.8, 0, steps),
    }[kind]
    return Batch(rng.normal(size=(n, steps, width)).astype(np.float32), lengths, units, rng)


@given(batch=batches(), garbage=st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -3.4e38, 1e-45, -0.0]))
def test_garbage_in_the_padding(batch: Batch, garbage: float) -> None:
    x = batch.x.copy()
    x[files.padding(x.shape, batch.lengths)] = garbage
    files.assert_same_bits(batch.run(x), batch.run())


def moved(batch: Batch, starts: np.ndarray, padding: float = np.nan) -> np.ndarray:
    """x with each sequence's valid steps from starts[s] on."""
    x = np.full_like(batch.x, padding)
    for row, source, start, length in zip(x, batch.x, starts, batch.lengths, strict=True):
        row[start : start + length] = source[:length]
    return x


def moved_back(outputs: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The outputs as they are where padding stands behind. Zeros everywhere else: bits, not values."""
    back = np.zeros_like(outputs)
    for row, source, start, length in zip(back, outputs, starts, lengths, strict=True):
        row[:length] = source[start : start + length]
        assert not source[:start].view("u4").any()
        assert not source[start + length :].view("u4").any()
    return back


MODELS = [
    lstmcli.init_model(5, [9, 4]),
    lstmcli.init_model(5, [7, 5], bidirectional=True),
    lstmcli.init_model(5, [5, 5], residual=True),
]


@pytest.mark.parametrize("model", MODELS, ids=["stack", "bidirectional", "residual"])
@given(batch=batches(features=5), garbage=st.sampled_from([np.nan, np.inf, 1e30, -0.0]), data=st.data())
def test_padding_in_front_and_masks(model: lstmcli.Model, batch: Batch, garbage: float, data: st.DataObject) -> None:
    steps, lengths = batch.x.shape[1], batch.lengths
    want, want_state = model(batch.x, lengths=lengths)
    outputs, state = model(moved(batch, steps - lengths, garbage), lengths=lengths, padding="pre")
    files.assert_same_bits((moved_back(outputs, steps - lengths, lengths), dict(state)), (want, dict(want_state)))
    starts = batch.rng.integers(0, steps - lengths + 1)
    places = np.arange(steps)
    mask = (places >= starts[:, None]) & (places < (starts + lengths)[:, None])
    dtype = data.draw(st.sampled_from(["?", "u1", "<i8", "<f2", ">f8"]))
    threads = data.draw(st.sampled_from([1, 3]))
    outputs, state = model(moved(batch, starts, garbage), mask=mask.astype(dtype), threads=threads)
    files.assert_same_bits((moved_back(outputs, starts, lengths), dict(state)), (want, dict(want_state)))


@given(batch=batches(), more=st.integers(1, 20))
def test_more_padding(batch: Batch, more: int) -> None:
    n, steps, features = batch.x.shape
    x = np.concatenate([batch.x, np.full((n, more, features), np.nan, np.float32)], axis=1)
    outputs, state = batch.run(x)
    assert not outputs[:, steps:].any()
    files.assert_same_bits((np.ascontiguousarray(outputs[:, :steps]), state), batch.run())


@given(batch=batches())
def test_permuted_rows(batch: Batch) -> None:
    order = batch.rng.permutation(len(batch.x))
    files.assert_same_bits(batch.run(batch.x[order], batch.lengths[order]), files.rows_of(batch.run(), order))


@given(batch=batches(), data=st.data())
def test_batch_mates(batch: Batch, data: st.DataObject) -> None:
    """Any part of a batch alone, down to one row, gives what it gave among the others."""
    n = len(batch.x)
    start = data.draw(st.integers(0, n - 1))
    part = slice(start, data.draw(st.integers(start + 1, n)))
    files.assert_same_bits(batch.run(batch.x[part], batch.lengths[part]), files.rows_of(batch.run(), part))


@given(batch=batches(), threads=st.sampled_from([2, 3, 7, None]))
def test_threads(batch: Batch, threads: int | None) -> None:
    files.assert_same_bits(batch.run(threads=threads), batch.run())


@given(batch=batches(), data=st.data())
def test_split_in_time(batch: Batch, data: st.DataObject) -> None:
    split = data.draw(st.integers(0, batch.x.shape[1]))
    model = lstmcli.init_model(input_size=batch.x.shape[2], units=batch.units, seed=7)
    first, between = model(batch.x[:, :split], lengths=np.minimum(batch.lengths, split))
    rest = np.maximum(batch.lengths - split, 0)
    second, final = model(batch.x[:, split:], lengths=rest, initial_state=between)
    files.assert_same_bits((np.concatenate([first, second], axis=1), dict(final)), batch.run())


@given(batch=batches(), scale=st.sampled_from([1e3, 1e30, 3e38]))
def test_huge_inputs_saturate_and_stay_finite(batch: Batch, scale: float) -> None:
    """One feature at a time, so that no sum of products holds both infinities."""
    x = np.zeros_like(batch.x)
    x[:, :, 0] = np.clip(batch.x[:, :, 0], -1, 1) * np.float32(scale)
    outputs, state = batch.run(x)
    assert np.isfinite(outputs).all()
    assert np.abs(outputs).max(initial=0) <= 1
    assert all(np.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("threads", [2, 3, None])
@pytest.mark.parametrize(
    "shape", [(300, 40, 24, 40), (48, 60, 64, 200), (2, 300, 64, 128), (1, 300, 33, 129), (7, 50, 500, 300)], ids=str
)
def test_threads_on_batches_that_are_worth_them(shape: tuple[int, int, int, int], threads: int | None) -> None:
    n, steps, features, units = shape
    rng = np.random.default_rng(sum(shape))
    x = rng.normal(size=(n, steps, features)).astype(np.float32)
    batch = Batch(x, rng.integers(0, steps + 1, n), [units, 30], rng)
    files.assert_same_bits(batch.run(threads=threads), batch.run(threads=1))
    files.assert_same_bits(batch.run(x[::-1], batch.lengths[::-1], threads), files.rows_of(batch.run(), slice(None, None, -1)))
