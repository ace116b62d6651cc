"""ONNX: the LSTM nodes of a model, and which of them are one stack (onnx/docs/Operators.md, LSTM).

W (D, 4U, E), R (D, 4U, U), B (D, 8U), P (D, 3U): D directions, forward first; gates i, o, f, c (c is the candidate, our g),
peepholes i, o, f; the two halves of B are summed. X is (T, N, E), Y (T, D, N, U), initial_h and initial_c (D, N, U); with
layout 1 (N, T, E), (N, T, D, U) and (N, D, U).
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.files.positioned_file import FileBytes
from lstmcli.model.tree import Bidirectional, Cell, Model, Reverse
from lstmcli.weights.containers.tensor import DTYPES, Tensor
from lstmcli.weights.draft import CLIPS, Choices, Draft, Imported, Origin, chains, reorder, summed
from lstmcli.weights.onnx_graph.constants import Constants, sources
from lstmcli.weights.onnx_graph.graph import Graph, Node, Value, downstream, read_graph, upstream

GATES, PEEPHOLES = (0, 2, 3, 1), (0, 2, 1)
PLAIN = ("tanh", "relu", "sigmoid", "softsign", "softplus")
KNOWN = {"activations", "activation_alpha", "activation_beta", "clip", "direction", "hidden_size", "input_forget", "layout",
         "output_sequence"}  # fmt: skip
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
LOOPS = ("Loop", "Scan", "SequenceMap")
# Sizes that a graph leaves open are tried with these: what holds for both holds for any number of sequences.
SIZES = (5, 3, 7, 11, 13, 17, 19, 23), (7, 5, 11, 13, 17, 19, 23, 29)
MAX_ELEMENTS = 1 << 24  # of the outputs of a layer that are traced into the next one
NAMES = {np.dtype(dtype).newbyteorder("="): name for name, dtype in DTYPES.items() if dtype.kind == "f"}


def import_model(file: FileBytes, path: str, choices: Choices) -> Imported:
    """Reads the LSTM nodes that feed each other, as a stack. DataError: damaged, several stacks, what cannot be run."""
    where = file.name
    choices.allow(where, "select", *CLIPS, "merge", "residual")
    graph = read_graph(file.take(0, file.opened.st_size), path, where)
    draft = Draft(
        "an ONNX model", where, (tensor for tensor in graph.all_tensors() if tensor.shape and tensor.dtype in DTYPES), choices
    )
    constants = Constants()
    with draft.building("graph"):
        nodes = list(live_nodes(graph, constants))
        lstms = [node for node in nodes if node.operator == "LSTM"]
        if not lstms:
            raise DataError(what_instead(nodes, draft))
        runs = chains({node: feeder(node, lstms) for node in lstms})
    names = dict(zip(lstms, unique_names(lstms), strict=True))
    stacks = {names[stack[0]]: stack for stack in runs}
    if not choices.select:
        stacks = without_loops(stacks, where)

    chosen: set[Node] = set()

    def build(name: str) -> Model:
        layers = []
        for node in stacks[name]:
            with draft.building(f"node {names[node]!r}"):
                layers.append(Layer(node, constants, draft).read())
        chosen.update(stacks[name])
        draft.masked = draft.masked is not False and all(node_input(node, "sequence_lens") for node in stacks[name])
        bottom, top = stacks[name][0], stacks[name][-1]
        before = [labelled(node) for node in upstream(node_input(bottom, "X"), chosen)]
        draft.before += [label for label in before if label not in draft.before]
        draft.after[:] = [labelled(node) for node in downstream(top.outputs, nodes) if node not in chosen]
        if place := bottom.place:
            draft.note(f"LSTM {shown(name)!r} stands in {shown(place)}, which the model may not always run")
        return draft.stack(layers)

    return draft.assemble({name: described(stack, names) for name, stack in stacks.items()}, build)


def without_loops(stacks: dict[str, list[Node]], where: str) -> dict[str, list[Node]]:
    """Leaves the stacks that a model runs over whole sequences. DataError: there are none."""
    whole = {name: stack for name, stack in stacks.items() if not loop_around(stack[0])}
    if not whole:
        name, (node, *_) = next(iter(stacks.items()))
        raise DataError(
            f"{where}: LSTM {shown(name)!r} stands in {loop_around(node)}, which feeds it step by step; to run it by itself "
            f"over whole sequences, say --select {shown(name)}"
        )
    return whole


def live_nodes(graph: Graph, constants: Constants) -> Iterator[Node]:
    """Yields all nodes, those inside of others too, but for branches that are never taken."""
    for node in graph.nodes:
        yield node
        taken = None
        if node.operator == "If":
            constants.of(node.input(0))
            taken = constants.branch(node)
        for inner in [taken] if taken else node.graphs.values():
            yield from live_nodes(inner, constants)


def unique_names(nodes: list[Node]) -> list[str]:
    """Returns the nodes' own names; those of their outputs, or of all that is around them, where several have one name."""
    names = [node.name for node in nodes]
    for other in (lambda node: node.outputs[0].name, lambda node: f"{node.place}{node.name}"):
        count = Counter(names)
        names = [other(node) if count[name] > 1 and node.outputs else name for node, name in zip(nodes, names, strict=True)]
    count = Counter(names)
    return [f"{name}#{k}" if count[name] > 1 else name for k, name in enumerate(names)]


