"""TensorFlow 1 and older: cells under the scopes that their authors chose, and what is meant by a folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli, succeed
from helpers.weight_imports import assert_same, load, refusal, tree


def cell(features: int, units: int, seed: int, **options: Any) -> naive.Cell:
    return replace(wf.random_cell(features, units, seed, **options), forget_bias=1.0)


ONE, TWO = cell(3, 5, 0), cell(5, 4, 1)
FW, BW = cell(3, 5, 2), cell(3, 5, 3)
FW2, BW2 = cell(5, 4, 4), cell(5, 4, 5)


def variables(cells: dict[str, naive.Cell]) -> wf.Arrays:
    found: wf.Arrays = {}
    for scope, each in cells.items():
        found |= wf.tensorflow_variables(each, scope)
    return found


def checkpoint(path: Path, cells: dict[str, naive.Cell], **more: np.ndarray) -> Path:
    return wf.write_checkpoint(path, variables(cells) | more)


@pytest.mark.parametrize("scope", ["bilstm", "a/b/enc", "", "x/bidirectional_rnn_1", "rnn/BiRNN"])
def test_directions_under_any_scope_are_one_model(scope: str, tmp_path: Path) -> None:
    inside = f"{scope}/" if scope else ""
    path = checkpoint(tmp_path / "m", {f"{inside}fw/lstm_cell": FW, f"{inside}bw/lstm_cell": BW})
    assert_same(tree(path), naive.Bidirectional(FW, BW))
    for select, one in (("fw", FW), ("bw", BW)):
        if inside:
            assert_same(tree(path, select=f"{inside}{select}"), naive.Stack((one,)))
    assert_same(tree(path, select=(f"fw={inside}bw", f"bw={inside}fw")), naive.Bidirectional(BW, FW))
    stacks = {
        f"{inside}{side}/multi_rnn_cell/cell_{k}/lstm_cell": one
        for side, pair in (("fw", (FW, FW2)), ("bw", (BW, BW2)))
        for k, one in enumerate(pair)
    }
    want = naive.Bidirectional(naive.Stack((FW, FW2)), naive.Stack((BW, BW2)))
    assert_same(tree(checkpoint(tmp_path / "n", stacks)), want)


def test_pairs_upon_pairs_under_any_scope(tmp_path: Path) -> None:
    wide = cell(10, 4, 6), cell(10, 4, 7)
    cells = {
        f"enc/cell_{k}/bidirectional_rnn/{side}/lstm_cell": one
        for k, pair in enumerate([(FW, BW), wide])
        for side, one in zip(("fw", "bw"), pair, strict=True)
    }
    want = naive.Stack((naive.Bidirectional(FW, BW), naive.Bidirectional(*wide)))
    assert_same(tree(checkpoint(tmp_path / "m", cells)), want)


def test_only_what_is_certainly_a_pair_is_one(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m", {"enc/fw/rnn/lstm_cell": FW, "enc/bw/rnn/lstm_cell": BW})
    assert "2 LSTMs" in refusal(path)
    assert_same(tree(path, select=("fw=enc/fw", "bw=enc/bw")), naive.Bidirectional(FW, BW))
    assert_same(tree(checkpoint(tmp_path / "n", {"enc/fw/lstm_cell": FW})), naive.Stack((FW,)))
    path = checkpoint(tmp_path / "o", {"enc/fw/lstm_cell": FW, "dec/bw/lstm_cell": BW})
    assert "2 LSTMs" in refusal(path)
    other = cell(4, 5, 8)
    assert "forward" in refusal(checkpoint(tmp_path / "p", {"enc/fw/lstm_cell": FW, "enc/bw/lstm_cell": other}))


def test_cells_of_one_scope_are_kept_apart(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m", {"words/lstm_fused_cell": FW, "words/lstm_fused_cell_1": BW})
    text = refusal(path)
    assert all(word in text for word in ("2 LSTMs", "words/lstm_fused_cell_1", "--select"))
    assert_same(tree(path, select="words/lstm_fused_cell"), naive.Stack((FW,)))
    assert_same(tree(path, select="words/lstm_fused_cell_1"), naive.Stack((BW,)))
    path = checkpoint(tmp_path / "n", {"lstm_cell": FW, "lstm_cell_1": BW, "basic_lstm_cell": ONE})
    assert_same(tree(path, select="lstm_cell"), naive.Stack((FW,)))
    assert_same(tree(path, select="basic"), naive.Stack((ONE,)))


def test_stacks_of_one_scope_are_kept_apart(tmp_path: Path) -> None:
    cells = {
        f"rnn/multi_rnn_cell{end}/cell_{k}/lstm_cell": one
        for end, pair in (("", (ONE, TWO)), ("_1", (FW, FW2)))
        for k, one in enumerate(pair)
    }
    path = checkpoint(tmp_path / "m", cells)
    assert "rnn/multi_rnn_cell_1" in refusal(path)
    assert_same(tree(path, select="rnn/multi_rnn_cell"), naive.Stack((ONE, TWO)))
    assert_same(tree(path, select="rnn/multi_rnn_cell_1"), naive.Stack((FW, FW2)))
    again = {name.replace("multi_rnn_cell_1", "multi_rnn_cell") + "_1" * ("_1/" in name): one for name, one in cells.items()}
    path = checkpoint(tmp_path / "n", again)
    assert "rnn/lstm_cell_1" in refusal(path)
    assert_same(tree(path, select="rnn/lstm_cell_1"), naive.Stack((FW, FW2)))


def test_layers_may_have_cells_of_two_kinds(tmp_path: Path) -> None:
    cells = {"rnn/multi_rnn_cell/cell_0/basic_lstm_cell": ONE, "rnn/multi_rnn_cell/cell_1/lstm_cell": TWO}
    assert_same(tree(checkpoint(tmp_path / "m", cells)), naive.Stack((ONE, TWO)))


def test_names_of_tensorflow_0(tmp_path: Path) -> None:
    def linear(one: naive.Cell, scope: str) -> wf.Arrays:
        return wf.tensorflow_variables(one, f"{scope}/BasicLSTMCell/Linear", "Matrix", "Bias")

    assert_same(tree(wf.write_checkpoint(tmp_path / "a", linear(ONE, "lstm"))), naive.Stack((ONE,)))
    two = linear(ONE, "RNN/MultiRNNCell/Cell0") | linear(TWO, "RNN/MultiRNNCell/Cell1")
    assert_same(tree(wf.write_checkpoint(tmp_path / "b", two)), naive.Stack((ONE, TWO)))
    for k, sides in enumerate([("BiRNN/FW", "BiRNN/BW"), ("BiRNN_FW", "BiRNN_BW")]):
        pair = linear(FW, sides[0]) | linear(BW, sides[1])
        assert_same(tree(wf.write_checkpoint(tmp_path / f"c{k}", pair)), naive.Bidirectional(FW, BW))
    full = cell(3, 5, 9, peephole=True, projection=2)
    names = {"kernel": "W_0", "bias": "B", "projection/kernel": "W_P_0"}
    names |= {f"w_{gate}_diag": f"W_{gate.upper()}_diag" for gate in "ifo"}
    found = {f"RNN/LSTMCell/{names[name[1:]]}": value for name, value in wf.tensorflow_variables(full, "").items()}
    assert_same(tree(wf.write_checkpoint(tmp_path / "d", found)), naive.Stack((full,)))


@pytest.mark.parametrize("name", ["gamma", "input/gamma", "w_z", "kernel_norm/scale", "W_1"])
def test_a_variable_that_no_lstm_has_is_refused_by_name(name: str, tmp_path: Path) -> None:
    more = {f"rnn/lstm_cell/{name}": np.ones(20, "f4"), "rnn/lstm_cell/kernel/Adam": np.ones((8, 20), "f4")}
    assert f"rnn/lstm_cell/{name}" in refusal(wf.write_checkpoint(tmp_path / "m", variables({"rnn/lstm_cell": ONE}) | more))
    elsewhere = {f"rnn/other_cell/{name}": np.ones(20, "f4")}
    assert_same(tree(wf.write_checkpoint(tmp_path / "n", variables({"rnn/lstm_cell": ONE}) | elsewhere)), naive.Stack((ONE,)))


# Layers of Keras in a program of TensorFlow 1.


def keras_variables(one: naive.Cell, scope: str) -> wf.Arrays:
    return {name.removesuffix(":0"): value for name, value in wf.legacy_weights(scope, one).items()}


@pytest.mark.parametrize("scope", ["lstm", "lstm/lstm_cell", "a/b/lstm_3/lstm_cell_4"])
def test_a_layer_of_keras_is_asked_for_its_gates(scope: str, tmp_path: Path) -> None:
    plain = wf.random_cell(3, 5, 10)
    path = wf.write_checkpoint(tmp_path / "m", keras_variables(plain, scope))
    text = refusal(path)
    assert "Keras" in text
    assert "--recurrent-activation" in text
    for gates in ("sigmoid", "hard_sigmoid_keras2"):
        assert_same(tree(path, recurrent_activation=gates), naive.Stack((replace(plain, recurrent_activation=gates),)))
    assert "--forget-bias" in refusal(path, 2, recurrent_activation="sigmoid", forget_bias=1.0)


def test_keras_beside_cells_of_tensorflow(tmp_path: Path) -> None:
    plain, back = wf.random_cell(3, 5, 10), wf.random_cell(3, 5, 11)
    pair = keras_variables(plain, "bidirectional/forward_lstm") | keras_variables(back, "bidirectional/backward_lstm")
    path = wf.write_checkpoint(tmp_path / "m", pair | variables({"rnn/lstm_cell": ONE}))
    assert "2 LSTMs" in refusal(path)
    assert_same(tree(path, select="rnn"), naive.Stack((ONE,)))
    assert_same(tree(path, select="bi", recurrent_activation="sigmoid"), naive.Stack((naive.Bidirectional(plain, back),)))
    by_hand = keras_variables(plain, "m/forward_lstm") | keras_variables(back, "m/backward_lstm")
    assert "2 LSTMs" in refusal(wf.write_checkpoint(tmp_path / "n", by_hand))


# What a user names.


def folder(path: Path, *names: str, newest: str | None = None) -> Path:
    path.mkdir()
    for k, name in enumerate(names):
        checkpoint(path / name, {"rnn/lstm_cell": (ONE, FW, BW)[k]})
        (path / f"{name}.meta").write_bytes(b"\n\x04meta")
    if newest is not None:
        (path / "checkpoint").write_text(f'model_checkpoint_path: "{newest}"\nall_model_checkpoint_paths: "{newest}"\n')
    return path


@pytest.mark.parametrize("newest", ["m-2", "/home/of/somebody/run/m-2", "C:\\\\\\\\runs\\\\\\\\m-2"])
def test_a_folder_is_its_newest_checkpoint(newest: str, tmp_path: Path) -> None:
    place = folder(tmp_path / "run", "m-1", "m-2", newest=newest)
    for path in (
        place,
        place / "checkpoint",
        place / "m-2",
        place / "m-2.index",
        place / "m-2.meta",
        place / "m-2.data-00000-of-00001",
    ):
        assert_same(tree(path), naive.Stack((FW,)))
    assert_same(tree(place / "m-1.meta"), naive.Stack((ONE,)))


def test_folders_that_leave_a_question(tmp_path: Path) -> None:
    assert_same(tree(folder(tmp_path / "one", "m-1")), naive.Stack((ONE,)))
    text = refusal(folder(tmp_path / "two", "m-1", "m-2"))
    assert "m-1.index" in text
    assert "m-2.index" in text
    text = refusal(folder(tmp_path / "gone", "m-1", newest="m-3"))
    assert "m-3" in text
    assert "m-1.index" in text
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (other / name).write_text("{}")
    assert "model.safetensors" in refusal(other)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "nothing" in refusal(empty)
    assert_one_line(lstmcli("model", "show", empty, cwd=tmp_path), 65, "folder")


def test_a_file_that_only_has_the_name_is_read_as_what_it_is(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    plain = naive.Stack((wf.random_cell(3, 4, 12),))
    wf.write_state_dict(place / "checkpoint", wf.torch_state_dict(plain, "lstm."))
    assert_same(tree(place / "checkpoint"), plain)


def test_runs_take_a_folder(tmp_path: Path) -> None:
    folder(tmp_path / "run", "m-1", newest="m-1")
    np.save(tmp_path / "x.npy", np.ones((2, 3, 3), "f4"))
    succeed("run", "-i", "x.npy", "-w", "run", "-o", "o.h5", cwd=tmp_path)
    shutil.rmtree(tmp_path / "run")
    assert lstmcli("run", "-i", "x.npy", "-w", "run", "-o", "p.h5", cwd=tmp_path).code == 66
    assert load(checkpoint(tmp_path / "m", {"rnn/lstm_cell": ONE})).kind
