"""Keras: the forms in which the world has its files, from Keras 1 to 3, and what a file must not be taken for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import lstmcli, succeed
from helpers.weight_imports import assert_same, load, refusal, tree

from lstmcli.errors import LstmcliError

A, B, C = (wf.random_cell(features, units, seed) for seed, (features, units) in enumerate([(3, 4), (4, 5), (5, 2)]))
FW, BW = wf.random_cell(3, 2, 10), wf.random_cell(3, 2, 11)
FW2, BW2 = wf.random_cell(2, 3, 12), wf.random_cell(2, 3, 13)
OLD_GATES = "hard_sigmoid_keras2"
DENSE = {"class_name": "Dense", "config": {"name": "dense"}}


def stack(*layers: naive.Node) -> naive.Stack:
    return naive.Stack(layers)


def hard(cell: naive.Cell) -> naive.Cell:
    return replace(cell, recurrent_activation=OLD_GATES)


def keras3(path: Path, groups: Mapping[str, naive.Cell], empty: tuple[str, ...] = (), names: Mapping[str, str] = {}) -> Path:
    """Weights alone. empty: groups of layers without weights. names: of groups' layers."""
    with h5py.File(path, "w") as file:
        wf.write_keras_h5(file, groups)
        for group in (*empty, *names):
            file.require_group(f"{group}/vars")
        for group, name in names.items():
            file[f"{group}/vars"].attrs["name"] = name
    return path


def archive(path: Path, config: object, groups: Mapping[str, naive.Cell], version: str = "3.15.1", **more: np.ndarray) -> Path:
    """more: arrays by their names, with __ for each slash."""
    weights = keras3(path.with_suffix(".weights"), groups)
    with h5py.File(weights, "r+") as file:
        for name, value in more.items():
            file[name.replace("__", "/")] = value
    return wf.write_keras(path, config, weights.read_bytes(), version)


def rnn(name: str, *units: int, stacked: bool | None = None, **config: Any) -> dict[str, Any]:
    cells = [
        {"class_name": "LSTMCell", "config": wf.keras_lstm(f"cell_{k}", u, **config)["config"]} for k, u in enumerate(units)
    ]
    cell: Any = {"class_name": "StackedRNNCells", "config": {"name": "stacked", "cells": cells}}
    cell = cell if stacked or (stacked is None and len(units) > 1) else cells[0]
    return {"class_name": "RNN", "config": {"name": name, "return_sequences": True, "go_backwards": False, "cell": cell}}


# What a file of weights alone does not say: the activation of the gates.


@pytest.mark.parametrize("version", ["2.0.8", "2.2.4", "2.1.6-tf"])
def test_gates_before_keras_2_3(version: str, tmp_path: Path) -> None:
    path = wf.write_legacy_h5(tmp_path / "a", {"l": wf.legacy_weights("l", A)}, version=version)
    assert_same(tree(path), stack(hard(A)))
    assert any(OLD_GATES in sentence and "assumed" in sentence for sentence in load(path).assumed)
    assert_same(tree(path, recurrent_activation="sigmoid"), stack(A))
    assert not any(OLD_GATES in sentence for sentence in load(path, recurrent_activation="sigmoid").assumed)
    assert OLD_GATES in refusal(path, 2, recurrent_activation="hard_sigmoid")


@pytest.mark.parametrize("version", ["2.3.0", "2.3.0-tf", "2.9.0", "2.21.0", "3.1.0"])
def test_gates_since_keras_2_3(version: str, tmp_path: Path) -> None:
    path = wf.write_legacy_h5(tmp_path / "a", {"l": wf.legacy_weights("l/lstm_cell", A)}, version=version)
    assert_same(tree(path), stack(A))
    assert any("recurrent_activation sigmoid is assumed" in sentence for sentence in load(path).assumed)
    assert_same(tree(path, recurrent_activation=OLD_GATES), stack(hard(A)))


@pytest.mark.parametrize("version", ["2.2.4-tf", None, "unknown"])
def test_gates_of_a_version_that_had_both_are_asked_for(version: str | None, tmp_path: Path) -> None:
    path = wf.write_legacy_h5(tmp_path / "a", {"l": wf.legacy_weights("l", A)}, version=version)
    assert "--recurrent-activation" in refusal(path)
    for name in ("sigmoid", OLD_GATES):
        assert_same(tree(path, recurrent_activation=name), stack(replace(A, recurrent_activation=name)))