def loop_around(node: Node) -> str | None:
    """Names the innermost loop that a node stands in, if any."""
    outer = node.outer
    while outer and outer.operator not in LOOPS:
        outer = outer.outer
    return f"{outer.operator} {shown(outer.name)!r}" if outer else None


def feeder(node: Node, lstms: Iterable[Node]) -> Node | None:
    """Finds the LSTM whose outputs are this one's X: all of them, features last, directions side by side, nothing else done."""
    x = node_input(node, "X")
    found, pending = {x}, [x]
    while pending:
        top = pending.pop()
        if top and top.maker and top.maker.operator != "LSTM":
            inner = [value for graph in top.maker.graphs.values() for value in graph.outputs]
            fresh = [below for below in [*top.maker.inputs, *inner] if below and below not in found]
            found.update(fresh)
            pending += fresh
    makers = {value.maker: value for value in found if value and value.maker and value.index == 0}
    return next((lstm for lstm in lstms if lstm in makers and lstm is not node and feeds(lstm, makers[lstm], node, x)), None)


def feeds(below: Node, y: Value, above: Node, x: Value | None) -> bool:
    """Tells whether x is y with its axes as `above` takes them, by tracing where each element of y comes to lie."""
    constants = Constants(sizes=SIZES[0])
    if "hidden_size" not in below.attributes:
        return False
    units, directions = below.integer("hidden_size"), 2 if below.text("direction") == "bidirectional" else 1
    shape = constants.shape(y)
    if shape is None or math.prod(shape) == directions * units:  # one step of one sequence would hide which is which
        shape = (3, 5, directions, units) if below.integer("layout") else (5, directions, 3, units)
    if min(shape) < 0 or math.prod(shape) > MAX_ELEMENTS:
        return False
    # Elements of a type that nothing can be computed with: what comes through was only moved.
    traced = np.arange(math.prod(shape)).reshape(shape)
    constants = Constants({y: traced.view([("element", traced.dtype)])}, SIZES[0])
    try:
        got = constants.of(x)
    except DataError:
        return False
    steps_first = traced.transpose(1, 0, 2, 3) if below.integer("layout") else traced.transpose(0, 2, 1, 3)
    if above.integer("layout"):
        steps_first = steps_first.swapaxes(0, 1)
    want = steps_first.reshape(*steps_first.shape[:2], directions * units)
    return got is not None and got.dtype.names is not None and np.array_equal(got["element"], want)


def described(stack: list[Node], names: dict[Node, str]) -> str:
    return f"{len(stack)} LSTM node{'s' * (len(stack) > 1)}: " + ", ".join(shown(names[node]) for node in stack)[:200]


