"""Keras 1 and 2: weights by their names, which in HDF5 an attribute of each layer lists in order.

Keras 2  lstm/lstm_cell/kernel:0, bidirectional/forward_lstm/lstm_cell/kernel:0, before TensorFlow 2.2 without lstm_cell
Keras 1  lstm_1_W_i, lstm_1_U_i, lstm_1_b_i, and so on for c, f, o; or lstm_1_W, the gates side by side
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.weights.containers.tensor import DTYPES, Tensor
from lstmcli.weights.keras_format.configuration import Path
from lstmcli.weights.keras_format.stored_layers import FIELDS, Cells, Found, Member, as_text

NAMED = re.compile(rf"(?P<field>{'|'.join(FIELDS)})(?P<cell>_\d+)?")
OLD = re.compile(r"(?P<scope>.+)_(?P<field>[WUb])(?:_(?P<gate>[ifco]))?", re.DOTALL)  # of Keras 1
OLD_FIELDS = dict(zip("WUb", FIELDS, strict=True))
CELL = re.compile(r"(?:.+_)?cell(?:_\d+)?")
STACKED = re.compile(r"stacked_rnn_cells(?:_\d+)?")


def listed_layers(file: Any, held: dict[str, Tensor]) -> Found:
    """A group for each layer, whose attribute weight_names lists what is in it."""
    base = "model_weights" if "model_weights" in file else ""
    found, members = Found({}), []
    for layer in listed(hdf5_safety.find(file, base), "layer_names"):
        group = hdf5_safety.find(file, f"{base}/{layer}")
        weights = []
        for name in listed(group, "weight_names") if group is not None else []:
            tensor = held.get(f"{base}/{layer}/{name}".lstrip("/"))
            if tensor is None:
                raise DataError(f"{hdf5.label(group)}: lists the weight {shown(name)}, which is not there")
            weights.append((name.removesuffix(":0"), tensor))
        inside = named_layers(weights, layer)
        last = [scope[-1:] for scope in inside]
        for scope, cells in inside.items():
            if stored := cells.stored():
                short = scope[-1:] if last.count(scope[-1:]) == 1 else scope
                found.by_path[(layer, *short) if len(inside) > 1 else (layer,)] = stored
        members.append(Member((layer,) if (layer,) in found.by_path else None, layer, [tensor for _, tensor in weights]))
    found.models = [members]
    return found


def named_layers(weights: Iterable[tuple[str, Tensor]], layer: str | None = None) -> dict[Path, Cells]:
    """By their scopes what may be layers, of weights by their names; layer: all are of this one, or of the model it is."""
    found: dict[Path, Cells] = {}
    loose: list[Tensor] = []
    for name, tensor in weights:
        scope, direction, cell, part, gate = address(name, layer)
        cells = found.setdefault(scope, Cells())
        if part in FIELDS:
            cells.old |= gate is not None
            cells.stacked |= bool(STACKED.search(name))
            cells.names += [cell] if CELL.fullmatch(cell) else []
            number = cells.order.setdefault(direction, {}).setdefault(cell, len(cells.order[direction]))
            cells.put(direction, f"{number}", f"{part} {gate}" if gate else part, tensor)
        elif tensor.dtype in DTYPES:
            (cells.extra if "/" in name else loose).append(tensor)
    for cells in found.values():
        cells.extra += loose if cells.old else []
    return {scope: cells for scope, cells in found.items() if cells.found}


def address(name: str, layer: str | None) -> tuple[Path, str, str, str, str | None]:
    """(scope of the layer, direction, cell, field, and of Keras 1 the gate, "" for all of them) of a weight by its name."""
    *scope, leaf = name.split("/")
    if not scope and (old := OLD.fullmatch(leaf)):
        plain = re.sub("^(forward|backward)_", "", old["scope"]) if old["scope"] != layer else old["scope"]
        direction = "backward" if plain != old["scope"] and old["scope"].startswith("backward") else "forward"
        return (plain,), direction, "", OLD_FIELDS[old["field"]], old["gate"] or ""
    cell = scope.pop() if len(scope) > 1 and CELL.fullmatch(scope[-1]) else ""
    if len(scope) > 1 and STACKED.fullmatch(scope[-1]):
        scope.pop()
    direction = "forward"
    side = re.match("(forward|backward)_", scope[-1]) if len(scope) > 1 else None
    # The name of a layer may begin so, too; without a file's list of layers only `bidirectional` tells.
    if side and (scope[-1] != layer if layer is not None else re.fullmatch(r"bidirectional(_\d+)?", scope[-2])):
        direction = side[1]
        scope.pop()
    named = NAMED.fullmatch(leaf)
    return tuple(scope), direction, cell + (named["cell"] or "" if named else ""), named["field"] if named else leaf, None


def listed(group: Any, name: str) -> list[str]:
    """Texts of an attribute, which Keras cuts into name0, name1, ... where it is long."""
    pieces = [name] if name in group.attrs else [f"{name}{k}" for k in range(len(group.attrs))]
    values = [value for piece in pieces if piece in group.attrs for value in np.ravel(hdf5.attribute(group, piece))]
    return [as_text(value) or "" for value in values]


def is_legacy(file: Any) -> bool:
    return "model_weights" in file or any(name.startswith("layer_names") for name in file.attrs)
