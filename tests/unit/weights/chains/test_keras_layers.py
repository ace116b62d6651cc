"""Layers of Keras whose weights do not say all of them."""

from __future__ import annotations

import io
from pathlib import Path

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
