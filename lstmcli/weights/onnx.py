"""ONNX: the LSTM nodes of a model's graph, read from the protocol buffers alone (onnx/onnx.proto, onnx/defs/rnn/defs.cc).

W (D, 4U, E), R (D, 4U, U), B (D, 8U), P (D, 3U): D directions, forward first; gates i, o, f, c (c is the candidate, our g),
peepholes i, o, f; the two halves of B are summed.
"""

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.files.positioned_file import FileBytes, open_readable
from lstmcli.model.tree import Bidirectional, Cell, Model, Reverse
from lstmcli.weights.containers.protobuf import Message
from lstmcli.weights.containers.tensor import DTYPES, Tensor, decode
from lstmcli.weights.draft import CLIPS, Choices, Draft, Imported, Origin, chains, reorder, summed

GATES, PEEPHOLES = (0, 2, 3, 1), (0, 2, 1)
TYPES = {1: "F32", 10: "F16", 11: "F64", 16: "BF16"}
VALUES = {"F32": (4, "<f4"), "F64": (10, "<f8")}  # the fields that hold values which are not raw
EXTERNAL = 1
PASSING = ("Identity", "Dropout", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast")  # between two layers of one LSTM
PLAIN = ("tanh", "relu", "sigmoid", "softsign", "softplus")
KNOWN = {"activations", "activation_alpha", "activation_beta", "clip", "direction", "hidden_size", "input_forget", "layout",
         "output_sequence"}  # fmt: skip
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


@dataclass(eq=False)
class Node:
    name: str
    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Message]

    def input(self, name: str) -> str:
        k = INPUTS.index(name)
        return self.inputs[k] if k < len(self.inputs) else ""


def import_model(file: FileBytes, path: str, choices: Choices) -> Imported:
    """The LSTM nodes that feed each other, as a stack. DataError: damaged, several stacks, anything that cannot be run."""
    where = file.name
    choices.allow(where, "select", *CLIPS, "merge", "residual")
    data = file.take(0, file.opened.st_size)
    graph = Message(data, f"{where}: not a whole ONNX model").message(7)
    nodes = [read_node(message) for message in graph.messages(1)]
    tensors = [read_tensor(message, path, where) for message in graph.messages(5)]
    needed = {name for node in nodes if node.operator == "LSTM" for name in node.inputs}
    for node in nodes:
        if node.operator == "Constant" and node.outputs[0] in needed and "value" in node.attributes:
            tensors.append(read_tensor(node.attributes["value"].message(5), path, where, node.outputs[0]))
    draft = Draft("an ONNX model", where, tensors, choices)
    stacks = {stack[0].name: stack for stack in chained(nodes)}
    held = {tensor.name: tensor for tensor in tensors}

    def build(name: str) -> Model:
        layers = []
        for node in stacks[name]:
            with draft.building(f"node {node.name!r}"):
                layers.append(read_layer(node, held, draft))
        return draft.stack(layers)

    return draft.assemble({name: described(stack) for name, stack in stacks.items()}, build)


def read_node(message: Message) -> Node:
    outputs = message.texts(2)
    domain = message.text(7)
    operator = message.text(4) if domain in ("", "ai.onnx") else f"{domain}.{message.text(4)}"
    attributes = {attribute.text(1): attribute for attribute in message.messages(5)}
    return Node(message.text(3) or (outputs or [""])[0], operator, message.texts(1), outputs or [""], attributes)


def chained(nodes: list[Node]) -> list[list[Node]]:
    """The LSTM nodes, each with those that it feeds, from the bottom to the top."""
    makers = {output: node for node in nodes for output in node.outputs if output}
    return chains({node: origin(node, makers) for node in nodes if node.operator == "LSTM"})


def origin(node: Node, makers: dict[str, Node]) -> Node | None:
    """The LSTM whose Y comes to this one's X, through nothing that changes its values or mixes up its axes."""
    name = node.input("X")
    for _ in makers:  # a damaged graph may have a cycle
        maker = makers.get(name)
        if maker and maker.operator == "LSTM":
            return maker if maker.outputs[0] == name else None
        if not maker or maker.operator not in PASSING or not maker.inputs or not keeps_features(maker):
            return None
        name = maker.inputs[0]
    return None