def what_instead(nodes: list[Node], draft: Draft) -> str:
    """Says why a model without an LSTM node is refused, and what to do."""
    count = Counter(node.operator for node in nodes)
    for node in nodes:
        if "LSTM" in node.operator:
            kind = "quantized to int8, so that its float weights are gone" if "Quantize" in node.operator else "not ONNX's own"
            return (
                f"its LSTM {shown(node.name)!r} is a {shown(node.operator)}: {kind}; give the float model that it was made from"
            )
        if node.operator in ("GRU", "RNN"):
            return f"node {shown(node.name)!r} is a {node.operator}; only LSTMs are read"
    held = ", ".join(map(str, draft.tensors[:6])) or "no weights"
    weights = "give the weights as the framework itself saved them (state_dict, .keras, .h5, checkpoint)"
    loop = next((loop for node in nodes if node.operator == "Sigmoid" and (loop := loop_around(node))), None)
    if loop and count["Tanh"]:
        return f"holds no LSTM node, but {loop} of single operators, as TensorFlow's are exported; {weights}; it holds {held}"
    if count["Sigmoid"] > 2 and count["Tanh"] > 1:
        return (
            f"holds no LSTM node, but {count['Sigmoid']} Sigmoid and {count['Tanh']} Tanh: an LSTM that was decomposed into "
            f"single operators; {weights}; it holds {held}"
        )
    operators = ", ".join(shown(operator) for operator, _ in count.most_common(6)) or "none"
    return f"expected an LSTM node; its operators are {operators}, and it holds {held}"


def labelled(node: Node) -> str:
    return f"{shown(node.operator)} {shown(node.name)!r}"


def node_input(node: Node, name: str) -> Value | None:
    return node.input(INPUTS.index(name))


