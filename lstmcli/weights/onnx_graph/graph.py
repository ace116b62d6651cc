"""ONNX: a model's graph, as nodes and the values that flow between them (onnx/onnx.proto), from the protocol buffers alone.

Names are resolved here: an input of a node is the very Value that another node puts out, or whose numbers are in the file. The
functions of a model stand where they are called; the graphs inside of nodes (the branches of an If, the body of a Loop) hang on
their node, and see what is around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lstmcli.errors import DataError, shown
from lstmcli.weights.containers.protobuf import Message
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.onnx_graph.tensors import read_tensor, sparse_tensor

MAX_DEPTH = 32  # of functions and graphs inside each other
MAX_NODES = 1 << 18  # a damaged file may call functions that call functions, two to the power of their number


@dataclass(eq=False)
class Value:
    """What flows along an edge of the graph: numbers of the file (tensor), an output of a node (maker), or an input."""

    name: str
    tensor: Tensor | None = None
    maker: Node | None = None
    index: int = 0  # which output of its maker
    shape: tuple[int | str | None, ...] | None = None  # as declared; a text names a size, None is one without a name


@dataclass(eq=False)
class Node:
    """An operator at its place. `name` may be that of several nodes, and is that of its first output where it has none."""

    name: str
    operator: str  # after its domain, where that is not ONNX's own: com.microsoft.DynamicQuantizeLSTM
    inputs: list[Value | None]  # None: left out
    outputs: list[Value]
    attributes: dict[str, Message]
    tensors: dict[str, Tensor]  # that are attributes
    graphs: dict[str, Graph]  # likewise
    place: str  # of the calls and branches around it: "If_0/then_branch/", or ""
    outer: Node | None  # the node whose graph it stands in

    def input(self, k: int) -> Value | None:
        return self.inputs[k] if k < len(self.inputs) else None

    def integer(self, name: str, default: int = 0) -> int:
        return self.attributes[name].integer(3) if name in self.attributes else default

    def integers(self, name: str) -> list[int] | None:
        return self.attributes[name].integers(8) if name in self.attributes else None

    def number(self, name: str) -> float | None:
        return self.attributes[name].float32(2) if name in self.attributes else None

    def numbers(self, name: str) -> list[float]:
        return self.attributes[name].numbers(7, "<f4").tolist() if name in self.attributes else []

    def text(self, name: str, default: str = "") -> str:
        return self.attributes[name].text(4) if name in self.attributes else default

    def texts(self, name: str) -> list[str]:
        return self.attributes[name].texts(9) if name in self.attributes else []


@dataclass(eq=False)
class Graph:
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    opset: int = 0  # the version of ONNX's operators, of a whole model

    def all_nodes(self) -> Iterator[Node]:
        """Yields those of the graphs inside of nodes as well, each after the node that it is in."""
        for node in self.nodes:
            yield node
            for graph in node.graphs.values():
                yield from graph.all_nodes()

    def all_tensors(self) -> Iterator[Tensor]:
        yield from self.tensors
        for node in self.nodes:
            for graph in node.graphs.values():
                yield from graph.all_tensors()


class Scope:
    """The values that have a name at some place: those of a graph, and of what is around it."""

    def __init__(self, outer: Scope | None = None, names: Mapping[str, Value] = {}) -> None:
        self.outer, self.names = outer, dict(names)

    def make(self, name: str) -> Value:
        """Returns a value that a node here puts out. The outputs of a function are there already: those of its call."""
        return self.names.setdefault(name, Value(name))

    def find(self, name: str) -> Value:
        """Returns the value of this name, here or around; an input that is not declared, where nothing else has it."""
        scope = self
        while name not in scope.names and scope.outer:
            scope = scope.outer
        return scope.names.setdefault(name, Value(name))


@dataclass
class Place:
    """Where nodes are read: which names are known there, and what is around."""

    scope: Scope
    graph: Graph
    name: str = ""
    outer: Node | None = None
    depth: int = 0
    references: Mapping[str, Message] = field(default_factory=dict)  # the attributes of a call, for the function's own nodes

    def inside(self, name: str) -> str:
        if self.depth >= MAX_DEPTH:
            raise DataError(f"functions and graphs lie in each other more than {MAX_DEPTH} deep")
        return f"{self.name}{name}/"


class Reader:
    def __init__(self, model: Message, path: str, where: str) -> None:
        self.path, self.where, self.count = path, where, 0
        self.functions = {(f.text(10), f.text(1), f.text(13)): f for f in model.messages(25)}

    def graph(self, message: Message, scope: Scope, name: str = "", outer: Node | None = None, depth: int = 0) -> Graph:
        graph = Graph()
        place = Place(scope, graph, name, outer, depth)
        for info in message.messages(11):
            graph.inputs.append(scope.names.setdefault(info.text(1), Value(info.text(1), shape=declared(info))))
        stored = [(one.text(8), read_tensor(one, name + one.text(8), self.path, self.where)) for one in message.messages(5)]
        for one in message.messages(15):
            called = one.message(1).text(8)
            stored.append((called, sparse_tensor(one, name + called, self.where)))
        for called, tensor in stored:
            value = scope.names.setdefault(called, Value(called))
            if value.tensor:
                raise DataError(f"damaged: two initializers are called {shown(tensor.name)!r}")
            value.tensor = tensor
            graph.tensors.append(tensor)
        self.nodes(message.messages(1), place)
        for info in message.messages(13):
            if (known := scope.names.get(info.text(1))) and known.shape is None:
                known.shape = declared(info)
        graph.outputs = [scope.find(info.text(1)) for info in message.messages(12)]
        return graph

    def nodes(self, messages: Sequence[Message], place: Place) -> None:
        """Reads the nodes of a graph or function, in whatever order they stand."""
        outputs = []
        for message in messages:
            outputs.append([place.scope.make(name) if name else Value("") for name in message.texts(2)])
            self.count += 1
        if self.count > MAX_NODES:
            raise DataError(f"has more than {MAX_NODES} nodes, with those of its functions")
        for message, made in zip(messages, outputs, strict=True):
            self.node(message, made, place)

    def node(self, message: Message, outputs: list[Value], place: Place) -> None:
        domain, operator = message.text(7), message.text(4)
        name = message.text(3) or (outputs[0].name if outputs else "")
        attributes = {}
        for attribute in message.messages(5):
            if not (reference := attribute.text(21)):
                attributes[attribute.text(1)] = attribute
            elif reference in place.references:
                attributes[attribute.text(1)] = place.references[reference]
        inputs = [place.scope.find(given) if given else None for given in message.texts(1)]
        if function := self.functions.get((domain, operator, message.text(8))):
            return self.call(function, name, inputs, outputs, attributes, place)
        operator = operator if domain in ("", "ai.onnx") else f"{domain}.{operator}"
        node = Node(name, operator, inputs, outputs, attributes, {}, {}, place.name, place.outer)
        for k, value in enumerate(outputs):
            if value.maker or value.tensor:
                raise DataError(f"damaged: two nodes or initializers give {shown(value.name)!r}")
            value.maker, value.index = node, k
        for key, attribute in attributes.items():
            if 5 in attribute:
                called = place.name + (outputs[0].name if operator == "Constant" and outputs else f"{name}/{key}")
                node.tensors[key] = read_tensor(attribute.message(5), called, self.path, self.where)
            if 6 in attribute:
                inner = place.inside(f"{name}/{key}")
                node.graphs[key] = self.graph(attribute.message(6), Scope(place.scope), inner, node, place.depth + 1)
        if operator == "Constant" and "value" in node.tensors and outputs:
            outputs[0].tensor = node.tensors["value"]
        place.graph.nodes.append(node)
        return None

    def call(
        self,
        function: Message,
        name: str,
        inputs: list[Value | None],
        outputs: list[Value],
        attributes: dict[str, Message],
        place: Place,
    ) -> None:
        """Puts the nodes of a function in the place of its call."""
        takes, gives = function.texts(4), function.texts(5)
        if len(inputs) > len(takes) or len(outputs) > len(gives):
            raise DataError(f"damaged: {shown(name)!r} calls a function with more inputs or outputs than it has")
        # What the call leaves out is a value without numbers or maker.
        given = {taken: value or Value(taken) for taken, value in zip(takes, [*inputs, *[None] * len(takes)], strict=False)}
        defaults = {attribute.text(1): attribute for attribute in function.messages(11)}
        scope = Scope(None, given | dict(zip(gives, outputs, strict=False)))
        self.nodes(
            function.messages(7),
            Place(scope, place.graph, place.inside(name), place.outer, place.depth + 1, defaults | attributes),
        )


def declared(info: Message) -> tuple[int | str | None, ...] | None:
    """Returns the shape in a ValueInfoProto, if there is one."""
    tensor = info.message(2).message(1)
    if 2 not in tensor:
        return None
    sizes = tensor.message(2).messages(1)
    return tuple(size.integer(1) if 1 in size else size.text(2) or None for size in sizes)


def read_graph(data: bytes, path: str, where: str) -> Graph:
    """Reads the graph of an ONNX model. path: of the model, beside which numbers may lie in other files. DataError: damaged."""
    model = Message(data, f"{where}: not a whole ONNX model")
    try:
        graph = Reader(model, path, where).graph(model.message(7), Scope())
        refuse_circles(graph)
        graph.opset = max((one.integer(2) for one in model.messages(8) if one.text(1) in ("", "ai.onnx")), default=0)
        return graph
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(where) else f"{where}: {text}") from error


def refuse_circles(graph: Graph) -> None:
    """Raises DataError where a node needs what it puts out itself; the order in which nodes stand in the file is free."""
    done: set[Node] = set()
    for last in graph.all_nodes():
        pending, waiting = [last], set[Node]()
        while pending:
            node = pending[-1]
            needed = [] if node in done else [maker for maker in makers(node) if maker not in done]
            if needed and node not in waiting:
                if not waiting.isdisjoint(needed):
                    raise DataError(f"damaged: node {shown(node.operator)} {shown(node.name)!r} needs itself")
                waiting.add(node)
                pending += needed
                continue
            done.add(node)
            waiting.discard(node)
            pending.pop()


def makers(node: Node) -> list[Node]:
    """Returns the nodes that a node needs, those of what the graphs in it put out among them."""
    values = [*node.inputs, *(value for graph in node.graphs.values() for value in graph.outputs)]
    return [value.maker for value in values if value and value.maker]


# Operators that leave the elements of their first input as they are, and those that look at its shape alone.
MOVES = ("Identity", "Dropout", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
SHAPES = ("Shape", "Size")


def data_inputs(node: Node) -> list[Value]:
    """Returns the values whose elements go into a node's outputs."""
    if node.operator in (*SHAPES, "Constant", "ConstantOfShape"):
        return []
    inner = [value for graph in node.graphs.values() for value in graph.outputs]
    return [value for value in [*node.inputs[: 1 if node.operator in MOVES else None], *inner] if value and not value.tensor]


def upstream(value: Value | None, stop: Collection[Node] = ()) -> list[Node]:
    """Returns the nodes that compute a value from what goes into the model, in the order of the data, but for those that only
    move elements about. Nothing in `stop`, nor what is before it."""
    fed: dict[Node, bool] = {}  # what only constants go into is one
    pending = [value.maker] if value and value.maker and value.maker not in stop else []
    seen = set(pending)
    while pending:
        node = pending[-1]
        makers = [one.maker for one in data_inputs(node)]
        if fresh := next((maker for maker in makers if maker and maker not in seen and maker not in stop), None):
            seen.add(fresh)
            pending.append(fresh)
            continue
        fed[node] = any(maker is None or maker in stop or fed.get(maker) for maker in makers)
        pending.pop()
    return [node for node, is_fed in fed.items() if is_fed and node.operator not in MOVES]


def downstream(values: Iterable[Value], nodes: Iterable[Node]) -> list[Node]:
    """Returns those of `nodes` that compute with any of these values, in their order, without those that only move elements."""
    reached = set(values)
    found = []
    for node in nodes:
        if not reached.isdisjoint(data_inputs(node)):
            reached.update(node.outputs)
            if node.operator not in MOVES:
                found.append(node)
    return found