@pytest.mark.parametrize("version", ["2.2.4", "2.2.4-tf", "2.9.0", None])
def test_a_bias_of_eight_parts_proves_sigmoid(version: str | None, tmp_path: Path) -> None:
    assert A.bias is not None
    arrays = {
        "kernel:0": np.hstack([gate.T.reshape(gate.shape) for gate in np.hsplit(A.input_kernel, 4)]),
        "recurrent_kernel:0": np.hstack([gate.T for gate in np.hsplit(A.recurrent_kernel, 4)]),
        "bias:0": np.concatenate([A.bias, np.zeros_like(A.bias)]),
    }
    path = wf.write_legacy_h5(tmp_path / "a", {"c": {f"c/{name}": value for name, value in arrays.items()}}, version=version)
    assert_same(tree(path), stack(A))
    assert "CuDNN" in refusal(path, 2, recurrent_activation=OLD_GATES)


def test_what_is_assumed_reaches_the_user(tmp_path: Path) -> None:
    wf.write_legacy_h5(tmp_path / "w.h5", {"l": wf.legacy_weights("l", A)}, version="2.2.4")
    np.save(tmp_path / "x.npy", np.ones((2, 3, 3), "f4"))
    done = lstmcli("run", "-i", "x.npy", "-w", "w.h5", "-o", "o.h5", "-q", cwd=tmp_path)
    assert done.code == 0
    assert OLD_GATES in done.err
    assert "--recurrent-activation" in done.err


# RNN(LSTMCell) and RNN([LSTMCell, ...]).


def test_rnn_of_a_cell(tmp_path: Path) -> None:
    config = wf.sequential(rnn("r", 4, activation="relu", recurrent_activation="hard_sigmoid"))
    want = stack(replace(A, activation="relu", recurrent_activation="hard_sigmoid"))
    assert_same(tree(archive(tmp_path / "a", config, {"layers/rnn": A})), want)
    legacy = {"r": wf.legacy_weights("r/cell_0", A)}
    assert_same(tree(wf.write_legacy_h5(tmp_path / "b", legacy, config)), stack(replace(hard(A), activation="relu")))
    assert_same(tree(keras3(tmp_path / "c", {"layers/rnn": A})), stack(A))
    assert_same(tree(wf.write_legacy_h5(tmp_path / "d", {"r": wf.legacy_weights("r/lstm_cell_4", A)})), stack(A))


CELLS3 = {"layers/rnn/cell/cells/lstm_cell": A, "layers/rnn/cell/cells/lstm_cell_1": B, "layers/rnn/cell/cells/lstm_cell_2": C}


def cells3(path: Path, cells: Mapping[str, naive.Cell]) -> Path:
    with h5py.File(path, "w") as file:
        for group, cell in cells.items():
            for k, value in enumerate(wf.keras_arrays(cell)):
                file[f"{group}/vars/{k}"] = value
    return path


def test_rnn_of_several_cells_is_a_stack(tmp_path: Path) -> None:
    weights = cells3(tmp_path / "w", CELLS3)
    assert_same(tree(weights), stack(A, B, C))
    config = wf.sequential(rnn("r", 4, 5, 2))
    assert_same(tree(wf.write_keras(tmp_path / "a", config, weights.read_bytes())), stack(A, B, C))
    fewer = wf.sequential(rnn("r", 4, 5))
    assert "2 cells" in refusal(wf.write_keras(tmp_path / "b", fewer, weights.read_bytes()))
    names = ("r/stacked_rnn_cells/lstm_cell", "r/stacked_rnn_cells/lstm_cell_1", "r/stacked_rnn_cells/lstm_cell_10")
    legacy: wf.Arrays = {}
    for name, cell in zip(names, (A, B, C), strict=True):
        legacy |= wf.legacy_weights(name, cell)
    assert_same(tree(wf.write_legacy_h5(tmp_path / "c", {"r": legacy})), stack(A, B, C))
    assert_same(tree(wf.write_legacy_h5(tmp_path / "d", {"r": legacy}, config)), stack(A, B, C))


def test_more_than_ten_cells(tmp_path: Path) -> None:
    many = [wf.random_cell(4, 4, k) for k in range(12)]
    groups = {f"layers/rnn/cell/cells/lstm_cell{f'_{k}' * (k > 0)}": cell for k, cell in enumerate(many)}
    assert_same(tree(cells3(tmp_path / "a", groups)), stack(*many))


