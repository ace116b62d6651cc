"""Values of a graph that depend on the model's input: where their numbers come to lie, and what they are."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from lstmcli.errors import DataError, shown
from lstmcli.model.layers import Flip, Layer, Repeat
from lstmcli.model.tree import Model
from lstmcli.weights.chains.graphs.traced_values import Named, Numbers, Source, Sources
from lstmcli.weights.draft import Draft
from lstmcli.weights.onnx import labelled
from lstmcli.weights.onnx_graph.constants import FAILURES, Array, Constants
from lstmcli.weights.onnx_graph.graph import Node, Value

Layers = tuple[Named, ...]

# What the axes of an input may be, by their number, the most likely ones first: n sequences, t steps, e features.
ORDERS = {1: ("t",), 2: ("nt", "tn", "te"), 3: ("nte", "tne", "net")}
ELEMENT = np.dtype([("element", np.int64)])  # a type that nothing can be computed with
# Sizes that a graph leaves open are tried with these: what holds for both holds for any number of sequences and steps.
Sizes = tuple[int, ...]
SIZES: tuple[Sizes, Sizes] = (19, 23, 5, 7, 11, 13), (29, 31, 37, 41, 43, 47)
MAX_ELEMENTS = 1 << 24  # of what is traced


class TracedGraph:
    """Follows a graph, node by node. Values that depend on the input are arrays of numbers (traced_values.py).

    done: nodes that were followed so far.
    """

    def __init__(self, draft: Draft, constants: Constants) -> None:
        self.draft, self.constants = draft, constants
        self.sources = Sources()
        self.done = 0

    def apply(self, node: Node) -> None:
        """Say what a node puts out. Raises DataError for an operator, or an option of one, that is not known."""
        raise NotImplementedError

    def needs(self, node: Node) -> list[Value]:
        """Return the values that must be known before a node is applied."""
        return [value for value in node.inputs if value]

    def layers(self, given: Value, axes: str, outputs: Sequence[Value]) -> Layers:
        """Return the layers from the input, whose axes are known, to the first output. Raises DataError."""
        self.begin(given, axes)
        self.follow(outputs[:1])
        numbers = self.numbers(outputs[0])
        if numbers is None:
            raise DataError(f"output {shown(outputs[0].name)!r} is not computed from the input {shown(given.name)!r}")
        numbers, source = self.sources.layered(self.sources.settled(numbers)[0])
        if same_order(numbers, source.numbers):
            return source.made
        if source.kind == "sequences" and same_order(numbers, source.numbers[:, ::-1]):
            return (*source.made, Named(Flip(), outputs[0].name))
        raise DataError(f"output {shown(outputs[0].name)!r} has steps or features in another order than they come; not known")

    def begin(self, given: Value, axes: str) -> None:
        """Number the elements of the input."""
        shape = self.constants.shape(given)
        if shape is None:
            raise DataError(f"input {shown(given.name)!r} declares no shape")
        sizes = dict(zip(axes, shape, strict=True))
        ids = "e" not in sizes
        if not ids and not isinstance((given.shape or ())[axes.index("e")], int):
            raise DataError(f"input {shown(given.name)!r} does not say how many features it has")
        whole = tuple(sizes.get(axis, 1) for axis in "nte")
        if not 0 < np.prod(whole, dtype=float) <= MAX_ELEMENTS:
            raise DataError(f"input {shown(given.name)!r} of shape {shape} is too large to follow")
        source = self.sources.add("ids" if ids else "sequences", whole, ())
        order = ["nte".index(axis) for axis in axes]
        order += [axis for axis in range(3) if axis not in order]
        self.give(given, source.numbers.transpose(order).reshape(shape))

    def follow(self, outputs: Iterable[Value]) -> None:
        """Apply all nodes that compute these values. Raises DataError that names the node."""
        for node in self.in_order(outputs):
            try:
                self.apply(node)
            except DataError as error:
                text = str(error)
                raise error if text.startswith("node ") else DataError(f"node {labelled(node)}: {text}") from error
            except FAILURES as error:
                raise DataError(f"node {labelled(node)}: its inputs do not fit together; a damaged graph?") from error
            self.done += 1

    def in_order(self, outputs: Iterable[Value]) -> Iterator[Node]:
        """Yield the nodes that compute some values, each after those that it needs."""
        done: set[Node] = set()
        waiting: set[Node] = set()  # for others, above all of which they stand: a needed one among them is a circle
        pending = [*outputs]
        while pending:
            value = pending[-1]
            node = value.maker
            if value.tensor or node is None or node in done:
                pending.pop()
                continue
            needed = [one for one in self.needs(node) if one.maker and one.maker not in done and not one.tensor]
            if not needed:
                done.add(node)
                yield node
                continue
            waiting.add(node)
            if any(one.maker in waiting for one in needed):
                raise DataError(f"damaged: node {labelled(node)} needs itself")
            pending += needed

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

    def layer(self, node: Node, kind: str, shape: tuple[int, ...], source: Source, layer: Layer | Model) -> Source:
        """What comes out of a layer upon those that made a source."""
        return self.sources.add(kind, shape, (*source.made, Named(layer, node.name)))

    def sequences(self, node: Node, numbers: Numbers) -> Source:
        """The source of an array (N, T, E): sequences as they are, or from the last step, or a vector at each step."""
        numbers, source = self.sources.layered(self.sources.settled(numbers, whole=False)[0])
        if source.kind == "vectors" and numbers.shape[::2] == source.shape and (numbers == source.numbers[:, None]).all():
            return self.once(node, numbers.shape, source, Repeat(numbers.shape[1]))
        if source.kind == "sequences" and np.array_equal(numbers, source.numbers):
            return source
        if source.kind == "sequences" and np.array_equal(numbers[:, ::-1], source.numbers):
            return self.once(node, source.shape, source, Flip())
        raise DataError("takes sequences, steps and features in another order than they come")

    def once(self, node: Node, shape: tuple[int, ...], source: Source, layer: Layer) -> Source:
        """What comes out of a layer that puts rows elsewhere: one for all who take them so."""
        key = (source, f"{layer.kind} {layer.options()}")
        if key not in self.sources.upon:
            self.sources.upon[key] = self.layer(node, "sequences", shape, source, layer)
        return self.sources.upon[key]


def walked(
    given: Value,
    outputs: Sequence[Value],
    draft: Draft,
    make: Callable[[Sizes], TracedGraph],
    orders: dict[int, tuple[str, ...]] = ORDERS,
    sizes: tuple[Sizes, Sizes] = SIZES,
) -> Layers:
    """Return the layers from the input to the first output, for the first order of the input's axes with which they fit.

    make(sizes): a graph that nothing was followed in, with these for the sizes that are left open.
    """
    rank = len(given.shape or ())
    if rank not in orders:
        raise DataError(f"input {shown(given.name)!r} has {rank} axes; expected token ids or features of sequences")
    failed = None
    for axes in orders[rank]:
        if given.shape and given.shape[axes.index("t")] == 1 and len(orders[rank]) > 1:
            if failed:  # what the likelier order fails with says more
                continue
            raise DataError(f"input {shown(given.name)!r} takes one step; export the model with more, or with dynamic axes")
        walk = make(sizes[0])
        try:
            made = walk.layers(given, axes, outputs)
        except DataError as error:
            if failed is None or walk.done > failed[0]:
                failed = walk.done, error
            continue
        for other, again in itertools.zip_longest(made, make(sizes[1]).layers(given, axes, outputs)):
            if other is None or again is None or not alike(other, again):
                name = (other or again).name
                raise DataError(f"node {shown(name)!r} depends on how many sequences or steps there are; not known")
        if axes in ("tne", "tn"):
            draft.note("the model takes steps before sequences; here sequences come first, or say --time-major")
        return made
    assert failed
    raise failed[1]


def same_order(numbers: Numbers, others: Numbers) -> bool:
    """Whether numbers come in the order of others, whichever axis of these stands before which."""
    orders = itertools.permutations(range(others.ndim))
    return any(np.array_equal(numbers.reshape(-1), others.transpose(order).reshape(-1)) for order in orders)


def alike(one: Named, other: Named) -> bool:
    if isinstance(one.layer, Model) or isinstance(other.layer, Model):
        return one.name == other.name
    return type(one.layer) is type(other.layer) and one.layer.options() == other.layer.options()


def traced(numbers: Numbers) -> Array:
    """Numbers as elements of a type that nothing can be computed with, so that they are only moved."""
    return np.ascontiguousarray(numbers).view(ELEMENT).reshape(numbers.shape)
