"""Keras: .keras archives and .weights.h5 (Keras 3), and the older .h5 (Keras 2, and Keras 3 where that is asked for).

A layer has kernel (E, 4U), recurrent_kernel (U, 4U) and mostly bias (4U,), gates i, f, c, o (c is the candidate, our g);
keras_weights.py finds them. What else there is to know stands in a configuration, which files of weights alone lack, and is
read here. In a CuDNNLSTM the kernels are transposed gate by gate, and the two halves of the bias (8U,) are summed
(_convert_rnn_weights in Keras 2).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.model.tree import Bidirectional, Cell, Model, Reverse
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.containers.zip_archive import Archive
from lstmcli.weights.draft import CLIPS, Choices, Draft, Imported, Origin, chains, summed
from lstmcli.weights.keras_weights import (
    CONTAINERS,
    Directions,
    Found,
    Path,
    as_text,
    is_legacy,
    legacy_layers,
    read_tensors,
    walked_layers,
)

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "mean"}
PASSING = (  # layers that change nothing when a model is run
    "InputLayer", "Masking", "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout",
    "ActivityRegularization",
)  # fmt: skip
MAX_DEPTH = 32

Json = Any


@dataclass(frozen=True, eq=False)
class Layer:
    """An LSTM or Bidirectional layer, with its configuration where the file has one."""

    path: Path
    directions: Directions
    config: Json = None

    @property
    def name(self) -> str:
        return "/".join(self.path)

    @property
    def input_size(self) -> int:
        return self.directions["forward"][0].shape[0]

    @property
    def output_size(self) -> int:
        return sum(tensors[1].shape[0] for tensors in self.directions.values())

    def described(self) -> str:
        return f"{shown(self.name)} {self.directions['forward'][0].shape}{', bidirectional' * (len(self.directions) > 1)}"


def looks_like(file: Any) -> bool:
    """Whether an h5py.File may be one of Keras's."""
    with hdf5.reading(hdf5.label(file)):
        return is_legacy(file) or any(name in file for name in CONTAINERS)


def import_archive(archive: Archive, choices: Choices) -> Imported:
    """A .keras file. DataError: damaged, a Lambda layer, no LSTM, or several that do not feed each other."""
    where = archive.where
    config = parse(archive.read(CONFIG), f"{where}, {CONFIG}")
    metadata = parse(archive.read(METADATA), f"{where}, {METADATA}")
    image = archive.read(WEIGHTS)
    hdf5_safety.check_heaps(lambda offset, count: image[offset : offset + count], len(image), f"{where}::{WEIGHTS}")
    with hdf5.open_image(image, f"{where}::{WEIGHTS}") as file:
        return import_layers(file, where, config, metadata.get("keras_version"), choices)


def import_file(file: Any, where: str, choices: Choices) -> Imported:
    """A .weights.h5 or .h5 file, open. DataError as above."""
    with hdf5.reading(where):
        config, version = (as_text(file.attrs.get(name)) for name in ("model_config", "keras_version"))
    parsed = None if config is None else parse(config, f"{where}, attribute model_config")
    return import_layers(file, where, parsed, version, choices)


def import_layers(file: Any, where: str, config: Json, version: Json, choices: Choices) -> Imported:
    said = ("select", *CLIPS, "residual")
    choices.allow(where, *said, *(["activation", "recurrent_activation", "merge"] if config is None else []))
    hdf5_safety.refuse_links(file)
    draft = Draft("Keras", where, read_tensors(file), choices)
    held = {tensor.name: tensor for tensor in draft.tensors}
    with hdf5.reading(where):
        found = legacy_layers(file, held) if is_legacy(file) else walked_layers(file, held)
    if config is None:
        below = guessed(found)
        unsaid = {"activation": "tanh", "recurrent_activation": "sigmoid", "merge": "concat"}
        assumed = [f"{name} {value}" for name, value in unsaid.items() if getattr(choices, name) is None]
        draft.assume(
            f"assumed: {', '.join([*assumed, 'no go_backwards'])}, and the order of the layers; "
            "a file of weights alone does not hold them"
        )
    else:
        with draft.building("configuration"):
            refuse_code(config)
            below = dict(configured(config, found))
    stacks = {stack[0].name: stack for stack in chains(below)}
    return draft.assemble(
        {name: ", ".join(layer.described() for layer in stack) for name, stack in stacks.items()},
        lambda name: draft.stack(build(stacks[name], version, draft)),
    )


def parse(data: bytes | str, where: str) -> dict[str, Json]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: damaged JSON: {shown(str(error))[:200]}") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(parsed).__name__}")
    return parsed