def test_cells_of_keras_2_2_without_names_of_their_own(tmp_path: Path) -> None:
    """TensorFlow counts the names up; how the cells are connected only a configuration says."""
    names = {"kernel": "kernel_1", "recurrent_kernel": "recurrent_kernel_1", "bias": "bias_1"}
    second = {f"r/{names[name.split('/')[1].removesuffix(':0')]}:0": value for name, value in wf.legacy_weights("r", B).items()}
    weights = {"r": wf.legacy_weights("r", A) | second}
    config = wf.sequential(rnn("r", 4, 5))
    assert_same(tree(wf.write_legacy_h5(tmp_path / "a", weights, config, "2.2.4")), stack(A, B))
    assert "2 cells" in refusal(wf.write_legacy_h5(tmp_path / "b", weights, version="2.9.0"))


def test_bidirectional_stacks_of_cells(tmp_path: Path) -> None:
    want = stack(naive.Bidirectional(stack(FW, FW2), stack(BW, BW2), "sum"))
    config = wf.sequential(
        {"class_name": "Bidirectional", "config": {"name": "b", "layer": rnn("r", 2, 3), "merge_mode": "sum"}}
    )
    groups = {
        f"layers/bidirectional/{side}_layer/cell/cells/lstm_cell{end}": cell
        for side, pair in (("forward", (FW, FW2)), ("backward", (BW, BW2)))
        for end, cell in zip(("", "_1"), pair, strict=True)
    }
    weights = cells3(tmp_path / "w", groups)
    assert_same(tree(wf.write_keras(tmp_path / "a", config, weights.read_bytes())), want)
    assert_same(tree(weights, merge="sum"), want)
    legacy: wf.Arrays = {}
    for k, (side, cell) in enumerate([("forward", FW), ("forward", FW2), ("backward", BW), ("backward", BW2)]):
        legacy |= wf.legacy_weights(f"b/{side}_r/stacked_rnn_cells/lstm_cell_{k + 4}", cell)
    assert_same(tree(wf.write_legacy_h5(tmp_path / "b", {"b": legacy}, config)), want)


# Keras 1.


def keras1_lstm(name: str, units: int, **config: Any) -> dict[str, Any]:
    plain = {"output_dim": units, "activation": "tanh", "inner_activation": "hard_sigmoid", "return_sequences": True}
    return {"class_name": "LSTM", "config": {"name": name, **plain, "go_backwards": False, **config}}


@pytest.mark.parametrize("apart", [True, False])
def test_keras_1(apart: bool, tmp_path: Path) -> None:
    layers = {"lstm_1": wf.keras1_weights("lstm_1", A, apart), "lstm_2": wf.keras1_weights("lstm_2", B, apart)}
    assert_same(tree(wf.write_legacy_h5(tmp_path / "a", layers, version="1.2.2")), stack(hard(A), hard(B)))
    config = {
        "class_name": "Sequential",
        "config": [keras1_lstm("lstm_1", 4), keras1_lstm("lstm_2", 5, inner_activation="sigmoid")],
    }
    for version in ("1.2.2", None):
        path = wf.write_legacy_h5(tmp_path / "b", layers, config, version)
        assert_same(tree(path), stack(hard(A), B))
    tagged = {"lstm_1": {f"{name}:0": value for name, value in layers["lstm_1"].items()}}
    assert_same(tree(wf.write_legacy_h5(tmp_path / "c", tagged, version=None)), stack(hard(A)))


@pytest.mark.parametrize("apart", [True, False])
def test_keras_1_bidirectional(apart: bool, tmp_path: Path) -> None:
    weights = wf.keras1_weights("forward_lstm_1", FW, apart) | wf.keras1_weights("backward_lstm_1", BW, apart)
    want = naive.Bidirectional(hard(FW), hard(BW), "mul")
    path = wf.write_legacy_h5(tmp_path / "a", {"bidirectional_1": weights}, version="1.2.2")
    assert_same(tree(path, merge="mul"), stack(want))
    inner = keras1_lstm("lstm_1", 2)
    both = {"class_name": "Bidirectional", "config": {"name": "bidirectional_1", "merge_mode": "mul", "layer": inner}}
    config = {"class_name": "Sequential", "config": [both]}
    assert_same(tree(wf.write_legacy_h5(tmp_path / "b", {"bidirectional_1": weights}, config, "1.2.2")), stack(want))


