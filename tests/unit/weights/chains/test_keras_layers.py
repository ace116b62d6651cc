"""Layers of Keras whose weights do not say all of them."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf

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