def refuse_code(config: Json) -> None:
    """A Lambda layer holds code, and what it does to the sequences only that code says."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("class_name") in ("Lambda", "__lambda__"):
                raise DataError(f"refused: the layer {shown(layer_name(value))!r} is a Lambda, and nothing in a file is run")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def settings(entry: Json) -> dict[str, Json]:
    """The config of a serialized layer."""
    found = entry.get("config") if isinstance(entry, dict) else None
    return found if isinstance(found, dict) else {}


def layer_name(entry: Json) -> str:
    return str(settings(entry).get("name") or entry.get("name") or "")


def configured(model: Json, found: Found, path: Path = (), classes: Path = ()) -> Iterator[tuple[Layer, Layer | None]]:
    """The LSTM layers of a model's configuration, each with the one whose outputs it takes."""
    config = model.get("config")
    entries = config if isinstance(config, list) else settings(model).get("layers")
    if not isinstance(entries, list) or len(path) > MAX_DEPTH:
        return
    entries = [entry for entry in entries if isinstance(entry, dict)]
    sequential = model.get("class_name") == "Sequential"
    below = [layer_name(entry) for entry in [{}, *entries]] if sequential else [feeding(entry) for entry in entries]
    sources = {layer_name(entry): source for entry, source in zip(entries, below, strict=False)}
    kinds = {layer_name(entry): str(entry.get("class_name")) for entry in entries}
    made: dict[str, Layer] = {}
    counts: dict[str, int] = {}
    for entry in entries:
        name, kind = layer_name(entry), str(entry.get("class_name"))
        counts[kind] = counts.get(kind, -1) + 1
        place, called = (*path, name), (*classes, snake_case(kind) + (f"_{counts[kind]}" if counts[kind] else ""))
        inner = inner_lstm(entry)
        if inner is None:
            yield from configured(entry, found, place, called)
            continue
        directions = found.get(place, called)
        if directions is None:
            raise DataError(f"layer {shown(name)!r} is an LSTM, but the file holds no weights of it; was it cut or edited?")
        made[name] = Layer(place, directions, entry)
    for name, layer in made.items():
        source, steps = sources[name], len(entries)
        while kinds.get(source) in PASSING and steps:
            source, steps = sources[source], steps - 1
        lower = made.get(source)
        yield layer, lower if lower and settings(inner_lstm(lower.config)).get("return_sequences") is True else None


def inner_lstm(entry: Json) -> Json:
    """The LSTM that a serialized layer is or wraps; None if it is another layer."""
    if entry.get("class_name") == "Bidirectional":
        entry = settings(entry).get("layer")
    return entry if isinstance(entry, dict) and entry.get("class_name") in ("LSTM", "CuDNNLSTM") else None


def feeding(entry: Json) -> str:
    """The layer whose first output is the first input of this one; "" where there is none, or several calls."""
    match entry.get("inbound_nodes"):
        case [{"args": [{"config": {"keras_history": [str(name), _, 0]}}, *_]}]:  # Keras 3
            return name
        case [[[str(name), _, 0, *_], *_]]:  # Keras 2
            return name
        case [[str(name), _, 0, *_]]:
            return name
    return ""


def is_seeded(entry: Json) -> bool:
    """Whether a layer is given an initial state by the graph."""
    match entry.get("inbound_nodes"):
        case [{"args": [list(), *_]}] | [{"args": [_, dict() | list(), *_]}]:  # Keras 3
            return True
        case [{"kwargs": {"initial_state": state}}] | [[[str(), _, _, {"initial_state": state}], *_]]:
            return bool(state)
        case [[[str(), *_], [str(), *_], *_]]:  # Keras 2
            return True
    return False