def test_a_relative_of_keras_1_s_lstm_is_refused(tmp_path: Path) -> None:
    weights = wf.keras1_weights("lstm_1", A, apart=False) | {"lstm_1_Wea": np.ones((3, 4), "f4")}
    assert "lstm_1_Wea" in refusal(wf.write_legacy_h5(tmp_path / "a", {"lstm_1": weights}, version="1.2.2"))
    fewer = {name: value for name, value in wf.keras1_weights("lstm_1", A).items() if not name.endswith("_c")}
    assert "lstm_1_W_i" in refusal(wf.write_legacy_h5(tmp_path / "b", {"lstm_1": fewer}, version="1.2.2"))


# Names of groups.


def test_groups_of_keras_2_13_are_counted_by_rank(tmp_path: Path) -> None:
    """A layer with weights has two numbers there."""
    groups = {f"_layer_checkpoint_dependencies/lstm{end}": cell for end, cell in zip(("", "_2", "_4"), (A, B, C), strict=True)}
    config = wf.sequential(wf.keras_lstm("x", 4), wf.keras_lstm("y", 5), wf.keras_lstm("z", 2))
    assert_same(tree(archive(tmp_path / "a", config, groups, "2.13.1")), stack(A, B, C))
    inner = wf.sequential(wf.keras_lstm("x", 4), wf.keras_lstm("y", 5))
    inner["config"]["name"] = "inner"  # type: ignore[index]
    inside = "_layer_checkpoint_dependencies/sequential/_layer_checkpoint_dependencies"
    nested = {f"{inside}/lstm": A, f"{inside}/lstm_2": B, "_layer_checkpoint_dependencies/lstm": C}
    config = wf.sequential(inner, wf.keras_lstm("z", 2))
    assert_same(tree(archive(tmp_path / "b", config, nested, "2.13.1")), stack(A, B, C))


def test_a_group_is_no_layer_of_that_name(tmp_path: Path) -> None:
    """Keras counts the layers of a session up: the first one of a later model is lstm_1, and lies in the group lstm."""
    config = wf.sequential(wf.keras_lstm("lstm_1", 4), wf.keras_lstm("lstm", 5), wf.keras_lstm("lstm_2", 2))
    groups = {"layers/lstm": A, "layers/lstm_1": B, "layers/lstm_2": C}
    assert_same(tree(archive(tmp_path / "a", config, groups)), stack(A, B, C))
    square = [wf.random_cell(4, 4, k) for k in range(3)]
    config = wf.sequential(*(wf.keras_lstm(name, 4) for name in ("lstm_2", "lstm", "lstm_1")))
    path = archive(tmp_path / "b", config, dict(zip(groups, square, strict=True)))
    assert_same(tree(path), stack(*square))


def test_many_layers_of_two_classes_take_no_time(tmp_path: Path) -> None:
    """Their orders are too many to try."""
    cells = {f"layers/lstm{f'_{k}' * (k > 0)}": wf.random_cell(4, 4, k) for k in range(20)}
    for k in range(20):
        group = f"layers/bidirectional{f'_{k}' * (k > 0)}"
        cells |= {f"{group}/{side}_layer": wf.random_cell(4, 2, 100 + k) for side in ("forward", "backward")}
    cells["layers/rnn"] = wf.random_cell(9, 9, 200)
    assert "41 LSTMs" in refusal(keras3(tmp_path / "a", cells))


def test_backslashes_of_windows(tmp_path: Path) -> None:
    config = wf.sequential(wf.keras_lstm("x", 4), wf.keras_lstm("y", 5))
    path = archive(tmp_path / "a", config, {"layers\\lstm\\cell": A, "layers\\lstm_1\\cell": B})
    with h5py.File(tmp_path / "a.weights", "w") as file:
        for group, cell in (("layers\\lstm\\cell", A), ("layers\\lstm_1\\cell", B)):
            for k, value in enumerate(wf.keras_arrays(cell)):
                file[f"{group}/vars/{k}"] = value
    path = wf.write_keras(tmp_path / "a", config, (tmp_path / "a.weights").read_bytes())
    assert_same(tree(path), stack(A, B))


