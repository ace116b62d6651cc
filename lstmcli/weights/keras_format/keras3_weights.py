"""Keras 3 and TensorFlow 2: weights by the places of their groups or objects.

Keras 3       layers/lstm/cell/vars/0 to 2, and with forward_layer/cell or cell/cells/lstm_cell in the place of cell
TensorFlow 2  the same, with names for numbers: layer_with_weights-0/cell/kernel
"""

import re
from collections.abc import Iterable
from typing import Any

from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5
from lstmcli.weights.containers.tensor import DTYPES, Tensor
from lstmcli.weights.containers.tf_objects import Place
from lstmcli.weights.keras_format.configuration import Path
from lstmcli.weights.keras_format.stored_layers import FIELDS, Cells, Found, Member, as_text, kind_and_count

DEPENDENCIES = "_layer_checkpoint_dependencies"  # what Keras 2.13 calls the container of layers
CONTAINERS = ("layers", DEPENDENCIES)
PLACED = re.compile(
    r"(?P<layer>.+?)(?:/(?P<direction>forward|backward)_layer)?/cell(?:/cells/(?P<cell>[^/]+))?"
    r"/(?:vars/(?P<number>\d{1,4})|(?P<name>[^/]+))",
    re.DOTALL,
)


def placed_layers(tensors: list[Tensor], names: dict[str, str], models: list[list[Place]] | None = None) -> Found:
    """names: of groups or objects, as their layers are called. models: of TensorFlow's objects (see tf_objects.py)."""
    held = {tensor.name.replace("\\", "/"): tensor for tensor in tensors}  # Keras wrote some on Windows with backslashes
    layers: dict[str, Cells] = {}
    for name, tensor in held.items():
        if match := PLACED.fullmatch(name):
            cells = layers.setdefault(match["layer"], Cells())
            number = int(match["number"]) if match["number"] else len(FIELDS)
            part = FIELDS[number] if number < len(FIELDS) else match["name"]
            if part in FIELDS:
                cells.put(match["direction"], match["cell"] or "", part, tensor)
                cells.stacked = match["cell"] is not None
                called = names.get(name.rpartition("/vars/")[0] or name.rpartition("/")[0]) or match["cell"]
                cells.names += [called] if called and not called.isdigit() else []
    ranks = counted_anew([*names, *held])
    found = Found({})
    for place, cells in layers.items():
        cells.extra = [tensor for tensor in weights_below(place, held) if tensor not in cells.tensors()]
        if stored := cells.stored():
            path, group, named = path_of(place, names, ranks)
            if path in found.by_path:
                raise DataError(f"two layers are called {shown('/'.join(path))}; was the file put together by hand?")
            found.named |= {path} if named else set()
            found.by_path[path], found.by_class[group], found.places[place] = stored, path, path
            if place.split("/")[-2:-1] in ([name] for name in CONTAINERS):
                found.classes[path] = kind_and_count(group[-1])[0]
    if models is None:
        for container, children in contents([*names, *held]).items():
            if container.rpartition("/")[2] in CONTAINERS:
                places = [f"{container}/{child}" for child in children]
                found.by_kind.append([
                    Member(found.places.get(place), ranks.get(place, place.rpartition("/")[2]), weights_below(place, held))
                    for place in places
                ])  # fmt: skip
    else:
        found.models = [
            [Member(found.places.get(each.path), each.kind, weights_below(each.path, held)) for each in model]
            for model in models
        ]
        found.weights = {path_of(place, names, ranks)[0]: weights_below(place, held) for place in names if place}
    return found


def weights_below(place: str, held: dict[str, Tensor]) -> list[Tensor]:
    return [tensor for name, tensor in held.items() if name.startswith(f"{place}/") and tensor.dtype in DTYPES]


def path_of(place: str, names: dict[str, str], ranks: dict[str, str]) -> tuple[Path, Path, bool]:
    """(the names of a layer and of the models around it, what Keras 3 calls their groups, whether the file has the names)."""
    path, group, at, numbered, named = [], [], "", False, True
    for part in place.split("/"):
        at = f"{at}/{part}".lstrip("/")
        if part in CONTAINERS:
            numbered = True
            continue
        group.append(ranks.get(at, part))
        # Elsewhere a group has the name of an attribute, which the author chose.
        counted = numbered or re.fullmatch(r"layer(_with_weights)?-\d+", part)
        own = names.get(at) if counted else part
        path.append(own or part)
        numbered, named = False, named and bool(own)
    return tuple(path), tuple(group), named


def contents(paths: Iterable[str]) -> dict[str, list[str]]:
    """The names right below each group."""
    found: dict[str, dict[str, None]] = {}
    for path in paths:
        parts = path.split("/")
        for k in range(1, len(parts)):
            found.setdefault("/".join(parts[:k]), {})[parts[k]] = None
    return {group: list(names) for group, names in found.items()}


def counted_anew(paths: Iterable[str]) -> dict[str, str]:
    """Names of Keras 2.13's groups as Keras 3 counts them, by place: it counted a layer with weights twice (lstm, lstm_2)."""
    ranks = {}
    for container, children in contents(paths).items():
        if container.rpartition("/")[2] == DEPENDENCIES:
            counts: dict[str, int] = {}
            for kind, _, child in sorted((*kind_and_count(child), child) for child in children):
                ranks[f"{container}/{child}"] = f"{kind}_{counts[kind]}" if kind in counts else kind
                counts[kind] = counts.get(kind, 0) + 1
    return ranks


def group_names(file: Any) -> dict[str, str]:
    """The layers' own names by their groups; "" where a file of Keras 3 does not have them."""
    found = {}
    for name, item in hdf5.objects(file):
        place, _, last = name.replace("\\", "/").rpartition("/")
        if last == "vars" and place:
            found[place] = as_text(hdf5.attribute(item, "name")) or ""
    return found
