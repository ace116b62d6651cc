"""TensorFlow: the graph of a SavedModel, as nodes and the values that flow between them, from the protocol buffers alone.

A graph calls functions, which are graphs of their own: the model itself is one, and so are the condition and the body of a
loop (core/protobuf/saved_model.proto, core/framework/graph.proto, function.proto).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lstmcli.errors import DataError, shown
from lstmcli.weights.containers.protobuf import Message
from lstmcli.weights.containers.tf_objects import read_message
from lstmcli.weights.onnx_graph.graph import Graph, Node, Value
from lstmcli.weights.tf_graph.rewrites import rewritten
from lstmcli.weights.tf_graph.tensors import read_array

CALLS = ("PartitionedCall", "StatefulPartitionedCall")
SERVING = "serving_default"


class Operation(Node):
    """A node whose attributes are TensorFlow's (core/framework/attr_value.proto)."""

    def output(self, k: int) -> Value:
        while len(self.outputs) <= k:
            self.outputs.append(Value(f"{self.name}:{len(self.outputs)}", maker=self, index=len(self.outputs)))
        return self.outputs[k]

    def integer(self, name: str, default: int = 0) -> int:
        """Return a number, a yes or no, or a type."""
        if name not in self.attributes:
            return default
        attribute = self.attributes[name]
        return next((attribute.integer(field) for field in (3, 5, 6) if field in attribute), default)

    def integers(self, name: str) -> list[int] | None:
        return self.attributes[name].message(1).integers(3) if name in self.attributes else None

    def number(self, name: str) -> float | None:
        return self.attributes[name].float32(4) if name in self.attributes else None

    def text(self, name: str, default: str = "") -> str:
        return self.attributes[name].text(2) if name in self.attributes else default


class Library:
    """The functions that a graph calls, read when they are asked for."""

    def __init__(self, functions: Iterable[Message]) -> None:
        self.functions = {function.message(1).text(1): function for function in functions}
        self.graphs: dict[str, Graph] = {}

    def graph(self, name: str) -> Graph:
        """Return a function by its name. Raises DataError for one that is damaged, or not there."""
        if name not in self.functions:
            raise DataError(f"damaged: calls the function {shown(name)!r}, which is not there")
        if name not in self.graphs:
            function = self.functions[name]
            inputs = [Value(argument.text(1)) for argument in function.message(1).messages(2)]
            reader = Nodes(function.messages(3), {value.name: value for value in inputs})
            returned = {entry.text(1): entry.text(2) for entry in function.messages(4)}
            outputs = [argument.text(1) for argument in function.message(1).messages(3)]
            graph = Graph(inputs, [reader.value(returned.get(output, "")) for output in outputs], reader.operations())
            self.graphs[name] = rewritten(graph)
        return self.graphs[name]


class Nodes:
    """The nodes of a graph by their names. arguments: values that come from outside."""

    def __init__(self, messages: list[Message], arguments: dict[str, Value]) -> None:
        self.arguments = arguments
        self.by_name: dict[str, Operation] = {}
        for message in messages:
            name, attributes = message.text(1), {entry.text(1): entry.message(2) for entry in message.messages(5)}
            self.by_name[name] = Operation(name, message.text(2), [], [], attributes, {}, {}, "", None)
        for message in messages:
            operation = self.by_name[message.text(1)]
            operation.inputs[:] = [self.value(name) for name in message.texts(3) if not name.startswith("^")]

    def value(self, name: str) -> Value:
        """Return what is called NODE, NODE:NUMBER or NODE:OUTPUT:NUMBER, or an argument."""
        if name in self.arguments:
            return self.arguments[name]
        called, *_, number = [*name.split(":"), "0"] if ":" not in name else name.split(":")
        if called not in self.by_name or not number.isdigit() or int(number) > 1 << 16:
            raise DataError(f"damaged: takes {shown(name)!r}, which is not there")
        return self.by_name[called].output(int(number))

    def operations(self) -> list[Node]:
        return list(self.by_name.values())


def function_of(node: Node, name: str) -> str:
    """Return the name of a function that a node calls."""
    return node.attributes[name].message(10).text(1) if name in node.attributes else ""


class SavedGraph(NamedTuple):
    """What a SavedModel serves. variables: the keys in its checkpoint, by the names of the nodes that hold them."""

    graph: Graph
    library: Library
    variables: dict[str, str]


def read_saved_graph(path: Path) -> SavedGraph:
    """Read the graph that a saved_model.pb serves. Raises DataError: damaged, or without one input and one output."""
    where = shown(str(path))
    found = [graph for graph in read_message(path).messages(2) if "serve" in graph.message(1).texts(4)]
    if not found:
        raise DataError(f"{where}: holds no graph that is tagged 'serve'")
    try:
        return served(found[0])
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(where) else f"{where}: {text}") from error


def served(meta_graph: Message) -> SavedGraph:
    definition = meta_graph.message(2)
    nodes, library = Nodes(definition.messages(1), {}), Library(definition.message(2).messages(1))
    signatures = {entry.text(1): entry.message(2) for entry in meta_graph.messages(5)}
    usable = {name: signature for name, signature in signatures.items() if 1 in signature and 2 in signature}
    name = SERVING if SERVING in usable else next(iter(usable), "")
    if not name:
        raise DataError("serves nothing: holds no signature with an input and an output")
    graph = Graph(nodes=nodes.operations())
    for field, values, what in ((1, graph.inputs, "takes"), (2, graph.outputs, "puts out")):
        entries = {entry.text(1): entry.message(2) for entry in usable[name].messages(field)}
        if len(entries) > 1:
            raise DataError(f"{what} {len(entries)} arrays, {', '.join(map(shown, entries))}; expected a model in one line")
        for called, info in entries.items():
            value = nodes.value(info.text(1))
            sizes = [size.integer(1) for size in info.message(3).messages(2)]
            if field == 1:
                value.maker, value.name = None, called
                value.shape = tuple(size if size >= 0 else None for size in sizes)
            values.append(value)
    restoring = nodes.by_name.get(meta_graph.message(3).text(3))
    return SavedGraph(graph, library, restored(restoring, library) if restoring else {})


def restored(call: Operation, library: Library) -> dict[str, str]:
    """Return from which tensor of the checkpoint each variable is read, as the function that reads them says it."""
    graph = library.graph(function_of(call, "f"))
    places = dict(zip(graph.inputs, call.inputs, strict=False))
    found = {}
    for node in graph.nodes:
        handle, value = node.input(0), node.input(1)
        held = places.get(handle) if handle and node.operator == "AssignVariableOp" else None
        while value and value.maker and value.maker.operator == "Identity":
            value = value.maker.input(0)
        reader = value.maker if value else None
        names = reader.input(1) if reader and reader.operator == "RestoreV2" else None
        if held and held.maker and value and names and names.maker:
            found[held.maker.name] = str(read_array(names.maker.attributes["value"].message(8))[value.index])
    return found