def test_subclassed_models_have_the_names_of_attributes(tmp_path: Path) -> None:
    groups = {"encoder": A, "decoder": B, "many/lstm": C, "both/forward_layer": FW, "both/backward_layer": BW}
    path = keras3(tmp_path / "a", groups, names={"": "mine", "encoder": "lstm", "decoder": "lstm_1"})
    text = refusal(path)
    assert all(word in text for word in ("4 LSTMs", "encoder", "decoder", "many/lstm", "both"))
    assert_same(tree(path, select="encoder"), stack(A))
    assert_same(tree(path, select=("encoder", "decoder")), stack(A, B))
    assert_same(tree(path, select="both"), stack(naive.Bidirectional(FW, BW)))
    config = {"class_name": "Mine", "module": "__main__", "registered_name": "Mine", "config": {"units": 4}}
    whole = wf.write_keras(tmp_path / "b", config, path.read_bytes())
    assert_same(tree(whole, select="encoder", activation="relu"), stack(replace(A, activation="relu")))


def test_a_layer_may_be_called_forward(tmp_path: Path) -> None:
    """By hand, beside one that runs backward."""
    layers = {
        "forward_lstm": wf.legacy_weights("forward_lstm/lstm_cell", FW),
        "backward_lstm": wf.legacy_weights("backward_lstm/lstm_cell_1", BW),
    }
    path = wf.write_legacy_h5(tmp_path / "a", layers)
    assert_same(tree(path, select="backward_lstm"), stack(BW))
    assert_same(tree(path, select=("fw=forward_lstm", "bw=backward_lstm")), naive.Bidirectional(FW, BW))
    newer = {name: {f"model/{weight}": value for weight, value in weights.items()} for name, weights in layers.items()}
    assert_same(tree(wf.write_legacy_h5(tmp_path / "b", newer), select="forward_lstm"), stack(FW))


# What is no LSTM.


def test_a_cell_with_more_weights_is_refused_by_their_names(tmp_path: Path) -> None:
    path = keras3(tmp_path / "a", {"layers/rnn": A}, names={"layers/rnn/cell": "peephole_cell"})
    with h5py.File(path, "r+") as file:
        for k in (3, 4, 5):
            file[f"layers/rnn/cell/vars/{k}"] = np.ones(4, "f4")
    assert "layers/rnn/cell/vars/3" in refusal(path)
    assert "layers/rnn/cell/vars/3" in refusal(path, select="rnn")
    path = keras3(tmp_path / "b", {"layers/lstm": A})
    with h5py.File(path, "r+") as file:
        file["layers/lstm/cell/norm/vars/0"] = np.ones(16, "f4")
        file["layers/lstm/cell/seed_generator/vars/0"] = np.ones(2, "i4")
    assert "norm" in refusal(path)
    legacy = wf.legacy_weights("rnn/norm_cell", A) | {"rnn/norm_cell/gamma:0": np.ones(16, "f4")}
    assert "gamma" in refusal(wf.write_legacy_h5(tmp_path / "c", {"rnn": legacy}))


def test_a_cell_or_class_that_may_be_another_is_asked_for(tmp_path: Path) -> None:
    """Not all arithmetic needs weights of its own."""
    path = keras3(tmp_path / "a", {"layers/rnn": A}, names={"layers/rnn/cell": "zoneout_cell"})
    assert "zoneout_cell" in refusal(path)
    assert_same(tree(path, select="rnn"), stack(A))
    path = keras3(tmp_path / "b", {"layers/window_lstm": A}, names={"layers/window_lstm/cell": "lstm_cell"})
    assert "window_lstm" in refusal(path)
    legacy = wf.write_legacy_h5(tmp_path / "c", {"rnn": wf.legacy_weights("rnn/zoneout_cell", A)})
    assert "zoneout_cell" in refusal(legacy)


OTHER_CELL = {"class_name": "WindowLSTMCell", "registered_name": "mine>WindowLSTMCell", "config": {"units": 4}}
OTHER_CELL_OF_KERAS_2 = {"class_name": "Addons>WindowLSTMCell", "config": {"units": 4}}
OTHER_LAYER = {"class_name": "WindowLSTM", "registered_name": "mine>WindowLSTM", **wf.keras_lstm("l", 4)}


