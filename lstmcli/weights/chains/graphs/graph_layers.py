"""What layers are made of what operators of a graph compute, whatever the operators are called."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError
from lstmcli.model.layers import Affine, Conv1D, Dense, Embedding, Flatten, Layer, Pool, Window
from lstmcli.model.tree import Model
from lstmcli.weights.chains.graphs import row_functions as rf
from lstmcli.weights.chains.graphs.row_functions import Expression
from lstmcli.weights.chains.graphs.traced_graph import ELEMENT, TracedGraph, traced
from lstmcli.weights.chains.graphs.traced_values import PADDING, Named, Numbers, Source, each_once
from lstmcli.weights.draft import Draft
from lstmcli.weights.onnx_graph.constants import Array
from lstmcli.weights.onnx_graph.graph import Node


class GraphLayers(TracedGraph):
    """Makes layers of nodes."""

    def embedding(self, node: Node) -> None:
        table, ids = self.required(node, 0), self.flowing(node, 1)
        source = self.sources.of(ids)
        if source.kind != "ids" or table.ndim != 2 or node.integer("axis") or table.dtype.kind != "f":
            raise DataError("takes elements that the input chooses, which is not known to this program")
        if source.rows:  # ids of each id, such as those of TensorFlow, which wraps negative ones
            each = rf.evaluate(source.function, source.rows.function, np.arange(len(table), dtype=np.float64)[:, None])[:, 0]
            if not np.isin(each, np.arange(len(table))).all():
                raise DataError(f"takes rows of a table of {len(table)} that are not there for each of so many ids")
            table = table[each.astype(np.int64)]
        made = self.layer(node, "sequences", (*source.shape[:2], table.shape[1]), source, Embedding(table))
        rows, _ = source.places(ids)
        self.give(node.outputs[0], made.first + rows[..., None] * made.width + np.arange(made.width))

    def dense(self, node: Node, kernel: Floats, bias: Floats | None) -> None:
        """A product with the last axis: features in any order, or all steps of a sequence side by side."""
        numbers = self.flowing(node, 0)
        kernel = kernel.reshape(kernel.shape[-2:]) if kernel.size == np.prod(kernel.shape[-2:]) else kernel
        if kernel.ndim != 2 or not numbers.ndim or numbers.shape[-1] != len(kernel):
            raise DataError(f"expected a matrix of {numbers.shape[-1:]} rows, got {kernel.shape}")
        outputs = kernel.shape[1]
        if bias is not None:
            bias = np.broadcast_to(bias, (1, outputs)).reshape(outputs)
        numbers, source = self.sources.layered(self.sources.settled(numbers, whole=False)[0])
        rows, features = source.places(numbers)
        if source.kind == "sequences" and not constant(rows) and constant(rows // source.steps):
            flat = (source.shape[0], source.steps * source.width)
            rows, features = rows // source.steps, rows % source.steps * source.width + features
            source = self.layer(node, "vectors", flat, source, Flatten(source.steps))
        order, there = features.reshape(-1, len(kernel)), rows[..., 0]
        if source.kind == "ids" or not constant(rows) or (order != order[0]).any():
            raise DataError("the axis of the product is not that of the features")
        if there.size != source.size // source.width or not each_once(there, there.size):
            raise DataError("takes some rows more than once, which is not known to this program")
        ordered = np.zeros((source.width, outputs), kernel.dtype)
        np.add.at(ordered, order[0], kernel)
        made = self.layer(node, source.kind, (*source.shape[:-1], outputs), source, Dense(ordered, bias))
        self.give(node.outputs[0], made.first + there[..., None] * outputs + np.arange(outputs))

    def convolved(self, node: Node, numbers: Numbers, kernel: Floats, bias: Floats | None, options: dict[str, Any]) -> Numbers:
        """The numbers of a convolution of an array (N, T, E), which may have zeros of a Pad at its ends; kernel (K, E, O)."""
        padded = (numbers == PADDING).all(axis=(0, 2))
        if padded.any() and not padded.all():
            inside = np.flatnonzero(~padded)
            before, behind = int(inside[0]), len(padded) - 1 - int(inside[-1])
            numbers = numbers[:, before : len(padded) - behind]
            if options["padding"] == "same":
                raise DataError("pads twice, which is not known to this program")
            options["padding"] = (options["padding"][0] + before, options["padding"][1] + behind)
        return self.windowed(node, numbers, Conv1D(kernel=kernel, bias=bias, **options), kernel.shape[2])

    def windowed(self, node: Node, numbers: Numbers, layer: Window, width: int) -> Numbers:
        """The numbers (N, steps, width) of what a layer makes of an array (N, T, E)."""
        source = self.sequences(node, numbers)
        steps = int(layer.output_lengths(np.array([source.steps]))[0])
        if steps < 1:
            raise DataError("the input that the graph declares has fewer steps than a window")
        return self.layer(node, "sequences", (len(numbers), steps, width), source, layer).numbers

    def operand(self, node: Node, k: int) -> Array:
        """An input as an array, of numbers of the file or of those that are traced."""
        numbers = self.numbers(node.input(k))
        return self.required(node, k) if numbers is None else traced(numbers)

    def computed(self, node: Node, function: Callable[..., rf.Rows], operands: list[Array]) -> Numbers:
        """The numbers of what a function gives for each element, of operands of which one at least is traced."""
        shape = np.broadcast_shapes(*(array.shape for array in operands))
        flows = {k: self.sources.settled(array["element"]) for k, array in enumerate(operands) if array.dtype == ELEMENT}
        widest, source = max(flows.values(), key=lambda flow: flow[1].width)
        root = source.rows or source
        rows, features = source.places(np.broadcast_to(widest, shape))
        width = source.width
        larger = [axis for axis in range(-len(shape), 0) if shape[axis] != (*[1] * len(shape), *widest.shape)[axis]]
        if width == len(larger) == 1:  # one number of each row, and one of the file for each feature
            width = shape[larger[0]]
            features = np.moveaxis(np.broadcast_to(np.arange(width), np.moveaxis(rows, larger[0], -1).shape), -1, larger[0])
        elif larger:
            raise DataError(f"makes {shape} of {widest.shape}, which is not known to this program")
        arguments: list[Expression | rf.Rows] = []
        for k, array in enumerate(operands):
            if k in flows:
                numbers, other = flows[k]
                own_rows, own_features = other.places(np.broadcast_to(numbers, shape))
                if (other.rows or other) is not root:
                    names = self.sources.name(root), self.sources.name(other.rows or other)
                    raise DataError(f"takes two inputs, of {names[0]} and {names[1]}; expected a model in one line")
                if (own_rows != rows).any() or (other.width > 1 and (own_features != features).any()):
                    raise DataError("puts numbers of several steps or features together; not known to this program")
                arguments.append(other.function)
                continue
            every = np.broadcast_to(array, shape)
            each = np.zeros(width, bool if array.dtype == bool else np.float64)
            each[features] = every
            if not np.array_equal(each[features], every, equal_nan=array.dtype.kind == "f"):
                raise DataError("its numbers differ from step to step, or between sequences; not known to this program")
            arguments.append(each)
        return self.function(node, root, width, function, tuple(arguments)).first + rows * width + features

    def function(
        self,
        node: Node,
        root: Source,
        width: int,
        function: Callable[..., rf.Rows],
        arguments: tuple[Expression | rf.Rows, ...],
    ) -> Source:
        expression = Expression(node.operator, node.name, width, function, arguments)
        return self.sources.add(root.kind, (*root.shape[:-1], width), root.made, function=expression, rows=root)

    def over_features(self, node: Node, axis: int, function: Callable[[rf.Rows], rf.Rows]) -> Numbers:
        """The numbers of a function of whole rows, whose features must lie along an axis."""
        numbers, source = self.sources.settled(self.flowing(node, 0))
        if not -numbers.ndim <= axis < numbers.ndim or not along_features(numbers, source, axis):
            raise DataError(f"axis {axis} is not that of the features, which is not known to this program")
        made = self.function(node, source.rows or source, source.width, function, (source.function,))
        return numbers - source.first + made.first

    def reduced(self, node: Node, name: str, function: Callable[..., Any], axes: list[int], keep: bool) -> Numbers:
        """Over the features of each row, or over the steps of each sequence; other axes that are named must be of size 1."""
        numbers, source = self.sources.settled(self.flowing(node, 0))
        if not axes or any(not -numbers.ndim <= axis < numbers.ndim for axis in axes):
            raise DataError(f"over axes {axes} is not known to this program; expected the steps or the features")
        axis, *others = sorted(axes, key=lambda axis: numbers.shape[axis] == 1)
        if any(numbers.shape[other] != 1 for other in others):
            raise DataError(f"over axes {axes} is not known to this program; expected one, the steps or the features")
        if along_features(numbers, source, axis):
            root, row_wise = source.rows or source, functools.partial(function, axis=1, keepdims=True)
            made = self.function(node, root, 1, row_wise, (source.function,))
            found = np.take(source.places(numbers)[0], [0], axis) + made.first
        else:
            found = self.pooled(node, name, numbers, axis)
        return found if keep else found.squeeze(tuple(axes))

    def pooled(self, node: Node, name: str, numbers: Numbers, axis: int) -> Numbers:
        """What is left of an axis that must be that of the steps: 1."""
        numbers, source = self.sources.layered(numbers)
        if source.kind != "sequences" or axis >= numbers.ndim:
            raise DataError("is not computed of sequences")
        rows, features = (np.moveaxis(part, axis, -1) for part in source.places(numbers))
        same = constant(rows // source.steps) and constant(features) and rows.shape[-1] == source.steps
        if not same or (rows % source.steps != np.arange(source.steps)).any():
            raise DataError(f"axis {axis} is not that of the steps, which is not known to this program")
        made = self.layer(node, "vectors", source.shape[::2], source, Pool(name))
        return np.expand_dims(made.first + (rows // source.steps * source.width + features)[..., 0], axis)


def constant(numbers: Numbers) -> bool:
    """Whether all numbers along the last axis are the same."""
    return bool((numbers == numbers[..., :1]).all())


def along_features(numbers: Numbers, source: Source, axis: int) -> bool:
    """Whether an axis of an array is that of a source's features, all of them in their order."""
    rows, features = (np.moveaxis(part, axis, -1) for part in source.places(numbers))
    return rows.shape[-1] == source.width and constant(rows) and bool((features == np.arange(source.width)).all())


def joined(draft: Draft, made: tuple[Named, ...]) -> list[Named]:
    """Return the layers with LSTMs in a row as stacks, and with the biases of dense layers in these."""
    found: list[Named] = []
    for is_lstm, some in itertools.groupby(made, lambda named: isinstance(named.layer, Model)):
        layers = list(some)
        if is_lstm:
            stack = draft.finish(draft.stack(layer for layer, _ in layers if isinstance(layer, Model))).model
            found.append(Named(stack, layers[0].name))
            continue
        for named in layers:
            together = with_bias(found[-1].layer, named.layer) if found else None
            if together:
                found[-1] = Named(together, found[-1].name)
            else:
                found.append(named)
    return found


def with_bias(below: Layer | Model, above: Layer | Model) -> Layer | None:
    """Return a dense layer or a convolution, and a shift of what it puts out, as one layer, if they are these."""
    if isinstance(below, Dense | Conv1D) and below.bias is None and isinstance(above, Affine) and (above.scale == 1).all():
        return replace(below, bias=above.shift.astype(below.kernel.dtype))
    return None
