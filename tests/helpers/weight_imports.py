"""Imports in this process, and what a wrong file may do: fail with one line, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import naive
from lstmcli.errors import LstmcliError
from lstmcli.model.tree import Bidirectional, Cell, Model, Residual, Reverse, Stack
from lstmcli.weights.load import Choices, Imported, load_weights


def load(path: Path, **choices: object) -> Imported:
    return load_weights(str(path), Choices(**choices))  # type: ignore[arg-type]


def tree(path: Path, **choices: object) -> naive.Node:
    return as_naive(load(path, **choices).model)


def attempt(path: Path, **choices: object) -> naive.Node | str:
    """The tree, or the one line with which a file is refused."""
    try:
        return tree(path, **choices)
    except LstmcliError as error:
        text = str(error)
        code = error.exit_code
    assert code == 65, text
    assert "\n" not in text
    assert len(text) < 5000
    return text


def as_naive(model: Model) -> naive.Node:
    match model:
        case Stack():
            return naive.Stack(tuple(map(as_naive, model.layers)))
        case Bidirectional():
            return naive.Bidirectional(as_naive(model.forward), as_naive(model.backward), model.merge)
        case Reverse():
            return naive.Reverse(as_naive(model.inner))
        case Residual():
            return naive.Residual(as_naive(model.inner))
    assert isinstance(model, Cell)
    return naive.Cell(**model.weights(), **model.options())


def refusal(path: Path, code: int = 65, **choices: object) -> str:
    """The message with which a file is refused."""
    with pytest.raises(LstmcliError) as caught:
        load(path, **choices)
    text = str(caught.value)
    assert caught.value.exit_code == code, text
    assert "\n" not in text
    assert len(text) < 2000
    return text


def assert_same(got: naive.Node, want: naive.Node) -> None:
    """The same tree with the same options and the same weights, bit for bit."""
    assert type(got) is type(want)
    for name, value in vars(want).items():
        other = getattr(got, name)
        if isinstance(value, np.ndarray):
            assert isinstance(other, np.ndarray), name
            np.testing.assert_array_equal(other, value, err_msg=name)
        elif isinstance(value, tuple):
            assert len(other) == len(value)
            for one, two in zip(other, value, strict=True):
                assert_same(one, two)
        elif isinstance(value, naive.Node):
            assert_same(other, value)
        else:
            assert other == value, name
