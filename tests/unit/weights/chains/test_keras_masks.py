"""Masks as Keras heeds them: which steps are hidden from which layer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import lstmcli

from lstmcli.errors import DataError
from lstmcli.model.chain import Chain
from lstmcli.weights.chains.load import load_chain
from lstmcli.weights.draft import Choices

A, B = wf.random_cell(3, 3, 0), wf.random_cell(3, 3, 1)
X = np.random.default_rng(0).normal(size=(1, 6, 3))
SHOWN = np.array([True, True, False, True, True, False])
X[:, ~SHOWN] = -1.0
KEPT = [0, 1, 1, 2, 3, 3]  # of the shown steps, the one whose output an LSTM repeats at each step


def layer(kind: str, name: str, **config: object) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, **config}}


INPUT = layer("InputLayer", "x", batch_shape=[None, 6, 3])
MASKING = layer("Masking", "masking", mask_value=-1.0)


def lstm(name: str, **config: object) -> dict[str, Any]:
    return wf.keras_lstm(name, 3, **config)


def chain(folder: Path, config: object, **cells: naive.Cell) -> Chain:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        wf.write_keras_h5(file, {f"layers/{name}": cell for name, cell in cells.items()})
    path = wf.write_keras(folder / "m.keras", config, image.getvalue(), "3.15.1")
    return load_chain(str(path), Choices()).chain


def predicted(model: Chain) -> np.ndarray:
    return model.predict(X.astype(np.float32))


def test_a_masking_hides_its_own_steps_alone(tmp_path: Path) -> None:
    """What an earlier one hid has the output of the step before, which the later one shows."""
    again = layer("Masking", "again", mask_value=-1.0)
    config = wf.sequential(INPUT, MASKING, lstm("a"), again, lstm("b", return_sequences=False))
    outputs = naive.run(A, X[:, SHOWN])[0][:, KEPT]
    want = naive.run(B, outputs)[0][:, -1]
    np.testing.assert_allclose(predicted(chain(tmp_path, config, lstm=A, lstm_1=B)), want, atol=3e-6)


def test_two_maskings_of_the_input(tmp_path: Path) -> None:
    """The first one makes zeros of what it hides, which the second one does not hide."""
    config = wf.sequential(INPUT, MASKING, layer("Masking", "other", mask_value=5.0), lstm("a", return_sequences=False))
    want = naive.run(A, np.where(SHOWN[:, None], X, 0))[0][:, -1]
    np.testing.assert_allclose(predicted(chain(tmp_path, config, lstm=A)), want, atol=3e-6)


def test_a_reshape_lets_no_mask_through(tmp_path: Path) -> None:
    same = layer("Reshape", "same", target_shape=[6, 3])
    config = wf.sequential(INPUT, MASKING, same, lstm("a", return_sequences=False))
    want = naive.run(A, np.where(SHOWN[:, None], X, 0))[0][:, -1]
    np.testing.assert_allclose(predicted(chain(tmp_path, config, lstm=A)), want, atol=3e-6)


def test_lengths_beside_a_layer_that_heeds_no_mask_are_noted(tmp_path: Path) -> None:
    """Keras takes the maximum over what stands past them as well."""
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    np.save(tmp_path / "l.npy", [4])
    for kind, noted in (("GlobalMaxPooling1D", True), ("GlobalAveragePooling1D", False)):
        chain(tmp_path, wf.sequential(INPUT, MASKING, lstm("a"), layer(kind, "pool")), lstm=A)
        ran = lstmcli("predict", "-i", "x.npy", "-w", "m.keras", "-l", "l.npy", "-o", f"{kind}.npy", cwd=tmp_path)
        assert ("note: pool heeds no mask: the model's framework computed the padding as data" in ran.err) is noted
    ran = lstmcli("predict", "-i", "x.npy", "-w", "m.keras", "-o", "all.npy", cwd=tmp_path)
    assert "heeds no mask" not in ran.err


def test_steps_turned_without_their_mask_are_refused(tmp_path: Path) -> None:
    backwards = lstm("a", go_backwards=True)
    for last in ([lstm("b", return_sequences=False)], [layer("GlobalAveragePooling1D", "pool")], []):
        cells = {"lstm": A} | ({"lstm_1": B} if last and last[0]["class_name"] == "LSTM" else {})
        with pytest.raises(DataError, match=r"layer a: go_backwards with return_sequences turns the steps"):
            chain(tmp_path, wf.sequential(INPUT, MASKING, backwards, *last), **cells)
        chain(tmp_path, wf.sequential(INPUT, backwards, *last), **cells)  # without a mask
    chain(tmp_path, wf.sequential(INPUT, MASKING, backwards, layer("GlobalMaxPooling1D", "pool")), lstm=A)  # heeds none


def test_a_final_output_of_zeros_is_refused(tmp_path: Path) -> None:
    final = lstm("a", return_sequences=False, zero_output_for_mask=True)
    with pytest.raises(DataError, match="zero_output_for_mask without return_sequences"):
        chain(tmp_path, wf.sequential(INPUT, MASKING, final), lstm=A)
    chain(tmp_path, wf.sequential(INPUT, final), lstm=A)


def test_a_softmax_that_takes_the_mask_is_refused(tmp_path: Path) -> None:
    softmax = layer("Softmax", "soft", axis=-1)
    with pytest.raises(DataError, match="layer soft: takes the mask"):
        chain(tmp_path, wf.sequential(INPUT, MASKING, lstm("a"), softmax), lstm=A)


# Keras 3 writes the masks of a functional model as operators.


def tensor(name: str) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"shape": [None, 6, 3], "keras_history": [name, 0, 0]}}


def called(entry: dict[str, Any], *arguments: object, **named: object) -> dict[str, Any]:
    return {**entry, "inbound_nodes": [{"args": list(arguments), "kwargs": named}]}


def functional(number: float = -1.0, compared: str = "x") -> dict[str, Any]:
    layers = [
        {**INPUT, "inbound_nodes": []},
        called(MASKING, tensor("x")),
        called(layer("NotEqual", "not_equal"), tensor(compared), number),
        called(layer("Any", "any", axis=-1, keepdims=False), tensor("not_equal")),
        called(lstm("a"), tensor("masking"), mask=tensor("any")),
        called(layer("Dropout", "dropout"), tensor("a")),
        called(lstm("b", return_sequences=False), tensor("dropout"), mask=tensor("any")),
    ]
    for entry in layers:
        entry["name"] = entry["config"]["name"]
    config = {"name": "m", "layers": layers, "input_layers": ["x", 0, 0], "output_layers": ["b", 0, 0]}
    return {"class_name": "Functional", "config": config}


def test_the_mask_of_a_functional_model(tmp_path: Path) -> None:
    want = naive.run(B, naive.run(A, X[:, SHOWN])[0])[0][:, -1]
    np.testing.assert_allclose(predicted(chain(tmp_path, functional(), lstm=A, lstm_1=B)), want, atol=3e-6)


@pytest.mark.parametrize("other", [{"number": 0.0}, {"compared": "masking"}])
def test_another_mask_of_a_functional_model_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a model in one line"):
        chain(tmp_path, functional(**other), lstm=A, lstm_1=B)