def holding(kind: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": "l", **config}}


CUSTOM = {
    "a layer": OTHER_LAYER | {"class_name": "WindowLSTM"},
    "a layer with the name of Keras's": OTHER_LAYER | {"class_name": "LSTM"},
    "an older layer": wf.keras_lstm("l", 4) | {"class_name": "mine>WindowLSTM"},
    "a cell": holding("RNN", cell=OTHER_CELL),
    "a cell of another package": holding("RNN", cell=OTHER_CELL_OF_KERAS_2),
    "one of several": holding("RNN", cell={"class_name": "StackedRNNCells", "config": {"cells": [OTHER_CELL]}}),
    "inside a bidirectional one": holding("Bidirectional", layer=OTHER_LAYER | {"class_name": "WindowLSTM"}),
}


@pytest.mark.parametrize("what", CUSTOM)
def test_classes_of_others_are_refused_by_name(what: str, tmp_path: Path) -> None:
    path = wf.write_legacy_h5(tmp_path / "a", {"l": wf.legacy_weights("l/some_cell", A)}, wf.sequential(CUSTOM[what], DENSE))
    text = refusal(path)
    assert "--select l" in text
    assert "WindowLSTM" in text or what == "a layer with the name of Keras's"
    got = load(path, select="l")
    assert any("as if it were an LSTM" in sentence for sentence in got.assumed)


def test_an_lstm_inside_of_a_layer_of_ones_own(tmp_path: Path) -> None:
    config = wf.sequential({"class_name": "Encoder", "registered_name": "m>Encoder", "config": {"name": "mine"}}, DENSE)
    path = archive(tmp_path / "a", config, {"layers/encoder/rnn": A})
    text = refusal(path)
    assert "Encoder" in text
    assert "encoder/rnn" in text
    assert_same(tree(path, select="encoder/rnn"), stack(A))


def test_layers_that_are_no_lstm_are_named(tmp_path: Path) -> None:
    config = wf.sequential({"class_name": "GRU", "config": {"name": "g"}}, DENSE)
    text = refusal(archive(tmp_path / "a", config, {}, layers__gru__cell__vars__0=np.ones((3, 12), "f4")))
    assert "g (GRU)" in text


# What stands beside the LSTMs, and between them.

EMBEDDING = {"class_name": "Embedding", "config": {"name": "words", "mask_zero": True}}
MASKING = {"class_name": "Masking", "config": {"name": "masking"}}
DROPOUT = {"class_name": "Dropout", "config": {"name": "dropout"}}
CONV = {"class_name": "Conv1D", "config": {"name": "conv"}}


@pytest.mark.parametrize(
    ("before", "masked"),
    [([], False), ([MASKING], True), ([EMBEDDING, DROPOUT], True), ([CONV], False), ([MASKING, CONV], None),
     ([{"class_name": "Mine", "registered_name": "m>Mine", "config": {"name": "mine"}}], None)],
)  # fmt: skip
def test_layers_around_the_lstms(before: list[dict[str, Any]], masked: bool | None, tmp_path: Path) -> None:
    config = wf.sequential(*before, wf.keras_lstm("a", 4), DROPOUT | {"config": {"name": "d"}}, wf.keras_lstm("b", 5), DENSE)
    got = load(archive(tmp_path / "a", config, {"layers/lstm": A, "layers/lstm_1": B}))
    names = [f"{entry['config']['name']} ({entry['class_name']})" for entry in before if entry not in (MASKING, DROPOUT)]
    assert list(got.before) == names
    assert got.after == ("dense (Dense)",)
    assert got.masked is masked


def test_a_run_says_that_there_was_no_mask(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3, 3), "f4"))
    np.save(tmp_path / "l.npy", np.array([3, 1]))
    note = "no mask: the model's framework computed the padding as data; --lens none repeats it"
    for name, before in (("plain", []), ("masked", [MASKING])):
        archive(tmp_path / f"{name}.keras", wf.sequential(*before, wf.keras_lstm("a", 4)), {"layers/lstm": A})
        args = ["run", "-i", "x.npy", "-w", f"{name}.keras", "-o", "o.h5", "--overwrite"]
        assert (note in lstmcli(*args, "-l", "l.npy", cwd=tmp_path).err) is (name == "plain")
        assert note not in lstmcli(*args, cwd=tmp_path).err
        assert ("Masking" in lstmcli(*args, cwd=tmp_path).err) is (name == "masked")
    succeed("run", "-i", "x.npy", "-w", "plain.keras", "-l", "l.npy", "-o", "p.h5", cwd=tmp_path)
    np.savez(tmp_path / "ragged.npz", a=np.ones((3, 3), "f4"), b=np.ones((1, 3), "f4"))
    ran = lstmcli("run", "-i", "ragged.npz", "-w", "plain.keras", "-o", "r.h5", cwd=tmp_path)
    assert "no mask: in a padded batch" in ran.err
    assert "--lens none" not in ran.err


