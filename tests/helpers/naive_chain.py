"""Whole models in float64, one sequence at a time, from what Keras and PyTorch say that their layers compute.

A layer is a pair of its kind and what it is told, as in a model file: ("dense", {"kernel": ..., "bias": ...}); an LSTM is
("lstm", {"tree": a naive.Node}). Nothing here comes from lstmcli.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from helpers import naive

Layer = tuple[str, dict[str, Any]]


def run(layers: list[Layer], x: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The prediction for each sequence: (K,), or (steps, K) of its valid steps; steps that a mask hides are left out."""
    return [run_one(layers, row[:length]) for row, length in zip(x, lengths, strict=True)]


def run_one(layers: list[Layer], x: np.ndarray) -> np.ndarray:
    x, final = x if x.dtype.kind in "iu" else x.astype(np.float64), None
    shown = np.ones(len(x), bool)
    for kind, told in layers:
        told = {name: value.astype(np.float64) if isinstance(value, np.ndarray) else value for name, value in told.items()}
        if kind == "masking" or told.get("mask_zero"):
            shown = (x != told.get("value", 0)).any(axis=1)
        if kind == "unmask":
            x = unmasked(x, shown, str(told["fill"]))
        elif kind == "lstm":
            x, final = lstm(told["tree"], np.asarray(x, np.float64))
        elif kind == "pool" and told["function"] == "final":
            assert final is not None
            x = final
        else:
            x = globals()[kind](x, **told)
    return x


