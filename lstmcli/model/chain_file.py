"""Whole models in a model file: the group /model of kind "chain", with a group 0, 1, ... for each layer in order.

A group of an LSTM is the tree that model_file has. The others have an attribute `kind` (model/chain.LAYERS), their weights as
datasets and their options as attributes under the names of the fields there, and all an attribute `name`: what the file that
they come from calls them.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli.errors import DataError
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.partial_file import write_whole
from lstmcli.model.chain import Chain
from lstmcli.model.layers import LAYERS, Layer
from lstmcli.model.model_file import (
    CHAIN,
    attribute,
    check_format,
    file_image,
    has,
    is_chain,
    model_in,
    read_tree,
    read_weight,
    undamaged,
    write_model,
)
from lstmcli.model.tree import Model

MAX_LAYERS = 1000


def write_chain(group: Any, chain: Chain) -> None:
    """Write the layers into an empty h5py group."""
    group.attrs["kind"] = CHAIN
    for number, (layer, name) in enumerate(zip(chain.layers, chain.names, strict=True)):
        child = group.create_group(str(number))
        if isinstance(layer, Model):
            write_model(child, layer)
        else:
            child.attrs["kind"] = layer.kind
            for field, weight in layer.weights().items():
                child.create_dataset(field, data=weight)
            for field, value in layer.options().items():
                child.attrs[field] = value
        child.attrs["name"] = name


def save_chain(chain: Chain, path: Path, overwrite: bool = False) -> None:
    """Write a model file, whole or not at all. Raises OutputError, StorageError."""
    write_whole(path, [file_image(lambda group: write_chain(group, chain))], overwrite)


def load_any_model(path: str) -> Model | Chain:
    """Return the model of a model file or of a result. Raises MissingInputError, DataError."""
    with undamaged(path) as file:
        return any_model_in(file)


def any_model_in(file: Any) -> Model | Chain:
    """Return the model of an open file that is known to be undamaged. Raises DataError."""
    group = hdf5_safety.find(file, "model")
    if not is_chain(group):
        return model_in(file)
    check_format(file)
    return read_chain(group)


def read_chain(group: Any) -> Chain:
    """Return what write_chain() wrote. Raises DataError where the group is damaged, or of a newer version."""
    where = hdf5.label(group)
    with hdf5.reading(where):
        count = len(group)
    if count > MAX_LAYERS:
        raise DataError(f"{where}: expected at most {MAX_LAYERS} layers, got {count}")
    layers, names = [], []
    for number in range(count):
        child = hdf5_safety.find(group, str(number))
        if child is None or not hasattr(child, "keys"):
            raise DataError(f"{where}/{number}: expected the group of a layer, got none")
        kind = attribute(child, "kind", str)
        layers.append(read_layer(child, LAYERS[kind]) if kind in LAYERS else read_tree(group, str(number), 0))
        names.append(attribute(child, "name", str, str(number)))
    try:
        return Chain(tuple(layers), tuple(names))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def read_layer(group: Any, layer: type[Layer]) -> Layer:
    told: dict[str, Any] = {}
    for field in dataclasses.fields(layer):
        if hdf5_safety.find(group, field.name) is not None:
            told[field.name] = read_weight(group, field.name)
        elif has(group, field.name):
            told[field.name] = option(group, field.name)
    try:
        return layer(**told)
    except (DataError, TypeError) as error:  # TypeError: a field that must be there is not, or is of another kind
        raise DataError(f"{hdf5.label(group)}: expected a layer of kind {layer.kind}: {error}") from error


def option(group: Any, name: str) -> Any:
    """Return an attribute as the plain Python value that was written."""
    value = hdf5.attribute(group, name)
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return value.item() if isinstance(value, np.generic) else value
