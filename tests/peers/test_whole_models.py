"""`lstmcli predict` against Keras and PyTorch: random whole models of all layers that are known, in files as they save them.

400 models in all, a hundred of each kind of file; needs keras with torch beside it, and SavedModels tensorflow.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import succeed

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
pytestmark = [
    *(pytest.mark.peers, pytest.mark.slow),
    pytest.mark.filterwarnings("ignore"),  # of Keras and PyTorch, which are not under test
]

TOLERANCE = 3e-6  # of max(1, largest value)
MODELS = 100
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


def check(folder: Path, weights: str, x: np.ndarray, want: np.ndarray, *args: object) -> None:
    np.save(folder / "x.npy", x)
    succeed("predict", "-i", "x.npy", "-w", weights, "-o", "p.npy", "--overwrite", "--quiet", *args, cwd=folder)
    got = np.load(folder / "p.npy")
    assert got.shape == want.shape
    hidden = (got == 0).all(axis=-1) if got.ndim == 3 else np.zeros(len(got), bool)  # Keras repeats there what it had
    error = np.abs(got - want)[~hidden].max(initial=0)
    assert error <= TOLERANCE * max(1.0, float(np.abs(want).max(initial=0)))


@pytest.mark.parametrize("seed", range(MODELS))
def test_saved_model(seed: int, tmp_path: Path) -> None:
    """The graph alone, as TensorFlow exports it."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("needs tensorflow, and KERAS_BACKEND=tensorflow")
    rng = np.random.default_rng(seed)
    model, x = keras_model(rng, steps=int(rng.integers(3, 9)))
    model.export(tmp_path / "m", verbose=False)
    check(tmp_path, "m", x, model.predict(x, verbose=0))


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
@pytest.mark.parametrize("seed", range(MODELS))
def test_keras(seed: int, name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    model, x = keras_model(rng, steps=int(rng.integers(3, 9)))
    model.save(tmp_path / name)
    check(tmp_path, name, x, model.predict(x, verbose=0))


class Whole(torch.nn.Module):  # type: ignore[misc]
    """What a random line says, as PyTorch runs it without lengths."""

    def __init__(self, modules: dict[str, Any], line: list[str]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.line = line

    def forward(self, x: Any) -> Any:
        state: Any = None
        for word in self.line:
            module = self._modules.get(word)
            if isinstance(module, torch.nn.LSTM):
                x, (state, _) = module(x)
                both = module.bidirectional
            elif module is not None:
                x = module(x)
            elif word == "final":
                x = torch.cat([state[-2], state[-1]], dim=-1) if both else state[-1]
            elif word in ("last", "mean", "max"):
                x = {"last": x[:, -1], "mean": x.mean(1), "max": x.amax(1)}[word]
            else:
                x = getattr(torch.nn.functional, word)(x, **({"dim": -1} if "softmax" in word else {}))
        return x


def torch_model(rng: np.random.Generator, steps: int) -> tuple[Whole, np.ndarray]:
    nn = torch.nn
    width, count = int(rng.integers(2, 7)), int(rng.integers(1, 7))
    modules: dict[str, Any] = {}
    line: list[str] = []

    def add(name: str, module: Any) -> None:
        modules[name] = module
        line.append(name)

    if rng.random() < 0.5:
        add("embedding", nn.Embedding(12, width))
        x = rng.integers(0, 12, (count, steps))
    else:
        x = rng.normal(size=(count, steps, width)).astype(np.float32)
        if rng.random() < 0.5:
            add("inp", nn.Linear(width, width := int(rng.integers(2, 7))))
            line.append(str(rng.choice(["relu", "tanh", "gelu", "silu", "elu"])))
    if rng.random() < 0.3:
        add("norm", nn.LayerNorm(width))
    both = bool(rng.integers(2))
    units = int(rng.integers(1, 6))
    add("rnn", nn.LSTM(width, units, int(rng.integers(1, 3)), batch_first=True, bidirectional=both))
    width = units * (2 if both else 1)
    if rng.random() < 0.8:
        line.append(str(rng.choice(["final", "last", "mean", "max"])))
    add("fc", nn.Linear(width, 5))
    line.append(str(rng.choice(["relu", "sigmoid", "softplus", "leaky_relu", "selu"])))
    add("out", nn.Linear(5, 3, bias=bool(rng.integers(2))))
    line += [["softmax"], ["log_softmax"], []][rng.integers(3)]
    model = Whole(modules, line)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.tensor(rng.normal(0, 0.5, parameter.shape)))
    return model, x


@pytest.mark.parametrize("seed", range(MODELS))
def test_pytorch(seed: int, tmp_path: Path) -> None:
    model, x = torch_model(np.random.default_rng(seed), steps=6)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    with torch.no_grad():
        want = model(torch.tensor(x)).numpy()
    check(tmp_path, "m.pt", x, want, "--chain", ", ".join(model.line))
