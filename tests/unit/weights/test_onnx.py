"""ONNX: LSTM nodes in the order of the data flow, their attributes, and data in other files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.command import assert_one_line, lstmcli
from helpers.onnx_files import call, chunks, constant, function, graph, lstm, random_constant, with_graphs, write
from helpers.weight_imports import as_naive, assert_same, load, refusal, tree

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


# Weights that the graph puts together.


@pytest.mark.parametrize("operators", [["Unsqueeze"], ["Reshape"], ["Identity", "Cast", "Unsqueeze"]])
def test_weights_put_together_of_pytorch_s(operators: list[str], tmp_path: Path) -> None:
    """As both of PyTorch's exporters leave them: i, f, g, o of the file's weights become i, o, f, c."""
    weights = wf.torch_parameters(CELL, "")
    nodes, tensors = [], []
    for name, key in (("W0", "weight_ih"), ("R0", "weight_hh")):
        more, stored = chunks(name, np.ascontiguousarray(weights[key]), (0, 3, 1, 2), operators)
        nodes += more
        tensors += stored
    biases = [chunks(f"b{k}", weights[f"bias_{k}h"], (0, 3, 1, 2), []) for k in "ih"]
    nodes += [node for more, _ in biases for node in more] + [wf.onnx_node("Concat", ["bi", "bh"], ["b"], axis=0)]
    nodes += [wf.onnx_node("Unsqueeze", ["b", "W0.zero"], ["B0"]), lstm(0, [CELL])[0]]
    found = load(wf.write_onnx(tmp_path / "a", nodes, tensors + [tensor for _, stored in biases for tensor in stored]))
    assert_same(as_naive(found.model), naive.Stack((CELL,)))
    assert {line.name for line in found.mapping} == {"W0.torch", "R0.torch", "bi.torch", "bh.torch"}


def test_weights_folded_of_attributes_and_arithmetic(tmp_path: Path) -> None:
    """Older forms of the operators, halves that are added, and a transposition."""
    kernel = wf.onnx_weights([CELL])["W"]
    half = np.float32(np.float16(kernel))
    node, tensors = lstm(0, [CELL])
    parts = [wf.onnx_tensor("one", half[0].T.copy()), wf.onnx_tensor("two", (kernel - half)[0].T.copy())]
    nodes = [
        wf.onnx_node("Add", ["one", "two"], ["sum"]),
        wf.onnx_node("Transpose", ["sum"], ["turned"]),
        wf.onnx_node("Unsqueeze", ["turned"], ["stacked"], axes=[0, 0 + 1]),
        wf.onnx_node("Squeeze", ["stacked"], ["squeezed"], axes=[1]),
        wf.onnx_node("Slice", ["squeezed"], ["W0"], starts=[0], ends=[2**31 - 1], axes=[1]),
    ]
    assert_same(tree(wf.write_onnx(tmp_path / "a", [*nodes, node], [*parts, *tensors[1:]])), naive.Stack((CELL,)))


@pytest.mark.peers
def test_random_graphs_of_constants(tmp_path: Path) -> None:
    """A kernel in pieces behind random operators that undo each other: ONNX Runtime's numbers, or a refusal."""
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    rng = np.random.default_rng(11)
    read = 0
    for seed in range(60):
        nodes, tensors = random_constant("W0", wf.onnx_weights([CELL])["W"].shape, rng)
        node, others = lstm(0, [CELL])
        path = wf.write_onnx(tmp_path / f"{seed}", [*nodes, node], [*tensors, *others[1:]], {"X": (2, 1, 3)}, ["Y0"])
        x = rng.normal(size=(2, 1, 3)).astype(np.float32)
        try:
            session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception:
            refusal(path)
            continue
        (want,) = session.run(["Y0"], {"X": x})
        got, _ = naive.run(tree(path), x.swapaxes(0, 1))
        np.testing.assert_allclose(got.swapaxes(0, 1), want[:, 0], rtol=0, atol=2e-6)
        read += 1
    assert read > 40


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([wf.onnx_node("MatMul", ["A", "Z"], ["W0"])], ["MatMul", "fold constants"]),
        ([wf.onnx_node("Identity", ["A"], ["W0"])], ["A, an input of the model"]),
        (
            [wf.onnx_node("DequantizeLinear", ["A", "Z"], ["D"]), wf.onnx_node("Identity", ["D"], ["W0"])],
            ["quantized", "float"],
        ),
        (
            [
                wf.onnx_node("Identity", ["Q"], ["P"]),
                wf.onnx_node("Identity", ["P"], ["Q"]),
                wf.onnx_node("Identity", ["P"], ["W0"]),
            ],
            [],
        ),
        ([wf.onnx_node("Transpose", ["R0"], ["W0"], perm=[0, 1])], ["Transpose"]),
        ([wf.onnx_node("Reshape", ["R0", "R0"], ["W0"])], ["Reshape"]),
        ([wf.onnx_node("Dropout", ["R0"], ["r", "W0"])], []),
    ],
)
def test_weights_that_cannot_be_folded(made: list[bytes], words: list[str], tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    text = refusal(wf.write_onnx(tmp_path / "a", [*made, node], tensors[1:]))
    for word in words:
        assert word in text


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile", "Range"])
def test_constants_take_no_memory_to_speak_of(operator: str, tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    huge = [
        wf.onnx_tensor(name, np.array(value))
        for name, value in {"s": [1 << 40], "z": [0], "a": 0, "b": 1 << 40, "c": 1}.items()
    ]
    inputs = {"ConstantOfShape": ["s"], "Expand": ["z", "s"], "Tile": ["z", "s"], "Range": ["a", "b", "c"]}[operator]
    refusal(wf.write_onnx(tmp_path / "a", [wf.onnx_node(operator, inputs, ["W0"]), node], [*huge, *tensors[1:]]))


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


@pytest.mark.peers
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


# Where nodes stand, and what they are called.


def test_lstms_in_branches(tmp_path: Path) -> None:
    """Each branch with names of its own, which may be those of the other."""
    top = wf.random_cell(3, 2, 7)
    narrow, wide = (lstm(0, [cell]) for cell in (CELL, top))
    wide_node = wide[0].replace(b"lstm0", b"other")
    both = {"then_branch": graph([narrow[0]], narrow[1], ["Y0"]), "else_branch": graph([wide_node], wide[1], ["Y0"])}
    path = write(tmp_path / "a", with_graphs("If", ["rate"], ["Z"], "If_0", **both))
    text = refusal(path)
    for word in ("2 LSTMs", "lstm0", "other", "--select"):
        assert word in text
    assert_same(tree(path, select="other"), naive.Stack((top,)))
    assert "If_0/else_branch" in load(path, select="other").notes[0]
    relu = graph([wf.onnx_node("Relu", ["X"], ["R"])], (), ["R"])
    one = with_graphs("If", ["rate"], ["Z"], "If_0", then_branch=relu, else_branch=both["else_branch"])
    assert_same(tree(write(tmp_path / "b", one)), naive.Stack((top,)))
    known = write(tmp_path / "c", constant("rate", np.array(1)), with_graphs("If", ["rate"], ["Z"], "If_0", **both))
    assert_same(tree(known), naive.Stack((CELL,)))  # the other branch is never taken


def test_weights_around_a_branch(tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    branch = graph([node], (), ["Y0"])
    outer = with_graphs("If", ["rate"], ["Z"], "If_0", then_branch=branch, else_branch=graph([], (), ["X"]))
    assert_same(tree(write(tmp_path / "a", (outer, tensors))), naive.Stack((CELL,)))


def test_an_lstm_in_a_loop_must_be_asked_for(tmp_path: Path) -> None:
    node, tensors = lstm(0, [CELL])
    loop = with_graphs("Loop", ["M", "", "s"], ["Z"], "decode", body=graph([node], (), ["Y0"]))
    path = write(tmp_path / "a", (loop, tensors))
    text = refusal(path)
    for word in ("Loop 'decode'", "--select lstm0"):
        assert word in text
    assert_same(tree(path, select="lstm0"), naive.Stack((CELL,)))
    top = lstm(1, [wf.random_cell(3, 2, 7)])
    assert_same(tree(write(tmp_path / "b", (loop, tensors), top)), naive.Stack((wf.random_cell(3, 2, 7),)))


def test_functions_of_the_model(tmp_path: Path) -> None:
    """Called twice, one inside the other, with an attribute handed on and a weight that is folded in the function."""
    top = wf.random_cell(4, 4, 3)
    reference = wf.field(1, "hidden_size") + wf.field(20, 2) + wf.field(21, "units")
    inner = wf.onnx_node("LSTM", ["a", "w", "turned", "b"], ["y"], "inner") + wf.field(5, reference)
    turn = wf.onnx_node("Transpose", ["r"], ["turned"], perm=[0, 2, 1])
    names = ["a", "w", "r", "b"]
    layer = function("Layer", names, ["y"], [turn, inner], ["units"])
    outer = function("Flat", names, ["z"], [call("Layer", names, ["y"], "in", units=4), wf.onnx_node("Squeeze", ["y"], ["z"])])
    tensors = []
    for k, cell in enumerate((CELL, top)):
        weights = wf.onnx_weights([cell])
        weights["R"] = np.ascontiguousarray(weights["R"].swapaxes(1, 2))
        tensors += [wf.onnx_tensor(f"{name}{k}", value) for name, value in weights.items()]
    nodes = [call("Flat", ["Z0", "W1", "R1", "B1"], ["Z1"], "second"), call("Flat", ["X", "W0", "R0", "B0"], ["Z0"], "first")]
    path = wf.write_onnx(tmp_path / "a", nodes, tensors)
    path.write_bytes(path.read_bytes() + layer + outer)
    assert_same(tree(path), naive.Stack((CELL, top)))
    deep = [
        function(f"F{k}", ["a"], ["y"], [call(f"F{k + 1}", ["a"], ["q"]), call(f"F{k + 1}", ["q"], ["y"])]) for k in range(30)
    ]
    path = wf.write_onnx(tmp_path / "b", [call("F0", ["X"], ["Y"])], [])
    path.write_bytes(path.read_bytes() + b"".join(deep))
    assert "nodes" in refusal(path)
    path.write_bytes(path.read_bytes() + function("F30", ["a"], ["y"], [call("F0", ["a"], ["y"])]))
    refusal(path)


def test_nodes_of_one_name(tmp_path: Path) -> None:
    """Are told apart by their outputs, which have names of their own."""
    one, other = lstm(0, [CELL]), lstm(1, [BACK])
    path = write(tmp_path / "a", one, (other[0].replace(b"lstm1", b"lstm0"), other[1]))
    text = refusal(path)
    for word in ("2 LSTMs", "Y0", "Y1"):
        assert word in text
    assert_same(tree(path, select="Y1"), naive.Stack((BACK,)))
    assert "Y0" in refusal(write(tmp_path / "b", one, (one[0].replace(b"lstm0", b"lstm1"), [])))
    assert "W0" in refusal(write(tmp_path / "c", one, (other[0], one[1][:1])))


# What stands between two layers.

BOTH = [CELL, BACK]


def turned(*perm: int) -> bytes:
    return wf.onnx_node("Transpose", ["Y0"], ["t"], perm=list(perm))


def shaped(operator: str, name: str, target: str, *numbers: int) -> tuple[bytes, list[bytes]]:
    return wf.onnx_node(operator, [name, f"{target}.n"], [target]), [wf.onnx_tensor(f"{target}.n", np.array(numbers))]


BETWEEN = {
    "keras2onnx": (
        [CELL],
        [turned(2, 1, 0, 3), shaped("Squeeze", "t", "s", 1), wf.onnx_node("Transpose", ["s"], ["Z"], perm=[1, 0, 2])],
    ),
    "keras2onnx, both": (
        [*BOTH],
        [
            (wf.onnx_node("Split", ["Y0"], ["f", "b"], axis=1), []),
            shaped("Squeeze", "f", "f1", 1),
            shaped("Squeeze", "b", "b1", 1),
            wf.onnx_node("Concat", ["f1", "b1"], ["Z"], axis=2),
        ],
    ),
    "there and back": (
        [*BOTH],
        [turned(2, 0, 1, 3), shaped("Reshape", "t", "r", 0, -1, 8), wf.onnx_node("Transpose", ["r"], ["Z"], perm=[1, 0, 2])],
    ),
    "dropped": (
        [CELL],
        [
            shaped("Squeeze", "Y0", "s", 1),
            wf.onnx_node("Dropout", ["s"], ["d", "mask"]),
            wf.onnx_node("Cast", ["d"], ["Z"], to=1),
        ],
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_one_stack_whatever_moves_its_values(name: str, tmp_path: Path) -> None:
    cells, between = BETWEEN[name]
    top = wf.random_cell(4 * len(cells), 4, 3)
    want = naive.Bidirectional(*cells) if len(cells) > 1 else cells[0]
    assert_same(tree(write(tmp_path / "a", lstm(0, cells), *between, lstm(1, [top], "Z"))), naive.Stack((want, top)))


APART = {
    "directions and sequences mixed up": ([*BOTH], [shaped("Reshape", "Y0", "Z", 0, -1, 8)]),
    "directions the other way round": (
        [*BOTH],
        [
            (wf.onnx_node("Split", ["Y0"], ["f", "b"], axis=1), []),
            shaped("Squeeze", "f", "f1", 1),
            shaped("Squeeze", "b", "b1", 1),
            wf.onnx_node("Concat", ["b1", "f1"], ["Z"], axis=2),
        ],
    ),
    "sequences for steps": ([CELL], [turned(2, 0, 1, 3), shaped("Squeeze", "t", "Z", 2)]),
    "backward in time": (
        [CELL],
        [
            shaped("Squeeze", "Y0", "s", 1),
            (
                wf.onnx_node("Slice", ["s", "-1", "end", "0", "-1"], ["Z"]),
                [
                    wf.onnx_tensor("-1", np.array([-1])),
                    wf.onnx_tensor("end", np.array([-(2**63) + 1])),
                    wf.onnx_tensor("0", np.array([0])),
                ],
            ),
        ],
    ),
    "one direction of two": (
        [*BOTH],
        [(wf.onnx_node("Split", ["Y0"], ["f", "b"], axis=1), []), shaped("Squeeze", "f", "Z", 1)],
    ),
    "a clip": (
        [CELL],
        [
            shaped("Squeeze", "Y0", "s", 1),
            (wf.onnx_node("Min", ["s", "far"], ["Z"]), [wf.onnx_tensor("far", np.float32([9e9]))]),
        ],
    ),
    "rounded": (
        [CELL],
        [shaped("Squeeze", "Y0", "s", 1), wf.onnx_node("Cast", ["s"], ["i"], to=7), wf.onnx_node("Cast", ["i"], ["Z"], to=1)],
    ),
    "a shape of who knows what": ([CELL], [wf.onnx_node("Reshape", ["Y0", "unknown"], ["Z"])]),
}


@pytest.mark.parametrize("name", APART)
def test_two_stacks_where_anything_else_is_done(name: str, tmp_path: Path) -> None:
    cells, between = APART[name]
    top = wf.random_cell(8 if "mixed" in name or "other way" in name else 4, 4, 3)
    path = write(tmp_path / "a", lstm(0, cells), *between, lstm(1, [top], "Z"))
    assert "2 LSTMs" in refusal(path)
    assert_same(tree(path, select="lstm1"), naive.Stack((top,)))


def test_one_step_of_one_sequence_hides_nothing(tmp_path: Path) -> None:
    """A model exported with one step of one sequence has the shapes of a transposition that mixes the two up."""
    top = wf.random_cell(4, 4, 3)
    swap = [shaped("Squeeze", "Y0", "s", 1), wf.onnx_node("Transpose", ["s"], ["Z"], perm=[1, 0, 2])]
    for k, between in enumerate(([shaped("Squeeze", "Y0", "Z", 1)], swap)):
        parts = [lstm(0, [CELL]), *between, lstm(1, [top], "Z")]
        nodes = [part if isinstance(part, bytes) else part[0] for part in parts]
        tensors = [tensor for part in parts if not isinstance(part, bytes) for tensor in part[1]]
        path = wf.write_onnx(tmp_path / f"{k}", nodes, tensors, {"X": (1, 1, 3)}, ["Y1"])
        if between is swap:
            assert "2 LSTMs" in refusal(path)
        else:
            assert_same(tree(path), naive.Stack((CELL, top)))


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


# Folders of links, as the caches of model hubs have them.


def test_external_data_where_the_model_s_link_leads(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin", offset=8)
    for folder in ("snapshot", "elsewhere"):
        (tmp_path / folder).mkdir()
    (blobs := tmp_path / "blobs").mkdir()
    path.rename(blobs / "a1")
    (path.parent / "w.bin").rename(blobs / "b2")
    for name, target in (("m.onnx", "a1"), ("w.bin", "b2")):
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{target}")
    assert_same(tree(tmp_path / "snapshot" / "m.onnx"), naive.Stack((CELL,)))
    (blobs / "w.bin").symlink_to("b2")
    (tmp_path / "elsewhere" / "m.onnx").symlink_to("../blobs/a1")  # a link to the model alone
    assert_same(tree(tmp_path / "elsewhere" / "m.onnx"), naive.Stack((CELL,)))
    (tmp_path / "elsewhere" / "w.bin").symlink_to("../w.bin")  # and one that leads to neither folder
    assert "outside of the model's folder" in refusal(tmp_path / "elsewhere" / "m.onnx")


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
