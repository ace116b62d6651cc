"""Values of an ONNX graph that are known without running it: numbers of the file that operators only move about.

PyTorch's exporters write the gates of an LSTM in ONNX's order as Slice, Concat and Unsqueeze of PyTorch's own weights, and its
initial states as zeros of a shape that is computed from the input's. The operators are those of onnx/docs/Operators.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, shown
from lstmcli.weights.containers.tensor import DTYPES, Tensor
from lstmcli.weights.onnx_graph.graph import Graph, Node, Value
from lstmcli.weights.onnx_graph.tensors import TYPES

Array = NDArray[Any]
Inputs = list[Array | None]

MAX_BYTES = 1 << 29  # of an array that is computed; what is in the file may be larger
MAX_TRACED = 1 << 27  # likewise, of one that says where elements come to lie
MAX_DEPTH = 100  # of operators through which a shape is followed
# RuntimeError: more axes than NumPy has.
FAILURES = (ValueError, IndexError, TypeError, KeyError, OverflowError, ArithmeticError, MemoryError, RuntimeError)


class Constants:
    """Folds the constants of a graph.

    given: arrays that stand for values which are not constant. sizes: for the sizes that the graph leaves open, such as the
    number of sequences, in the order in which they are met; without them, what depends on such a size is not constant.
    """

    def __init__(self, given: Mapping[Value, Array] = {}, sizes: Sequence[int] = ()) -> None:
        self.arrays: dict[Value, Array | None] = dict(given)
        self.sizes = iter(sizes)
        self.named: dict[Any, int | None] = {}

    def of(self, value: Value | None) -> Array | None:
        """Returns the array that `value` always is, or None. DataError: inputs that no operator takes, or damaged numbers."""
        if value is None:
            return None
        pending, waiting = [value], set[Value]()
        while pending:
            top = pending[-1]
            needed = [] if top in self.arrays else [other for other in self.needs(top) if other not in self.arrays]
            if needed and waiting.isdisjoint(needed):
                waiting.add(top)
                pending += needed
                continue
            if top not in self.arrays:
                self.arrays[top] = None if needed else self.compute(top)  # it needs itself: a damaged graph
            waiting.discard(top)
            pending.pop()
        return self.arrays[value]

    def needs(self, value: Value) -> list[Value]:
        """Returns what must be known before a value."""
        node = value.maker
        if value.tensor or not node or node.operator not in OPERATORS | SHAPES:
            return []
        if node.operator == "If":
            condition, branch = node.input(0), self.branch(node)
            return [branch.outputs[value.index]] if branch else [condition] if condition else []
        return [given for given in node.inputs if given]

    def branch(self, node: Node) -> Graph | None:
        """Returns the branch that an If takes, where its condition is known by now."""
        condition = node.input(0)
        known = self.arrays.get(condition) if condition else None
        if known is None or known.size != 1:
            return None
        graph = node.graphs.get("then_branch" if known.reshape(-1)[0] else "else_branch")
        return graph if graph and len(graph.outputs) >= len(node.outputs) else None

    def compute(self, value: Value) -> Array | None:
        """Returns the array of a value whose needs are known, or None."""
        node = value.maker
        if value.tensor:
            return value.tensor.read()
        if not node or node.operator not in OPERATORS:
            return None
        if node.operator == "If":
            branch = self.branch(node)
            return self.arrays[branch.outputs[value.index]] if branch else None
        if node.operator in ("Shape", "Size"):
            inputs: Inputs = [shape if (shape := self.shape(node.input(0))) is None else np.array(shape, np.int64)]
        else:
            inputs = [self.arrays[given] if given else None for given in node.inputs]
        if any(given and array is None for given, array in zip(node.inputs, inputs, strict=False)):
            return None
        try:
            with np.errstate(all="ignore"):
                made = OPERATORS[node.operator](node, inputs)
        except FAILURES as error:
            what = " and ".join(f"{array.dtype} {array.shape}" for array in inputs if array is not None)
            raise DataError(f"node {shown(node.name)!r}: {node.operator} cannot be computed of {what or 'nothing'}") from error
        outputs = made if isinstance(made, list) else [made]
        return outputs[value.index] if value.index < len(outputs) else None

    def obstacle(self, value: Value) -> Value:
        """Finds what keeps a value from being constant: an input, or what an operator makes that is not folded."""
        seen = {value}
        while value.maker and value.maker.operator in OPERATORS:
            below = next((one for one in self.needs(value) if one not in seen and self.arrays.get(one) is None), None)
            if below is None:
                break
            seen.add(value := below)
        return value

    def shape(self, value: Value | None, depth: int = 0) -> tuple[int, ...] | None:
        """Returns the shape of a value, as far as what makes it, or what the file declares, tells it."""
        if value is None or depth > MAX_DEPTH:
            return None
        if (known := self.arrays.get(value)) is not None:
            return known.shape
        if value.tensor:
            return value.tensor.shape
        node = value.maker
        if node and node.operator in SHAPES and (below := self.shape(node.input(0), depth + 1)) is not None:
            others = [self.arrays.get(other) if other else None for other in node.inputs[1:]]
            try:
                return SHAPES[node.operator](node, value.index, below, others)
            except FAILURES:
                return None
        sizes = [self.size((value, axis), size) for axis, size in enumerate(value.shape or ())]
        return None if value.shape is None or None in sizes else tuple(size for size in sizes if size is not None)

    def size(self, place: tuple[Value, int], declared: int | str | None) -> int | None:
        if isinstance(declared, int):
            return declared if declared >= 0 else None
        name = declared or place
        if name not in self.named:
            self.named[name] = next(self.sizes, None)
        return self.named[name]


def sources(value: Value) -> list[Tensor]:
    """Returns the tensors of floats in the file that a constant is made of."""
    found: dict[Value, None] = {value: None}
    pending = [value]
    while pending:
        top = pending.pop()
        for below in top.maker.inputs if top.maker and not top.tensor else []:
            if below and below not in found:
                found[below] = None
                pending.append(below)
    return [one.tensor for one in found if one.tensor and one.tensor.dtype in DTYPES]


# What the operators do, one function each: the node and its inputs' arrays (None: left out) in, the outputs out.


def limited(shape: Sequence[int], array: Array) -> None:
    """Raises ValueError where an array of this shape would be larger than any weights."""
    if math.prod(shape) * array.dtype.itemsize > (MAX_TRACED if array.dtype.names else MAX_BYTES):
        raise ValueError


def data_of(inputs: Inputs, k: int = 0) -> Array:
    array = inputs[k]
    if array is None:
        raise ValueError
    return array


def integers_of(node: Node, name: str, inputs: Inputs, k: int) -> list[int] | None:
    """Returns what newer versions of an operator take as input `k`, and older ones as an attribute."""
    array = inputs[k] if k < len(inputs) else None
    if array is None:
        return node.integers(name)
    if array.dtype.kind not in "iu":
        raise TypeError
    return [int(number) for number in array.reshape(-1)]


def permutation(node: Node, rank: int) -> list[int]:
    order = node.integers("perm")
    return list(range(rank))[::-1] if order is None else order


def reshape(node: Node, inputs: Inputs) -> Array:
    data, shape = data_of(inputs), integers_of(node, "shape", inputs, 1)
    if shape is None:
        raise ValueError
    if not node.integer("allowzero"):
        shape = [size or data.shape[axis] for axis, size in enumerate(shape)]
    return data.reshape(shape)


def flatten(node: Node, inputs: Inputs) -> Array:
    data, axis = data_of(inputs), node.integer("axis", 1)
    axis += data.ndim if axis < 0 else 0
    return data.reshape(math.prod(data.shape[:axis]), math.prod(data.shape[axis:]))


def squeeze(node: Node, inputs: Inputs) -> Array:
    axes = integers_of(node, "axes", inputs, 1)
    return data_of(inputs).squeeze(None if axes is None else tuple(axes))


def unsqueeze(node: Node, inputs: Inputs) -> Array:
    axes = integers_of(node, "axes", inputs, 1)
    if axes is None:
        raise ValueError
    return np.expand_dims(data_of(inputs), tuple(axes))


def cast(node: Node, inputs: Inputs) -> Array:
    data, kind = data_of(inputs), TYPES[node.integer("to")]
    if data.dtype.kind == "V":  # stands for floats that are not known, as long as they stay floats
        if kind.name not in DTYPES:
            raise TypeError
        return data
    if kind.name == "BF16":
        raise TypeError
    return data.astype(kind.dtype)


def concat(node: Node, inputs: Inputs) -> Array:
    arrays, axis = [data_of(inputs, k) for k in range(len(inputs))], node.integer("axis")
    if len({array.dtype for array in arrays}) > 1:
        raise TypeError
    limited([sum(array.size for array in arrays)], arrays[0])
    return np.concatenate(arrays, axis)


def slice_(node: Node, inputs: Inputs) -> Array:
    data = data_of(inputs)
    starts, ends, axes, steps = (
        integers_of(node, name, inputs, k) for k, name in enumerate(("starts", "ends", "axes", "steps"), 1)
    )
    if starts is None or ends is None:
        raise ValueError
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True):
        # Backward, an end before the first element means: through it.
        index[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(index)]


def split(node: Node, inputs: Inputs) -> list[Array]:
    data, axis, sizes = data_of(inputs), node.integer("axis"), integers_of(node, "split", inputs, 1)
    if sizes is None:
        each = -(-data.shape[axis] // len(node.outputs))
        sizes = [each] * (len(node.outputs) - 1)
        sizes.append(data.shape[axis] - sum(sizes))
    if min(sizes) < 0 or sum(sizes) != data.shape[axis]:
        raise ValueError
    return np.split(data, np.cumsum(sizes)[:-1], axis)


def gather(node: Node, inputs: Inputs) -> Array:
    data, indices, axis = data_of(inputs), data_of(inputs, 1), node.integer("axis")
    limited([indices.size, *data.shape[:axis], *data.shape[axis % data.ndim + 1 :]], data)
    return data.take(indices, axis)


def expand(node: Node, inputs: Inputs) -> Array:
    data, shape = data_of(inputs), integers_of(node, "shape", inputs, 1)
    shape = list(np.broadcast_shapes(data.shape, tuple(shape or ())))
    limited(shape, data)
    return np.broadcast_to(data, shape)


def tile(node: Node, inputs: Inputs) -> Array:
    data, repeats = data_of(inputs), integers_of(node, "repeats", inputs, 1)
    if repeats is None or len(repeats) != data.ndim or min(repeats, default=0) < 0:
        raise ValueError
    limited([size * times for size, times in zip(data.shape, repeats, strict=True)], data)
    return np.tile(data, repeats)


def constant(node: Node, inputs: Inputs) -> Array:
    if (number := node.number("value_float")) is not None:
        return np.array(number, np.float32)
    if "value_int" in node.attributes:
        return np.array(node.integer("value_int"), np.int64)
    if (numbers := node.integers("value_ints")) is not None:
        return np.array(numbers, np.int64)
    if "value_floats" not in node.attributes:
        raise KeyError
    return np.array(node.numbers("value_floats"), np.float32)


def constant_of_shape(node: Node, inputs: Inputs) -> Array:
    value = np.asarray(node.tensors["value"].read() if "value" in node.tensors else np.float32(0)).reshape(())
    shape = integers_of(node, "shape", inputs, 0)
    if shape is None or min(shape, default=0) < 0:
        raise ValueError
    limited(shape, value)
    return np.broadcast_to(value, shape)


def range_(node: Node, inputs: Inputs) -> Array:
    start, limit, step = (data_of(inputs, k).reshape(()) for k in range(3))
    limited([max(0, int((limit - start) / step) + 1)], start)
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def divide(one: Array, other: Array) -> Array:
    if one.dtype.kind == "f":
        return np.asarray(one / other)
    if one.min(initial=0) < 0 or other.min(initial=1) <= 0:  # rounding and zero are the runtime's own affair
        raise ValueError
    return np.asarray(one // other)


def two(compute: Callable[[Array, Array], Array]) -> Callable[[Node, Inputs], Array]:
    """Makes an operator on two arrays of one type, with broadcasting."""

    def operator(node: Node, inputs: Inputs) -> Array:
        one, other = data_of(inputs), data_of(inputs, 1)
        if one.dtype != other.dtype or len(inputs) != 2:
            raise TypeError
        limited(np.broadcast_shapes(one.shape, other.shape), one)
        return np.asarray(compute(one, other))

    return operator


def where(node: Node, inputs: Inputs) -> Array:
    limited(np.broadcast_shapes(*(data_of(inputs, k).shape for k in range(3))), data_of(inputs, 1))
    return np.where(data_of(inputs), data_of(inputs, 1), data_of(inputs, 2))


def dropout(node: Node, inputs: Inputs) -> Array:
    if any(array is not None and array.any() for array in inputs[2:]):  # it drops, as when a model is trained
        raise ValueError
    return data_of(inputs)


def unchanged(node: Node, inputs: Inputs) -> Array:
    return data_of(inputs)


OPERATORS: dict[str, Callable[[Node, Inputs], Any]] = {
    "Identity": unchanged, "Dropout": dropout, "If": unchanged, "Constant": constant, "ConstantOfShape": constant_of_shape,
    "Shape": lambda node, inputs: data_of(inputs)[node.integer("start") : node.integer("end", 1 << 40)],
    "Size": lambda node, inputs: np.array(math.prod(data_of(inputs).tolist()), np.int64),
    "Transpose": lambda node, inputs: data_of(inputs).transpose(permutation(node, data_of(inputs).ndim)),
    "Reshape": reshape, "Flatten": flatten, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Cast": cast, "Concat": concat,
    "Slice": slice_, "Split": split, "Gather": gather, "Expand": expand, "Tile": tile, "Range": range_, "Where": where,
    "Add": two(np.add), "Sub": two(np.subtract), "Mul": two(np.multiply), "Div": two(divide), "Max": two(np.maximum),
    "Min": two(np.minimum), "Equal": two(np.equal), "Less": two(np.less), "Greater": two(np.greater),
    "And": two(np.logical_and), "Or": two(np.logical_or),
    "Not": lambda node, inputs: ~data_of(inputs), "Neg": lambda node, inputs: -data_of(inputs),
}  # fmt: skip


Shape = tuple[int, ...]


def moved(node: Node, index: int, below: Shape, others: Inputs) -> Shape:
    """Returns the shape of what an operator makes that moves the elements of its first input."""
    if math.prod(below) > 1 << 24 or any(given and array is None for given, array in zip(node.inputs[1:], others, strict=True)):
        raise ValueError
    made = OPERATORS[node.operator](node, [np.broadcast_to(np.uint8(0), below), *others])
    shape: Shape = (made[index] if isinstance(made, list) else made).shape
    return shape


def same(node: Node, index: int, below: Shape, others: Inputs) -> Shape:
    return below


def shape_of_lstm(node: Node, index: int, x: Shape, others: Inputs) -> Shape:
    directions = 2 if node.text("direction") == "bidirectional" else 1
    units, batch_first = node.attributes["hidden_size"].integer(3), node.integer("layout")
    batch, time = x[:2] if batch_first else x[1::-1]
    if index:
        return (batch, directions, units) if batch_first else (directions, batch, units)
    return (batch, time, directions, units) if batch_first else (time, directions, batch, units)


# Operators that are not folded, but whose outputs' shapes follow from that of their first input.
SHAPES: dict[str, Callable[[Node, int, Shape, Inputs], Shape]] = {
    "LSTM": shape_of_lstm,
    **dict.fromkeys(("Transpose", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Slice", "Split"), moved),
    **dict.fromkeys(("Identity", "Dropout", "Cast", "Relu", "Tanh", "Sigmoid", "Clip"), same),
}
