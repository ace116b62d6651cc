"""Whole ONNX graphs: each operator and each way to move numbers about gives what ONNX Runtime does, or is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcli.engine.chains.prepared_chain import PreparedChain
from lstmcli.errors import DataError
from lstmcli.model.chain import Chain
from lstmcli.model.layers import Activation, Dense, LayerNorm, Pool
from lstmcli.model.tree import Model
from lstmcli.weights.chains.load import WholeModel, load_chain
from lstmcli.weights.draft import Choices

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")

MODELS = Path(__file__).parents[4] / "data" / "models"
Line = tuple[str, str, dict[str, Any]]  # operator, inputs and outputs as in "X W -> Y", attributes
FEATURES, UNITS = 4, 3
FEW = (2, 5)  # sequences, steps


def line(operator: str, names: str, **attributes: object) -> Line:
    return operator, names, attributes


def write(
    folder: Path,
    lines: Sequence[Line],
    arrays: dict[str, Any],
    shape: tuple[int | str, ...],
    opset: int = 17,
    others: Mapping[str, tuple[int, tuple[int | str, ...]]] = {},
) -> Path:
    """A graph from X to Y. arrays: its initializers; a W of 4 x k, an R ... as `lstm` makes them."""
    helper, kind = onnx.helper, onnx.TensorProto
    nodes = []
    for k, (operator, names, attributes) in enumerate(lines):
        inputs, outputs = (["" if name == "_" else name for name in side.split()] for side in names.split("->"))
        nodes.append(helper.make_node(operator, inputs, outputs, f"n{k}", **attributes))
    x = helper.make_tensor_value_info("X", kind.FLOAT if len(shape) == 3 else kind.INT64, shape)
    more = [helper.make_tensor_value_info(name, dtype, size) for name, (dtype, size) in others.items()]
    outputs = [helper.make_tensor_value_info("Y", kind.FLOAT, None)]
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "g", [x, *more], outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path := folder / "m.onnx")
    return path


def lstm_arrays(directions: int = 1, features: int = FEATURES, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"W": (directions, 4 * UNITS, features), "R": (directions, 4 * UNITS, UNITS), "B": (directions, 8 * UNITS)}
    return {name: rng.normal(0, 0.5, size).astype(np.float32) for name, size in shapes.items()}


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(chain: Chain, x: np.ndarray) -> np.ndarray:
    count, steps = x.shape[:2]
    rows = x.reshape(count * steps, -1).astype(np.int64 if chain.takes_ids else np.float32)
    predictions, _ = PreparedChain(chain, np.dtype(np.float32), 1)(rows, np.full(count, steps))
    return predictions.copy()


def check(path: Path, x: np.ndarray, axes: Sequence[int] | None = None) -> WholeModel:
    """Compare with ONNX Runtime. axes: the order in which the graph takes those of x (sequences, steps, features)."""
    given = x if axes is None else x.transpose(axes)
    (want,) = onnxruntime.InferenceSession(str(path)).run(None, {"X": given})
    found = load_chain(str(path), Choices())
    if axes and want.ndim == 3:
        want = want.transpose(np.argsort(axes))
    np.testing.assert_allclose(run(found.chain, x).reshape(want.shape), want, rtol=0, atol=3e-6 * max(1, np.abs(want).max()))
    assert found.masked is False
    return found


def kinds(chain: Chain) -> list[str]:
    return [getattr(layer, "function", layer.kind) for layer in chain.layers]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_chain(str(path), Choices())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.glob("*.onnx")))
def test_exported_by_pytorch(name: str) -> None:
    with np.load(MODELS / f"{name.removesuffix('.onnx').removesuffix('_dynamo')}.npz") as file:
        x, want = file["x"], file["predictions_full"]
    found = load_chain(str(MODELS / name), Choices())
    np.testing.assert_allclose(run(found.chain, x).reshape(want.shape), want, rtol=0, atol=3e-6)
    assert found.kind == "an ONNX model"
    assert found.masked is False


# What goes on upon an LSTM: (sequences, steps, units) is "V", and "H" is its final h (1, sequences, units).
BASE = [
    line("Transpose", "X -> X0", perm=[1, 0, 2]),
    line("LSTM", "X0 W R B -> Y0 H", hidden_size=UNITS),
    line("Squeeze", "Y0 one -> Y1"),
    line("Transpose", "Y1 -> V", perm=[1, 0, 2]),
]
ONE = {"one": np.array([1]), "zero": np.array([0])}


def on_lstm(folder: Path, *lines: Line, static: bool = False, opset: int = 17, **arrays: Any) -> Path:
    shape = (*FEW, FEATURES) if static else ("n", "t", FEATURES)
    return write(folder, [*BASE, *lines], lstm_arrays() | ONE | arrays, shape, opset)


ROWWISE = [
    (line("Relu", "V -> Y"), "relu"), (line("Tanh", "V -> Y"), "tanh"), (line("Sigmoid", "V -> Y"), "sigmoid"),
    (line("Softplus", "V -> Y"), "softplus"), (line("Softsign", "V -> Y"), "softsign"),
    (line("Elu", "V -> Y", alpha=0.7), "elu"),
    (line("Selu", "V -> Y"), "selu"), (line("LeakyRelu", "V -> Y", alpha=0.2), "leaky_relu"),
    (line("PRelu", "V slopes -> Y"), "prelu"), (line("HardSigmoid", "V -> Y"), "hard_sigmoid_keras2"),
    (line("HardSigmoid", "V -> Y", alpha=1 / 6), "hard_sigmoid"), (line("Exp", "V -> Y"), "exponential"),
    (line("Clip", "V low six -> Y"), "relu6"), (line("Softmax", "V -> Y", axis=-1), "softmax"),
    (line("LogSoftmax", "V -> Y", axis=2), "log_softmax"), (line("Mul", "slopes V -> Y"), "affine"),
    (line("Identity", "V -> Y"), None), (line("Dropout", "V -> Y"), None), (line("Neg", "V -> Y"), "affine"),
]  # fmt: skip


@pytest.mark.parametrize(("node", "kind"), ROWWISE, ids=lambda value: value if isinstance(value, str) else "")
def test_what_one_operator_computes_of_a_row(node: Line, kind: str | None, tmp_path: Path) -> None:
    slopes, low, six = random(UNITS), np.float32(0), np.float32(6)
    found = check(on_lstm(tmp_path, node, slopes=slopes, low=low, six=six), random(*FEW, FEATURES))
    assert kinds(found.chain)[1:] == ([kind] if kind else [])


COMPOSED = {
    "silu": [line("Sigmoid", "V -> a"), line("Mul", "V a -> Y")],
    "gelu": [
        line("Div", "V root -> a"), line("Erf", "a -> b"), line("Add", "b I -> c"), line("Mul", "V c -> d"),
        line("Mul", "d half -> Y"),
    ],
    "gelu_tanh": [
        line("Pow", "V three -> a"), line("Mul", "a k -> b"), line("Add", "V b -> c"), line("Mul", "c s -> d"),
        line("Tanh", "d -> e"), line("Add", "e I -> f"), line("Mul", "V half -> g"), line("Mul", "g f -> Y"),
    ],
    "hard_sigmoid": [line("Add", "V three -> a"), line("Clip", "a low six -> b"), line("Div", "b six -> Y")],
    "softplus": [line("Exp", "V -> a"), line("Add", "a I -> b"), line("Log", "b -> Y")],
    "softmax": [
        line("ReduceMax", "V -> m", axes=[-1], keepdims=1), line("Sub", "V m -> a"), line("Exp", "a -> b"),
        line("ReduceSum", "b last -> c", keepdims=1), line("Div", "b c -> Y"),
    ],
    "elu": [
        line("Exp", "V -> a"), line("Sub", "a I -> b"), line("Greater", "V low -> c"), line("Where", "c V b -> Y"),
    ],
    "layer_norm": [
        line("ReduceMean", "V -> m", axes=[-1]), line("Sub", "V m -> d"), line("Pow", "d two -> q"),
        line("ReduceMean", "q -> v", axes=[-1]), line("Add", "v eps -> w"), line("Sqrt", "w -> s2"), line("Div", "d s2 -> z"),
        line("Mul", "z scale -> y0"), line("Add", "y0 shift -> Y"),
    ],
}  # fmt: skip
NUMBERS = {
    "root": np.sqrt(np.float32(2)), "I": np.float32(1), "half": np.float32(0.5), "three": np.float32(3), "two": np.float32(2),
    "k": np.float32(0.044715), "s": np.float32(np.sqrt(2 / np.pi)), "low": np.float32(0), "six": np.float32(6),
    "last": np.array([-1]), "eps": np.float32(1e-5),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_what_several_operators_compute_together(name: str, tmp_path: Path) -> None:
    arrays = NUMBERS | {"scale": random(UNITS), "shift": random(UNITS, seed=2)}
    found = check(on_lstm(tmp_path, *COMPOSED[name], **arrays), random(*FEW, FEATURES))
    assert kinds(found.chain)[1:] == [name]
    top = found.chain.layers[-1]
    if isinstance(top, LayerNorm):
        np.testing.assert_array_equal(top.scale, arrays["scale"])
        assert top.epsilon == 1e-5


def test_functions_one_after_the_other(tmp_path: Path) -> None:
    """A shift, an activation, a scale for each feature, and another activation are four layers."""
    nodes = [line("Add", "V shift -> a"), *COMPOSED["silu"], line("Mul", "b scale -> c"), line("Tanh", "c -> Y")]
    nodes[1:3] = [line("Sigmoid", "a -> s1"), line("Mul", "a s1 -> b")]
    path = on_lstm(tmp_path, *nodes, shift=random(UNITS), scale=random(UNITS, seed=2))
    assert kinds(check(path, random(*FEW, FEATURES)).chain)[1:] == ["affine", "silu", "affine", "tanh"]


def test_normalisations(tmp_path: Path) -> None:
    four = {name: np.abs(random(UNITS, seed=k)) + 0.1 for k, name in enumerate(("g", "b", "m", "v"))}
    nodes = [
        line("LayerNormalization", "V g b -> a", axis=-1, epsilon=1e-3),
        line("Tanh", "a -> t"),
        line("Transpose", "t -> c", perm=[0, 2, 1]),
        line("BatchNormalization", "c g b m v -> d", epsilon=1e-4),
        line("Transpose", "d -> Y", perm=[0, 2, 1]),
    ]
    found = check(on_lstm(tmp_path, *nodes, **four), random(*FEW, FEATURES))
    assert kinds(found.chain)[1:] == ["layer_norm", "tanh", "affine"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_dense(operator: str, bias: bool, tmp_path: Path) -> None:
    kernel, shift = random(UNITS, 2), random(2)
    if operator == "MatMul":
        nodes = [line("MatMul", "V kernel -> a"), line(*("Add", "shift a -> Y") if bias else ("Identity", "a -> Y"))]
    else:
        kernel = kernel.T
        nodes = [
            line("Reshape", "V rows -> a"),
            line("Gemm", f"a kernel {'shift' if bias else ''} -> b", transB=1, alpha=0.5, beta=2.0),
            line("Shape", "V -> s", start=0, end=2),
            line("Concat", "s two -> s3", axis=0),
            line("Reshape", "b s3 -> Y"),
        ]
    path = on_lstm(tmp_path, *nodes, kernel=kernel, shift=shift, rows=np.array([-1, UNITS]), two=np.array([2]))
    (dense,) = check(path, random(*FEW, FEATURES)).chain.layers[1:]
    assert isinstance(dense, Dense)
    assert (dense.bias is not None) == bias


OF_A_SEQUENCE = {
    "last": [line("Gather", "V minus -> Y", axis=1)],
    "last by a slice": [line("Slice", "V from to axis -> a"), line("Squeeze", "a axis -> Y")],
    "last of the final h": [line("Squeeze", "H zero -> Y")],
    "mean": [line("ReduceMean", "V -> Y", axes=[1], keepdims=0)],
    "max": [line("ReduceMax", "V -> a", axes=[-2]), line("Squeeze", "a axis -> Y")],
    "sum": [line("ReduceSum", "V axis -> Y", keepdims=0)],
    "global mean": [
        line("Transpose", "V -> a", perm=[0, 2, 1]),
        line("GlobalAveragePool", "a -> b"),
        line("Flatten", "b -> Y"),
    ],
    "global max": [
        line("Transpose", "V -> a", perm=[0, 2, 1]),
        line("GlobalMaxPool", "a -> b"),
        line("Squeeze", "b last -> Y"),
    ],
}


@pytest.mark.parametrize("name", OF_A_SEQUENCE)
def test_a_vector_of_a_sequence(name: str, tmp_path: Path) -> None:
    arrays = {"minus": np.array(-1), "from": np.array([-1]), "to": np.array([1 << 62]), "axis": np.array([1])}
    path = on_lstm(tmp_path, *OF_A_SEQUENCE[name], last=np.array([-1]), **arrays)
    (pool,) = check(path, random(*FEW, FEATURES)).chain.layers[1:]
    assert isinstance(pool, Pool)
    assert pool.function == ("final" if "final" in name else name.removeprefix("global ").split()[0])


def test_steps_side_by_side(tmp_path: Path) -> None:
    """Also in another order: the kernel of the dense layer above has it."""
    kernel = random(FEW[1] * UNITS, 2)
    for nodes in (
        [line("Flatten", "V -> a"), line("MatMul", "a kernel -> Y")],
        [line("Transpose", "V -> t", perm=[0, 2, 1]), line("Reshape", "t flat -> a"), line("MatMul", "a kernel -> Y")],
    ):
        path = on_lstm(tmp_path, *nodes, static=True, kernel=kernel, flat=np.array([FEW[0], -1]))
        assert kinds(check(path, random(*FEW, FEATURES)).chain)[1:] == ["flatten", "dense"]
    nodes = [line("Reshape", "V any -> a"), line("MatMul", "a kernel -> Y")]
    assert "expected a matrix" in refusal(on_lstm(tmp_path, *nodes, kernel=kernel, any=np.array([0, -1])))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("how", ["states", "ends"])
def test_final_states_of_both_directions(how: str, swapped: bool, tmp_path: Path) -> None:
    ends = ["f", "b"][:: -1 if swapped else 1]
    states = [line("Gather", "H n0 -> f", axis=0), line("Gather", "H n1 -> b", axis=0)]
    if how == "ends":
        states = [
            line("Gather", "Y0 n1 -> l", axis=0), line("Gather", "l n0 -> f", axis=0),
            line("Gather", "Y0 n0 -> s", axis=0), line("Gather", "s n1 -> b", axis=0),
        ]  # fmt: skip
    nodes = [
        line("Transpose", "X -> X0", perm=[1, 0, 2]),
        line("LSTM", "X0 W R B -> Y0 H", hidden_size=UNITS, direction="bidirectional"),
        *states,
        line("Concat", f"{' '.join(ends)} -> a", axis=1),
        line("MatMul", "a kernel -> Y"),
    ]
    arrays = {"n0": np.array(0), "n1": np.array(-1), "kernel": random(2 * UNITS, 2)}
    path = write(tmp_path, nodes, lstm_arrays(2) | arrays, ("n", "t", FEATURES))
    assert kinds(check(path, random(*FEW, FEATURES)).chain)[1:] == ["final", "dense"]


def test_two_lstms_are_a_stack(tmp_path: Path) -> None:
    """The upper one takes both directions side by side; the final states of both are put together, and the upper ones taken."""
    upper = {f"{name}2": value for name, value in lstm_arrays(1, 2 * UNITS, seed=3).items()}
    nodes = [
        line("LSTM", "X W R B -> Y0 H0", hidden_size=UNITS, direction="bidirectional", layout=0),
        line("Transpose", "Y0 -> a", perm=[0, 2, 1, 3]),
        line("Reshape", "a both -> b"),
        line("LSTM", "b W2 R2 B2 _ zeros zeros -> Y1 H1", hidden_size=UNITS),
        line("Concat", "H0 H1 -> h", axis=0),
        line("Gather", "h minus -> Y", axis=0),
    ]
    arrays = {"both": np.array([0, 0, -1]), "minus": np.array(-1), "zeros": np.zeros((1, 2, UNITS), np.float32)}
    path = write(tmp_path, nodes, lstm_arrays(2) | upper | arrays, ("t", 2, FEATURES))
    found = check(path, random(*FEW, FEATURES), (1, 0, 2))
    assert kinds(found.chain) == ["stack", "final"]
    assert any("steps before sequences" in note for note in found.notes)


def test_initial_states_that_are_computed_zeros(tmp_path: Path) -> None:
    nodes = [
        line("Shape", "X -> s"), line("Gather", "s index -> n"), line("Concat", "one n units -> s2", axis=0),
        line("ConstantOfShape", "s2 -> zeros"), line("Transpose", "X -> X0", perm=[1, 0, 2]),
        line("LSTM", "X0 W R B _ zeros zeros -> Y0", hidden_size=UNITS), line("Squeeze", "Y0 one -> a"),
        line("Transpose", "a -> Y", perm=[1, 0, 2]),
    ]  # fmt: skip
    arrays = {"index": np.array([0]), "units": np.array([UNITS])}
    check(write(tmp_path, nodes, lstm_arrays() | ONE | arrays, ("n", "t", FEATURES)), random(*FEW, FEATURES))


def test_token_ids(tmp_path: Path) -> None:
    nodes = [line("Cast", "X -> ids", to=6), line("Gather", "table ids -> X0"), *BASE[:0]]
    nodes += [line("Transpose", "X0 -> X1", perm=[1, 0, 2]), line("LSTM", "X1 W R B -> Y0", hidden_size=UNITS)]
    nodes += [line("Squeeze", "Y0 one -> a"), line("Transpose", "a -> Y", perm=[1, 0, 2])]
    path = write(tmp_path, nodes, lstm_arrays() | ONE | {"table": random(9, FEATURES)}, ("n", "t"))
    found = check(path, np.random.default_rng(0).integers(0, 9, FEW))
    assert kinds(found.chain) == ["embedding", "stack"]


WINDOWS = {
    "valid": [line("Conv", "a kernel bias -> b")],
    "padding, stride": [line("Conv", "a kernel -> b", pads=[2, 1], strides=[2])],
    "dilation": [line("Conv", "a kernel bias -> b", dilations=[2], auto_pad="NOTSET")],
    "same": [line("Conv", "a kernel bias -> b", auto_pad="SAME_UPPER")],
    "causal by a Pad": [line("Pad", "a pads -> p"), line("Conv", "p kernel bias -> b")],
    "max": [line("MaxPool", "a -> b", kernel_shape=[2], strides=[2])],
    "max with padding": [line("MaxPool", "a -> b", kernel_shape=[3], strides=[1], pads=[1, 1])],
    "mean": [line("AveragePool", "a -> b", kernel_shape=[3], strides=[1], pads=[1, 0])],
    "mean with padding": [line("AveragePool", "a -> b", kernel_shape=[3], strides=[1], pads=[1, 1], count_include_pad=1)],
    "two axes": [
        line("Unsqueeze", "a two -> c"), line("Conv", "c kernel2 bias -> d", kernel_shape=[1, 2]),
        line("Squeeze", "d two -> b"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str, tmp_path: Path) -> None:
    kernel = random(6, FEATURES, 2)
    arrays = {"kernel": kernel, "kernel2": kernel[:, :, None], "bias": random(6), "pads": np.array([0, 0, 1, 0, 0, 0])}
    nodes = [line("Transpose", "X -> a", perm=[0, 2, 1]), *WINDOWS[name], line("Transpose", "b -> c0", perm=[0, 2, 1])]
    width = FEATURES if "max" in name or "mean" in name else 6
    nodes += [line("MatMul", "c0 top -> Y")]
    path = write(tmp_path, nodes, arrays | {"top": random(width, 2), "two": np.array([2])}, ("n", "t", FEATURES))
    check(path, random(3, 8, FEATURES))
    channels_first = [*WINDOWS[name], line("Transpose", "b -> c0", perm=[0, 2, 1]), line("MatMul", "c0 top -> Y")]
    channels_first[0] = (channels_first[0][0], channels_first[0][1].replace("a ", "X ", 1), channels_first[0][2])
    path = write(tmp_path, channels_first, arrays | {"top": random(width, 2), "two": np.array([2])}, ("n", FEATURES, "t"))
    x = random(3, 8, FEATURES)
    (want,) = onnxruntime.InferenceSession(str(path)).run(None, {"X": x.transpose(0, 2, 1)})
    np.testing.assert_allclose(run(load_chain(str(path), Choices()).chain, x).reshape(want.shape), want, rtol=0, atol=1e-5)


def test_steps_from_the_last_to_the_first_and_vectors_repeated(tmp_path: Path) -> None:
    """go_backwards, and a decoder that takes the encoder's state at each step, as Keras exports them."""
    decoder = {f"{name}2": value for name, value in lstm_arrays(1, UNITS, seed=3).items()}
    nodes = [
        line("Transpose", "X -> X0", perm=[1, 0, 2]), line("Slice", "X0 from to zero back -> X1"),
        line("LSTM", "X1 W R B -> Y0 H0", hidden_size=UNITS), line("Squeeze", "H0 zero -> h"),
        line("Unsqueeze", "h one -> a"), line("Tile", "a times -> b"), line("Transpose", "b -> c", perm=[1, 0, 2]),
        line("LSTM", "c W2 R2 B2 -> Y1", hidden_size=UNITS), line("Squeeze", "Y1 one -> d"),
        line("Transpose", "d -> Y", perm=[1, 0, 2]),
    ]  # fmt: skip
    arrays = {"from": np.array([-1]), "to": np.array([-(1 << 62)]), "back": np.array([-1]), "times": np.array([1, 3, 1])}
    path = write(tmp_path, nodes, lstm_arrays() | decoder | ONE | arrays, ("n", "t", FEATURES))
    assert kinds(check(path, random(*FEW, FEATURES)).chain) == ["flip", "stack", "final", "repeat", "stack"]


