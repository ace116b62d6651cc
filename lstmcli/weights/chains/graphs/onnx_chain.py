"""ONNX graphs in one line, as the exporters of PyTorch and Keras write them: from their operators to a chain.

The graph is followed from its input to its output with numbers that say of each element what it is (traced_values.py), so
that it may move them about as it likes; what operators compute of each row is known by what it gives (row_functions.py). An
operator that is not known is refused by its name, because left out it would give wrong numbers.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from lstmcli.errors import DataError, shown
from lstmcli.files.positioned_file import FileBytes
from lstmcli.model.chain import Chain
from lstmcli.model.layers import Affine, Dense, Flatten, Layer, Pool, Window
from lstmcli.model.tree import Model
from lstmcli.weights.chains.graphs.onnx_operators import Operators
from lstmcli.weights.chains.graphs.traced_values import Named
from lstmcli.weights.containers.tensor import DTYPES
from lstmcli.weights.draft import Choices, Draft
from lstmcli.weights.onnx import labelled, live_nodes, node_input, what_instead
from lstmcli.weights.onnx_graph.constants import FAILURES, Constants
from lstmcli.weights.onnx_graph.graph import Graph, Node, Value, read_graph

# What the axes of an input may be, by their number, the most likely ones first: n sequences, t steps, e features.
AXES = {1: ("t",), 2: ("nt", "tn", "te"), 3: ("nte", "tne", "net")}
# Sizes that a graph leaves open are tried with these: what holds for both holds for any number of sequences and steps.
SIZES = (19, 23, 5, 7, 11, 13), (29, 31, 37, 41, 43, 47)
MAX_ELEMENTS = 1 << 24  # of what is traced


def build(file: FileBytes, path: str, choices: Choices) -> tuple[Draft, Chain]:
    """Return what there is to say about a model, and its chain. Raises DataError for one that is none, and names the node that
    makes it so."""
    where = file.name
    choices.allow(where)
    graph = read_graph(file.take(0, file.opened.st_size), path, where)
    draft = Draft(
        "an ONNX model", where, (tensor for tensor in graph.all_tensors() if tensor.shape and tensor.dtype in DTYPES), choices
    )
    draft.masked = False
    nodes = list(live_nodes(graph, Constants()))
    try:
        with draft.building("graph"):
            given = input_of(graph, nodes)
            walk = walked(draft, graph, given)
    except DataError as error:
        if any(node.operator == "LSTM" for node in nodes):
            raise
        raise DataError(f"{error}; {what_instead(nodes, draft)}") from error
    made = joined(draft, walk)
    with draft.building("model"):
        return draft, Chain(tuple(layer for layer, _ in made), tuple(name for _, name in made))


def input_of(graph: Graph, nodes: list[Node]) -> Value:
    """Return the input that holds the sequences: not one of lengths, nor of initial states."""
    lstms = [node for node in nodes if node.operator == "LSTM"]
    others = {node_input(node, name) for node in lstms for name in ("sequence_lens", "initial_h", "initial_c")}
    inputs = [value for value in graph.inputs if not value.tensor and value not in others and value.shape]
    if not inputs or not graph.outputs:
        raise DataError("expected an input that declares its shape, and an output, got none")
    return max(inputs, key=lambda value: len(value.shape or ()))


def walked(draft: Draft, graph: Graph, given: Value) -> tuple[Named, ...]:
    """Return the layers from the input to the output, for the first order of the input's axes with which they fit."""
    rank = len(given.shape or ())
    if rank not in AXES:
        raise DataError(f"input {shown(given.name)!r} has {rank} axes; expected token ids or features of sequences")
    failed = None
    for axes in AXES[rank]:
        walk = Walk(draft, graph, given, axes, SIZES[0])
        try:
            made = walk.layers()
        except DataError as error:
            if failed is None or walk.done > failed[0]:
                failed = walk.done, error
            continue
        for other, again in itertools.zip_longest(made, Walk(draft, graph, given, axes, SIZES[1]).layers()):
            if other is None or again is None or not alike(other, again):
                name = (other or again).name
                raise DataError(f"node {shown(name)!r} depends on how many sequences or steps there are; not known")
        if axes in ("tne", "tn"):
            draft.note("the model takes steps before sequences; here sequences come first, or say --time-major")
        return made
    assert failed
    raise failed[1]


def alike(one: Named, other: Named) -> bool:
    if isinstance(one.layer, Model) or isinstance(other.layer, Model):
        return one.name == other.name
    return type(one.layer) is type(other.layer) and one.layer.options() == other.layer.options()


