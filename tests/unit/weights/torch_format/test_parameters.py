"""What stands in the place of a parameter, or beside it: computed as the module does, or refused by name, never passed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.weight_imports import assert_same, load, refusal, tree

ONE = naive.Stack((wf.random_cell(3, 5, 0),))
OTHER = naive.Stack((wf.random_cell(3, 5, 9),))
X = np.random.default_rng(0).normal(size=(2, 6, 3))
RNG = np.random.default_rng(1)


def named(model: naive.Stack, prefix: str = "rnn.") -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(value) for name, value in wf.torch_state_dict(model, prefix).items()}


def write(folder: Path, tensors: dict[str, np.ndarray], **dtypes: str) -> Path:
    """In an order of its own, for none is promised."""
    return wf.write_safetensors(folder / "m", {name: tensors[name] for name in sorted(tensors, key=hash)}, **dtypes)


def assert_computes(path: Path, want: naive.Node, **choices: object) -> None:
    np.testing.assert_allclose(naive.run(tree(path, **choices), X)[0], naive.run(want, X)[0], rtol=0, atol=1e-7)


def with_recurrent(weight: np.ndarray) -> naive.Stack:
    return naive.Stack((replace(ONE.layers[0], recurrent_kernel=weight.T),))  # type: ignore[type-var]


W = wf.torch_state_dict(ONE)["weight_hh_l0"]
LENGTHS = {"rows": (20, 1), "columns": (1, 5), "whole": (), "whole, kept axes": (1, 1)}


@pytest.mark.parametrize("names", [("{}_g", "{}_v"), ("parametrizations.{}.original0", "parametrizations.{}.original1")])
@pytest.mark.parametrize("kept", LENGTHS)
@pytest.mark.parametrize("prefix", ["", "rnn."])
def test_weight_norm(names: tuple[str, str], kept: str, prefix: str, tmp_path: Path) -> None:
    tensors = named(ONE, prefix)
    v = tensors.pop(f"{prefix}weight_hh_l0") * np.float32(3)
    shape = LENGTHS[kept]
    axes = {"rows": 1, "columns": 0}.get(kept)
    g = RNG.uniform(0.5, 2, shape).astype("f4")
    norms = np.sqrt((v.astype("f8") ** 2).sum(axes, keepdims=True))
    tensors |= {f"{prefix}{name.format('weight_hh_l0')}": value for name, value in zip(names, (g, v), strict=True)}
    assert_computes(write(tmp_path, tensors), with_recurrent(v * (g / norms)))


def test_pruned(tmp_path: Path) -> None:
    tensors = named(ONE)
    mask = RNG.integers(0, 2, W.shape).astype("f4")
    tensors |= {"rnn.weight_hh_l0_orig": tensors.pop("rnn.weight_hh_l0"), "rnn.weight_hh_l0_mask": mask}
    path = write(tmp_path, tensors)
    assert_same(tree(path), with_recurrent(W * mask))
    assert load(path).assumed == ()


def test_a_mask_beside_a_weight(tmp_path: Path) -> None:
    mask = RNG.integers(0, 2, W.shape).astype("f4")
    path = write(tmp_path, named(ONE) | {"rnn.weight_hh_l0_mask": mask})
    assert_same(tree(path), with_recurrent(W * mask))
    assert "_mask" in load(path).assumed[0]


@pytest.mark.parametrize(
    "mask", [np.full(W.shape, 0.5, "f4"), np.zeros(W.shape, "f4"), np.ones(5, "f4"), np.ones(W.shape, "i8")]
)
def test_masks_that_are_none(mask: np.ndarray, tmp_path: Path) -> None:
    assert "_mask" in refusal(write(tmp_path, named(ONE) | {"rnn.weight_hh_l0_mask": mask}))


@pytest.mark.parametrize("place", ["rnn.weight_hh_l0_raw", "rnn.module.weight_hh_l0_raw"])
@pytest.mark.parametrize("copied", [True, False])
def test_weight_dropout(place: str, copied: bool, tmp_path: Path) -> None:
    """The trained weight is the raw one, with the module or with the wrapper around it; the other is a copy with holes."""
    tensors = named(ONE, "rnn.module.")
    dropped = tensors.pop("rnn.module.weight_hh_l0") * np.float32(1.5)
    if copied:
        tensors["rnn.module.weight_hh_l0"] = dropped
    path = write(tmp_path, tensors | {place: np.ascontiguousarray(W)})
    assert_same(tree(path), ONE)
    assert_same(tree(path, select="rnn"), ONE)


UNKNOWN = ["_scale", "_u", "_delta", ".lora_A", "_orig", "_g", "_mask.0"]


@pytest.mark.parametrize("rest", UNKNOWN)
@pytest.mark.parametrize("shape", [(), (20, 5)])
def test_what_is_not_known_is_refused_by_its_name(rest: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    text = refusal(write(tmp_path, named(ONE) | {f"rnn.weight_hh_l0{rest}": np.ones(shape, "f4")}))
    assert f"rnn.weight_hh_l0{rest}" in text


def test_a_parametrization_that_is_not_known(tmp_path: Path) -> None:
    tensors = named(ONE)
    tensors["rnn.parametrizations.weight_hh_l0.original"] = tensors.pop("rnn.weight_hh_l0")
    text = refusal(write(tmp_path, tensors | {"rnn.parametrizations.weight_hh_l0.0._u": np.ones(20, "f4")}))
    assert "parametrizations.weight_hh_l0.original" in text
    assert "remove_parametrizations" in text


NORMS = ["ln_ih.weight", "ln_ih.bias", "norm.weight", "layer_norm_c.weight", "batchnorm.running_mean", "bn.weight"]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("prefix", ["", "cell.", "net.0."])
def test_a_normalized_cell_is_refused_by_name(name: str, prefix: str, tmp_path: Path) -> None:
    tensors = {f"{prefix}{key}": value for key, value in wf.torch_parameters(ONE.layers[0], "").items()}  # type: ignore[arg-type]
    text = refusal(write(tmp_path, tensors | {f"{prefix}{name}": np.ones(20, "f4")}))
    assert f"{prefix}{name} (20,)" in text


@pytest.mark.parametrize("shape", [(5,), (5, 5), (3, 5, 1)])
def test_a_weight_of_its_own_that_no_lstm_has(shape: tuple[int, ...], tmp_path: Path) -> None:
    for name in ("rnn.weight_ci", "rnn.attention.weight"):
        assert name in refusal(write(tmp_path, named(ONE) | {name: np.ones(shape, "f4")}))
    beside = {"weight_ci": np.ones(shape, "f4"), "rnn2.x": np.ones(shape, "f4"), "rnn.steps": np.ones(1, "i8")}
    assert_same(tree(write(tmp_path, named(ONE) | beside)), ONE)


def test_layers_from_1(tmp_path: Path) -> None:
    both = naive.Stack((ONE.layers[0], wf.random_cell(5, 5, 3)))
    shifted = {name.replace("_l1", "_l2").replace("_l0", "_l1"): value for name, value in named(both).items()}
    path = write(tmp_path, shifted)
    assert_same(tree(path), both)
    assert "from 1" in load(path).assumed[0]
    assert "_l4" in refusal(write(tmp_path, shifted | {"rnn.weight_ih_l4": np.ones((20, 5), "f4")}))


@pytest.mark.parametrize(("gates", "words"), [(3, "a GRU"), (1, "an RNN")])
def test_what_is_no_lstm_is_called_what_it_is(gates: int, words: str, tmp_path: Path) -> None:
    tensors = {"enc.gru.weight_ih_l0": np.ones((5 * gates, 3), "f4"), "enc.gru.weight_hh_l0": np.ones((5 * gates, 5), "f4")}
    assert f"enc.gru is {words}" in refusal(write(tmp_path, tensors))
    path = write(tmp_path, tensors | named(ONE))
    assert_same(tree(path), ONE)
    assert words in refusal(path, select="enc.gru")


# Learned states.

PAIRS = {
    "its name": ("rnn_h_init", "rnn_c_init"),
    "below it": ("rnn.h0", "rnn.c0"),
    "words": ("rnn.init_hidden", "rnn.init_cell"),
}
START = naive.Stack((replace(ONE.layers[0], initial_h=np.arange(5.0), initial_c=-np.arange(5.0)),))  # type: ignore[type-var]


@pytest.mark.parametrize("what", PAIRS)
@pytest.mark.parametrize("shape", [(1, 1, 5), (1, 5), (5,)])
def test_a_learned_state_is_used_and_said(what: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    states = {
        name: value.reshape(shape).astype("f4") for name, value in zip(PAIRS[what], (np.arange(5), -np.arange(5)), strict=True)
    }
    path = write(tmp_path, named(ONE) | states)
    np.testing.assert_allclose(naive.run(tree(path), X)[0], naive.run(START, X)[0], rtol=0, atol=1e-7)
    assert PAIRS[what][0] in load(path).assumed[0]


def test_learned_states_of_layers_and_directions(tmp_path: Path) -> None:
    cells = [wf.random_cell(3, 4, 0), wf.random_cell(3, 4, 1), wf.random_cell(8, 4, 2), wf.random_cell(8, 4, 3)]
    h, c = RNG.normal(size=(2, 4, 1, 4)).astype("f4")
    started = [replace(cell, initial_h=h[k, 0], initial_c=c[k, 0]) for k, cell in enumerate(cells)]
    both = naive.Stack((naive.Bidirectional(*cells[:2]), naive.Bidirectional(*cells[2:])))
    want = naive.Stack((naive.Bidirectional(*started[:2]), naive.Bidirectional(*started[2:])))
    assert_same(tree(write(tmp_path, named(both) | {"rnn.h0": h, "rnn.c0": c})), want)


@pytest.mark.parametrize("names", [("h0", "c0"), ("init_h", "init_c"), ("rnn_h_init",), ("hidden_state_init",)])
def test_a_state_that_may_be_another_one_is_said(names: tuple[str, ...], tmp_path: Path) -> None:
    path = write(tmp_path, named(ONE) | {name: np.ones((1, 1, 5), "f4") for name in names})
    assert_same(tree(path), ONE)
    (sentence,) = load(path).assumed
    assert all(name in sentence for name in (*names, "--initial-state"))


def test_states_of_another_lstm(tmp_path: Path) -> None:
    """rnn and rnn2 begin with the same letters."""
    tensors = named(ONE) | named(OTHER, "rnn2.") | {f"rnn2_{part}_init": np.ones((1, 1, 5), "f4") for part in "hc"}
    path = write(tmp_path, tensors)
    assert_same(tree(path, select="rnn"), ONE)
    assert "rnn2_h_init" in load(path, select="rnn").assumed[0]
    ((_, cell),) = load(path, select="rnn2").model.cells()
    np.testing.assert_array_equal(cell.initial_h, np.ones(5))


@pytest.mark.parametrize("name", ["head.weight", "char_embedding", "cell_types", "h.weight", "state_norm", "encoder.0.weight"])
def test_what_is_no_state(name: str, tmp_path: Path) -> None:
    assert load(write(tmp_path, named(ONE) | {name: np.ones((1, 5), "f4")})).assumed == ()
