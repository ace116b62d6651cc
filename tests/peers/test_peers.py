"""Random models against PyTorch, Keras and ONNX Runtime with the same weights, where these are installed.

Each peer runs the part of what lstmcli runs that it has: the strategies draw nothing else. Outputs and final states agree
within TOLERANCE of the largest value; the naive reference is held to the same, because the goldens do not show it all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers import files, golden, naive
from helpers.weight_imports import as_naive
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmcli.model.tree import ACTIVATIONS, Bidirectional, Cell, Model, Reverse, Stack

pytestmark = pytest.mark.peers

TOLERANCE = 2e-6
THOROUGH = pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
Arrays = dict[str, np.ndarray]
Peer = Callable[[np.ndarray, np.ndarray, Arrays], tuple[np.ndarray, Arrays]]  # (x, lengths, initial state)


@dataclass(frozen=True)
class Batch:
    x: np.ndarray  # (N, T, E); the padding holds what none of them may use
    lengths: np.ndarray  # (N,), both 1 and T among them

    @classmethod
    def draw(cls, data: st.DataObject, features: int) -> Batch:
        steps = data.draw(st.integers(1, 9), label="steps")
        more = data.draw(st.lists(st.integers(1, steps), max_size=4), label="lengths")
        rng = random(data)
        lengths = rng.permutation([1, steps, *more])
        x = rng.normal(size=(len(lengths), steps, features)).astype(np.float32)
        x[files.padding(x.shape, lengths)] = 1e3
        return cls(x, lengths)


def random(data: st.DataObject) -> np.random.Generator:
    return np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32)


def cell(
    rng: np.random.Generator,
    features: int,
    units: int,
    width: int = 0,
    bias: bool = True,
    peephole: bool = False,
    **options: Any,
) -> Cell:
    """width: of the projection; 0: none."""
    return Cell(
        weights(rng, features, 4 * units),
        weights(rng, width or units, 4 * units),
        weights(rng, 4 * units) if bias else None,
        weights(rng, 3, units) if peephole else None,
        weights(rng, units, width) if width else None,
        **options,
    )


def kernel_options(data: st.DataObject, thorough: bool, **choices: Sequence[Any]) -> dict[str, Any]:
    """One value of each option, of which the first is the plain one.

    Every combination is a kernel of its own that takes seconds to compile, so only the thorough test draws all of them. The
    other has one option that is not plain, or none that is.
    """
    if thorough:
        return {name: data.draw(st.sampled_from(values), label=name) for name, values in choices.items()}
    changed = data.draw(st.sampled_from([*choices, "all"]), label="changed")
    value = data.draw(st.sampled_from(choices[changed]), label="to") if changed in choices else None
    return {n: value if n == changed else values[-1 if changed == "all" else 0] for n, values in choices.items()}


def agree(model: Model, batch: Batch, peer: Peer, data: st.DataObject) -> None:
    """From a random initial state. Every array is new: no peer may see what another one wrote."""
    rng = random(data)
    widths = model.state_widths()
    start = {name: rng.normal(size=(len(batch.x), width)).astype(np.float32) for name, width in widths.items()}
    want, want_state = peer(batch.x, batch.lengths, start)
    want[files.padding(want.shape, batch.lengths)] = 0  # what a peer leaves there is its own affair
    assert want_state.keys() == widths.keys()
    for name, (outputs, state) in {
        "lstmcli": model(batch.x, batch.lengths, initial_state=start),
        "naive": naive.run(as_naive(model), batch.x, batch.lengths.tolist(), start),
    }.items():
        assert golden.relative_error(outputs, want) <= TOLERANCE, name
        for path, value in want_state.items():
            assert golden.relative_error(state[path], value) <= TOLERANCE, (name, path)


def bias_of(one: Cell) -> np.ndarray:
    """(4U,) with the forget bias in it, which no peer adds at run time."""
    bias = np.zeros(4 * one.units, np.float32) if one.bias is None else one.bias.copy()
    bias[one.units : 2 * one.units] += np.float32(one.forget_bias)
    return bias


def in_order(order: str, gates: np.ndarray) -> np.ndarray:
    """Gate blocks i, f, g, o along the last axis in another order, as rows: (..., 4U) -> (4U, ...)."""
    return np.concatenate([np.split(gates, 4, axis=-1)["ifgo".index(gate)] for gate in order], axis=-1).T


def directions(layer: Model) -> dict[str, Cell]:
    """Cells of a layer by the name of their level in the state, such as "" or "forward/"."""
    return {f"{path}/" if path else "": one for path, one in layer.cells()}


# PyTorch: one size for all layers; bidirectional layers concatenate; projections; no bias


def torch_peer(model: Stack, projected: bool) -> Peer:
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.set_num_threads(1)
    cells = [(f"{k}/{path}", one) for k, layer in enumerate(model.layers) for path, one in directions(layer).items()]
    both = len(cells) > len(model.layers)
    first = cells[0][1]
    lstm = torch.nn.LSTM(
        first.input_size,
        first.units,
        num_layers=len(model.layers),
        bias=first.bias is not None,
        batch_first=True,
        bidirectional=both,
        proj_size=first.output_size if projected else 0,
    )
    state = {}
    for k, (_, one) in enumerate(cells):
        name = f"l{k // 2}{'_reverse' * (k % 2)}" if both else f"l{k}"
        state[f"weight_ih_{name}"] = one.input_kernel.T
        state[f"weight_hh_{name}"] = one.recurrent_kernel.T
        if one.bias is not None:
            state[f"bias_ih_{name}"] = bias_of(one)
            state[f"bias_hh_{name}"] = np.zeros(4 * one.units, np.float32)
        if one.projection is not None:
            state[f"weight_hr_{name}"] = one.projection.T
    lstm.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})

    def call(x: np.ndarray, lengths: np.ndarray, start: Arrays) -> tuple[np.ndarray, Arrays]:
        h, c = (torch.tensor(np.stack([start[path + name] for path, _ in cells])) for name in "hc")
        with torch.inference_mode():
            packed = pack_padded_sequence(torch.tensor(x), torch.tensor(lengths), batch_first=True, enforce_sorted=False)
            rows, (h, c) = lstm(packed, (h, c))
            outputs, _ = pad_packed_sequence(rows, batch_first=True, total_length=x.shape[1])
        states = [{path + "h": h[k].numpy(), path + "c": c[k].numpy()} for k, (path, _) in enumerate(cells)]
        return outputs.numpy().copy(), {name: value for state in states for name, value in state.items()}

    return call


@settings(max_examples=40)
@given(data=st.data())
def test_torch(data: st.DataObject) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    layers, features, units = (data.draw(st.integers(1, top)) for top in (4, 20, 40))
    width = data.draw(st.integers(0, units - 1), label="projection")
    both, bias = data.draw(st.booleans(), label="bidirectional"), data.draw(st.booleans(), label="bias")
    rng = random(data)
    options: dict[str, Any] = {"units": units, "width": width, "bias": bias, "forget_bias": 1.0 if bias else 0.0}
    trees: list[Model] = []
    below = features
    for _ in range(layers):
        tree: Model = cell(rng, below, **options)
        trees.append(Bidirectional(tree, cell(rng, below, **options)) if both else tree)
        below = trees[-1].output_size
    model = Stack(tuple(trees))
    agree(model, Batch.draw(data, features), torch_peer(model, projected=width > 0), data)


# Keras: a size, activations and a merge for each layer; no bias; hard_sigmoid as Keras 3 has it


MERGES = {"concat": "concat", "sum": "sum", "mean": "ave", "mul": "mul"}


def keras_peer(model: Stack) -> Peer:
    import keras

    def layer_of(one: Cell, **options: Any) -> Any:
        return keras.layers.LSTM(
            one.units,
            activation=one.activation,
            recurrent_activation=one.recurrent_activation,
            use_bias=one.bias is not None,
            return_sequences=True,
            return_state=True,
            zero_output_for_mask=True,
            **options,
        )

    layers = []
    for tree in model.layers:
        if isinstance(tree, Bidirectional):
            assert isinstance(tree.forward, Cell)
            assert isinstance(tree.backward, Cell)
            backward = layer_of(tree.backward, go_backwards=True)
            layer = keras.layers.Bidirectional(layer_of(tree.forward), MERGES[tree.merge], backward_layer=backward)
        else:
            assert isinstance(tree, Cell)
            layer = layer_of(tree)
        layer.build((None, None, tree.input_size))
        arrays = [
            array
            for one in directions(tree).values()
            for array in (one.input_kernel, one.recurrent_kernel, *([] if one.bias is None else [bias_of(one)]))
        ]
        layer.set_weights(arrays)
        layers.append(layer)

    def call(x: np.ndarray, lengths: np.ndarray, start: Arrays) -> tuple[np.ndarray, Arrays]:
        mask = ~files.padding(x.shape, lengths)
        outputs, states = keras.ops.convert_to_tensor(x), {}
        for k, (layer, tree) in enumerate(zip(layers, model.layers, strict=True)):
            names = [f"{k}/{path}{name}" for path in directions(tree) for name in "hc"]
            first = [keras.ops.convert_to_tensor(start[name]) for name in names]
            outputs, *final = layer(outputs, initial_state=first, mask=keras.ops.convert_to_tensor(mask))
            states |= dict(zip(names, map(keras.ops.convert_to_numpy, final), strict=True))
        return keras.ops.convert_to_numpy(outputs).copy(), states

    return call


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # of PyTorch, in Keras
@THOROUGH
@settings(max_examples=25)
@given(data=st.data())
def test_keras(thorough: bool, data: st.DataObject) -> None:
    if "KERAS_BACKEND" not in os.environ:
        pytest.importorskip("torch", reason="no backend for Keras: pip install torch, or set KERAS_BACKEND")
        os.environ["KERAS_BACKEND"] = "torch"
    pytest.importorskip("keras", minversion="3", reason="Keras is not installed: pip install keras")
    features = below = data.draw(st.integers(1, 20), label="features")
    rng = random(data)
    trees: list[Model] = []
    for _ in range(data.draw(st.integers(1, 4), label="layers")):
        options = {
            "units": data.draw(st.integers(1, 20), label="units"),
            "bias": data.draw(st.booleans(), label="bias"),
        } | kernel_options(data, thorough, activation=ACTIVATIONS, recurrent_activation=["sigmoid", "hard_sigmoid"])
        tree: Model = cell(rng, below, **options)
        if data.draw(st.booleans(), label="bidirectional"):
            merge = data.draw(st.sampled_from(list(MERGES)), label="merge")
            tree = Bidirectional(tree, cell(rng, below, **options), merge)
        trees.append(tree)
        below = tree.output_size
    model = Stack(tuple(trees))
    agree(model, Batch.draw(data, features), keras_peer(model), data)


# ONNX Runtime: peepholes, clipped and coupled gates, activations, either direction or both; a size for each layer


ONNX_ACTIVATIONS = {  # with alpha and beta, where there are any
    "tanh": ("Tanh",),
    "relu": ("Relu",),
    "sigmoid": ("Sigmoid",),
    "softsign": ("Softsign",),
    "softplus": ("Softplus",),
    "elu": ("Elu", 1.0),
    "linear": ("Affine", 1.0, 0.0),
    "hard_sigmoid_keras2": ("HardSigmoid", 0.2, 0.5),
}


def onnx_peer(model: Stack) -> Peer:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, initializers, inputs, results = [], [], [], []
    below = "x"
    for k, layer in enumerate(model.layers):
        cells = directions(layer)
        one = next(iter(cells.values()))
        arrays = {
            f"{k}/w": [in_order("iofg", own.input_kernel) for own in cells.values()],
            f"{k}/r": [in_order("iofg", own.recurrent_kernel) for own in cells.values()],
            f"{k}/b": [np.pad(in_order("iofg", bias_of(own)), (0, 4 * own.units)) for own in cells.values()],
        }
        if one.peephole is not None:  # rows i, f, o; ONNX has i, o, f
            arrays[f"{k}/p"] = [own.peephole[[0, 2, 1]].reshape(-1) for own in cells.values() if own.peephole is not None]
        initializers += [numpy_helper.from_array(np.stack(values), name) for name, values in arrays.items()]
        chosen = [ONNX_ACTIVATIONS[name] for name in (one.recurrent_activation, one.activation, one.activation)] * len(cells)
        options: dict[str, Any] = {
            "hidden_size": one.units,
            "direction": "bidirectional" if len(cells) == 2 else "reverse" if isinstance(layer, Reverse) else "forward",
            "activations": [name for name, *_ in chosen],
            "activation_alpha": [numbers[0] for _, *numbers in chosen if numbers] or None,
            "activation_beta": [numbers[1] for _, *numbers in chosen if len(numbers) > 1] or None,
            "clip": one.gate_clip,  # None: no such attribute
            "input_forget": int(one.input_forget),
        }
        given_names = [below, f"{k}/w", f"{k}/r", f"{k}/b", "lengths", f"{k}/h0", f"{k}/c0"]
        names = [f"{k}/y", f"{k}/h", f"{k}/c"]
        nodes += [
            helper.make_node("LSTM", [*given_names, *([f"{k}/p"] if one.peephole is not None else [])], names, **options),
            helper.make_node("Transpose", [f"{k}/y"], [f"{k}/steps"], perm=[0, 2, 1, 3]),  # (T, D, N, U) -> (T, N, D, U)
            helper.make_node("Reshape", [f"{k}/steps", "shape"], [below := f"{k}/x"]),
        ]
        inputs += [(name, (len(cells), "N", one.units)) for name in given_names[-2:]]
        results += names[1:]
        initializers += [numpy_helper.from_array(np.array([0, 0, -1]), "shape")] if k == 0 else []
    graph = helper.make_graph(
        nodes,
        "peer",
        [
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "N", model.input_size]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (below, *results)],
        initializers,
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8).SerializeToString()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

    def call(x: np.ndarray, lengths: np.ndarray, start: Arrays) -> tuple[np.ndarray, Arrays]:
        feeds = {"x": np.ascontiguousarray(x.swapaxes(0, 1)), "lengths": lengths.astype(np.int32)}
        paths = [[f"{k}/{path}" for path in directions(layer)] for k, layer in enumerate(model.layers)]
        for k, own in enumerate(paths):
            feeds |= {f"{k}/{name}0": np.stack([start[path + name] for path in own]) for name in "hc"}
        outputs, *final = session.run(None, feeds)
        state = {}
        for k, own in enumerate(paths):
            for name, both in zip("hc", final[2 * k : 2 * k + 2], strict=True):
                state |= {path + name: value for path, value in zip(own, both, strict=True)}
        return outputs.swapaxes(0, 1).copy(), state

    return call


@THOROUGH
@settings(max_examples=100)
@given(data=st.data())
def test_onnxruntime(thorough: bool, data: st.DataObject) -> None:
    for module in ("onnx", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install onnx onnxruntime")
    features = below = data.draw(st.integers(1, 20), label="features")
    rng = random(data)
    trees: list[Model] = []
    for _ in range(data.draw(st.integers(1, 4), label="layers")):
        options = {
            "units": data.draw(st.integers(1, 40), label="units"),
            "bias": data.draw(st.booleans(), label="bias"),
            "forget_bias": data.draw(st.sampled_from([0.0, 1.0]), label="forget bias"),
        } | kernel_options(
            data,
            thorough,
            peephole=[False, True],
            gate_clip=[None, 0.1, 3.0, 1.0],
            input_forget=[False, True],
            activation=ACTIVATIONS,
            recurrent_activation=["sigmoid", "hard_sigmoid_keras2"],
        )
        tree: Model = cell(rng, below, **options)
        direction = data.draw(st.sampled_from(["forward", "reverse", "both"]), label="direction")
        if direction != "forward":
            tree = Reverse(tree) if direction == "reverse" else Bidirectional(tree, cell(rng, below, **options))
        trees.append(tree)
        below = tree.output_size
    model = Stack(tuple(trees))
    agree(model, Batch.draw(data, features), onnx_peer(model), data)
