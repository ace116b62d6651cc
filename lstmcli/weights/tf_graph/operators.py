"""What TensorFlow's operators give, one function each: the node and the arrays of its inputs in, its output or outputs out.

MOVES put elements elsewhere, whatever these are.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError
from lstmcli.weights.onnx_graph.constants import limited
from lstmcli.weights.onnx_graph.graph import Node
from lstmcli.weights.tf_graph.tensors import TYPES, read_array

Array = NDArray[Any]
Inputs = list[Array]


def numbers_of(array: Array) -> list[int]:
    if array.dtype.kind not in "iu":
        raise TypeError
    return [int(number) for number in array.reshape(-1)]


def one_number(array: Array) -> int:
    (number,) = numbers_of(array)
    return number


def constant(node: Node, inputs: Inputs) -> Array:
    return read_array(node.attributes["value"].message(8))


def first(node: Node, inputs: Inputs) -> Array:
    return inputs[0]


def every_step(node: Node, inputs: Inputs) -> Array:
    made, whole = inputs
    if len(made) != len(whole) or len(whole) != node.integer("N"):
        raise ValueError
    return made


def squeeze(node: Node, inputs: Inputs) -> Array:
    return inputs[0].squeeze(tuple(node.integers("squeeze_dims") or ()) or None)


def pack(node: Node, inputs: Inputs) -> Array:
    if len({array.dtype for array in inputs}) > 1:
        raise TypeError
    return np.stack(inputs, node.integer("axis"))


def unpack(node: Node, inputs: Inputs) -> list[Array]:
    return list(np.moveaxis(inputs[0], node.integer("axis"), 0))


def concat(node: Node, inputs: Inputs) -> Array:
    *arrays, axis = inputs
    arrays = [array for array in arrays if array.size] or arrays[:1]
    if len({array.dtype for array in arrays}) > 1:
        raise TypeError
    limited([sum(array.size for array in arrays)], arrays[0])
    return np.concatenate(arrays, one_number(axis))


def split(node: Node, inputs: Inputs) -> list[Array]:
    axis, data = inputs
    return np.split(data, node.integer("num_split"), one_number(axis))


def split_sizes(node: Node, inputs: Inputs) -> list[Array]:
    data, sizes, axis = inputs
    ends = np.cumsum(numbers_of(sizes))
    if min(numbers_of(sizes)) < 0 or ends[-1] != data.shape[one_number(axis)]:
        raise ValueError
    return np.split(data, ends[:-1], one_number(axis))


def strided_slice(node: Node, inputs: Inputs) -> Array:
    data, *places = inputs
    masks = [node.integer(f"{name}_mask") for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")]
    index: list[Any] = []
    axis = 0
    for k, (begin, end, step) in enumerate(zip(*map(numbers_of, places), strict=True)):
        no_begin, no_end, ellipsis, new, shrink = (mask >> k & 1 for mask in masks)
        if ellipsis:
            index.append(...)
            axis = data.ndim - sum(not masks[3] >> later & 1 for later in range(k + 1, len(places[0])))
            continue
        if new:
            index.append(None)
            continue
        if shrink:
            index.append(begin)
        else:
            cut = slice(None if no_begin else begin, None if no_end else end, step)
            index.append(cut)
            refuse_cut(data, axis, cut.start, cut.stop)
        axis += 1
    return np.asarray(data[tuple(index)])


def refuse_cut(data: Array, axis: int, *places: int | None) -> None:
    """Raise DataError where a slice of what depends on the input ends beyond it: it would cut what is longer."""
    beyond = [abs(place) for place in places if place is not None and abs(place) > data.shape[axis]]
    if data.dtype.names and beyond:
        raise DataError(f"takes {beyond[0]} of axis {axis} at most, which cuts what is longer; not known to this program")


def slice_(node: Node, inputs: Inputs) -> Array:
    data, begins, sizes = inputs
    places = zip(numbers_of(begins), numbers_of(sizes), strict=True)
    index = tuple(slice(begin, None if size < 0 else begin + size) for begin, size in places)
    if any(cut.start < 0 or (cut.stop or 0) > size for cut, size in zip(index, data.shape, strict=True)):
        raise ValueError
    return data[index]


def gather(node: Node, inputs: Inputs) -> Array:
    data, indices, axis = inputs
    if node.integer("batch_dims") or indices.dtype.kind not in "iu":
        raise TypeError
    limited([indices.size, data.size // max(1, data.shape[one_number(axis)])], data)
    return data.take(indices, one_number(axis))


def tile(node: Node, inputs: Inputs) -> Array:
    data, repeats = inputs
    limited([size * times for size, times in zip(data.shape, numbers_of(repeats), strict=True)], data)
    return np.tile(data, numbers_of(repeats))


def broadcast(node: Node, inputs: Inputs) -> Array:
    limited(numbers_of(inputs[1]), inputs[0])
    return np.broadcast_to(inputs[0], numbers_of(inputs[1]))


def fill(node: Node, inputs: Inputs) -> Array:
    limited(numbers_of(inputs[0]), inputs[1])
    return np.full(numbers_of(inputs[0]), inputs[1].reshape(()))


def range_(node: Node, inputs: Inputs) -> Array:
    start, limit, step = (array.reshape(()) for array in inputs)
    limited([max(0, int((limit - start) / step) + 1)], start)
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def shape(node: Node, inputs: Inputs) -> Array:
    return np.array(inputs[0].shape, TYPES[node.integer("out_type", 3)][0])


def cast(node: Node, inputs: Inputs) -> Array:
    kind = np.dtype(TYPES[node.integer("DstT")][0])
    both_floats = inputs[0].dtype.kind == kind.kind == "f"
    return inputs[0] if both_floats else inputs[0].astype(kind)  # numbers that stand for others keep their precision


# A list of tensors is an array with one more axis, or one of objects where they are put in one by one.


def reserve(node: Node, inputs: Inputs) -> Array:
    made = np.empty(0, object)
    limited([one_number(inputs[1])], made)
    return np.empty(one_number(inputs[1]), object)


def set_item(node: Node, inputs: Inputs) -> Array:
    items, place, item = inputs
    if items.dtype != object or items.ndim != 1:
        raise TypeError
    made = items.copy()
    made[one_number(place)] = item
    return made


def get_item(node: Node, inputs: Inputs) -> Array:
    return np.asarray(inputs[0][one_number(inputs[1])])


def stacked(node: Node, inputs: Inputs) -> Array:
    items = inputs[0]
    return np.stack(list(items)) if items.dtype == object else items


MOVES: dict[str, Callable[[Node, Inputs], Any]] = {
    **dict.fromkeys(("Identity", "StopGradient", "PreventGradient", "Snapshot", "ReadVariableOp", "EnsureShape"), first),
    **dict.fromkeys(("PlaceholderWithDefault", "TensorListFromTensor"), first),
    "IdentityN": lambda node, inputs: inputs, "EveryStep": every_step, "Squeeze": squeeze, "Pack": pack, "Unpack": unpack,
    "Reshape": lambda node, inputs: inputs[0].reshape(numbers_of(inputs[1])),
    "Transpose": lambda node, inputs: inputs[0].transpose(numbers_of(inputs[1])),
    "ExpandDims": lambda node, inputs: np.expand_dims(inputs[0], one_number(inputs[1])),
    "ReverseV2": lambda node, inputs: np.flip(inputs[0], tuple(numbers_of(inputs[1]))),
    "ConcatV2": concat, "Split": split, "SplitV": split_sizes, "StridedSlice": strided_slice, "Slice": slice_,
    "GatherV2": gather, "Tile": tile, "BroadcastTo": broadcast, "TensorListGetItem": get_item, "TensorListSetItem": set_item,
    "TensorListStack": stacked,
}  # fmt: skip
# Operators that look at the shapes of their inputs alone, or make numbers of none.
SHAPES: dict[str, Callable[[Node, Inputs], Any]] = {
    "Const": constant, "Fill": fill, "Range": range_, "TensorListReserve": reserve, "Shape": shape,
    "Size": lambda node, inputs: np.array(math.prod(inputs[0].shape), np.int32),
    "Rank": lambda node, inputs: np.array(inputs[0].ndim, np.int32),
    "TensorListLength": lambda node, inputs: np.array(len(inputs[0]), np.int32),
}  # fmt: skip


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "Sum": np.sum, "Mean": np.mean, "Max": np.max, "Min": np.min, "Prod": np.prod, "All": np.all, "Any": np.any,
}  # fmt: skip


def folded(node: Node, inputs: Inputs) -> Any:
    """Return what a node gives for arrays that are known. Raises KeyError for an operator that is not known."""
    if function := MOVES.get(node.operator) or SHAPES.get(node.operator):
        return function(node, inputs)
    if node.operator in REDUCTIONS:
        data, axes = inputs
        found = REDUCTIONS[node.operator](data, axis=tuple(numbers_of(axes)), keepdims=bool(node.integer("keep_dims")))
        return np.asarray(found, data.dtype)
    if node.operator == "Cast":
        return cast(node, inputs)
    if node.operator == "MatMul":
        sides = zip(("transpose_a", "transpose_b"), inputs, strict=True)
        one, other = (array.T if node.integer(name) else array for name, array in sides)
        return np.asarray(one @ other)
    raise KeyError(node.operator)