class Walk:
    """One way through the graph. axes: of the input. sizes: for those that the graph leaves open."""

    def __init__(self, draft: Draft, graph: Graph, given: Value, axes: str, sizes: tuple[int, ...]) -> None:
        self.graph, self.given, self.axes = graph, given, axes
        self.constants = Constants(sizes=sizes)
        self.operators = Operators(draft, self.constants, graph.opset)
        self.done = 0

    def layers(self) -> tuple[Named, ...]:
        self.begin()
        output, *others = self.graph.outputs
        for node in in_order(output, self.constants):
            try:
                self.operators.apply(node)
            except DataError as error:
                raise DataError(f"node {labelled(node)}: {error}") from error
            except FAILURES as error:
                raise DataError(f"node {labelled(node)}: its inputs do not fit together; a damaged graph?") from error
            self.done += 1
        numbers = self.operators.numbers(output)
        if numbers is None:
            raise DataError(f"output {shown(output.name)!r} is not computed from the input {shown(self.given.name)!r}")
        if others:
            names = ", ".join(shown(value.name) for value in others)
            self.operators.draft.note(f"the predictions are the output {shown(output.name)}; not computed: {names}")
        sources = self.operators.sources
        made = sources.layered(sources.settled(numbers)[0])[1].made
        if self.operators.lengths_given:
            refuse_padding_seen(made)
        return made

    def begin(self) -> None:
        """Number the elements of the input."""
        shape = self.constants.shape(self.given)
        if shape is None:
            raise DataError(f"input {shown(self.given.name)!r} declares no shape")
        sizes = dict(zip(self.axes, shape, strict=True))
        ids = "e" not in sizes
        if not ids and not isinstance((self.given.shape or ())[self.axes.index("e")], int):
            raise DataError(f"input {shown(self.given.name)!r} does not say how many features it has")
        if sizes["t"] == 1:
            raise DataError(
                f"input {shown(self.given.name)!r} takes one step; export the model with more, or with dynamic axes"
            )
        whole = tuple(sizes.get(axis, 1) for axis in "nte")
        if not 0 < np.prod(whole, dtype=float) <= MAX_ELEMENTS:
            raise DataError(f"input {shown(self.given.name)!r} of shape {shape} is too large to follow")
        source = self.operators.sources.add("ids" if ids else "sequences", whole, ())
        order = ["nte".index(axis) for axis in self.axes]
        order += [axis for axis in range(3) if axis not in order]
        self.operators.give(self.given, source.numbers.transpose(order).reshape(shape))


def refuse_padding_seen(made: tuple[Named, ...]) -> None:
    """Steps behind the length that an LSTM is told are zeros of it: what looks at them sees no padding here."""
    for layer, name in itertools.dropwhile(lambda named: not isinstance(named.layer, Model), made):
        if isinstance(layer, Window | Flatten) or (isinstance(layer, Pool) and layer.function != "final"):
            raise DataError(
                f"node {shown(name)!r} looks at steps behind the length that an LSTM takes; not known to this program"
            )


def in_order(output: Value, constants: Constants) -> Iterator[Node]:
    """Yield the nodes that compute a value, each after those that it needs."""
    done: set[Node] = set()
    waiting: set[Node] = set()  # for others, above all of which they stand: a needed one among them is a circle
    pending = [output]
    while pending:
        value = pending[-1]
        node = value.maker
        if value.tensor or node is None or node in done:
            pending.pop()
            continue
        needed = [one for one in inputs_of(node, constants) if one.maker and one.maker not in done and not one.tensor]
        if not needed:
            done.add(node)
            yield node
            continue
        waiting.add(node)
        if any(one.maker in waiting for one in needed):
            raise DataError(f"damaged: node {labelled(node)} needs itself")
        pending += needed


def inputs_of(node: Node, constants: Constants) -> list[Value]:
    if node.operator != "If":
        return [value for value in node.inputs if value]
    condition = node.input(0)
    branch = constants.branch(node) if condition and constants.of(condition) is not None else None
    return [*([condition] if condition else []), *(branch.outputs if branch else [])]


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


def with_bias(below: Layer | Model, above: Layer | Model) -> Dense | None:
    """Return a dense layer and a shift of what it puts out as one layer, if they are these."""
    if isinstance(below, Dense) and below.bias is None and isinstance(above, Affine) and (above.scale == 1).all():
        return Dense(below.kernel, above.shift.astype(below.kernel.dtype))
    return None
