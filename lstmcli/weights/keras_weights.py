"""Which weights of Keras's LSTM layers an HDF5 file holds, and where: in the two forms that Keras 2 and Keras 3 write."""

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.model.model_file import read_weight
from lstmcli.weights.containers.tensor import DTYPES, Tensor

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the second: Keras 2.13
FIELDS = ("kernel", "recurrent_kernel", "bias")
WALKED = re.compile(r"(?P<layer>.+?)(?:/(?P<direction>forward|backward)_layer)?/cell/vars/(?P<k>[0-2])", re.DOTALL)

Path = tuple[str, ...]  # of a layer: the names of the models around it, and its own
Directions = dict[str, list[Tensor]]  # "forward", and of a bidirectional layer "backward": the tensors, as in FIELDS


@dataclass
class Found:
    """The layers whose weights are in a file, in the order in which they are there."""

    by_path: dict[Path, Directions] = field(default_factory=dict)
    # Keras 3 names the groups after the classes, lstm, lstm_1, ..., and has the layers' own names in attributes, if at all.
    by_class: dict[Path, Path] = field(default_factory=dict)

    def get(self, path: Path, classes: Path) -> Directions | None:
        # A file of Keras 2 has one group for all that is inside a model.
        for key in (path, self.by_class.get(classes), (path[0], path[-1]), path[:1]):
            if key in self.by_path:
                return self.by_path[key]
        return None


def read_tensors(file: Any) -> list[Tensor]:
    names: dict[Any, str] = {dtype.newbyteorder("="): name for name, dtype in DTYPES.items() if dtype.kind == "f"}
    return [
        Tensor(
            entry.name[1:], entry.shape or (), names.get(entry.dtype and entry.dtype.newbyteorder("="), str(entry.dtype)),
            partial(read_values, file, entry.name[1:]),
        )
        for entry in hdf5.entries(file)
    ]  # fmt: skip


def read_values(file: Any, name: str) -> Floats:
    item = hdf5_safety.dataset(file, name)
    with hdf5.reading(hdf5.label(item)):
        size, limit = item.size * item.dtype.itemsize, file.id.get_filesize()
    if size > limit * (hdf5_safety.MAX_DEFLATE if item.chunks else 1):
        raise DataError(f"{hdf5.label(item)}: claims {size} bytes, the whole file has {limit}")
    values: Floats = read_weight(file, name)
    return values


def is_legacy(file: Any) -> bool:
    return "model_weights" in file or any(name.startswith("layer_names") for name in file.attrs)


def is_lstm(tensors: list[Tensor]) -> bool:
    """By the shapes: a GRU has three gates."""
    shapes = [tensor.shape for tensor in tensors]
    if len(shapes) not in (2, 3) or len(shapes[0]) != 2 or len(shapes[1]) != 2:
        return False
    units = shapes[1][0]
    return shapes[0][1] == shapes[1][1] == 4 * units > 0 and shapes[2:] in ([], [(4 * units,)], [(8 * units,)])


def collected(weights: dict[Path, dict[str, dict[int, Tensor]]]) -> dict[Path, Directions]:
    """From path, direction and number to the LSTMs among them."""
    found = {
        path: {name: [tensors[k] for k in sorted(tensors)] for name, tensors in sorted(directions.items(), reverse=True)}
        for path, directions in weights.items()
    }
    return {
        path: each for path, each in found.items() if "forward" in each and all(is_lstm(tensors) for tensors in each.values())
    }


def walked_layers(file: Any, held: dict[str, Tensor]) -> Found:
    """Of Keras 3: groups that end in cell/vars."""
    weights: dict[Path, dict[str, dict[int, Tensor]]] = {}
    by_class: dict[Path, Path] = {}
    for name, tensor in held.items():
        if match := WALKED.fullmatch(name):
            classes, path, at = [], [], ""
            for part in match["layer"].split("/"):
                at += f"{part}/"
                if part not in CONTAINERS:
                    classes.append(part)
                    variables = file.get(f"{at}vars")
                    path.append(as_text(variables.attrs.get("name")) if variables is not None else None)
            key = tuple(part or shown for part, shown in zip(path, classes, strict=True))
            by_class[tuple(classes)] = key
            weights.setdefault(key, {}).setdefault(match["direction"] or "forward", {})[int(match["k"])] = tensor
    return Found(collected(weights), by_class)


def legacy_layers(file: Any, held: dict[str, Tensor]) -> Found:
    """Of Keras 2: a group for each layer, whose attribute weight_names lists what is in it."""
    base = "model_weights" if "model_weights" in file else ""
    weights: dict[Path, dict[str, dict[int, Tensor]]] = {}
    for layer in listed(hdf5_safety.find(file, base), "layer_names"):
        group = hdf5_safety.find(file, f"{base}/{layer}")
        inside: dict[Path, dict[str, dict[int, Tensor]]] = {}
        for name in listed(group, "weight_names") if group is not None else []:
            *parts, leaf = name.removesuffix(":0").split("/")
            tensor = held.get(f"{base}/{layer}/{name}".lstrip("/"))
            if tensor is None:
                raise DataError(f"{hdf5.label(group)}: lists the weight {shown(name)}, which is not there")
            if parts and re.fullmatch(r"(.+_)?cell(_\d+)?", parts[-1]):
                parts.pop()
            direction = re.match(r"(forward|backward)_", parts[-1]) if parts else None
            if direction:
                parts.pop()
            if leaf in FIELDS:
                path = (layer, *parts[-1:])
                inside.setdefault(path, {}).setdefault(direction[1] if direction else "forward", {})[FIELDS.index(leaf)] = (
                    tensor
                )
        weights |= inside if len(inside) > 1 else dict(zip([(layer,)], inside.values(), strict=False))
    return Found(collected(weights))


def listed(group: Any, name: str) -> list[str]:
    """Texts of an attribute, which Keras cuts into name0, name1, ... where it is long."""
    pieces = [name] if name in group.attrs else [f"{name}{k}" for k in range(len(group.attrs))]
    values = [value for piece in pieces if piece in group.attrs for value in np.ravel(group.attrs[piece])]
    return [as_text(value) or "" for value in values]


def as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value) if isinstance(value, str) else None