def test_reverse_sequence(tmp_path: Path) -> None:
    """The lengths are computed, and are all steps; those of the file are not."""
    nodes = [
        line("Shape", "X -> s"), line("Gather", "s n1 -> t"), line("Gather", "s n0 -> n"), line("Expand", "t n -> lens"),
        line("Transpose", "X -> X0", perm=[1, 0, 2]), line("ReverseSequence", "X0 lens -> X1", batch_axis=1, time_axis=0),
        line("LSTM", "X1 W R B -> Y0 H0", hidden_size=UNITS), line("Squeeze", "H0 zero -> Y"),
    ]  # fmt: skip
    arrays = lstm_arrays() | ONE | {"n0": np.array([0]), "n1": np.array([1])}
    path = write(tmp_path, nodes, arrays, ("n", "t", FEATURES))
    assert kinds(check(path, random(*FEW, FEATURES)).chain) == ["flip", "stack", "final"]
    nodes[5] = line("ReverseSequence", "X0 some -> X1", batch_axis=1, time_axis=0)
    path = write(tmp_path, nodes, arrays | {"some": np.full(FEW[0], 3)}, (*FEW, FEATURES))
    assert "reverses a part of the steps" in refusal(path)


def test_ids_that_are_computed(tmp_path: Path) -> None:
    """TensorFlow adds the size of the table to negative ids; what is computed of each id is known before."""
    wrapped = [
        line("Cast", "X -> f", to=1), line("Less", "f low -> l"), line("Cast", "l -> m", to=7), line("Mul", "m size -> a"),
        line("Add", "X a -> i"), line("Gather", "table i -> X0"),
    ]  # fmt: skip
    shifted = [line("Sub", "X first -> i"), line("Gather", "table i -> X0")]
    rest = [line("Transpose", "X0 -> X1", perm=[1, 0, 2]), line("LSTM", "X1 W R B -> Y0 H0", hidden_size=UNITS)]
    arrays = (
        lstm_arrays() | ONE | {"table": random(9, FEATURES), "low": np.float32(0), "size": np.array(9), "first": np.array(1)}
    )
    nodes = [*wrapped, *rest, line("Squeeze", "H0 zero -> Y")]
    ids = np.random.default_rng(0).integers(0, 9, FEW)
    assert kinds(check(write(tmp_path, nodes, arrays, ("n", "t")), ids).chain) == ["embedding", "stack", "final"]
    nodes = [*shifted, *rest, line("Squeeze", "H0 zero -> Y")]
    assert "not there for each of so many ids" in refusal(write(tmp_path, nodes, arrays, ("n", "t")))


