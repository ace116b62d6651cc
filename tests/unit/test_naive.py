"""The naive reference against what TensorFlow computed, so that the other tests may trust it."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import golden, naive


@pytest.mark.parametrize("name", golden.NAMES)
def test_naive_reference_agrees_with_tensorflow(name: str) -> None:
    case = golden.load(name)
    outputs, state = naive.run(case.model, case.x, case.lens, case.initial)
    assert golden.relative_error(outputs, case.outputs) <= case.tolerance
    assert state.keys() == case.state.keys()
    for path, value in case.state.items():
        assert golden.relative_error(state[path], value) <= case.tolerance, path


def test_all_goldens_are_here() -> None:
    assert len(golden.NAMES) == 21


def test_lone_cell_is_a_stack_of_one() -> None:
    case = golden.load("seed_lengths")
    alone, state = naive.run(case.model.layers[0], case.x, case.lens)
    stacked, stacked_state = naive.run(case.model, case.x, case.lens)
    np.testing.assert_array_equal(alone, stacked)
    assert state.keys() == stacked_state.keys() == {"0/c", "0/h"}


def test_missing_bias_is_a_bias_of_zeros() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 12)), rng.normal(size=(3, 12))
    x = rng.normal(size=(2, 5, 4))
    without, _ = naive.run(naive.Cell(*weights), x, [5, 3])
    zeros, _ = naive.run(naive.Cell(*weights, bias=np.zeros(12)), x, [5, 3])
    np.testing.assert_array_equal(without, zeros)
    assert np.abs(without[0]).min() > 0


@pytest.mark.parametrize("how", ["sum", "mean", "mul"])
def test_merges(how: str) -> None:
    case = golden.load("bidirectional")
    both = case.outputs[..., :8], case.outputs[..., 8:]
    want = {"sum": both[0] + both[1], "mean": (both[0] + both[1]) / 2, "mul": both[0] * both[1]}[how]
    model = naive.Bidirectional(case.model.forward, case.model.backward, merge=how)
    assert golden.relative_error(naive.run(model, case.x, case.lens)[0], want) <= 2e-6
