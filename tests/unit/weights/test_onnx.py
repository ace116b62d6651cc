"""ONNX: LSTM nodes in the order of the data flow, their attributes, and data in other files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli
from helpers.importing import assert_same, load, refusal, tree

CELL = wf.random_cell(3, 4, 0)
BACK = wf.random_cell(3, 4, 1)
FULL = wf.random_cell(3, 4, 2, peephole=True)
ORDER = ("W", "R", "B", "lens", "h", "c", "P")


def lstm(k: int, cells: Iterable[naive.Cell], x: str = "X", **attributes: object) -> tuple[bytes, list[bytes]]:
    """A node and its initializers."""
    cells = list(cells)
    weights = wf.onnx_weights(cells)
    inputs = [x, *(f"{name}{k}" if name in weights else "" for name in ORDER)]
    if len(cells) > 1:
        attributes["direction"] = "bidirectional"
    node = wf.onnx_node("LSTM", inputs, [f"Y{k}", f"H{k}"], f"lstm{k}", hidden_size=cells[0].units, **attributes)
    return node, [wf.onnx_tensor(f"{name}{k}", value) for name, value in weights.items()]


def write(path: Path, *parts: tuple[bytes, list[bytes]] | bytes) -> Path:
    nodes = [part if isinstance(part, bytes) else part[0] for part in parts]
    return wf.write_onnx(path, nodes, [tensor for part in parts if not isinstance(part, bytes) for tensor in part[1]])


def test_directions(tmp_path: Path) -> None:
    assert_same(tree(write(tmp_path / "f", lstm(0, [CELL]))), naive.Stack((CELL,)))
    assert_same(tree(write(tmp_path / "r", lstm(0, [CELL], direction="reverse"))), naive.Stack((naive.Reverse(CELL),)))
    assert_same(tree(write(tmp_path / "b", lstm(0, [CELL, BACK]))), naive.Stack((naive.Bidirectional(CELL, BACK),)))
    assert "sideways" in refusal(write(tmp_path / "s", lstm(0, [CELL], direction="sideways")))


def test_optional_weights(tmp_path: Path) -> None:
    assert_same(tree(write(tmp_path / "p", lstm(0, [FULL]))), naive.Stack((FULL,)))
    none = replace(CELL, bias=None)
    assert_same(tree(write(tmp_path / "n", lstm(0, [none]))), naive.Stack((none,)))


def test_constants_and_other_ways_to_store_numbers(tmp_path: Path) -> None:
    weights = wf.onnx_weights([CELL])
    kernel = weights["W"]
    node, tensors = lstm(0, [CELL])
    constant = wf.field(1, "value") + wf.field(5, wf.onnx_tensor("", kernel)) + wf.field(20, 4)
    made = wf.field(2, "W0") + wf.field(4, "Constant") + wf.field(5, constant)
    assert_same(tree(wf.write_onnx(tmp_path / "c", [made, node], tensors[1:])), naive.Stack((CELL,)))
    sizes = b"".join(wf.field(1, size) for size in kernel.shape)
    packed = wf.field(1, b"".join(map(wf.v, kernel.shape))) + wf.field(2, 1) + wf.field(8, "W0") + wf.field(4, kernel.tobytes())
    assert_same(tree(wf.write_onnx(tmp_path / "d", [node], [packed, *tensors[1:]])), naive.Stack((CELL,)))
    half = kernel.astype("f2")
    halves = (
        sizes + wf.field(2, 10) + wf.field(8, "W0") + wf.field(5, b"".join(wf.v(int(n)) for n in half.view("u2").reshape(-1)))
    )
    (cell,) = tree(wf.write_onnx(tmp_path / "e", [node], [halves, *tensors[1:]])).layers  # type: ignore[union-attr]
    np.testing.assert_array_equal(cell.input_kernel, CELL.input_kernel.astype("f2"))


def test_layers_in_the_order_of_the_data(tmp_path: Path) -> None:
    """Written from the top to the bottom, with what torch and Keras put between."""
    top = wf.random_cell(8, 4, 3)
    nodes = [
        lstm(1, [top], "R0"),
        wf.onnx_node("Reshape", ["T0", "shape"], ["R0"]),
        wf.onnx_node("Transpose", ["Y0"], ["T0"], perm=[0, 2, 1, 3]),
        lstm(0, [CELL, BACK]),
    ]
    assert_same(tree(write(tmp_path / "a", *nodes)), naive.Stack((naive.Bidirectional(CELL, BACK), top)))


@pytest.mark.parametrize(
    "between",
    [
        [wf.onnx_node("Squeeze", ["Y0"], ["S"]), wf.onnx_node("Relu", ["S"], ["Z"])],
        [wf.onnx_node("Add", ["Y0", "Y0"], ["Z"])],
        [wf.onnx_node("Transpose", ["Y0"], ["Z"], perm=[0, 3, 1, 2])],
        [wf.onnx_node("Identity", ["H0"], ["Z"])],
        [wf.onnx_node("Identity", ["Z"], ["Z"])],
    ],
)
def test_layers_with_something_between_are_two(between: list[bytes], tmp_path: Path) -> None:
    top = wf.random_cell(4, 4, 3)
    path = write(tmp_path / "a", lstm(0, [CELL]), *between, lstm(1, [top], "Z"))
    text = refusal(path)
    for word in ("2 LSTMs", "lstm0", "lstm1", "--select"):
        assert word in text
    assert_same(tree(path, select="lstm1"), naive.Stack((top,)))


ACTIVATIONS = {
    ("Sigmoid", "Tanh", "Tanh"): ("sigmoid", "tanh", {}),
    ("sigmoid", "Relu", "Relu"): ("sigmoid", "relu", {}),
    ("HardSigmoid", "Softsign", "Softsign"): ("hard_sigmoid_keras2", "softsign", {}),
    ("HardSigmoid", "Softplus", "Softplus"): (
        "hard_sigmoid",
        "softplus",
        {"activation_alpha": [1 / 6], "activation_beta": [0.5]},
    ),
    ("Sigmoid", "Elu", "Elu"): ("sigmoid", "elu", {"activation_alpha": [1.0, 1.0]}),
    ("Sigmoid", "Affine", "Affine"): ("sigmoid", "linear", {"activation_alpha": [1.0, 1.0], "activation_beta": [0.0, 0.0]}),
}


@pytest.mark.parametrize("names", ACTIVATIONS)
def test_activations(names: tuple[str, ...], tmp_path: Path) -> None:
    gates, output, numbers = ACTIVATIONS[names]
    want = replace(CELL, recurrent_activation=gates, activation=output)
    assert_same(tree(write(tmp_path / "a", lstm(0, [CELL], activations=list(names), **numbers))), naive.Stack((want,)))


def test_each_direction_has_its_activations(tmp_path: Path) -> None:
    names = ["Sigmoid", "Relu", "Relu", "HardSigmoid", "Tanh", "Tanh"]
    got = tree(write(tmp_path / "a", lstm(0, [CELL, BACK], activations=names)))
    back = replace(BACK, recurrent_activation="hard_sigmoid_keras2")
    assert_same(got, naive.Stack((naive.Bidirectional(replace(CELL, activation="relu"), back),)))


def test_clip_and_coupled_gates(tmp_path: Path) -> None:
    got = tree(write(tmp_path / "a", lstm(0, [CELL], clip=0.5, input_forget=1, layout=1)))
    assert_same(got, naive.Stack((replace(CELL, gate_clip=0.5, input_forget=True),)))


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ({"activations": ["Sigmoid", "Tanh", "Relu"]}, "relu"),
        ({"activations": ["Sigmoid", "Tanh"]}, "expected 3"),
        ({"activations": ["Sigmoid", "LeakyRelu", "LeakyRelu"]}, "LeakyRelu"),
        ({"activations": ["Tanh", "Tanh", "Tanh"]}, "recurrent_activation"),
        ({"activations": ["Sigmoid", "Elu", "Elu"], "activation_alpha": [0.5, 0.5]}, "Elu"),
        ({"clip": -1.0}, "gate_clip"),
        ({"novelty": 1}, "novelty"),
        ({"clip": 3}, "field 2 is missing"),
    ],
)
def test_attributes_that_cannot_be_run(attributes: dict[str, object], word: str, tmp_path: Path) -> None:
    assert word in refusal(write(tmp_path / "a", lstm(0, [CELL], **attributes)))


def test_hidden_size_and_shapes_must_agree(tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    assert "hidden_size" in refusal(
        write(tmp_path / "a", (wf.onnx_node("LSTM", ["X", "W0", "R0"], ["Y"], hidden_size=5), tensors))
    )
    for name in ("R", "B"):
        weights = wf.onnx_weights([CELL])
        weights[name] = weights[name][..., 1:]
        changed = [wf.onnx_tensor(f"{key}0", value) for key, value in weights.items()]
        refusal(write(tmp_path / name, (node, changed)))


def test_weights_that_are_computed(tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    computed = wf.onnx_node("Concat", ["A"], ["W0"])
    assert "fold constants" in refusal(write(tmp_path / "a", computed, (node, tensors[1:])))


def test_initial_states(tmp_path: Path) -> None:
    tensors = lstm(0, [CELL])[1]
    node = wf.onnx_node("LSTM", ["X", "W0", "R0", "B0", "", "h", "c"], ["Y"], hidden_size=4)
    states = [wf.onnx_tensor(name, np.zeros((1, 1, 4), "f4")) for name in "hc"]
    assert load(write(tmp_path / "zeros", (node, tensors + states))).notes == ()
    assert "initial states" in load(write(tmp_path / "computed", (node, tensors))).notes[0]
    states[1] = wf.onnx_tensor("c", np.ones((1, 1, 4), "f4"))
    assert "initial_c" in refusal(write(tmp_path / "learned", (node, tensors + states)))


def test_no_lstm(tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    assert "W0 (1, 16, 3)" in refusal(write(tmp_path / "a", (node.replace(b"LSTM", b"GRUX"), tensors)))
    (tmp_path / "b").write_bytes(wf.field(1, 8) + wf.field(2, "nothing in it"))
    refusal(tmp_path / "b")


# Data in other files.


def external(tmp_path: Path, location: str, data: bytes | None = None, **entries: object) -> Path:
    """A model in tmp_path/model/ whose W lies at `location`."""
    kernel = wf.onnx_weights([CELL])["W"]
    node, tensors = lstm(0, [CELL])
    pairs = {"location": location, **{key: str(value) for key, value in entries.items()}}
    outside = b"".join(wf.field(13, wf.field(1, key) + wf.field(2, value)) for key, value in pairs.items())
    tensor = (
        b"".join(wf.field(1, size) for size in kernel.shape) + wf.field(2, 1) + wf.field(8, "W0") + outside + wf.field(14, 1)
    )
    (tmp_path / "model").mkdir(exist_ok=True)
    for folder in (tmp_path, tmp_path / "model"):
        (folder / "w.bin").write_bytes(b"\xff" * 8 + kernel.tobytes() if data is None else data)
    return wf.write_onnx(tmp_path / "model" / "m.onnx", [node], [tensor, *tensors[1:]])


def test_external_data_in_the_same_folder(tmp_path: Path) -> None:
    assert_same(tree(external(tmp_path, "w.bin", offset=8, length=192)), naive.Stack((CELL,)))
    assert_same(tree(external(tmp_path, "./w.bin", offset=8)), naive.Stack((CELL,)))


@pytest.mark.parametrize(
    "location", ["../w.bin", "sub/../../w.bin", "/etc/passwd", "", "link.bin", "linked/w.bin", "../model/../w.bin"]
)
def test_external_data_elsewhere_is_refused_by_name(location: str, tmp_path: Path) -> None:
    path = external(tmp_path, location, offset=8)
    (path.parent / "link.bin").symlink_to("../w.bin")
    (path.parent / "linked").symlink_to("..")
    assert "outside of the model's folder" in refusal(path)
    assert_one_line(lstmcli("model", "show", path, cwd=tmp_path), 65, "m.onnx", "W0", location)


def test_external_data_that_lies(tmp_path: Path) -> None:
    assert "192" in refusal(external(tmp_path, "w.bin", offset=9))
    assert "191" in refusal(external(tmp_path, "w.bin", offset=8, length=191))
    assert "damaged" in refusal(external(tmp_path, "w.bin", offset="x"))
    refusal(external(tmp_path, "w.bin", offset=-8))
    assert "plain file" in refusal(external(tmp_path, "."))
    refusal(external(tmp_path, "missing.bin"), 66)


def test_onnxruntime_itself(tmp_path: Path) -> None:
    """The files of these tests mean to ONNX Runtime what they mean here."""
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed; PyTorch's export stands for it")
    x = np.random.default_rng(0).normal(0, 2, (6, 2, 3)).astype(np.float32)
    cases: list[tuple[list[naive.Cell], dict[str, object]]] = [
        ([FULL, replace(FULL, input_kernel=FULL.input_kernel[::-1].copy())], {}),
        ([FULL], {"clip": 0.7}),
        ([CELL], {"input_forget": 1}),
        ([CELL], {"direction": "reverse", "activations": ["HardSigmoid", "Relu", "Relu"]}),
        ([CELL], {"activations": ["Sigmoid", "Softsign", "Softsign"], "clip": 0.5}),
    ]
    for k, (cells, attributes) in enumerate(cases):
        node, tensors = lstm(0, cells, **attributes)
        path = wf.write_onnx(tmp_path / f"{k}.onnx", [node], tensors, {"X": (6, 2, 3)}, ["Y0"])
        (want,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["Y0"], {"X": x})
        got, _ = naive.run(tree(path), x.swapaxes(0, 1))
        np.testing.assert_allclose(got.swapaxes(0, 1), np.concatenate(list(want.swapaxes(0, 1)), axis=-1), rtol=0, atol=2e-6)
