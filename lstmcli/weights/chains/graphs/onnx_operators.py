"""What each operator of an ONNX graph makes of the layers before it (onnx/docs/Operators.md)."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lstmcli.errors import DataError, shown
from lstmcli.model.layers import Flatten, Pool, Pool1D, Window
from lstmcli.model.tree import Model
from lstmcli.weights.chains.graphs import row_functions as rf
from lstmcli.weights.chains.graphs.graph_layers import GraphLayers
from lstmcli.weights.chains.graphs.traced_graph import Layers, traced
from lstmcli.weights.chains.graphs.traced_values import PADDING, Numbers, Source
from lstmcli.weights.draft import Draft
from lstmcli.weights.onnx import Layer as LstmNode
from lstmcli.weights.onnx import node_input
from lstmcli.weights.onnx_graph.constants import Constants, integers_of
from lstmcli.weights.onnx_graph.graph import Node, Value
from lstmcli.weights.onnx_graph.tensors import TYPES

MOVES = ("Identity", "Dropout", "If", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Slice", "Split",
         "Gather", "Expand", "Tile")  # fmt: skip
OPEN_END = (1 << 31) - 1  # a Slice to this or beyond takes all there is


class Operators(GraphLayers):
    """Applies operators, one after the other."""

    def __init__(self, draft: Draft, constants: Constants, opset: int) -> None:
        super().__init__(draft, constants)
        self.opset = opset
        self.lengths_given = False  # an LSTM takes lengths, so that its outputs end in zeros

    def layers(self, given: Value, axes: str, outputs: Sequence[Value]) -> Layers:
        made = super().layers(given, axes, outputs)
        if self.lengths_given:
            refuse_padding_seen(made)
        return made

    def needs(self, node: Node) -> list[Value]:
        if node.operator != "If":
            return super().needs(node)
        condition = node.input(0)
        branch = self.constants.branch(node) if condition and self.constants.of(condition) is not None else None
        return [*([condition] if condition else []), *(branch.outputs if branch else [])]

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

    def make_MatMul(self, node: Node) -> None:  # noqa: N802
        self.dense(node, self.required(node, 1), None)

    def make_Gemm(self, node: Node) -> None:  # noqa: N802
        kernel, bias = self.required(node, 1), self.constant(node, 2)
        alpha, beta = (1.0 if (number := node.number(name)) is None else number for name in ("alpha", "beta"))
        if node.integer("transA"):
            raise DataError("transA is not known to this program")
        kernel = kernel.T if node.integer("transB") else kernel
        self.dense(node, kernel * kernel.dtype.type(alpha), None if bias is None else bias * bias.dtype.type(beta))

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
        found = self.convolved(node, numbers, kernel, bias, options)
        self.give(node.outputs[0], features_first(found, shape))

    def make_MaxPool(self, node: Node) -> None:  # noqa: N802
        numbers, shape, options = self.window(node, node.integers("kernel_shape") or [])
        found = self.windowed(node, numbers, Pool1D(function="max", **options), numbers.shape[2])
        self.give(node.outputs[0], features_first(found, shape))

    def make_AveragePool(self, node: Node) -> None:  # noqa: N802
        numbers, shape, options = self.window(node, node.integers("kernel_shape") or [])
        layer = Pool1D(function="mean", count_padding=bool(node.integer("count_include_pad")), **options)
        self.give(node.outputs[0], features_first(self.windowed(node, numbers, layer, numbers.shape[2]), shape))

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

    # What is computed of each row

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

    def move(self, node: Node) -> None:
        if node.operator == "Slice":
            self.refuse_cut(node)
        if node.operator == "Gather" and self.numbers(node.input(1)) is not None:
            raise DataError("takes elements that the input chooses, which is not known to this program")
        for value in node.outputs:
            self.constants.of(value)

    def refuse_cut(self, node: Node) -> None:
        """A slice that ends at some step, or begins at some step from the end, cuts longer sequences."""
        numbers, inputs = self.flowing(node, 0), [self.constants.of(value) for value in node.inputs]
        starts, ends = (integers_of(node, name, inputs, k) or [] for k, name in ((1, "starts"), (2, "ends")))
        axes = integers_of(node, "axes", inputs, 3) or range(len(ends))
        for axis, *places in zip(axes, starts, ends, strict=False):
            if beyond := [abs(place) for place in places if numbers.shape[axis] < abs(place) < OPEN_END]:
                raise DataError(
                    f"takes {beyond[0]} of axis {axis} at most, which cuts what is longer; not known to this program"
                )

    def make_ReverseSequence(self, node: Node) -> None:  # noqa: N802
        numbers, lengths = self.flowing(node, 0), self.constant(node, 1)
        axis = node.integer("time_axis")
        if lengths is None or axis >= numbers.ndim or (lengths != numbers.shape[axis]).any():
            raise DataError("reverses a part of the steps, which is not known to this program")
        self.give(node.outputs[0], np.flip(numbers, axis))

    def make_Pad(self, node: Node) -> None:  # noqa: N802
        numbers = self.flowing(node, 0)
        pads = integers_of(node, "pads", [self.constants.of(value) for value in node.inputs], 1)
        value = self.constant(node, 2)
        filled = node.number("value") if value is None else float(value.reshape(-1)[0])
        if node.text("mode", "constant") != "constant" or filled or pads is None or self.constant(node, 3) is not None:
            raise DataError("pads with other than zeros, or some axes; not known to this program")
        if min(pads) < 0:
            raise DataError("cuts with negative padding; not known to this program")
        sides = list(zip(pads[: numbers.ndim], pads[numbers.ndim :], strict=True))
        self.give(node.outputs[0], np.pad(numbers, sides, constant_values=PADDING) if any(pads) else numbers)


def refuse_padding_seen(made: Layers) -> None:
    """Steps behind the length that an LSTM is told are zeros of it: what looks at them sees no padding here."""
    for layer, name in itertools.dropwhile(lambda named: not isinstance(named.layer, Model), made):
        if isinstance(layer, Window | Flatten) or (isinstance(layer, Pool) and layer.function != "final"):
            raise DataError(
                f"node {shown(name)!r} looks at steps behind the length that an LSTM takes; not known to this program"
            )


def features_first(numbers: Numbers, shape: list[int]) -> Numbers:
    """Numbers (N, T, E) as (N, E) and the axes of this shape."""
    return numbers.swapaxes(1, 2).reshape(len(numbers), numbers.shape[2], *shape)
