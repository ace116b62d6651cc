"""SavedModels without Keras' own description of their layers, such as Keras 3 exports: from their graph to a chain.

The graph is followed as ONNX's are (traced_graph.py). Masks are numbers in it like others; where they lead shows which layers
skip the steps that they hide.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lstmcli.errors import DataError
from lstmcli.model.chain import Chain
from lstmcli.weights.chains.graphs.graph_layers import joined
from lstmcli.weights.chains.graphs.traced_graph import Layers, Sizes, TracedGraph, walked
from lstmcli.weights.chains.saved_model.operators import TensorflowOperators
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.draft import Choices, Draft
from lstmcli.weights.onnx_graph.constants import Constants
from lstmcli.weights.onnx_graph.graph import Graph
from lstmcli.weights.tf_graph.graph import read_saved_graph

ORDERS: dict[int, tuple[str, ...]] = {2: ("nt",), 3: ("nte",)}  # of the axes of an input
SIZES = (5, 23), (7, 31)  # of what is left open: the number of sequences, and of steps
ALIKE = (5, 5), (7, 7)


def build(path: Path, where: str, tensors: list[Tensor], choices: Choices) -> tuple[Draft, Chain]:
    """Return what there is to say about a model, and its chain. Raises DataError for one that is none, and names the node that
    makes it so. path: of a saved_model.pb; tensors: of the checkpoint beside it."""
    choices.allow(where)
    stored = {tensor.name: tensor for tensor in tensors}
    try:
        saved = read_saved_graph(path)
        variables = {  # each is read once, for all walks through the graph
            name: replace(tensor, name=name, read=functools.cache(tensor.read))
            for name, key in saved.variables.items()
            if (tensor := stored.get(key))
        }
        draft = Draft("a SavedModel", where, variables.values(), choices)
        with draft.building("graph"):
            made = walked_as_told(
                saved.graph, draft, lambda sizes: TensorflowOperators(draft, Constants(sizes=sizes), saved.library, variables)
            )
    except DataError as error:
        raise DataError(f"{error}; give the model as Keras saves it: model.save('m.keras')") from error
    named = joined(draft, made)
    with draft.building("model"):
        chain = Chain(tuple(layer for layer, _ in named), tuple(name for _, name in named))
    draft.masked = None if chain.masks else False
    return draft, chain


def walked_as_told(graph: Graph, draft: Draft, follow: Callable[[Sizes], TracedGraph]) -> Layers:
    """Return the layers. Keras 3's TimeDistributed, where the number of steps is open, takes as many steps as there are
    sequences: such a graph is followed with as many of both, and that is said."""
    (given,) = graph.inputs
    try:
        return walked(given, graph.outputs, draft, follow, ORDERS, SIZES)
    except DataError:
        if not given.shape or given.shape[1] is not None:
            raise
        try:
            made = walked(given, graph.outputs, draft, follow, ORDERS, ALIKE)
        except DataError:
            made = ()
        if not made:
            raise
    draft.assume(
        "the graph takes as many steps as there are sequences, a fault of Keras' TimeDistributed; here all steps are computed"
    )
    return made
