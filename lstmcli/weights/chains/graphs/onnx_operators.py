"""What each operator of an ONNX graph makes of the layers before it (onnx/docs/Operators.md)."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.model.layers import Conv1D, Dense, Embedding, Flatten, Pool, Pool1D, Window
from lstmcli.weights.chains.graphs import row_functions as rf
from lstmcli.weights.chains.graphs.onnx_moves import ELEMENT, MOVES, Moves, traced
from lstmcli.weights.chains.graphs.row_functions import Expression
from lstmcli.weights.chains.graphs.traced_values import PADDING, Numbers, Source, each_once
from lstmcli.weights.onnx import Layer as LstmNode
from lstmcli.weights.onnx import node_input
from lstmcli.weights.onnx_graph.constants import Array, integers_of
from lstmcli.weights.onnx_graph.graph import Node
from lstmcli.weights.onnx_graph.tensors import TYPES


class Operators(Moves):
    """Applies operators, one after the other."""

    def apply(self, node: Node) -> None:
        """Say what a node puts out. Raises DataError for an operator, or an option of one, that is not known."""
        flowing = [k for k, value in enumerate(node.inputs) if self.numbers(value) is not None]
        if node.operator == "If":
            flowing = [0]
        elif node.graphs:
            raise DataError("a loop over a graph of its own, which is not known to this program")
        if not flowing or node.operator in ("Shape", "Size"):
            return
        if node.operator == "Gather" and flowing == [1]:
            self.embedding(node)
        elif node.operator in MOVES:
            self.move(node)
        elif make := getattr(self, f"make_{node.operator}", None):
            make(node)
        elif function := rf.function_of(node):
            self.give(node.outputs[0], self.computed(node, function, [self.operand(node, k) for k in range(len(node.inputs))]))
        else:
            raise DataError("an operator that is not known to this program; nothing is left out in silence")

    # Layers

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

    def make_MatMul(self, node: Node) -> None:  # noqa: N802
        self.dense(node, self.required(node, 1), None)

    def make_Gemm(self, node: Node) -> None:  # noqa: N802
        kernel, bias = self.required(node, 1), self.constant(node, 2)
        alpha, beta = (1.0 if (number := node.number(name)) is None else number for name in ("alpha", "beta"))
        if node.integer("transA"):
            raise DataError("transA is not known to this program")
        kernel = kernel.T if node.integer("transB") else kernel
        self.dense(node, kernel * kernel.dtype.type(alpha), None if bias is None else bias * bias.dtype.type(beta))

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

    def make_LSTM(self, node: Node) -> None:  # noqa: N802
        x = self.numbers(node_input(node, "X"))
        if x is None or x.ndim != 3:
            raise DataError("expected X as sequences")
        for name in ("W", "R", "B", "P", "initial_h", "initial_c", "sequence_lens"):
            if self.numbers(node_input(node, name)) is not None:
                raise DataError(f"{name} is computed from the input, which is not known to this program")
        batch_first = bool(node.integer("layout"))
        source = self.sequences(node, x if batch_first else x.swapaxes(0, 1))
        before = len(self.draft.assumed)
        self.lengths(node, source)
        model = LstmNode(node, self.constants, self.draft).read()
        if left_out := [text for text in self.draft.assumed[before:] if not text.startswith("sequence_lens")]:
            raise DataError(left_out[0])
        del self.draft.assumed[before:]
        count, steps, _ = source.shape
        if model.input_size != source.width:
            raise DataError(f"takes {model.input_size} features, got {source.width}")
        y = self.layer(node, "sequences", (count, steps, model.output_size), source, model)
        directions = 2 if node.text("direction") == "bidirectional" else 1
        split = y.numbers.reshape(count, steps, directions, -1)
        self.give(node.outputs[0], split if batch_first else split.transpose(1, 2, 0, 3))
        for kind, value in zip(("states", "cells"), node.outputs[1:], strict=False):
            numbers = self.sources.add(kind, (count, model.output_size), y.made).numbers.reshape(count, directions, -1)
            self.give(value, numbers if batch_first else numbers.swapaxes(0, 1))

    def lengths(self, node: Node, source: Source) -> None:
        """Lengths may be an input of the model; those of the file must be full."""
        value = node_input(node, "sequence_lens")
        if value is None:
            return
        known = self.constants.of(value)
        if known is not None and (known == source.steps).all():
            return
        if known is not None or (value.maker and value.maker.operator not in ("Cast", "Identity")):
            raise DataError("sequence_lens are computed, or numbers of the file; expected an input of the model")
        self.lengths_given, self.draft.masked = True, None
        self.draft.note(f"the model takes lengths, {shown(value.name)}; here --lens says them")

    # Windows over the steps

    def make_Conv(self, node: Node) -> None:  # noqa: N802
        kernel, bias = self.required(node, 1), self.constant(node, 2)
        if node.integer("group", 1) != 1:
            raise DataError(f"group {node.integer('group')} is not known to this program; expected 1")
        numbers, shape, options = self.window(node, list(kernel.shape[2:]))
        kernel = kernel.reshape(*kernel.shape[:2], options["size"]).transpose(2, 1, 0)
        padded = (numbers == PADDING).all(axis=(0, 2))
        if padded.any() and not padded.all():
            inside = np.flatnonzero(~padded)
            before, behind = int(inside[0]), len(padded) - 1 - int(inside[-1])
            numbers = numbers[:, before : len(padded) - behind]
            if options["padding"] == "same":
                raise DataError("pads twice, which is not known to this program")
            options["padding"] = (options["padding"][0] + before, options["padding"][1] + behind)
        self.windowed(node, numbers, shape, Conv1D(kernel=kernel, bias=bias, **options), kernel.shape[2])

    def make_MaxPool(self, node: Node) -> None:  # noqa: N802
        numbers, shape, options = self.window(node, node.integers("kernel_shape") or [])
        self.windowed(node, numbers, shape, Pool1D(function="max", **options), numbers.shape[2])

    def make_AveragePool(self, node: Node) -> None:  # noqa: N802
        numbers, shape, options = self.window(node, node.integers("kernel_shape") or [])
        layer = Pool1D(function="mean", count_padding=bool(node.integer("count_include_pad")), **options)
        self.windowed(node, numbers, shape, layer, numbers.shape[2])

    def window(self, node: Node, sizes: list[int]) -> tuple[Numbers, list[int], dict[str, Any]]:
        """The numbers (N, T, E) of an input (N, E, T), or with one more axis of size 1; the shape of such axes; and the options
        that layers have."""
        numbers = self.flowing(node, 0)
        spatial = numbers.shape[2:]
        if len(sizes) != len(spatial) or not sizes:
            raise DataError(f"expected windows of rank {len(spatial)}, got {sizes}")
        units = [k for k, size in enumerate(sizes) if size == 1 and spatial[k] == 1][: len(sizes) - 1]
        if len(units) != len(sizes) - 1:
            raise DataError(
                f"windows {sizes} over {len(sizes)} axes are not known to this program; expected one axis, the steps"
            )
        (axis,) = set(range(len(sizes))) - set(units)
        count = len(sizes)
        pads = node.integers("pads") or [0] * (2 * count)
        if node.integer("ceil_mode") or any(pads[k] or pads[count + k] for k in units):
            raise DataError(f"ceil_mode or pads {pads} are not known to this program")
        automatic = node.text("auto_pad", "NOTSET")
        if automatic not in ("NOTSET", "VALID", "SAME_UPPER"):
            raise DataError(f"auto_pad {shown(automatic)} is not known to this program")
        padding = "same" if automatic == "SAME_UPPER" else (pads[axis], pads[count + axis])
        strides, dilations = (node.integers(name) or [1] * count for name in ("strides", "dilations"))
        options = {"size": sizes[axis], "stride": strides[axis], "dilation": dilations[axis], "padding": padding}
        shape = [1] * count
        shape[axis] = -1
        return numbers.reshape(*numbers.shape[:2], spatial[axis]).swapaxes(1, 2), shape, options

    def windowed(self, node: Node, numbers: Numbers, shape: list[int], layer: Window, width: int) -> None:
        source = self.sequences(node, numbers)
        steps = int(layer.output_lengths(np.array([source.steps]))[0])
        if steps < 1:
            raise DataError("the input that the graph declares has fewer steps than a window")
        made = self.layer(node, "sequences", (len(numbers), steps, width), source, layer)
        self.give(node.outputs[0], made.numbers.swapaxes(1, 2).reshape(len(numbers), width, *shape))

    # What is computed of each row

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

    def make_Cast(self, node: Node) -> None:  # noqa: N802
        """From floats to floats nothing is done; what is computed of ids may be of any type on the way."""
        numbers = self.flowing(node, 0)
        kind = np.dtype(TYPES[node.integer("to")].dtype or "V").kind if node.integer("to") in TYPES else "V"
        source = self.sources.of(numbers)
        casts: dict[str, Callable[..., rf.Rows]] = {
            "i": np.trunc,
            "u": np.trunc,
            "b": lambda x: x != 0,
            "f": lambda x: x.astype(float),
        }
        if source.kind == "ids" and kind in casts and (source.rows or kind not in "iu"):
            numbers = self.computed(node, casts[kind], [traced(numbers)])
        elif kind not in ("iu" if source.kind == "ids" else "f"):
            raise DataError("to this type is not known to this program")
        self.give(node.outputs[0], numbers)

    def make_Softmax(self, node: Node) -> None:  # noqa: N802
        self.soft(node, rf.softmax)

    def make_LogSoftmax(self, node: Node) -> None:  # noqa: N802
        self.soft(node, rf.log_softmax)

    def soft(self, node: Node, function: Callable[[rf.Rows], rf.Rows]) -> None:
        rank, flat = self.flowing(node, 0).ndim, self.opset < 13  # which took all axes from `axis` on together
        axis = node.integer("axis", 1 if flat else -1)
        if flat and axis not in (-1, rank - 1):
            raise DataError(f"axis {axis} of rank {rank} is not known to this program; expected the last one")
        self.give(node.outputs[0], self.over_features(node, axis, function))

    def make_LayerNormalization(self, node: Node) -> None:  # noqa: N802
        epsilon = 1e-5 if (number := node.number("epsilon")) is None else number
        axis = node.integer("axis", -1)
        if axis not in (-1, self.flowing(node, 0).ndim - 1):
            raise DataError(f"axis {axis} is not known to this program; expected the last one, -1")
        numbers = self.over_features(node, axis, functools.partial(rf.normalized, epsilon=epsilon))
        for k, function in ((1, np.multiply), (2, np.add)):
            if self.constant(node, k) is not None:
                numbers = self.computed(node, function, [traced(numbers), self.operand(node, k)])
        self.give(node.outputs[0], numbers)

    def make_BatchNormalization(self, node: Node) -> None:  # noqa: N802
        numbers = self.flowing(node, 0)
        if node.integer("training_mode"):
            raise DataError("training_mode is not known to this program")
        shape = [1, -1] + [1] * (numbers.ndim - 2)
        gamma, beta, mean, variance = (self.operand(node, k).astype(np.float64).reshape(shape) for k in range(1, 5))
        factor = gamma / np.sqrt(variance + (1e-5 if (number := node.number("epsilon")) is None else number))
        scaled = self.computed(node, lambda x, a, b: x * a + b, [traced(numbers), factor, beta - mean * factor])
        self.give(node.outputs[0], scaled)

    def make_Clip(self, node: Node) -> None:  # noqa: N802
        numbers = self.flowing(node, 0)
        for k, name, function in ((1, "min", np.maximum), (2, "max", np.minimum)):
            limit = self.constant(node, k)
            if limit is None and (number := node.number(name)) is not None:
                limit = np.array(number, np.float64)
            if limit is not None:
                numbers = self.computed(node, function, [traced(numbers), limit])
        self.give(node.outputs[0], numbers)

    # What is computed over steps

    def make_ReduceMean(self, node: Node) -> None:  # noqa: N802
        self.reduce(node, "mean", np.mean)

    def make_ReduceMax(self, node: Node) -> None:  # noqa: N802
        self.reduce(node, "max", np.max)

    def make_ReduceSum(self, node: Node) -> None:  # noqa: N802
        self.reduce(node, "sum", np.sum)

    def make_GlobalAveragePool(self, node: Node) -> None:  # noqa: N802
        self.pool_all(node, "mean", np.mean)

    def make_GlobalMaxPool(self, node: Node) -> None:  # noqa: N802
        self.pool_all(node, "max", np.max)

    def reduce(self, node: Node, name: str, function: Callable[..., Any]) -> None:
        axes = integers_of(node, "axes", [None, self.constant(node, 1)], 1) or []
        self.give(node.outputs[0], self.reduced(node, name, function, axes, bool(node.integer("keepdims", 1))))

    def pool_all(self, node: Node, name: str, function: Callable[..., Any]) -> None:
        axes = list(range(2, self.flowing(node, 0).ndim))
        self.give(node.outputs[0], self.reduced(node, name, function, axes, True))

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
