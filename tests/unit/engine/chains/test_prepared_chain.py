"""Whole models over blocks: random chains against the naive reference, and the same bits however they are run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import files, naive, naive_chain
from helpers.random_chains import as_chain, random_input, random_layers

from lstmcli.engine.chains.prepared_chain import PreparedChain
from lstmcli.errors import SequenceError
from lstmcli.model.chain import Chain
from lstmcli.model.layers import Embedding, Flatten, Pool

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def packed(x: np.ndarray, lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
    kind = np.dtype(np.int64) if x.dtype.kind in "iu" else dtype
    return np.concatenate([row[:length] for row, length in zip(x, lengths, strict=True)]).astype(kind)


def predict(chain: Chain, x: np.ndarray, lengths: np.ndarray, dtype: np.dtype, threads: int = 1) -> list[np.ndarray]:
    """What PreparedChain gives for each sequence; of steps that a mask hides, zeros."""
    rows, counts = PreparedChain(chain, dtype, threads)(packed(x, lengths, dtype), np.array(lengths, np.int64))
    return [part.copy() for part in np.split(rows, np.cumsum(counts)[:-1])]


@pytest.mark.parametrize("seed", range(60))
def test_random_chains(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, ids = random_layers(rng, steps=9)
    x, lengths = random_input(rng, layers, ids, steps=9)
    want = naive_chain.run(layers, x, lengths)
    for dtype, tolerance in ((DOUBLE, 1e-11), (SINGLE, 2e-5)):
        got = predict(as_chain(layers), x, lengths, dtype)
        for row, (one, other) in enumerate(zip(got, want, strict=True)):
            other = np.atleast_2d(other)
            kept = one if len(one) == len(other) else one[shown_steps(layers, x[row], lengths[row])]
            scale = max(1.0, float(np.abs(other).max(initial=0)))
            assert np.abs(kept - other).max(initial=0) <= tolerance * scale, (row, layers)


@pytest.mark.parametrize("pool", [[], [("pool", {"function": "final"})]])
def test_every_sequence_starts_from_the_learned_state(pool: list[naive_chain.Layer]) -> None:
    rng = np.random.default_rng(3)
    lower, upper, back = (
        replace(files.random_model(features, [4], seed).layers[0], initial_c=rng.normal(size=4), initial_h=rng.normal(size=4))
        for features, seed in ((3, 0), (4, 1), (4, 2))
    )
    below, both = naive.Stack((lower,)), naive.Stack((naive.Bidirectional(upper, back),))
    layers = [("lstm", {"tree": below}), ("activation", {"function": "relu"}), ("lstm", {"tree": both}), *pool]
    x, lengths = rng.normal(size=(4, 6, 3)), np.array([6, 1, 4, 0])
    for one, other in zip(predict(as_chain(layers), x, lengths, DOUBLE), naive_chain.run(layers, x, lengths), strict=True):
        np.testing.assert_allclose(one, other.reshape(one.shape), rtol=0, atol=1e-12)


@pytest.mark.parametrize("first", ["embedding", "masking"])
@pytest.mark.parametrize("fill", ["zeros", "previous", "next"])
def test_hidden_steps_come_back(first: str, fill: str) -> None:
    rng = np.random.default_rng(7)
    mask = ("embedding", {"table": rng.normal(size=(5, 3)), "mask_zero": True})
    if first == "masking":
        mask = ("masking", {"value": 0.0})
    tree = files.random_model(3, [4], 1)
    kernel = rng.normal(size=(2, 4, 3))
    layers = [mask, ("lstm", {"tree": tree}), ("unmask", {"fill": fill})]
    layers += [("conv1d", {"size": 2, "stride": 1, "dilation": 1, "padding": "valid", "kernel": kernel, "bias": None})]
    x = rng.integers(1, 5, (7, 6, 1))
    x[1, :3] = x[2, 3:] = x[3, 2:4] = x[4] = x[5, ::2] = 0
    x = x if first == "embedding" else x * np.ones(3)
    lengths = np.array([6, 6, 6, 5, 6, 6, 1])
    want = naive_chain.run(layers, x, lengths)
    got = predict(as_chain(layers), x, lengths, DOUBLE)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other.reshape(one.shape), rtol=0, atol=1e-12)


def shown_steps(layers: list[naive_chain.Layer], x: np.ndarray, length: int) -> np.ndarray:
    kind, told = layers[0]
    return x[:length, 0] != 0 if kind == "embedding" else (x[:length] != told["value"]).any(axis=1)


@pytest.mark.parametrize("seed", range(20))
def test_batch_mates_order_and_threads_change_no_bit(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    layers, ids = random_layers(rng, steps=9)
    x, lengths = random_input(rng, layers, ids, steps=9)
    chain = as_chain(layers)
    whole = predict(chain, x, lengths, SINGLE)
    threaded = predict(chain, x, lengths, SINGLE, threads=3)
    turned = predict(chain, x[::-1], lengths[::-1], SINGLE)[::-1]
    for row in range(len(x)):
        (alone,) = predict(chain, x[row : row + 1], lengths[row : row + 1], SINGLE)
        assert whole[row].tobytes() == alone.tobytes() == threaded[row].tobytes() == turned[row].tobytes()


def test_an_id_that_the_table_does_not_have() -> None:
    chain = Chain((Embedding(np.eye(4, dtype=np.float32)), Pool("mean")), ("words", "mean"))
    prepared = PreparedChain(chain, SINGLE, 1)
    with pytest.raises(SequenceError, match="sequence 1, step 2: expected a token id from 0 to 3, got 4") as caught:
        prepared(np.array([[1], [0], [3], [4]]), np.array([1, 3]))
    assert (caught.value.row, caught.value.step) == (1, 2)


def test_a_flatten_needs_all_its_steps() -> None:
    chain = Chain((Embedding(np.eye(4, dtype=np.float32)), Flatten(2)), ("words", "flat"))
    with pytest.raises(ValueError, match="sequence 1: has 1 steps"):
        PreparedChain(chain, SINGLE, 1)(np.array([[1], [0], [3]]), np.array([2, 1]))
