"""TensorFlow 2's checkpoints of objects: to which object of a program each tensor belongs, and what Keras said of it.

The objects are a graph (core/protobuf/trackable_object_graph.proto), kept as bytes in a tensor of the checkpoint. In a
SavedModel Keras 2 describes its layers in keras_metadata.pb, and up to TensorFlow 2.4 in saved_model.pb
(saved_object_graph.proto).
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lstmcli.errors import DataError, shown
from lstmcli.weights.containers.protobuf import Message
from lstmcli.weights.containers.tensor import Tensor

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
KEY = "/.ATTRIBUTES/VARIABLE_VALUE"
LAYER = re.compile(r"layer-(\d{1,6})")
# Lists in which objects stand once more, and functions.
BOOKKEEPING = {
    "root", "variables", "trainable_variables", "non_trainable_variables", "_all_variables", "regularization_losses",
    "keras_api", "signatures", "__call__", "call_and_return_all_conditional_losses", "call_and_return_conditional_losses",
    "_default_save_signature", "state_spec", "_inbound_nodes", "_outbound_nodes",
}  # fmt: skip
MAX_METADATA = 1 << 28

Children = list[dict[str, int]]  # of each object, by name


class Place(NamedTuple):
    """An object among the layers of a model. kind: "dropout" for one that is known to change nothing, else "unknown"."""

    path: str
    kind: str


class Objects(NamedTuple):
    """tensors: named after their places, such as layer_with_weights-0/cell/kernel, or where only a list holds them as their
    program called them. programs: how it called the others, by place. models: the layers of each model in their order."""

    tensors: list[Tensor]
    programs: dict[str, str]
    models: list[list[Place]]
    children: Children
    paths: dict[int, str]

    def place(self, names: list[str]) -> str | None:
        """The place to which these names lead from the root."""
        at = 0
        for name in names:
            if name not in self.children[at]:
                return None
            at = self.children[at][name]
        return self.paths.get(at)


def read_objects(graph: Message, tensors: list[Tensor]) -> Objects:
    """The tensors of a checkpoint whose graph of objects is given. DataError: damaged."""
    nodes = graph.messages(1)
    children = checked([{child.text(2): child.integer(1) for child in node.messages(1)} for node in nodes], graph.where)
    paths = walked(children)
    held = {tensor.name: tensor for tensor in tensors}
    placed: list[Tensor] = []
    listed: dict[str, Tensor] = {}
    programs = {}
    for number, node in enumerate(nodes):
        for attribute in node.messages(2):
            tensor = held.get(attribute.text(3))
            if tensor is None or attribute.text(1) != "VARIABLE_VALUE":
                continue
            if number in paths:
                placed.append(replace(tensor, name=paths[number]))
                programs[paths[number]] = attribute.text(2)
            else:
                name = attribute.text(2) or tensor.name.removesuffix(KEY)
                listed.setdefault(name, replace(tensor, name=name))
    models = [
        [
            Place(paths[child], "dropout" if "_random_generator" in children[child] else "unknown")
            for child in layers(of)
            if child in paths
        ]
        for number, of in enumerate(children)
        if number in paths
    ]
    others = [tensor for name, tensor in listed.items() if name not in programs]
    return Objects([*placed, *others], programs, [model for model in models if model], children, paths)


def layers(of: dict[str, int]) -> list[int]:
    """The children that are a model's layers, in their order."""
    found = {int(match[1]): child for name, child in of.items() if (match := LAYER.fullmatch(name))}
    return [found[number] for number in sorted(found)]


def checked(children: Children, where: str) -> Children:
    if not children or any(not 0 <= child < len(children) for of in children for child in of.values()):
        raise DataError(f"{where}: damaged: its graph of objects leads to nothing")
    return children


def walked(children: Children) -> dict[int, str]:
    """The shortest path of names to each object, but for what leads through lists of bookkeeping."""
    paths, waiting = {0: ""}, deque([0])
    while waiting:
        at = waiting.popleft()
        # A layer with weights has two names in its model, of which layer_with_weights-0 tells more.
        for name, child in sorted(children[at].items(), key=lambda pair: bool(LAYER.fullmatch(pair[0]))):
            if child not in paths and name not in BOOKKEEPING:
                paths[child] = f"{paths[at]}/{name}".lstrip("/")
                waiting.append(child)
    return paths


def read_metadata(folder: Path, objects: Objects) -> dict[str, str]:
    """What Keras 2 wrote in a SavedModel's folder of its layers, as JSON by their places; the model itself is at ""."""
    found = {}
    for names, text in described(folder):
        place = objects.place(names)
        if place is not None and text:
            found[place] = text
    return found


def described(folder: Path) -> Iterator[tuple[list[str], str]]:
    metadata, model = folder / "keras_metadata.pb", folder / "saved_model.pb"
    if metadata.is_file():
        for node in read_message(metadata).messages(1):
            yield node.text(3).split(".")[1:], node.text(5)
    elif model.is_file():
        for meta_graph in read_message(model).messages(2):
            nodes = meta_graph.message(7).messages(1)
            children = [{child.text(2): child.integer(1) for child in node.messages(1)} for node in nodes]
            for number, path in walked(checked(children, shown(str(model)))).items() if nodes else ():
                yield path.split("/") if path else [], nodes[number].message(4).text(3)


def read_message(path: Path) -> Message:
    where = shown(str(path))
    if path.stat().st_size > MAX_METADATA:
        raise DataError(f"{where}: is larger than this program takes for a description of a model ({MAX_METADATA} bytes)")
    return Message(path.read_bytes(), where)
