"""Random whole models: each as the naive reference has it and as the package takes it, with sequences for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers import files, naive
from helpers.naive_chain import Layer
from lstmcli.model.chain import Chain
from lstmcli.model.layers import LAYERS
from lstmcli.model.tree import Bidirectional, Cell, Model, Stack

FUNCTIONS = (
    *("tanh", "sigmoid", "relu", "softsign", "softplus", "elu", "hard_sigmoid", "hard_sigmoid_keras2", "leaky_relu", "relu6"),
    *("selu", "gelu", "gelu_tanh", "silu", "exponential", "softmax", "log_softmax", "linear", "prelu"),
)


def random_layers(rng: np.random.Generator, steps: int) -> tuple[list[Layer], bool]:
    """Layers for sequences of at most `steps` steps, and whether they take token ids."""
    ids = rng.random() < 0.3
    width = int(rng.integers(1, 9))
    layers: list[Layer] = []
    masked = False
    if ids:
        masked = bool(rng.integers(2))
        layers.append(("embedding", {"table": normal(rng, 11, width), "mask_zero": masked}))
    elif rng.random() < 0.2:
        masked = True
        layers.append(("masking", {"value": 0.5}))
    for _ in range(rng.integers(0, 3)):
        width = add_rowwise(rng, layers, width)
    if not masked and rng.random() < 0.4:
        width = add_window(rng, layers, width)
    for _ in range(rng.integers(1, 3)):
        layers.append(("lstm", {"tree": (tree := random_tree(rng, width))}))
        width = output_width(tree)
    for _ in range(rng.integers(0, 2)):
        width = add_rowwise(rng, layers, width)
    if rng.random() < 0.7:
        kinds = ["last", "mean", "max", "sum", "attention"] + (["final"] if layers[-1][0] == "lstm" else [])
        kind = str(rng.choice(kinds))
        if kind == "attention":
            layers.append(("attention", {"score": normal(rng, width), "bias": 0.3, "function": "tanh"}))
        else:
            layers.append(("pool", {"function": kind}))
        for _ in range(rng.integers(0, 3)):
            width = add_rowwise(rng, layers, width)
        if rng.random() < 0.2:
            layers.append(("repeat", {"steps": 3}))
            layers.append(("lstm", {"tree": random_tree(rng, width)}))
    elif rng.random() < 0.2 and not masked:
        layers.append(("flip", {}))
    return layers, ids


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 0.6, shape).astype(np.float32)


def random_tree(rng: np.random.Generator, features: int) -> naive.Node:
    units = [int(u) for u in rng.integers(1, 7, rng.integers(1, 3))]
    seed = int(rng.integers(1 << 30))
    if rng.random() < 0.5:
        merge = str(rng.choice(["concat", "sum", "mean", "mul"]))
        return naive.Stack(
            (naive.Bidirectional(*(files.random_model(features, units[:1], seed + k).layers[0] for k in (0, 1)), merge),)
        )
    return files.random_model(features, units, seed)


def output_width(tree: naive.Node) -> int:
    match tree:
        case naive.Stack():
            return output_width(tree.layers[-1])
        case naive.Bidirectional():
            return output_width(tree.forward) + (output_width(tree.backward) if tree.merge == "concat" else 0)
    assert isinstance(tree, naive.Cell)
    return tree.width


def add_rowwise(rng: np.random.Generator, layers: list[Layer], width: int) -> int:
    kind = rng.choice(["dense", "activation", "affine", "layer_norm"])
    told: dict[str, Any] = {}
    if kind == "dense":
        out = int(rng.choice([1, 3, 10, 17, 33, 70]))
        told = {"kernel": normal(rng, width, out) / np.float32(np.sqrt(width))}
        if rng.random() < 0.8:
            told["bias"] = normal(rng, out)
        width = out
    elif kind == "activation":
        function = str(rng.choice(FUNCTIONS))
        told = {"function": function}
        if function == "prelu":
            told["slopes"] = normal(rng, width)
        if function in ("leaky_relu", "elu") and rng.random() < 0.5:
            told["alpha"] = 0.3
    elif kind == "affine":
        told = {"scale": normal(rng, width), "shift": normal(rng, width)}
    else:
        told = {"width": width, "scale": normal(rng, width), "shift": normal(rng, width), "epsilon": 1e-3}
    layers.append((str(kind), told))
    return width


def add_window(rng: np.random.Generator, layers: list[Layer], width: int) -> int:
    size, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    padding: Any = ["valid", "same", "causal", (1, 0)][rng.integers(4)]
    told: dict[str, Any] = {"size": size, "stride": stride, "padding": padding}
    if rng.random() < 0.5:
        out = int(rng.integers(1, 8))
        told |= {"kernel": normal(rng, size, width, out), "bias": normal(rng, out), "dilation": int(rng.integers(1, 3))}
        layers.append(("conv1d", told))
        return out
    told["size"] = max(size, 2)  # or some window would see padding alone
    function = "max" if padding == "causal" or rng.random() < 0.5 else "mean"
    layers.append(("pool1d", told | {"function": function}))
    return width


def random_input(rng: np.random.Generator, layers: list[Layer], ids: bool, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """x (N, steps, width) and lengths (N,), a few of them 0; some steps are what the model hides."""
    count = int(rng.integers(1, 12))
    lengths = rng.integers(0, steps + 1, count)
    if ids:
        return rng.integers(0, 11, (count, steps, 1)), lengths
    x = rng.normal(size=(count, steps, as_chain(layers).input_size)).astype(np.float32)
    x[rng.random((count, steps)) < 0.2] = 0.5
    return x, lengths


def as_chain(layers: list[Layer]) -> Chain:
    made = [as_model(told["tree"]) if kind == "lstm" else LAYERS[kind](**told) for kind, told in layers]
    return Chain(tuple(made), tuple(f"layer {k}" for k in range(len(made))))


def as_model(node: naive.Node) -> Model:
    match node:
        case naive.Stack():
            return Stack(tuple(map(as_model, node.layers)))
        case naive.Bidirectional():
            return Bidirectional(as_model(node.forward), as_model(node.backward), node.merge)
    assert isinstance(node, naive.Cell)
    states = {"initial_c": node.initial_c, "initial_h": node.initial_h}
    return Cell(node.input_kernel, node.recurrent_kernel, node.bias, forget_bias=node.forget_bias, **states)
