"""ONNX models, written node by node; nothing here comes from lstmcli."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from helpers import naive
from helpers import weight_files as wf

ORDER = ("W", "R", "B", "lens", "h", "c", "P")  # of an LSTM node's inputs after the first


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


def chunks(name: str, value: np.ndarray, order: Sequence[int], operators: Sequence[str]) -> tuple[list[bytes], list[bytes]]:
    """Nodes that make `name` of another tensor: its gates cut out of PyTorch's order, and what else is named."""
    nodes, tensors = [], [wf.onnx_tensor(f"{name}.torch", value)]

    def number(called: str, *numbers: int) -> str:
        tensors.append(wf.onnx_tensor(f"{name}.{called}", np.array(numbers)))
        return f"{name}.{called}"

    units = len(value) // 4
    zero = number("zero", 0)
    for gate in range(4):
        bounds = [number(f"from{gate}", gate * units), number(f"to{gate}", (gate + 1) * units), zero]
        nodes.append(wf.onnx_node("Slice", [f"{name}.torch", *bounds], [f"{name}.{gate}"]))
    at = f"{name}.whole"
    nodes.append(wf.onnx_node("Concat", [f"{name}.{gate}" for gate in order], [at], axis=0))
    for k, operator in enumerate(operators):
        attributes: dict[str, object] = {"to": 1} if operator == "Cast" else {}
        shape = (
            [number("axes", 0)]
            if operator == "Unsqueeze"
            else [number("shape", 1, *value.shape)]
            if operator == "Reshape"
            else []
        )
        nodes.append(wf.onnx_node(operator, [at, *shape], [at := f"{name}.{k}.{operator}"], **attributes))
    nodes.append(wf.onnx_node("Identity", [at], [name]))
    return nodes, tensors


def random_constant(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[list[bytes], list[bytes]]:
    """Nodes that make a tensor of this shape of random ones: backward from it, each from what the operator before gives."""
    nodes: list[bytes] = []
    tensors: list[bytes] = []

    def number(values: Sequence[int] | int) -> str:
        tensors.append(wf.onnx_tensor(f"{name}.n{len(tensors)}", np.array(values)))
        return f"{name}.n{len(tensors) - 1}"

    def make(target: str, shape: tuple[int, ...], depth: int) -> None:
        kind = rng.choice(
            ["leaf", "Transpose", "Reshape", "Slice", "Concat", "Gather", "Unsqueeze", "Squeeze", "Add", "Split", "Tile"]
        )
        rank, source = len(shape), f"{target}."
        axis = int(rng.integers(rank)) if rank else 0
        if kind == "leaf" or depth > 4 or not rank:
            tensors.append(wf.onnx_tensor(target, rng.normal(0, 0.5, shape).astype(np.float32)))
        elif kind == "Transpose":
            order = rng.permutation(rank)
            make(source, tuple(np.array(shape)[np.argsort(order)].tolist()), depth + 1)
            nodes.append(wf.onnx_node(kind, [source], [target], perm=order.tolist()))
        elif kind == "Reshape":
            make(source, tuple(rng.permutation(shape).tolist()), depth + 1)
            wanted = list(shape)
            wanted[axis] = -1
            nodes.append(wf.onnx_node(kind, [source, number(wanted)], [target]))
        elif kind == "Slice":
            step = int(rng.choice([1, 2, -1, -2]))
            size = shape[axis] * abs(step) + 3
            make(source, (*shape[:axis], size, *shape[axis + 1 :]), depth + 1)
            first = 2 if step > 0 else size - 2
            end = first + step * shape[axis]
            ends = [end - size if 0 < end < size else end]  # from the end, where that says the same
            nodes.append(
                wf.onnx_node(kind, [source, number([first]), number(ends), number([axis - rank]), number([step])], [target])
            )
        elif kind == "Concat" and shape[axis] > 1:
            cut = int(rng.integers(1, shape[axis]))
            for k, size in enumerate((cut, shape[axis] - cut)):
                make(f"{source}{k}", (*shape[:axis], size, *shape[axis + 1 :]), depth + 1)
            nodes.append(wf.onnx_node("Concat", [f"{source}0", f"{source}1"], [target], axis=axis))
        elif kind == "Gather":
            make(source, (*shape[:axis], shape[axis] + 2, *shape[axis + 1 :]), depth + 1)
            chosen = rng.integers(-shape[axis], shape[axis], shape[axis]).tolist()
            nodes.append(wf.onnx_node("Gather", [source, number(chosen)], [target], axis=axis))
        elif kind == "Unsqueeze" and 1 in shape:
            axis = shape.index(1)
            make(source, (*shape[:axis], *shape[axis + 1 :]), depth + 1)
            nodes.append(wf.onnx_node("Unsqueeze", [source, number([axis])], [target]))
        elif kind == "Squeeze":
            make(source, (*shape[:axis], 1, *shape[axis:]), depth + 1)
            nodes.append(wf.onnx_node("Squeeze", [source, number([axis])], [target]))
        elif kind == "Split":
            make(source, (*shape[:axis], shape[axis] + 2, *shape[axis + 1 :]), depth + 1)
            nodes.append(wf.onnx_node("Split", [source, number([2, shape[axis]])], [f"{source}rest", target], axis=axis))
        elif kind == "Tile" and shape[axis] % 2 == 0:
            make(source, (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :]), depth + 1)
            nodes.append(wf.onnx_node("Tile", [source, number([2 if k == axis else 1 for k in range(rank)])], [target]))
        else:
            make(f"{source}0", shape, depth + 1)
            make(f"{source}1", (1,) * rank, depth + 1)
            nodes.append(wf.onnx_node(rng.choice(["Add", "Sub", "Mul"]), [f"{source}0", f"{source}1"], [target]))

    make(name, shape, 0)
    return nodes, tensors


def graph(
    nodes: Iterable[bytes], tensors: Iterable[bytes] = (), outputs: Iterable[str] = (), inputs: Iterable[str] = ()
) -> bytes:
    parts = [
        (1, list(nodes)),
        (5, list(tensors)),
        (11, [wf.field(1, i) for i in inputs]),
        (12, [wf.field(1, o) for o in outputs]),
    ]
    return b"".join(wf.field(number, part) for number, messages in parts for part in messages)


def with_graphs(operator: str, inputs: Iterable[str], outputs: Iterable[str], name: str, **graphs: bytes) -> bytes:
    node = wf.onnx_node(operator, inputs, outputs, name)
    return node + b"".join(
        wf.field(5, wf.field(1, key) + wf.field(6, value) + wf.field(20, 5)) for key, value in graphs.items()
    )


def constant(name: str, value: np.ndarray) -> bytes:
    return wf.onnx_node("Constant", [], [name]) + wf.field(5, wf.field(1, "value") + wf.field(5, wf.onnx_tensor("", value)))


def function(name: str, takes: Iterable[str], gives: Iterable[str], nodes: Iterable[bytes], names: Iterable[str] = ()) -> bytes:
    parts = [(1, [name]), (4, list(takes)), (5, list(gives)), (6, list(names)), (7, list(nodes)), (10, ["mine"])]
    return wf.field(25, b"".join(wf.field(number, part) for number, messages in parts for part in messages))


def call(name: str, inputs: Iterable[str], outputs: Iterable[str], called: str = "", **attributes: object) -> bytes:
    return wf.onnx_node(name, inputs, outputs, called, **attributes) + wf.field(7, "mine")