def test_what_is_between_two_that_are_chosen_is_said(tmp_path: Path) -> None:
    config = wf.sequential(wf.keras_lstm("a", 4), DENSE, wf.keras_lstm("b", 5))
    path = archive(tmp_path / "a", config, {"layers/lstm": A, "layers/lstm_1": B})
    got = load(path, select=("a", "b"))
    assert got.before == ("dense (Dense)",)
    assert got.after == ()


@pytest.mark.parametrize(
    ("between", "stacked"),
    [("dropout", True), ("masking", True), ("spatial_dropout1d", True), ("flatten", True), ("repeat_vector", False),
     ("activation", False), ("concatenate", False), ("my_layer", False)],
)  # fmt: skip
def test_weights_alone_are_a_stack_only_where_nothing_may_be_between(between: str, stacked: bool, tmp_path: Path) -> None:
    path = keras3(tmp_path / "a", {"layers/lstm": A, "layers/lstm_1": B}, empty=(f"layers/{between}",))
    legacy = {"l_1": wf.legacy_weights("l_1/lstm_cell", A), f"{between}_3": {}, "l_2": wf.legacy_weights("l_2/lstm_cell_1", B)}
    for each in (path, wf.write_legacy_h5(tmp_path / "b", legacy)):
        if stacked:
            assert_same(tree(each), stack(A, B))
            assert "order" in load(each).assumed[-1]
        else:
            assert "2 LSTMs" in refusal(each)
            names = ("l_1", "l_2") if each.name == "b" else ("lstm", "lstm_1")
            assert_same(tree(each, select=names), stack(A, B))


@pytest.mark.parametrize(
    ("shapes", "stacked"),
    [([(4, 4), (4,)], False), ([(4,), (4,), (4,)], False), ([(3, 4, 4), (4,)], False), ([(4, 12), (4, 12), (2, 12)], False),
     ([(5, 1), (1,)], True), ([(4, 3)], True), ([(7,)], True)],
)  # fmt: skip
def test_layers_with_weights_that_fit_between(shapes: list[tuple[int, ...]], stacked: bool, tmp_path: Path) -> None:
    path = keras3(tmp_path / "a", {"layers/lstm": A, "layers/lstm_1": B})
    weights = {f"o/w{k}:0": np.ones(shape, "f4") for k, shape in enumerate(shapes)}
    with h5py.File(path, "r+") as file:
        for k, shape in enumerate(shapes):
            file[f"layers/other/vars/{k}"] = np.ones(shape, "f4")
    legacy = {"l_1": wf.legacy_weights("l_1/lstm_cell", A), "o": weights, "l_2": wf.legacy_weights("l_2/lstm_cell_1", B)}
    for each in (path, wf.write_legacy_h5(tmp_path / "b", legacy)):
        if stacked:
            assert_same(tree(each), stack(A, B))
        else:
            assert "2 LSTMs" in refusal(each)


def test_layers_side_by_side_are_no_stack(tmp_path: Path) -> None:
    square = [wf.random_cell(4, 4, k) for k in range(2)]
    layers = {f"l_{k}": wf.legacy_weights(f"l_{k}/lstm_cell", cell) for k, cell in enumerate(square)}
    assert_same(tree(wf.write_legacy_h5(tmp_path / "a", layers)), stack(*square))
    assert "2 LSTMs" in refusal(wf.write_legacy_h5(tmp_path / "b", layers | {"concatenate_1": {}}))


# Graphs.


def functional(name: str, layers: list[tuple[dict[str, Any], Any]], outputs: list[Any], keras: int) -> dict[str, Any]:
    """Each layer with its calls, and each call with the names of what it takes."""

    def node(call: list[str]) -> Any:
        if keras == 2:
            return [[source, 0, 0, {}] for source in call]
        found = [{"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}} for source in call]
        return {"args": found if len(found) == 1 else [found], "kwargs": {}}

    entries = [
        {**entry, "name": entry["config"]["name"], "inbound_nodes": [node(call) for call in calls]} for entry, calls in layers
    ]
    inputs = [[entry["config"]["name"], 0, 0] for entry, calls in layers if not calls]
    ends = [[output, 0, 0] for output in outputs]
    if keras == 3 and len(inputs) == len(ends) == 1:
        inputs, ends = inputs[0], ends[0]
    config = {"name": name, "layers": entries, "input_layers": inputs, "output_layers": ends}
    return {"class_name": "Functional", "config": config}


def entry(kind: str, name: str) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name}}


