"""Layers of Keras whose weights do not say all of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf

from lstmcli.errors import DataError
from lstmcli.weights.chains.load import load_chain
from lstmcli.weights.draft import Choices

CELL = wf.random_cell(3, 4, 0)
INPUT = {"class_name": "InputLayer", "config": {"name": "x", "batch_shape": [None, None, 3]}}
NORM = {"class_name": "LayerNormalization", "config": {"name": "norm", "axis": -1, "scale": False, "center": False}}


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_normalization_without_weights(place: str, tmp_path: Path) -> None:
    """Its width is that of what feeds it."""
    image, lstm = io.BytesIO(), wf.keras_lstm("a", 4)
    with h5py.File(image, "w") as file:
        wf.write_keras_h5(file, {"layers/lstm": CELL})
    layers = (INPUT, NORM, lstm) if place == "first" else (INPUT, lstm, NORM)
    path = wf.write_keras(tmp_path / "m.keras", wf.sequential(*layers), image.getvalue(), "3.15.1")
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    want = normalized(naive.run(CELL, x)[0]) if place == "last" else naive.run(CELL, normalized(x))[0]
    np.testing.assert_allclose(load_chain(str(path), Choices()).chain.predict(x.astype(np.float32)), want, atol=3e-6)


def normalized(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)


@pytest.mark.parametrize(("said", "slope"), [({"negative_slope": 0.0}, 0.0), ({"alpha": 0.1}, 0.1), ({}, 0.3)])
def test_the_slope_of_a_leaky_relu(said: dict[str, float], slope: float, tmp_path: Path) -> None:
    leaky = {"class_name": "LeakyReLU", "config": {"name": "leaky", **said}}
    path = write(tmp_path, wf.sequential(INPUT, leaky, wf.keras_lstm("a", 4)))
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    want = naive.run(CELL, np.where(x < 0, slope * x, x))[0]
    np.testing.assert_allclose(load_chain(path, Choices()).chain.predict(x.astype(np.float32)), want, atol=3e-6)


def write(folder: Path, config: object) -> str:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        wf.write_keras_h5(file, {"layers/lstm": CELL})
    return str(wf.write_keras(folder / "m.keras", config, image.getvalue(), "3.15.1"))


# What a functional model puts out.


def functional(*outputs: tuple[str, int]) -> dict[str, object]:
    def called(entry: dict[str, object], below: str) -> dict[str, object]:
        history = {"class_name": "__keras_tensor__", "config": {"shape": [None, None, 3], "keras_history": [below, 0, 0]}}
        return {**entry, "inbound_nodes": [{"args": [history], "kwargs": {}}]}

    tanh = {"class_name": "Activation", "config": {"name": "tanh", "activation": "tanh"}}
    layers = [{**INPUT, "inbound_nodes": []}, called(wf.keras_lstm("a", 4, return_state=True), "x"), called(tanh, "a")]
    told = [[name, 0, number] for name, number in outputs]
    config = {"name": "m", "layers": layers, "input_layers": ["x", 0, 0], "output_layers": told if len(told) > 1 else told[0]}
    return {"class_name": "Functional", "config": config}


@pytest.mark.parametrize("number", [1, 2])
def test_a_state_as_the_output_is_refused(number: int, tmp_path: Path) -> None:
    """Keras puts out the final h or c there, and not the outputs of the steps."""
    with pytest.raises(DataError, match=f"puts out output {number} of layer a, not 0"):
        load_chain(write(tmp_path, functional(("a", number))), Choices())


@pytest.mark.parametrize("others", [[], [("tanh", 0)], [("a", 1), ("a", 2)]])
def test_the_predictions_are_the_first_output(others: list[tuple[str, int]], tmp_path: Path) -> None:
    found = load_chain(write(tmp_path, functional(("a", 0), *others)), Choices())
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    np.testing.assert_allclose(found.chain.predict(x.astype(np.float32)), naive.run(CELL, x)[0], atol=3e-6)
    told = ", ".join(f"output {number} of {name}" for name, number in others)
    assert (f"the predictions are the output of a; not computed: {told}" in found.notes) == bool(others)


# Files of Keras 1 and 2.


def write_old(folder: Path, cell: naive.Cell, config: object, version: str, **others: dict[str, np.ndarray]) -> str:
    lstm = wf.keras1_weights("a", cell) if version[0] == "1" else wf.legacy_weights("a", cell)
    return str(wf.write_legacy_h5(folder / "m.h5", {"a": lstm, **others}, config, version))


def old_lstm(**config: object) -> dict[str, Any]:
    return wf.keras_lstm("a", 4, batch_input_shape=[None, 8, 3], **config)


def layer(kind: str, name: str, **config: object) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, **config}}


X = np.random.default_rng(0).normal(size=(2, 8, 3))
H = naive.run(CELL, X)[0]
STATISTICS = np.abs(np.random.default_rng(1).normal(size=(4, 4))).astype(np.float32) + np.float32(0.1)


def assert_predicts(path: str, want: np.ndarray) -> None:
    np.testing.assert_allclose(load_chain(path, Choices()).chain.predict(X.astype(np.float32)), want, atol=3e-6)


def test_options_that_keras_1_called_otherwise(tmp_path: Path) -> None:
    pool = layer("MaxPooling1D", "pool", pool_length=4, stride=2, border_mode="valid")
    dense = layer("Dense", "dense", output_dim=2, activation="linear", bias=False)
    kernel = STATISTICS[:, :2]
    path = write_old(tmp_path, CELL, wf.sequential(old_lstm(), pool, dense), "1.2.2", pool={}, dense={"dense_W": kernel})
    assert_predicts(path, np.stack([H[:, k : k + 4].max(1) for k in (0, 2, 4)], 1) @ kernel)


@pytest.mark.parametrize("mode", [1, 2])
def test_a_batch_normalization_of_keras_1_by_other_statistics_is_refused(mode: int, tmp_path: Path) -> None:
    norm = layer("BatchNormalization", "norm", mode=mode, axis=-1, epsilon=1e-3)
    held = dict(zip(("norm_gamma", "norm_beta", "norm_running_mean", "norm_running_std"), STATISTICS, strict=True))
    path = write_old(tmp_path, CELL, wf.sequential(old_lstm(), norm), "1.2.2", norm=held)
    with pytest.raises(DataError, match=f"norm .*: mode {mode} is not known"):
        load_chain(path, Choices())


@pytest.mark.parametrize("first", ["LSTM", "Dropout"])
def test_the_first_layer_of_keras_2_says_how_many_steps_there_are(first: str, tmp_path: Path) -> None:
    """Later ones may say it as well, and Keras does not heed them."""
    begin = (
        [old_lstm()] if first == "LSTM" else [layer("Dropout", "drop", batch_input_shape=[None, 8, 3]), wf.keras_lstm("a", 4)]
    )
    flat = layer("Flatten", "flat", batch_input_shape=[None, 3, 4])
    path = write_old(tmp_path, CELL, wf.sequential(*begin, flat), "2.1.6", **{name: {} for name in ("drop", "flat")})
    assert_predicts(path, H.reshape(2, -1))


def test_a_time_distributed_normalization_counts_its_axes_without_the_steps(tmp_path: Path) -> None:
    inner = layer("BatchNormalization", "norm", axis=[1], epsilon=1e-3, center=True, scale=True)
    held = dict(zip(("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"), STATISTICS, strict=True))
    config = wf.sequential(old_lstm(), layer("TimeDistributed", "each", layer=inner), layer("Softmax", "soft", axis=2))
    path = write_old(tmp_path, CELL, config, "2.9.0", each={f"each/{name}": value for name, value in held.items()}, soft={})
    gamma, beta, mean, variance = STATISTICS
    raised = np.exp((H - mean) / np.sqrt(variance + 1e-3) * gamma + beta)
    assert_predicts(path, raised / raised.sum(-1, keepdims=True))


def test_a_stateful_layer_is_told(tmp_path: Path) -> None:
    found = load_chain(write(tmp_path, wf.sequential(INPUT, wf.keras_lstm("a", 4, stateful=True))), Choices())
    assert [sentence.split(":")[0] for sentence in found.assumed] == ["layer 'a' is stateful"]


def test_a_hard_sigmoid_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    config = wf.sequential(old_lstm(), layer("Activation", "hard", activation="hard_sigmoid"))
    path = wf.write_legacy_h5(tmp_path / "m.h5", {"a": wf.legacy_weights("a", CELL), "hard": {}}, config, None)
    with pytest.raises(DataError, match="hard_sigmoid is one function in Keras 2 and another in Keras 3"):
        load_chain(str(path), Choices())


def test_a_quantized_layer_is_refused(tmp_path: Path) -> None:
    policy = {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8", "source_name": "float32"}}
    config = wf.sequential(INPUT, wf.keras_lstm("a", 4), layer("Dense", "dense", units=2, dtype=policy))
    with pytest.raises(DataError, match=r"dense .*: is quantized to int8, .* save the float model"):
        load_chain(write(tmp_path, config), Choices())