def snake_case(name: str) -> str:
    """As Keras has it (to_snake_case in keras/src/utils/naming.py)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def guessed(found: Found) -> dict[Layer, Layer | None]:
    """Without a configuration: which layer feeds which, by their widths; a file of Keras 2 has them in order.

    Keras 3 counts the layers of each class, so the order between classes is not in the file. It is taken where only one fits.
    """
    layers = {path: Layer(path, directions) for path, directions in found.by_path.items()}
    below: dict[Layer, Layer | None] = dict.fromkeys(layers.values())
    if not found.by_class:
        pairs = zip([None, *below], below, strict=False)
        return {layer: lower if lower and lower.output_size == layer.input_size else None for lower, layer in pairs}
    models: dict[Path, dict[str, list[tuple[int, Layer]]]] = {}
    for classes, path in found.by_class.items():
        if path in layers:
            name, _, number = classes[-1].rpartition("_")
            kind, count = (name, int(number)) if re.fullmatch("[0-9]{1,9}", number) else (classes[-1], 0)
            models.setdefault(classes[:-1], {}).setdefault(kind, []).append((count, layers[path]))
    for kinds in models.values():
        ordered = [[layer for _, layer in sorted(each, key=lambda pair: pair[0])] for each in kinds.values()]
        orders = [order for each in ordered if (order := one_order(ordered, each[0]))]
        if len(orders) == 1:
            below |= dict(zip(orders[0][1:], orders[0], strict=False))
    return below


def one_order(classes: list[list[Layer]], first: Layer) -> list[Layer] | None:
    """All layers in the one order that begins with `first`, keeps each class in order, and fits; None: there is none such."""
    order, left = [first], [[layer for layer in each if layer is not first] for each in classes]
    while any(left):
        fitting = [each for each in left if each and each[0].input_size == order[-1].output_size]
        if len(fitting) != 1:
            return None
        order.append(fitting[0].pop(0))
    return order


# From layers to a tree.


def build(layers: list[Layer], version: Json, draft: Draft) -> Iterator[Model]:
    """go_backwards gives a layer's outputs last step first, so that the layers above run the other way, too."""
    backwards = False
    for layer in layers:
        with draft.building(f"layer {layer.name!r}"):
            entry, inner = layer.config, inner_lstm(layer.config) if layer.config else None
            cells = {
                direction: read_cell(tensors, inner_config(entry, direction), version, draft)
                for direction, tensors in layer.directions.items()
            }
            if entry is not None and is_seeded(entry):
                draft.note(f"layer {shown(layer.name)!r} gets its initial state from the graph, which is not imported")
            backwards ^= settings(inner).get("go_backwards") is True
            made: Model = cells["forward"]
            if entry is not None and ("backward" in cells) != (entry.get("class_name") == "Bidirectional"):
                raise DataError("the configuration and the weights do not agree on whether it is bidirectional")
            if "backward" in cells:
                merge = settings(entry).get("merge_mode", "concat")
                if not isinstance(merge, str) or merge not in MERGES:
                    raise DataError(f"merge_mode: expected one of {', '.join(MERGES)}, got {shown(str(merge))}")
                made = Bidirectional(made, cells["backward"], MERGES[merge])
            yield Reverse(made) if backwards else made
    if backwards:
        draft.note("go_backwards: outputs stand at the steps that they belong to, where Keras gives the last step first")


def inner_config(entry: Json, direction: str) -> dict[str, Json]:
    """The config of the LSTM of one direction; {} without one."""
    if entry is None:
        return {}
    other = settings(entry).get("backward_layer") if direction == "backward" else None
    return settings(other if isinstance(other, dict) else inner_lstm(entry))


def read_cell(tensors: list[Tensor], config: dict[str, Json], version: Json, draft: Draft) -> Cell:
    origins = [
        Origin(tensor, name, "as it is")
        for tensor, name in zip(tensors, ("input_kernel", "recurrent_kernel", "bias"), strict=False)
    ]
    kernel, recurrent = tensors[0].array(rank=2), tensors[1].array(rank=2)
    bias = tensors[2].array(rank=1) if len(tensors) > 2 else None
    units = len(recurrent)
    if config.get("units", units) != units or config.get("use_bias", bias is not None) is not (bias is not None):
        raise DataError(
            f"{tensors[1]} does not agree with the configuration: {shown(str(config.get('units')))} units, "
            f"use_bias {shown(str(config.get('use_bias')))}"
        )
    if bias is not None and len(bias) == 8 * units:
        kernel = np.hstack([gate.T.reshape(gate.shape, order="F") for gate in np.hsplit(kernel, 4)])
        recurrent = np.hstack([gate.T for gate in np.hsplit(recurrent, 4)])
        bias = summed(*np.split(bias, 2))
        hows = ("gates of CuDNNLSTM, transposed", "gates of CuDNNLSTM, transposed", "the two halves summed")
        origins = [Origin(origin.tensor, origin.field, how) for origin, how in zip(origins, hows, strict=True)]
    recurrent_activation = activation(config, "recurrent_activation", "sigmoid")
    if recurrent_activation == "hard_sigmoid":
        match re.match(r"[0-9]{1,4}", version if isinstance(version, str) else ""):
            case None:
                raise DataError("hard_sigmoid is one function in Keras 2 and another in Keras 3; the file does not say which")
            case major if int(major[0]) < 3:
                recurrent_activation = "hard_sigmoid_keras2"
    return draft.cell(
        origins, kernel, recurrent, bias=bias,
        activation=activation(config, "activation", "tanh"), recurrent_activation=recurrent_activation,
    )  # fmt: skip


def activation(config: dict[str, Json], name: str, default: str) -> str:
    """By name; a file may hold a serialized function instead, of which the registered ones have a name, too."""
    value = config.get(name, default)
    if isinstance(value, dict):
        value = value.get("config")
    if not isinstance(value, str | None):
        raise DataError(f"{name}: expected the name of a function, got {type(value).__name__}")
    return "linear" if value is None else value
