"""`lstmcli predict` against Keras: random whole models of all layers that are known, in files as Keras saves and exports them.

300 models in all, a hundred of each kind of file. Those of SavedModels need TensorFlow and KERAS_BACKEND=tensorflow.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.predictions import MODELS, assert_predicts

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed: pip install keras")
if os.environ["KERAS_BACKEND"] == "torch":
    pytest.importorskip("torch", reason="no backend for Keras: pip install torch, or set KERAS_BACKEND")
pytestmark = [
    *(pytest.mark.peers, pytest.mark.slow),
    pytest.mark.filterwarnings("ignore"),  # of Keras and its backend, which are not under test
]

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "elu", "selu", "gelu", "silu", "softplus", "softsign", "hard_sigmoid")


def keras_model(rng: np.random.Generator, steps: int) -> tuple[Any, np.ndarray]:
    """A random Sequential, and what it takes."""
    count, width = int(rng.integers(1, 9)), int(rng.integers(1, 7))
    model: list[Any] = []
    if rng.random() < 0.4:
        masked = bool(rng.integers(2))
        model += [keras.layers.Input((steps,), dtype="int32"), keras.layers.Embedding(12, width, mask_zero=masked)]
        x = rng.integers(1, 12, (count, steps)).astype(np.int32)
        if masked:
            for row, length in zip(x, rng.integers(1, steps + 1, count), strict=True):
                row[: steps - length] = 0
    else:
        model.append(keras.layers.Input((steps, width)))
        x = rng.normal(size=(count, steps, width)).astype(np.float32)
        if rng.random() < 0.3:
            model.append(keras.layers.Masking(-1.0))
            for row, length in zip(x, rng.integers(1, steps + 1, count), strict=True):
                row[: steps - length] = -1.0
    for _ in range(rng.integers(0, 3)):
        model.append(stepwise(rng))
    for k in range(top := int(rng.integers(1, 3))):
        model.append(recurrent(rng, k < top - 1 or rng.random() < 0.5))
    last = model[-1].return_sequences
    if last and rng.random() < 0.6:
        pools = (keras.layers.GlobalMaxPooling1D, keras.layers.GlobalAveragePooling1D, keras.layers.Flatten)
        model.append(pools[rng.integers(3)]())
        last = False
    if not last:
        for _ in range(rng.integers(0, 3)):
            model += [keras.layers.Dense(int(rng.integers(1, 9)), activation=str(rng.choice(ACTIVATIONS)))]
            model += [keras.layers.Dropout(0.5)] if rng.random() < 0.3 else []
    model.append(keras.layers.Dense(int(rng.integers(1, 5)), activation=str(rng.choice(["softmax", "sigmoid", "linear"]))))
    made = keras.Sequential(model)
    for weight in made.weights:
        values = rng.normal(0, 0.5, weight.shape)
        weight.assign(np.abs(values) + 0.2 if "variance" in weight.path else values)
    return made, x


def recurrent(rng: np.random.Generator, sequences: bool) -> Any:
    lstm = keras.layers.LSTM(
        int(rng.integers(1, 6)),
        activation=str(rng.choice(["tanh", "relu", "softsign"])),
        recurrent_activation=str(rng.choice(["sigmoid", "hard_sigmoid"])),
        return_sequences=sequences,
    )
    if rng.random() < 0.5:
        return keras.layers.Bidirectional(lstm, merge_mode=str(rng.choice(["concat", "sum", "mul", "ave"])))
    return lstm


def stepwise(rng: np.random.Generator) -> Any:
    layers = keras.layers
    kinds = [
        lambda: layers.TimeDistributed(layers.Dense(int(rng.integers(1, 6)), activation=str(rng.choice(ACTIVATIONS)))),
        lambda: layers.Dense(int(rng.integers(1, 6))),
        lambda: layers.BatchNormalization(),
        lambda: layers.LayerNormalization(center=bool(rng.integers(2)), scale=bool(rng.integers(2))),
        lambda: layers.Activation(str(rng.choice(ACTIVATIONS))),
        lambda: layers.LeakyReLU(negative_slope=0.3),
        lambda: layers.SpatialDropout1D(0.2),
        lambda: layers.Conv1D(int(rng.integers(1, 6)), int(rng.integers(1, 4)), padding=str(rng.choice(["same", "causal"]))),
        lambda: layers.MaxPooling1D(2, strides=1, padding="same"),
        lambda: layers.AveragePooling1D(2, strides=1, padding="same"),
    ]
    return kinds[rng.integers(len(kinds))]()


@pytest.mark.parametrize("seed", range(MODELS))
def test_saved_model(seed: int, tmp_path: Path) -> None:
    """The graph alone, as TensorFlow exports it."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras runs without TensorFlow: pip install tensorflow-cpu, and set KERAS_BACKEND=tensorflow")
    rng = np.random.default_rng(seed)
    model, x = keras_model(rng, steps=int(rng.integers(3, 9)))
    model.export(tmp_path / "m", verbose=False)
    assert_predicts(tmp_path, "m", x, model.predict(x, verbose=0), masks=True)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
@pytest.mark.parametrize("seed", range(MODELS))
def test_keras(seed: int, name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    model, x = keras_model(rng, steps=int(rng.integers(3, 9)))
    model.save(tmp_path / name)
    assert_predicts(tmp_path, name, x, model.predict(x, verbose=0), masks=True)