def test_normalisation_as_tensorflow_writes_it(tmp_path: Path) -> None:
    """x * inv + (shift - mean * inv) with inv = scale / sqrt(variance + epsilon), means by a pool over the features."""
    nodes = [
        line("GlobalAveragePool", "V -> m"), line("Sub", "V m -> d"), line("Mul", "d d -> q"),
        line("GlobalAveragePool", "q -> v"),
        line("Add", "v eps -> w"), line("Sqrt", "w -> r"), line("Reciprocal", "r -> i"), line("Mul", "i scale -> inv"),
        line("Mul", "V inv -> a"), line("Mul", "m inv -> b"), line("Sub", "shift b -> c"), line("Add", "a c -> Y"),
    ]  # fmt: skip
    arrays = {"eps": np.float32(1e-3), "scale": random(UNITS), "shift": random(UNITS, seed=2)}
    (norm,) = check(on_lstm(tmp_path, *nodes, **arrays), random(*FEW, FEATURES)).chain.layers[1:]
    assert isinstance(norm, LayerNorm)
    np.testing.assert_array_equal(norm.scale, arrays["scale"])
    np.testing.assert_array_equal(norm.shift, arrays["shift"])
    assert norm.epsilon == 1e-3


def test_lengths_that_are_an_input(tmp_path: Path) -> None:
    nodes = [BASE[0], line("LSTM", "X0 W R B lens -> Y0 H", hidden_size=UNITS), *BASE[2:]]
    lens = {"lens": (onnx.TensorProto.INT32, ("n",))}
    path = write(tmp_path, [*nodes, line("Relu", "V -> Y")], lstm_arrays() | ONE, ("n", "t", FEATURES), others=lens)
    found = load_chain(str(path), Choices())
    assert found.masked is None
    assert found.notes == ("the model takes lengths, lens; here --lens says them",)
    mean = line("ReduceMean", "V -> Y", axes=[1])
    assert "behind the length" in refusal(
        write(tmp_path, [*nodes, mean], lstm_arrays() | ONE, ("n", "t", FEATURES), others=lens)
    )


