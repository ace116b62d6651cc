"""ONNX: LSTM nodes in the order of the data flow, their attributes, and what is told of the rest of the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.onnx_files import graph, lstm, with_graphs, write
from helpers.weight_imports import assert_same, load, refusal, tree

CELL = wf.random_cell(3, 4, 0)
BACK = wf.random_cell(3, 4, 1)
FULL = wf.random_cell(3, 4, 2, peephole=True)


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
        lstm(1, [top], "S0"),
        (wf.onnx_node("Reshape", ["T0", "shape"], ["S0"]), [wf.onnx_tensor("shape", np.array([0, 0, -1]))]),
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
    assert "initial states" in load(write(tmp_path / "inputs", (node, tensors))).notes[0]
    computed = [wf.onnx_node("Relu", [name], [name.lower()]) for name in "HC"]
    assert "initial states" in load(write(tmp_path / "computed", *computed, (node, tensors))).assumed[0]
    start = np.arange(4, dtype="f4")
    states[1] = wf.onnx_tensor("c", start.reshape(1, 1, 4))
    assert_same(tree(write(tmp_path / "learned", (node, tensors + states))), naive.Stack((replace(CELL, initial_c=start),)))
    states[1] = wf.onnx_tensor("c", np.tile(start, (1, 5, 1)))
    assert_same(tree(write(tmp_path / "tiled", (node, tensors + states))), naive.Stack((replace(CELL, initial_c=start),)))
    states[1] = wf.onnx_tensor("c", np.arange(28, dtype="f4").reshape(1, 7, 4))
    text = refusal(write(tmp_path / "each", (node, tensors + states)))
    assert "initial_c" in text
    assert "7 sequences" in text
    states[1] = wf.onnx_tensor("c", np.ones((1, 1, 5), "f4"))
    assert "initial_c" in refusal(write(tmp_path / "width", (node, tensors + states)))


def test_no_lstm(tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    assert "W0 (1, 16, 3)" in refusal(write(tmp_path / "a", (node.replace(b"LSTM", b"GRUX"), tensors)))
    (tmp_path / "b").write_bytes(wf.field(1, 8) + wf.field(2, "nothing in it"))
    refusal(tmp_path / "b")


def test_what_is_before_and_after(tmp_path: Path) -> None:
    emb = wf.onnx_node("Gather", ["table", "X"], ["e"], "embed")
    nodes = [
        (emb, [wf.onnx_tensor("table", np.ones((9, 3), "f4"))]),
        wf.onnx_node("Relu", ["e"], ["f"], "act"),
        wf.onnx_node("Transpose", ["f"], ["g"], perm=[1, 0, 2]),
        lstm(0, [CELL], "g"),
        wf.onnx_node("Sigmoid", ["Y0"], ["p"], "head"),
    ]
    found = load(write(tmp_path / "a", *nodes))
    assert found.before == ("Gather 'embed'", "Relu 'act'")
    assert found.after == ("Sigmoid 'head'",)


def test_what_is_no_lstm_is_called_by_its_name(tmp_path: Path) -> None:
    quantized = wf.onnx_node("DynamicQuantizeLSTM", ["X"], ["Y"], "q") + wf.field(7, "com.microsoft")
    cell = [wf.onnx_node(operator, ["X"], [f"{operator}{k}"]) for k, operator in enumerate(["Sigmoid"] * 3 + ["Tanh"] * 2)]
    loop = with_graphs("Scan", ["X"], ["Y"], "rnn_loop", body=graph(cell, (), ["Tanh4"]))
    for nodes, words in {
        (quantized,): ["DynamicQuantizeLSTM", "'q'", "int8", "float model"],
        (wf.onnx_node("GRU", ["X"], ["Y"], "g"),): ["GRU", "'g'"],
        (loop,): ["Scan 'rnn_loop'", ".keras"],
        tuple(cell): ["3 Sigmoid", "state_dict"],
        (wf.onnx_node("Conv", ["X"], ["Y"]),): ["Conv"],
    }.items():
        text = refusal(write(tmp_path / "a", *nodes))
        for word in words:
            assert word in text


def test_lengths_in_the_graph(tmp_path: Path) -> None:
    """Whether ONNX itself would mask the padding; lengths that are numbers of the file belong to other sequences."""
    node, tensors = lstm(0, [CELL])
    masked = wf.onnx_node("LSTM", ["X", "W0", "R0", "B0", "lens"], ["Y0"], "lstm0", hidden_size=4)
    assert load(write(tmp_path / "no", (node, tensors))).masked is False
    found = load(write(tmp_path / "yes", (masked, tensors)))
    assert (found.masked, found.assumed) == (True, ())
    stored = [*tensors, wf.onnx_tensor("lens", np.array([3, 2]))]
    assert "sequence_lens" in load(write(tmp_path / "stored", (masked, stored))).assumed[0]


@pytest.mark.parametrize("text", ["models/m.onnx", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"])
def test_a_file_that_stands_for_another(text: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write(tmp_path / "models" / "m.onnx", lstm(0, [CELL]))
    (tmp_path / "m.onnx").write_text(text)
    assert ("git lfs" if "lfs" in text else "models/m.onnx") in refusal(tmp_path / "m.onnx")


@pytest.mark.peers
def test_onnxruntime_itself(tmp_path: Path) -> None:
    """The files of these tests mean to ONNX Runtime what they mean here."""
    ort = pytest.importorskip("onnxruntime", reason="PyTorch's export stands for it; pip install onnxruntime")
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
