"""predict() on arrays: random chains against the naive reference, the bits of the command, and files of models."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import files, naive_chain
from helpers.command import succeed
from helpers.random_chains import as_chain, random_input, random_layers

import lstmcli
from lstmcli.engine.chains import call
from lstmcli.errors import DataError, OutputError, UsageError

MODELS = Path(__file__).parents[3] / "data" / "models"
SENTIMENT = "embedding, lstm, final, fc1, relu, fc2, softmax"


def load(name: str) -> tuple[lstmcli.Chain, dict[str, np.ndarray]]:
    """A PyTorch model with its line, and what PyTorch computes."""
    with np.load(MODELS / f"{name}.npz") as file:
        known = dict(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a state_dict leaves open
        chain = lstmcli.load_model(str(MODELS / f"{name}.safetensors"), chain=str(known["chain"]))
    assert isinstance(chain, lstmcli.Chain)
    return chain, known


@pytest.mark.parametrize("seed", range(30))
def test_random_chains(seed: int) -> None:
    rng = np.random.default_rng(2000 + seed)
    layers, ids = random_layers(rng, steps=9)
    x, lengths = random_input(rng, layers, ids, steps=9)
    chain = as_chain(layers)
    want = naive_chain.run(layers, x, lengths)
    x = x[:, :, 0] if ids else x.astype(np.float64)
    got = chain.predict(x, lengths)
    packed = chain.predict([row[:length] for row, length in zip(x, lengths, strict=True)])
    masked = layers[0][0] == "masking" or layers[0][1].get("mask_zero")
    for row, one in enumerate(want):
        assert packed[row].tobytes() == (got[row][: len(packed[row])] if chain.has_steps else got[row]).tobytes()
        if chain.has_steps and not masked:
            assert len(packed[row]) == len(one)
            assert not got[row][len(one) :].any()
        if not (chain.has_steps and masked):
            assert np.abs(packed[row] - one).max(initial=0) <= 1e-4 * max(1.0, np.abs(one).max(initial=0)), (row, layers)


@pytest.mark.parametrize("name", ["torch_sentiment", "torch_tagger", "torch_pooled"])
def test_the_bits_of_the_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, known = load(name)
    rng = np.random.default_rng(0)
    x = np.tile(known["x"], (40, 1, 1)[: known["x"].ndim])
    lengths = rng.integers(0, x.shape[1] + 1, len(x))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "lens.npy", lengths)
    options = ("-w", MODELS / f"{name}.safetensors", "--chain", str(known["chain"]), "-o", "p.npy")
    succeed("predict", "-i", "x.npy", "-l", "lens.npy", *options, cwd=tmp_path)
    want = np.load(tmp_path / "p.npy")
    assert files.bits(chain.predict(x, lengths)) == files.bits(want)
    assert files.bits(chain.predict(x, lengths=lengths[:, None].tolist(), threads=2)) == files.bits(want)
    assert files.bits(chain.predict(x, mask=np.arange(x.shape[1]) < lengths[:, None])) == files.bits(want)
    front = np.stack([np.roll(row, x.shape[1] - length, axis=0) for row, length in zip(x, lengths, strict=True)])
    turned = chain.predict(front, lengths, padding="pre")
    monkeypatch.setattr(call, "BLOCK_BYTES", 10_000)
    assert files.bits(chain.predict(x, lengths)) == files.bits(want)
    ragged = chain.predict([row[:length] for row, length in zip(x, lengths, strict=True)])
    if chain.has_steps:
        assert isinstance(ragged, list)
        for row, length in enumerate(lengths):
            assert files.bits(ragged[row]) == files.bits(want[row, :length])
            assert files.bits(turned[row][x.shape[1] - length :]) == files.bits(want[row, :length])
            assert not turned[row][: x.shape[1] - length].any()
    else:
        assert files.bits(ragged) == files.bits(turned) == files.bits(want)


@pytest.mark.parametrize("name", ["torch_sentiment", "torch_tagger", "torch_forecast", "torch_pooled"])
def test_what_pytorch_computes(name: str) -> None:
    chain, known = load(name)
    got = chain.predict(known["x"], known["lens"])
    assert got.dtype == np.float32
    padding = files.padding(got.shape, known["lens"]) if got.ndim == 3 else np.zeros(got.shape, bool)
    assert np.abs(np.where(padding[..., None] if got.ndim == 3 else padding, 0, known["predictions"]) - got).max() <= 3e-6


def test_lstms_of_a_file_predict_with_all_its_layers() -> None:
    path = str(MODELS / "torch_sentiment.onnx")
    with np.load(MODELS / "torch_sentiment.npz") as known:
        x, want = known["x"], known["predictions_full"]
    with pytest.warns(UserWarning, match="initial states that the graph computes"):
        model = lstmcli.load_model(path)
    assert isinstance(model, lstmcli.Stack)
    got = model.predict(x)
    assert np.abs(got - want).max() <= 3e-6
    assert files.bits(model.predict(x)) == files.bits(got)
    embedded = np.zeros((2, 3, model.input_size), np.float32)
    with pytest.warns(UserWarning, match=r"torch_sentiment\.onnx: left out, before the LSTM: "):
        outputs, _ = model(embedded)
    assert outputs.shape == (2, 3, model.output_size)
    model(embedded)  # that was said once


def test_lstms_with_other_layers_between_are_a_chain(tmp_path: Path) -> None:
    normal = np.random.default_rng(0).normal
    lstm = [lstmcli.init_model(4, [4], seed=seed) for seed in (0, 1)]
    layers = [lstm[0], *as_chain([("dense", {"kernel": normal(size=(4, 4)).astype(np.float32)})]).layers, lstm[1]]
    made = lstmcli.Chain(tuple(layers), ("a", "b", "c"))
    made.save(tmp_path / "model.h5")
    chain = lstmcli.load_model(tmp_path / "model.h5")
    assert isinstance(chain, lstmcli.Chain)
    x = normal(size=(2, 3, 4)).astype(np.float32)
    assert files.bits(chain.predict(x)) == files.bits(made.predict(x))
    with pytest.raises(OutputError):
        chain.save(str(tmp_path / "model.h5"))
    chain.save(str(tmp_path / "model.h5"), overwrite=True)


def test_lstms_alone_are_a_whole_model() -> None:
    model = lstmcli.init_model(4, [5])
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    assert files.bits(model.predict(x, [6, 0, 2])) == files.bits(model(x, [6, 0, 2])[0])


def test_float64_is_computed_in_float64() -> None:
    chain, known = load("torch_pooled")
    exact, single = chain.predict(known["x"].astype(np.float64)), chain.predict(known["x"])
    assert (exact.dtype, single.dtype) == (np.float64, np.float32)
    assert 0 < np.abs(exact - single).max() < 1e-5


def test_no_sequences_and_no_steps() -> None:
    ids, features = load("torch_sentiment")[0], load("torch_pooled")[0]
    assert ids.predict([]).shape == ids.predict(np.zeros((0, 7), int)).shape == (0, 3)
    assert features.predict(np.zeros((0, 7, features.input_size))).shape == (0, 2)
    assert files.bits(ids.predict([[], [3]])) == files.bits(ids.predict(np.array([[0], [3]]), [0, 1]))
    assert load("torch_tagger")[0].predict([]) == []


def test_several_threads_at_once() -> None:
    chain, known = load("torch_tagger")
    batches = [np.tile(known["x"], (k + 1, 1)) for k in range(8)]
    alone = [chain.predict(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(chain.predict, batches), alone, strict=True):
            assert files.bits(got) == files.bits(want)


def test_errors_say_what_came() -> None:
    ids, features = load("torch_sentiment")[0], load("torch_pooled")[0]
    size = len(ids.layers[0].table)  # type: ignore[union-attr]
    for x, place in ((np.full((5, 4), size), "sequence 0, step 0"), ([[1], [1, size]], "sequence 1, step 1")):
        with pytest.raises(DataError, match=rf"^x, {place}: expected a token id from 0 to {size - 1}, got {size}$"):
            ids.predict(x)
    with pytest.raises(DataError, match=rf"^x, sequence 1, step 3: expected a token id from 0 to {size - 1}, got -1$"):
        ids.predict(np.array([[0, 0, 0, 0], [0, 0, 0, -1]]), [4, 1], padding="pre")
    large = 2**64 - 1
    for x in (np.full((5, 4), large, np.uint64), [np.array(one, ">u8") for one in ([1], [1, large])]):
        with pytest.raises(DataError, match=rf"expected a token id from 0 to {size - 1}, got {large}$"):
            ids.predict(x)
    with pytest.raises(DataError, match=r"^x: expected token ids, integers \(batch, time\), got float64 \(5, 4\)$"):
        ids.predict(np.ones((5, 4)))
    with pytest.raises(DataError, match=r"^x\[1\]: expected token ids, integers \(time,\), got int64 \(1, 1\)$"):
        ids.predict([[1], [[1]]])
    width = features.input_size
    with pytest.raises(DataError, match=rf"^x: expected float16, float32 or float64 \(batch, time, {width}\), got int64 "):
        features.predict(np.ones((5, 4, width), int))
    with pytest.raises(DataError, match=rf"\(batch, time, {width}\), got float64 \(5, 4, {width + 1}\)$"):
        features.predict(np.ones((5, 4, width + 1)))
    with pytest.raises(DataError, match=r"^lengths, row 0: expected 0 <= length <= 4, got 5"):
        features.predict(np.ones((1, 4, width)), [5])
    with pytest.raises(UsageError, match=r"^padding: expected post or pre, got 'front'$"):
        features.predict(np.ones((1, 4, width)), [3], padding="front")
    for threads in (0, -1, 1.5, "2"):
        with pytest.raises(UsageError, match=rf"^threads: expected a whole number, 1 or more, got {threads!r}$"):
            features.predict(np.ones((1, 4, width)), threads=threads)


def test_a_file_that_cannot_be_read_whole_says_why() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = lstmcli.load_model(str(MODELS / "torch_sentiment.safetensors"))
    with pytest.raises(UsageError, match="holds weights, but not how the model uses them"):
        model.predict(np.zeros((1, 2), int))
    with pytest.raises(UsageError, match="says its layers itself"):
        lstmcli.load_model(str(MODELS / "torch_sentiment.onnx"), chain=SENTIMENT)