REFUSED = {
    "computed by Mish 'n4'": [line("Mish", "V -> Y")],
    "node CumSum 'n4'": [line("CumSum", "V where -> Y")],
    "Add 'n5': takes two inputs": [line("MatMul", "X square -> a"), line("Add", "V a -> Y")],
    "Add 'n4': its inputs do not fit": [line("Add", "V X -> Y")],
    "differ from step to step": [line("Add", "V table -> Y")],
    "takes a part of what comes out of 'n1'": [line("Gather", "V where -> Y", axis=1)],
    "'n4': takes 800 of axis 1 at most": [line("Slice", "V zero eight one -> Y")],
    "'n4': takes 700 of axis 1 at most": [line("Slice", "V late open one -> Y")],
    "operator that is not known": [line("Sin", "V -> a"), line("Mul", "a V -> Y")],
    "final cell state": [],
    "axis 1 is not that of the features": [line("Softmax", "V -> Y", axis=1)],
    "computed by Tanh 'n4', Clip 'n5', Mul 'n6' is no function": [
        line("Tanh", "V -> a"),
        line("Clip", "a low six -> b"),
        line("Mul", "V b -> Y"),
    ],
    "one axis, the steps": [line("Unsqueeze", "V one -> a"), line("MaxPool", "a -> Y", kernel_shape=[1, 2])],
    "'n5': group 3": [line("Transpose", "V -> a", perm=[0, 2, 1]), line("Conv", "a groups -> Y", group=3)],
    "expected 'X' as numbers": [line("MatMul", "V X -> Y")],
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what: str, tmp_path: Path) -> None:
    arrays = {
        "where": np.array(0),
        "table": random(FEW[1], UNITS),
        "eight": np.array([800]),
        "late": np.array([-700]),
        "low": np.float32(0.5),
    }
    arrays |= {
        "open": np.array([1 << 62]),
        "six": np.float32(6),
        "groups": random(UNITS, 1, 2),
        "square": random(FEATURES, UNITS),
    }
    nodes = REFUSED[what]
    if not nodes:
        lines = [BASE[0], line("LSTM", "X0 W R B -> Y0 H C", hidden_size=UNITS), line("Squeeze", "C zero -> Y")]
        path = write(tmp_path, lines, lstm_arrays() | ONE, ("n", "t", FEATURES))
    else:
        path = on_lstm(tmp_path, *nodes, static=what.startswith("differ"), opset=18, **arrays)
    assert what in refusal(path)


