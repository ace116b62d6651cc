"""What TensorFlow writes as several nodes, and this program follows as one."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.weights.onnx_graph.graph import Graph, Node, Value
from lstmcli.weights.tf_graph.tensors import read_array

MAX_NODES = 300  # of what is done with a step


def rewritten(graph: Graph) -> Graph:
    """Return a graph with its dilated convolutions as one node each, and what it does with every step done with all at once."""
    for node in graph.nodes:
        if node.operator == "BatchToSpaceND":
            dilated_convolution(node)
        elif node.operator == "Pack" and not node.integer("axis"):
            every_step(node)
    return graph


def made_by(value: Value | None, *operators: str) -> Node | None:
    """Return the node that makes a value, if its operator is one of these."""
    return value.maker if value and value.maker and value.maker.operator in operators else None


def dilated_convolution(node: Node) -> None:
    """SpaceToBatchND, ExpandDims, Conv2D, Squeeze, BatchToSpaceND: a convolution upon every DILATION-th step.

    It becomes one node, whose inputs are x, the kernel, the dilation, what is padded, and what is cut off.
    """
    squeeze = made_by(node.input(0), "Squeeze")
    convolution = made_by(squeeze.input(0) if squeeze else None, "Conv2D")
    expand = made_by(convolution.input(0) if convolution else None, "ExpandDims")
    split = made_by(expand.input(0) if expand else None, "SpaceToBatchND")
    if split and convolution and same_constant(split.input(1), node.input(1)):
        node.operator, node.attributes = "DilatedConv2D", convolution.attributes
        node.inputs[:] = [split.input(0), convolution.input(1), node.input(1), split.input(2), node.input(2)]


def every_step(pack: Node) -> None:
    """The same done with x[0], x[1], ... and put together again: done with all of x, in the place of the Pack.

    It becomes one node, whose inputs are that, and x, which must have as many steps as there were.
    """
    first, *others = pack.inputs
    steps = [Step(first, other, k) for k, other in enumerate(others, 1)]
    if not steps or is_slice(first.maker if first else None) or not all(step.alike and step.slices for step in steps):
        return
    slices, above = steps[0].slices, steps[0].above
    wholes = {node.input(0) for step in steps for node in step.slices}
    if len(wholes) != 1:
        return
    (whole,) = wholes
    copies: dict[Node, Node] = {}

    def copied(value: Value | None) -> Value | None:
        node = value.maker if value else None
        if value is None or node is None or node not in above:
            return value
        if node in slices:
            return whole
        if node not in copies:
            copies[node] = replace(node, outputs=[], inputs=[copied(one) for one in node.inputs])
        copy = copies[node]
        while len(copy.outputs) <= value.index:
            copy.outputs.append(Value(value.name, maker=copy, index=len(copy.outputs)))
        return copy.outputs[value.index]

    pack.operator, pack.inputs[:] = "EveryStep", [copied(first), whole]


class Step:
    """What computes a value, beside what computes another.

    alike: whether the one does with x[0] what the other does with x[step]. slices: the nodes x[0]; above: all nodes of the one.
    """

    def __init__(self, one: Value | None, other: Value | None, step: int) -> None:
        self.slices: set[Node] = set()
        self.above: set[Node] = set()
        self.alike = self.compare(one, other, step)

    def compare(self, one: Value | None, other: Value | None, step: int) -> bool:
        pending, seen = [(one, other)], set()
        while pending:
            a, b = pair = pending.pop()
            if a is b or pair in seen:
                continue
            seen.add(pair)
            below, beside = a.maker if a else None, b.maker if b else None
            if not a or not b or not below or not beside or a.index != b.index or below.operator != beside.operator:
                return False
            self.above.add(below)
            if is_slice(below) and step_of(below) == 0 and step_of(beside) == step and below.input(0) is beside.input(0):
                self.slices.add(below)
            elif below.operator == "Const":
                if not same_constant(a, b):
                    return False
            elif len(below.inputs) != len(beside.inputs) or options(below) != options(beside) or len(seen) > MAX_NODES:
                return False
            else:
                pending += zip(below.inputs, beside.inputs, strict=True)
        return True


def is_slice(node: Node | None) -> bool:
    return node is not None and node.operator == "StridedSlice" and node.integer("shrink_axis_mask") == 1


def step_of(node: Node) -> int | None:
    """Return k of a slice x[k]."""
    begin = constant(node.input(1))
    others = any(node.integer(f"{name}_mask") for name in ("begin", "end", "ellipsis", "new_axis"))
    return int(begin[0]) if begin is not None and begin.shape == (1,) and not others else None


def options(node: Node) -> list[tuple[str, str]]:
    """Return what a node is told, but for what only says its shapes."""
    told = ((name, str(attribute.plain())) for name, attribute in node.attributes.items() if not name.startswith("_"))
    return sorted(told)


def same_constant(one: Value | None, other: Value | None) -> bool:
    a, b = constant(one), constant(other)
    return one is other or (a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b))


def constant(value: Value | None) -> NDArray[Any] | None:
    node = made_by(value, "Const")
    return read_array(node.attributes["value"].message(8)) if node and "value" in node.attributes else None