@pytest.mark.parametrize("keras", [2, 3])
def test_a_stack_goes_through_models_inside(keras: int, tmp_path: Path) -> None:
    inner = functional("inner", [(entry("InputLayer", "i"), []), (wf.keras_lstm("deep", 5), [["i"]])], ["deep"], keras)
    layers = [
        (entry("InputLayer", "x"), []),
        (wf.keras_lstm("low", 4), [["x"]]),
        (inner, [["low"]]),
        (wf.keras_lstm("top", 2), [["inner"]]),
    ]
    config = functional("outer", layers, ["top"], keras)
    path = archive(tmp_path / "a", config, {"layers/lstm": A, "layers/functional/layers/lstm": B, "layers/lstm_1": C})
    assert_same(tree(path), stack(A, B, C))


@pytest.mark.parametrize("keras", [2, 3])
def test_branches_and_shared_layers_are_no_stack(keras: int, tmp_path: Path) -> None:
    one, two = (wf.random_cell(4, 4, k) for k in (20, 21))
    cells = {"layers/lstm": one, "layers/lstm_1": two}
    x = (entry("InputLayer", "x"), [])
    a, b = wf.keras_lstm("a", 4), wf.keras_lstm("b", 4)
    branches = [x, (a, [["x"]]), (b, [["x"]]), (entry("Concatenate", "c"), [["a", "b"]])]
    assert "2 LSTMs" in refusal(archive(tmp_path / "a", functional("m", branches, ["c"], keras), cells))
    got = load(tmp_path / "a", select="a")
    assert (got.before, got.after) == ((), ("c (Concatenate)",))
    shared = [x, (entry("InputLayer", "y"), []), (a, [["x"], ["y"]]), (b, [["a"]])]
    assert "2 LSTMs" in refusal(archive(tmp_path / "b", functional("m", shared, ["b"], keras), cells))
    added = [x, (entry("Add", "s"), [["x", "x"]]), (a, [["s"]]), (b, [["a"]])]
    got = load(archive(tmp_path / "c", functional("m", added, ["b"], keras), cells))
    assert got.before == ("s (Add)",)
    residual = [*branches[:2], (entry("Add", "s"), [["x", "a"]]), (b, [["s"]])]
    assert "2 LSTMs" in refusal(archive(tmp_path / "d", functional("m", residual, ["b"], keras), cells))


def test_layers_that_the_file_does_not_tell_apart(tmp_path: Path) -> None:
    inner = wf.sequential(wf.keras_lstm("one", 4), wf.keras_lstm("two", 4))
    inner["config"]["name"] = "inner"  # type: ignore[index]
    path = wf.write_legacy_h5(tmp_path / "a", {"inner": wf.legacy_weights("lstm/lstm_cell", A)}, wf.sequential(inner))
    assert "told apart" in refusal(path)


JUNK: tuple[Any, ...] = (
    *(None, True, 0, 3.5, "x", [], {}, [[]], [None], ["a", 0, 0], "LSTM", "RNN", {"config": None}, {"class_name": ["a"]}),
    *({"class_name": "RNN", "config": {"cell": None}}, {"class_name": "LSTM"}, {"config": {"cells": 3.5}}, "\x1b[31m", 1e400),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container in a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def test_configurations_that_make_no_sense(tmp_path: Path) -> None:
    """A tree, or one line: nothing in a configuration is believed."""
    rng = np.random.default_rng(0)
    both = {"class_name": "Bidirectional", "config": {"name": "b", "layer": wf.keras_lstm("i", 2), "merge_mode": "sum"}}
    layers = [(entry("InputLayer", "x"), []), (both, [["x"]]), (rnn("r", 3, 2), [["b"]])]
    groups = {"layers/bidirectional/forward_layer": FW, "layers/bidirectional/backward_layer": BW, "layers/rnn": FW2}
    weights = keras3(tmp_path / "w", groups).read_bytes()
    for k in range(300):
        config = json.loads(
            json.dumps(functional("m", layers, ["r"], 2 + k % 2) if k % 3 else wf.sequential(both, rnn("r", 3, 2)))
        )
        for _ in range(int(rng.choice([1, 1, 3]))):
            choices = places(config)
            container, key = choices[rng.integers(len(choices))]
            container[key] = json.loads(json.dumps(JUNK[rng.integers(len(JUNK))]))
        path = wf.write_keras(tmp_path / "f", config, weights)
        with contextlib.suppress(LstmcliError):
            load(path, select="r" if k % 5 == 0 else ())