def test_damaged_graphs(tmp_path: Path) -> None:
    nodes = [*BASE, line("Relu", "b -> a"), line("Tanh", "a -> b"), line("Softsign", "a -> Y")]
    path = write(tmp_path, nodes, lstm_arrays() | ONE, ("n", "t", FEATURES))
    assert "needs itself" in refusal(path)
    nodes = [*BASE, line("Unsqueeze", "V many -> a"), line("Mul", "a a -> Y")]
    path = write(tmp_path, nodes, lstm_arrays() | ONE | {"many": np.arange(40)}, ("n", "t", FEATURES))
    # NumPy 1 has at most 32 dimensions, NumPy 2 has 64.
    wide = (
        "Unsqueeze cannot be computed of"
        if np.lib.NumpyVersion(np.__version__) < "2.0.0"
        else "Mul 'n5': its inputs do not fit"
    )
    assert wide in refusal(path)
    model = onnx.load(on_lstm(tmp_path, line("Relu", "V -> Y")))
    del model.graph.output[:]
    onnx.save(model, tmp_path / "m.onnx")
    assert "and an output, got none" in refusal(tmp_path / "m.onnx")


def test_initial_states_from_another_lstm_are_refused(tmp_path: Path) -> None:
    nodes = [*BASE, line("LSTM", "X0 W R B _ H H -> Y2", hidden_size=UNITS), line("Squeeze", "Y2 one -> Y")]
    path = write(tmp_path, nodes, lstm_arrays() | ONE, ("n", "t", FEATURES))
    assert "initial_h is computed from the input" in refusal(path)


