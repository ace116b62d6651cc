"""Loops are LSTMs where they compute what one computes: always, not on some numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmcli.errors import DataError
from lstmcli.weights.chains.saved_model.lstm_loop import Loop

ELEMENT = np.dtype([("element", np.int64)])  # of what depends on the model's input
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "elu": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "sigmoid": lambda x: 0.5 + np.tanh(x / 2) / 2,
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_sigmoid_keras2": lambda x: np.clip(x / 5 + 0.5, 0, 1),
}


def unchanged(step: int, array: Any) -> Any:
    return array


def a_loop(
    activation: str = "tanh",
    gate: str = "sigmoid",
    rows: int = 5,
    units: int = 3,
    steps: int = 23,
    masked: bool = False,
    sums: Callable[[int, Any], Any] = unchanged,
    cell: Callable[[int, Any], Any] = unchanged,
) -> Loop:
    """What Keras writes: a counter, the outputs, h, c, x, and weights. sums, cell: what is done with sums of gates, with c."""
    act, gated = FUNCTIONS[activation], FUNCTIONS[gate]

    def body(given: list[Any]) -> list[Any]:
        step, outputs, h, c, x, w, u, b, *rest = given
        shown = rest[0][step] if masked else np.ones((rows, 1), bool)
        i, f, g, o = np.split(sums(int(step), x[step] @ w + h @ u + b), 4, axis=1)
        new_c = cell(int(step), gated(f) * c + gated(i) * act(g))
        new_h = gated(o) * act(new_c)
        output = np.where(shown, new_h, rest[1]) if masked else new_h
        filled = outputs.copy()
        filled[step] = output
        states = [np.where(shown, new, old) for new, old in ((new_h, h), (new_c, c))]
        return [step + 1, filled, *states, x, w, u, b, *([rest[0], output] if masked else [])]

    zeros = np.zeros((rows, units))
    inputs = [
        np.asarray(0), np.empty(steps, object), zeros, zeros, np.empty((steps, rows, 2), ELEMENT), np.ones((2, 4 * units)),
        np.ones((units, 4 * units)), np.ones(4 * units),
    ]  # fmt: skip
    if masked:
        inputs += [np.empty((steps, rows, 1), ELEMENT), zeros]
    return Loop(inputs, lambda given: [np.asarray(given[0] < steps)], body)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "hard_sigmoid_keras2"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "linear", "elu", "softsign", "sigmoid"])
def test_activations_are_told_apart(activation: str, gate: str, units: int, rows: int) -> None:
    roles = a_loop(activation, gate, rows, units).roles()
    assert (roles.activation, roles.recurrent_activation) == (activation, gate)
    assert (roles.x, roles.h, roles.c, roles.kernel, roles.recurrent, roles.bias) == (4, 2, 3, 5, 6, 7)
    assert roles.every_step


@pytest.mark.parametrize("steps", [1, 2, 3, 23])
def test_any_number_of_steps(steps: int) -> None:
    assert a_loop(steps=steps).roles().activation == "tanh"


@pytest.mark.parametrize("rows", [1, 5])
def test_a_mask(rows: int) -> None:
    roles = a_loop(rows=rows, masked=True).roles()
    assert (roles.mask, roles.before, roles.h, roles.zeros) == (8, 9, 2, False)


@pytest.mark.parametrize(
    "other",
    [
        {"cell": lambda step, c: np.clip(c, -10, 10)},
        {"cell": lambda step, c: np.clip(c, -1e6, 1e6)},
        {"sums": lambda step, z: np.clip(z, -8, 8)},
        {"sums": lambda step, z: z + (step >= 3)},
        {"sums": lambda step, z: z + (step == 22)},
        {"cell": lambda step, c: c * (0.5 if step > 11 else 1)},
        {"cell": lambda step, c: np.where(np.abs(c) > 20, 0, c)},
    ],
    ids=[
        "clip",
        "wide-clip",
        "clip-of-sums",
        "bias-from-a-step-on",
        "bias-at-the-last-step",
        "decay-later",
        "reset-when-large",
    ],
)
def test_what_is_an_lstm_for_some_numbers_or_steps_is_none(other: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no LSTM"):
        a_loop(**other).roles()