def keeps_features(node: Node) -> bool:
    """Of a transposition: whether features stay last, and the directions, if they are there, come right before them."""
    if node.operator != "Transpose":
        return True
    order = node.attributes["perm"].integers(8) if "perm" in node.attributes else []
    return order in ([1, 0, 2], [0, 1, 2], [0, 2, 1, 3], [2, 0, 1, 3], [0, 1, 2, 3])


def described(stack: list[Node]) -> str:
    return f"{len(stack)} LSTM node{'s' * (len(stack) > 1)}: " + ", ".join(shown(node.name) for node in stack)[:200]


def read_layer(node: Node, held: dict[str, Tensor], draft: Draft) -> Model:
    if unknown := sorted(set(node.attributes) - KNOWN):
        raise DataError(f"expected the attributes of the LSTM operator, got {unknown[0]!r}")

    def weight(name: str, rank: int) -> tuple[Tensor, Floats] | None:
        if not (given := node.input(name)):
            return None
        if given not in held:
            raise DataError(
                f"expected {name} {given!r} as an initializer or constant; it is computed or an input: fold constants"
            )
        return held[given], held[given].array(rank)

    kernel, recurrent = weight("W", 3), weight("R", 3)
    if kernel is None or recurrent is None:
        raise DataError("expected W and R, got none")
    bias, peephole = weight("B", 2), weight("P", 2)
    for name in ("initial_h", "initial_c"):
        if (given := node.input(name)) in held and held[given].read().any():
            raise DataError(f"{name} is not zeros; give it as --initial-state, and leave it out of the model")
        if given and given not in held:
            draft.note("initial states that the graph computes are not imported: they are zeros, or what --initial-state says")
    direction = node.attributes["direction"].text(4) if "direction" in node.attributes else "forward"
    count = 2 if direction == "bidirectional" else 1
    units = recurrent[1].shape[2]
    shapes = {
        "W": (count, 4 * units, kernel[1].shape[2]),
        "R": (count, 4 * units, units),
        "B": (count, 8 * units),
        "P": (count, 3 * units),
    }
    for (name, shape), pair in zip(shapes.items(), (kernel, recurrent, bias, peephole), strict=True):
        if pair and pair[1].shape != shape:
            raise DataError(f"{name}: expected shape {shape} for direction {shown(direction)}, got {pair[1].shape}")
    if "hidden_size" in node.attributes and node.attributes["hidden_size"].integer(3) != units:
        raise DataError(f"hidden_size is {node.attributes['hidden_size'].integer(3)}, but R has {units} columns")
    activations = read_activations(node, count)
    shared = {
        "gate_clip": node.attributes["clip"].float32(2) if "clip" in node.attributes else None,
        "input_forget": bool(node.attributes["input_forget"].integer(3)) if "input_forget" in node.attributes else False,
    }

    def cell(k: int) -> Cell:
        part = f"[{k}], gates i, o, f, c"
        origins = [
            Origin(kernel[0], "input_kernel", f"{part}, transposed"),
            Origin(recurrent[0], "recurrent_kernel", f"{part}, transposed"),
        ]
        options: dict[str, Any] = dict(zip(("recurrent_activation", "activation"), activations[k], strict=True)) | shared
        if bias:
            of_x, of_h = np.split(bias[1][k], 2)
            options["bias"] = reorder(summed(of_x, of_h), GATES)
            origins.append(Origin(bias[0], "bias", f"{part}, the two halves summed"))
        if peephole:
            options["peephole"] = reorder(peephole[1][k].reshape(3, units), PEEPHOLES, axis=0)
            origins.append(Origin(peephole[0], "peephole", f"[{k}], rows i, o, f"))
        return draft.cell(origins, reorder(kernel[1][k].T, GATES), reorder(recurrent[1][k].T, GATES), **options)

    if direction == "bidirectional":
        return Bidirectional(cell(0), cell(1))
    if direction not in ("forward", "reverse"):
        raise DataError(f"direction: expected forward, reverse or bidirectional, got {direction!r}")
    return cell(0) if direction == "forward" else Reverse(cell(0))