def test_no_lstm_in_the_graph_says_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path, [line("GRU", "X W R B -> Y", hidden_size=4)], lstm_arrays(), ("n", "t", FEATURES))
    assert "node 'n0' is a GRU; only LSTMs are read" in refusal(path)


def test_layers_are_named_by_nodes(tmp_path: Path) -> None:
    path = on_lstm(tmp_path, line("MatMul", "V kernel -> a"), line("Relu", "a -> Y"), kernel=random(UNITS, 2))
    chain = load_chain(str(path), Choices()).chain
    assert chain.names == ("n1", "n4", "n5")
    assert isinstance(chain.layers[0], Model)
    assert isinstance(chain.layers[2], Activation)


def test_one_feature_is_not_taken_for_one_step(tmp_path: Path) -> None:
    """An operator that is not known is what the error names."""
    lines = [
        line("Transpose", "X -> T", perm=[1, 0, 2]),
        line("LSTM", "T W R B -> S", hidden_size=UNITS),
        line("Sin", "S -> Y"),
    ]
    with pytest.raises(DataError, match="Sin"):
        load_chain(str(write(tmp_path, lines, lstm_arrays(features=1), (2, 5, 1))), Choices())


LSTM = [
    line("Transpose", "X -> T", perm=[1, 0, 2]),
    line("LSTM", "T W R B -> S H", hidden_size=UNITS, direction="bidirectional"),
    line("Transpose", "S -> B4", perm=[2, 0, 1, 3]),
    line("Reshape", "B4 shape -> O"),
]


def test_the_order_of_what_comes_out(tmp_path: Path) -> None:
    """Steps from the last to the first are turned; features in another order are refused, of steps and of final states."""
    arrays = lstm_arrays(2) | {"shape": [2, 5, 2 * UNITS], "one": [1], "end": [-1], "start": [-(2**31)]}
    turned = [*LSTM, line("Slice", "O end start one end -> Y")]
    check(write(tmp_path, turned, arrays, (2, 5, FEATURES)), random(2, 5, FEATURES))
    other = [*LSTM, line("Slice", "O end start two end -> Y")]
    with pytest.raises(DataError, match="output 'Y' has steps or features in another order"):
        load_chain(str(write(tmp_path, other, arrays | {"two": [2]}, (2, 5, FEATURES))), Choices())
    states = [
        *LSTM[:2],
        line("Split", "H -> F G", axis=0),
        line("Concat", "G F -> GF", axis=2),
        line("Squeeze", "GF zero -> Y"),
    ]
    with pytest.raises(DataError, match="output 'Y' has steps or features in another order"):
        load_chain(str(write(tmp_path, states, lstm_arrays(2) | {"zero": [0]}, (2, 5, FEATURES))), Choices())
