"""Weights that an ONNX graph puts together: folded where their numbers are in the file, refused where they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import naive
from helpers import weight_files as wf
from helpers.onnx_files import chunks, lstm, random_constant
from helpers.weight_imports import as_naive, assert_same, load, refusal, tree

CELL = wf.random_cell(3, 4, 0)


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
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
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