def lstm(tree: naive.Node, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outputs, state = naive.run(tree, x[None], np.array([len(x)]))
    return outputs[0], final_h(tree, {name: value[0] for name, value in state.items()}, "")


def final_h(tree: naive.Node, state: dict[str, np.ndarray], path: str) -> np.ndarray:
    match tree:
        case naive.Stack():
            return final_h(tree.layers[-1], state, f"{path}{len(tree.layers) - 1}/")
        case naive.Bidirectional():
            both = [final_h(tree.forward, state, f"{path}forward/"), final_h(tree.backward, state, f"{path}backward/")]
            merges = {"concat": np.concatenate, "sum": sum, "mean": lambda b: sum(b) / 2, "mul": lambda b: b[0] * b[1]}
            return merges[tree.merge](both)
        case naive.Reverse() | naive.Residual():
            return final_h(tree.inner, state, path)
    return state[f"{path}h"]


def embedding(x: np.ndarray, table: np.ndarray, mask_zero: bool = False) -> np.ndarray:
    ids = [int(k) for k in x.reshape(-1) if k or not mask_zero]
    return table[np.array(ids, np.int64)]


def masking(x: np.ndarray, value: float) -> np.ndarray:
    return np.array([row for row in x if (row != value).any()]).reshape(-1, x.shape[1])


def unmasked(x: np.ndarray, shown: np.ndarray, fill: str) -> np.ndarray:
    """The steps with those that are not shown: of zeros, or of what the shown one before or after them has."""
    if fill == "next":
        return unmasked(x[::-1], shown[::-1], "previous")[::-1]
    whole, rows = np.zeros((len(shown), x.shape[1])), iter(x)
    for step, is_shown in enumerate(shown):
        if is_shown:
            whole[step] = next(rows)
        elif fill == "previous" and step:
            whole[step] = whole[step - 1]
    return whole


def dense(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    return x @ kernel + (0 if bias is None else bias)


def affine(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return x * scale + shift


def layer_norm(
    x: np.ndarray, width: int, epsilon: float, scale: np.ndarray | None = None, shift: np.ndarray | None = None
) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return normal * (1 if scale is None else scale) + (0 if shift is None else shift)


def activation(x: np.ndarray, function: str, alpha: float | None = None, slopes: np.ndarray | None = None) -> np.ndarray:
    if function in ("softmax", "log_softmax"):
        powers = np.exp(x - x.max(-1, keepdims=True))
        share = powers / powers.sum(-1, keepdims=True)
        return share if function == "softmax" else np.log(share)
    if function == "prelu":
        return np.where(x < 0, x * slopes, x)
    alpha = {"leaky_relu": 0.01, "elu": 1.0}.get(function, 0.0) if alpha is None else alpha
    formulas = {
        "linear": lambda v: v,
        "tanh": math.tanh,
        "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
        "relu": lambda v: max(v, 0.0),
        "relu6": lambda v: min(max(v, 0.0), 6.0),
        "softsign": lambda v: v / (1 + abs(v)),
        "softplus": lambda v: math.log1p(math.exp(-abs(v))) + max(v, 0.0),
        "elu": lambda v: v if v > 0 else alpha * math.expm1(v),
        "leaky_relu": lambda v: v if v > 0 else alpha * v,
        "selu": lambda v: 1.0507009873554805 * (v if v > 0 else 1.6732632423543772 * math.expm1(v)),
        "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2,
        "gelu_tanh": lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
        "silu": lambda v: v / (1 + math.exp(-v)),
        "exponential": math.exp,
        "hard_sigmoid": lambda v: min(max(v + 3, 0.0), 6.0) / 6,
        "hard_sigmoid_keras2": lambda v: min(max(0.2 * v + 0.5, 0.0), 1.0),
    }
    return np.vectorize(formulas[function], otypes=[np.float64])(x)


def seen(length: int, size: int, stride: int, dilation: int, padding: Any) -> list[list[int]]:
    """The steps that each output of a window sees; those outside of the sequence are padding."""
    reach = (size - 1) * dilation + 1
    if padding == "same":
        count = math.ceil(length / stride)
        before = max((count - 1) * stride + reach - length, 0) // 2
    else:
        before, behind = {"valid": (0, 0), "causal": (reach - 1, 0)}[padding] if isinstance(padding, str) else padding
        count = max((length + before + behind - reach) // stride + 1, 0) if length else 0
    return [[place * stride - before + tap * dilation for tap in range(size)] for place in range(count)]


def conv1d(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None = None,
    size: int = 1,
    stride: int = 1,
    dilation: int = 1,
    padding: Any = "valid",
) -> np.ndarray:
    rows = [
        sum((x[t] @ kernel[tap] for tap, t in enumerate(steps) if 0 <= t < len(x)), np.zeros(kernel.shape[2]))
        for steps in seen(len(x), size, stride, dilation, padding)
    ]
    return np.array(rows).reshape(-1, kernel.shape[2]) + (0 if bias is None else bias)


def pool1d(
    x: np.ndarray,
    size: int,
    function: str = "max",
    stride: int = 1,
    dilation: int = 1,
    padding: Any = "valid",
    count_padding: bool = False,
) -> np.ndarray:
    rows = []
    for steps in seen(len(x), size, stride, dilation, padding):
        inside = x[[t for t in steps if 0 <= t < len(x)]]
        rows.append(inside.max(0) if function == "max" else inside.sum(0) / (size if count_padding else len(inside)))
    return np.array(rows).reshape(-1, x.shape[1])


def pool(x: np.ndarray, function: str) -> np.ndarray:
    if not len(x):
        return np.zeros(x.shape[1])
    return {"last": x[-1], "mean": x.mean(0), "max": x.max(0), "sum": x.sum(0)}[function]


def attention(x: np.ndarray, score: np.ndarray, bias: float = 0.0, function: str = "linear") -> np.ndarray:
    if not len(x):
        return np.zeros(x.shape[1])
    scores = activation(x, function) @ score + bias
    return activation(scores, "softmax") @ x


def flatten(x: np.ndarray, steps: int) -> np.ndarray:
    assert len(x) == steps
    return x.reshape(-1)


def repeat(x: np.ndarray, steps: int) -> np.ndarray:
    return np.repeat(x[None], steps, axis=0)


def flip(x: np.ndarray) -> np.ndarray:
    return x[::-1]