class Layer:
    """An LSTM node as it is read."""

    def __init__(self, node: Node, constants: Constants, draft: Draft) -> None:
        if unknown := sorted(set(node.attributes) - KNOWN):
            raise DataError(f"expected the attributes of the LSTM operator, got {unknown[0]!r}")
        self.node, self.constants, self.draft = node, constants, draft
        self.direction = node.text("direction", "forward")
        self.directions = 2 if self.direction == "bidirectional" else 1

    def read(self) -> Model:
        node, draft = self.node, self.draft
        kernel, recurrent = self.weight("W", 3), self.weight("R", 3)
        if kernel is None or recurrent is None:
            raise DataError("expected W and R, got none")
        bias, peephole = self.weight("B", 2), self.weight("P", 2)
        count, units = self.directions, recurrent.shape[2]
        shapes = {
            "W": (count, 4 * units, kernel.shape[2]),
            "R": (count, 4 * units, units),
            "B": (count, 8 * units),
            "P": (count, 3 * units),
        }
        for (name, shape), array in zip(shapes.items(), (kernel, recurrent, bias, peephole), strict=True):
            if array is not None and array.shape != shape:
                raise DataError(f"{name}: expected shape {shape} for direction {shown(self.direction)}, got {array.shape}")
        if "hidden_size" in node.attributes and node.integer("hidden_size") != units:
            raise DataError(f"hidden_size is {node.integer('hidden_size')}, but R has {units} columns")
        activations = read_activations(node, count)
        shared = {"gate_clip": node.number("clip"), "input_forget": bool(node.integer("input_forget"))}
        if (lengths := node_input(node, "sequence_lens")) and self.constants.of(lengths) is not None:
            draft.assume(f"sequence_lens {shown(lengths.name)} are numbers of the file, and not used; --lens says the lengths")
        starts = {name: self.start(name, units) for name in ("initial_h", "initial_c")}

        def cell(k: int) -> Cell:
            part = f"[{k}], gates i, o, f, c"
            origins = self.origins("W", "input_kernel", f"{part}, transposed")
            origins += self.origins("R", "recurrent_kernel", f"{part}, transposed")
            options: dict[str, Any] = dict(zip(("recurrent_activation", "activation"), activations[k], strict=True)) | shared
            if bias is not None:
                of_x, of_h = np.split(bias[k], 2)
                options["bias"] = reorder(summed(of_x, of_h), GATES)
                origins += self.origins("B", "bias", f"{part}, the two halves summed")
            if peephole is not None:
                options["peephole"] = reorder(peephole[k].reshape(3, units), PEEPHOLES, axis=0)
                origins += self.origins("P", "peephole", f"[{k}], rows i, o, f")
            for name, start in starts.items():
                if start is not None:
                    options[name] = start[k]
                    origins += self.origins(name, name, f"[{k}], for every sequence")
            return draft.cell(origins, reorder(kernel[k].T, GATES), reorder(recurrent[k].T, GATES), **options)

        if self.direction == "bidirectional":
            return Bidirectional(cell(0), cell(1))
        if self.direction not in ("forward", "reverse"):
            raise DataError(f"direction: expected forward, reverse or bidirectional, got {self.direction!r}")
        return cell(0) if self.direction == "forward" else Reverse(cell(0))

    def weight(self, name: str, rank: int) -> Floats | None:
        """Returns the array of an input that must be constant, or None where it is left out. DataError: it is not."""
        if not (value := node_input(self.node, name)):
            return None
        array, *others = self.settled(value)
        if array is None or not all(other is not None and np.array_equal(other, array, equal_nan=True) for other in others):
            obstacle = self.constants.obstacle(value)
            maker = obstacle.maker
            if maker and "quantize" in maker.operator.lower():
                raise DataError(f"{name} {shown(value.name)!r} is quantized ({shown(maker.operator)}); give the float model")
            what = labelled(maker) if maker else f"{shown(obstacle.name)}, an input of the model"
            raise DataError(
                f"expected {name} {shown(value.name)!r} as numbers of the file, got what is computed from {what}; "
                "fold constants (onnxsim IN OUT), or export the model with its weights as initializers"
            )
        held = value.tensor or Tensor(value.name, array.shape, NAMES.get(array.dtype, str(array.dtype)), lambda: array)
        held.array(rank)
        return array

    def origins(self, name: str, field: str, how: str) -> list[Origin]:
        """Returns where an input came from: a tensor, or those that it is put together from."""
        value = node_input(self.node, name)
        assert value
        if value.tensor:
            return [Origin(value.tensor, field, how)]
        return [Origin(tensor, field, f"by way of {shown(value.name)}{how}") for tensor in sources(value)]

    def settled(self, value: Value) -> list[Floats | None]:
        """Returns what a value always is; or what it is with one size of what the model leaves open, and with another."""
        array = self.constants.of(value)
        return [array] if array is not None else [folded(value, sizes) for sizes in SIZES]

    def start(self, name: str, units: int) -> Floats | None:
        """Returns the state (D, U) that every sequence starts from; None: zeros, or not known and said. DataError."""
        if not (value := node_input(self.node, name)):
            return None
        found = []
        for array in self.settled(value):
            if array is None:
                self.note_unknown_start(name, value)
                return None
            if array.ndim == 3 and not self.node.integer("layout"):
                array = array.swapaxes(0, 1)
            if array.ndim != 3 or array.shape[1:] != (self.directions, units) or array.dtype.kind != "f" or not len(array):
                raise DataError(
                    f"{name}: expected states of {self.directions} x {units} units, got {array.dtype} {array.shape}"
                )
            found.append(array)
        first = found[0][0]
        if not all(np.array_equal(array, np.broadcast_to(first, array.shape), equal_nan=True) for array in found):
            if len(found) > 1:
                self.note_unknown_start(name, value)
                return None
            raise DataError(
                f"{name} {shown(value.name)!r} holds the states of {len(found[0])} sequences, each its own; give them as "
                "--initial-state, and leave them out of the model"
            )
        return first if first.any() else None

    def note_unknown_start(self, name: str, value: Value) -> None:
        zeros = "they are zeros, or what --initial-state says"
        if value.maker:
            made = f"{shown(value.maker.operator)} {shown(value.maker.name)!r}"
            self.draft.assume(f"initial states that the graph computes are not imported: {name}, by {made}; {zeros}")
        else:
            self.draft.note(f"initial states are inputs of the model: {name}; {zeros}")


def folded(value: Value, sizes: tuple[int, ...]) -> Floats | None:
    try:
        return Constants(sizes=sizes).of(value)
    except DataError:
        return None


def read_activations(node: Node, count: int) -> list[tuple[str, str]]:
    """Returns (of the gates, of candidate and output) for each direction. The operator has three: f, g and h."""
    names = node.texts("activations") or ["Sigmoid", "Tanh", "Tanh"] * count
    if len(names) != 3 * count:
        raise DataError(f"activations: expected {3 * count}, got {len(names)}")
    # One after another, to those that take any (onnxruntime, rnn_helpers.cc).
    alphas, betas = (iter(node.numbers(name)) for name in ("activation_alpha", "activation_beta"))
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
