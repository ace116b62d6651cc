"""Values of an ONNX graph that depend on the model's input: what moves their numbers about, and what they are."""

import numpy as np

from lstmcli.errors import DataError, shown
from lstmcli.model.layers import Flip, Layer, Repeat
from lstmcli.model.tree import Model
from lstmcli.weights.chains.graphs.traced_values import PADDING, Named, Numbers, Source, Sources
from lstmcli.weights.draft import Draft
from lstmcli.weights.onnx_graph.constants import Array, Constants, integers_of
from lstmcli.weights.onnx_graph.graph import Node, Value

ELEMENT = np.dtype([("element", np.int64)])  # a type that nothing can be computed with
MOVES = ("Identity", "Dropout", "If", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Slice", "Split",
         "Gather", "Expand", "Tile")  # fmt: skip
OPEN_END = (1 << 31) - 1  # a Slice to this or beyond takes all there is


class Moves:
    """Moves numbers about. Values that depend on the input are arrays of numbers (traced_values.py)."""

    def __init__(self, draft: Draft, constants: Constants, opset: int) -> None:
        self.draft, self.constants, self.opset = draft, constants, opset
        self.sources = Sources()
        self.lengths_given = False  # an LSTM takes lengths, so that its outputs end in zeros

    def numbers(self, value: Value | None) -> Numbers | None:
        """The numbers of a value that depends on the input, or None."""
        array = self.constants.of(value)
        return array["element"] if array is not None and array.dtype == ELEMENT else None

    def required(self, node: Node, k: int) -> Array:
        """An input that does not depend on the model's, and must be there."""
        array = self.constant(node, k)
        if array is None:
            raise DataError(f"expected input {k}, got none")
        return array

    def flowing(self, node: Node, k: int) -> Numbers:
        """The numbers of an input that must depend on the model's."""
        numbers = self.numbers(node.input(k))
        if numbers is None:
            raise DataError(f"expected input {k} to be computed from the model's input")
        return numbers

    def give(self, value: Value, numbers: Numbers) -> None:
        self.constants.arrays[value] = traced(numbers)

    def constant(self, node: Node, k: int) -> Array | None:
        """An input that does not depend on the model's; None where it is left out. Raises DataError for another one."""
        value = node.input(k)
        if value is None or (value.name == "" and value.maker is None):
            return None
        array = self.constants.of(value)
        if array is None or array.dtype == ELEMENT:
            raise DataError(
                f"expected {shown(value.name)!r} as numbers of the file; it is computed, or another input of the model"
            )
        return array

    def move(self, node: Node) -> None:
        if node.operator == "Slice":
            self.refuse_cut(node)
        if node.operator == "Gather" and self.numbers(node.input(1)) is not None:
            raise DataError("takes elements that the input chooses, which is not known to this program")
        for value in node.outputs:
            self.constants.of(value)

    def refuse_cut(self, node: Node) -> None:
        """A slice that ends at some step cuts longer sequences."""
        numbers = self.flowing(node, 0)
        ends = integers_of(node, "ends", [self.constants.of(value) for value in node.inputs], 2) or []
        axes = integers_of(node, "axes", [self.constants.of(value) for value in node.inputs], 3) or range(len(ends))
        for end, axis in zip(ends, axes, strict=False):
            if numbers.shape[axis] < end < OPEN_END:
                raise DataError(f"takes {end} of axis {axis} at most, which cuts what is longer; not known to this program")

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

    def layer(self, node: Node, kind: str, shape: tuple[int, ...], source: Source, layer: Layer | Model) -> Source:
        """What comes out of a layer upon those that made a source."""
        return self.sources.add(kind, shape, (*source.made, Named(layer, node.name)))

    def sequences(self, node: Node, numbers: Numbers) -> Source:
        """The source of an array (N, T, E): sequences as they are, or from the last step, or a vector at each step."""
        numbers, source = self.sources.layered(self.sources.settled(numbers, whole=False)[0])
        if source.kind == "vectors" and numbers.shape[::2] == source.shape and (numbers == source.numbers[:, None]).all():
            return self.layer(node, "sequences", numbers.shape, source, Repeat(numbers.shape[1]))
        if source.kind == "sequences" and np.array_equal(numbers, source.numbers):
            return source
        if source.kind == "sequences" and np.array_equal(numbers[:, ::-1], source.numbers):
            return self.layer(node, "sequences", source.shape, source, Flip())
        raise DataError("takes sequences, steps and features in another order than they come")


def traced(numbers: Numbers) -> Array:
    """Numbers as elements of a type that nothing can be computed with, so that they are only moved."""
    return np.ascontiguousarray(numbers).view(ELEMENT).reshape(numbers.shape)