def read_activations(node: Node, count: int) -> list[tuple[str, str]]:
    """(of the gates, of candidate and output) for each direction. The operator has three: f, g and h."""
    names = node.attributes["activations"].texts(9) if "activations" in node.attributes else []
    names = names or ["Sigmoid", "Tanh", "Tanh"] * count
    if len(names) != 3 * count:
        raise DataError(f"activations: expected {3 * count}, got {len(names)}")
    # One after another, to those that take any (onnxruntime, rnn_helpers.cc).
    alphas, betas = (
        iter(node.attributes[name].numbers(7, "<f4").tolist() if name in node.attributes else [])
        for name in ("activation_alpha", "activation_beta")
    )
    known = [activation(name, alphas, betas) for name in names]
    pairs = []
    for gates, candidate, output in zip(*[iter(known)] * 3, strict=True):
        if candidate != output:
            raise DataError(f"activations: expected the same for candidate and output, got {candidate} and {output}")
        pairs.append((gates, candidate))
    return pairs


def activation(name: str, alphas: Any, betas: Any) -> str:
    lower = name.lower()
    if lower in PLAIN:
        return lower
    if lower == "elu" and next(alphas, 1.0) == 1.0:
        return "elu"
    if lower == "hardsigmoid":
        form = round(next(alphas, 0.2), 6), round(next(betas, 0.5), 6)
        if form in ((0.2, 0.5), (0.166667, 0.5)):
            return "hard_sigmoid_keras2" if form[0] == 0.2 else "hard_sigmoid"
    if lower == "affine" and (next(alphas, 1.0), next(betas, 0.0)) == (1.0, 0.0):
        return "linear"
    raise DataError(f"activations: {name!r}, or its alpha or beta, is none that this program runs")


def read_tensor(message: Message, path: str, where: str, name: str | None = None) -> Tensor:
    name = name or message.text(8)
    shape = tuple(message.integers(1))
    if any(not 0 <= size < 1 << 48 for size in shape):
        raise DataError(f"{where}: damaged: {shown(name)} has shape {shape}")
    kind = message.integer(2)
    dtype = TYPES.get(kind, f"type {kind}")
    return Tensor(name, shape, dtype, partial(values, message, path, f"{where}: {shown(name)}", shape, dtype))


def values(message: Message, path: str, where: str, shape: tuple[int, ...], dtype: str) -> Floats:
    if dtype not in DTYPES:
        raise DataError(f"{where}: expected floating point numbers, got {dtype}")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if message.integer(14) == EXTERNAL:
        data: Any = external({entry.text(1): entry.text(2) for entry in message.messages(13)}, path, where, size)
    elif 9 in message:
        data = message.data(9)
    elif dtype in VALUES:
        data = message.numbers(*VALUES[dtype]).tobytes()
    else:
        data = np.array(message.integers(5), np.int64).astype("<u2").tobytes()
    if len(data) != size:
        raise DataError(f"{where}: {dtype} of shape {shape} takes {size} bytes, got {len(data)}")
    return decode(data, dtype).reshape(shape)


def external(entry: dict[str, str], path: str, where: str, size: int) -> bytes:
    """Values in a file of their own, in the model's folder or below. DataError for any other place."""
    location = entry.get("location", "")
    folder = Path(path).parent.resolve()
    target = folder / location
    # resolve() follows symbolic links, so that none leads out either.
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or not inside(target, folder):
        raise DataError(f"{where}: its values lie in {shown(location)!r}, outside of the model's folder, where nothing is read")
    try:
        offset, length = int(entry.get("offset", "0")), int(entry.get("length", str(size)))
    except ValueError as error:
        raise DataError(f"{where}: damaged: external data at offset {shown(str(entry))[:200]}") from error
    if target.exists() and not target.is_file():
        raise DataError(f"{where}: its values lie in {shown(location)!r}, which is not a plain file")
    fd = open_readable(str(target))
    try:
        file = FileBytes(fd, shown(str(target)))
        if length != size or offset < 0 or offset + size > file.opened.st_size:
            raise DataError(
                f"{where}: takes {size} bytes, got {length} at {offset} of {file.name} ({file.opened.st_size} bytes)"
            )
        return file.take(offset, size)
    finally:
        os.close(fd)


def inside(target: Path, folder: Path) -> bool:
    try:
        return target.resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError):
        return False
