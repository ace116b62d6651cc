"""ONNX graphs in one line, as the exporters of PyTorch and Keras write them: from their operators to a chain.

The graph is followed from its input to its output with numbers that say of each element what it is (traced_values.py), so
that it may move them about as it likes; what operators compute of each row is known by what it gives (row_functions.py). An
operator that is not known is refused by its name, because left out it would give wrong numbers.
"""

from lstmcli.errors import DataError, shown
from lstmcli.files.positioned_file import FileBytes
from lstmcli.model.chain import Chain
from lstmcli.weights.chains.graphs.graph_layers import joined
from lstmcli.weights.chains.graphs.onnx_operators import Operators
from lstmcli.weights.chains.graphs.traced_graph import walked
from lstmcli.weights.containers.tensor import DTYPES
from lstmcli.weights.draft import Choices, Draft
from lstmcli.weights.onnx import live_nodes, node_input, what_instead
from lstmcli.weights.onnx_graph.constants import Constants
from lstmcli.weights.onnx_graph.graph import Graph, Node, Value, read_graph


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
            walk = walked(given, graph.outputs, draft, lambda sizes: Operators(draft, Constants(sizes=sizes), graph.opset))
    except DataError as error:
        if any(node.operator == "LSTM" for node in nodes):
            raise
        raise DataError(f"{error}; {what_instead(nodes, draft)}") from error
    if others := ", ".join(shown(value.name) for value in graph.outputs[1:]):
        draft.note(f"the predictions are the output {shown(graph.outputs[0].name)}; not computed: {others}")
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
