"""Keras: .keras and .weights.h5 (Keras 3), the older .h5 (Keras 1 and 2, and 3 where that is asked for), and TensorFlow 2.

A layer has kernel (E, 4U), recurrent_kernel (U, 4U) and mostly bias (4U,), gates i, f, c, o (c is the candidate, our g). What
else there is to know stands in a configuration, which files of weights alone lack.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.model.model_file import read_weight
from lstmcli.weights.containers.tensor import DTYPES, Tensor
from lstmcli.weights.containers.tf_objects import Objects
from lstmcli.weights.containers.zip_archive import Archive
from lstmcli.weights.draft import CLIPS, Choices, Draft, Imported, chains
from lstmcli.weights.keras_format.configuration import (
    Graph,
    Json,
    LayerRecord,
    Path,
    config_of,
    layer_name,
    layers_of,
    lone_record,
    parse,
    refuse_code,
)
from lstmcli.weights.keras_format.keras2_weights import address, is_legacy, listed_layers, named_layers
from lstmcli.weights.keras_format.keras3_weights import CONTAINERS, group_names, placed_layers
from lstmcli.weights.keras_format.layer_order import guess_below
from lstmcli.weights.keras_format.stored_layers import Found, Stored, as_text
from lstmcli.weights.keras_lstm import Layer, Reader, recurrent

Model_co = TypeVar("Model_co", covariant=True)

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
UNSAID = ("activation", "recurrent_activation", "merge")  # in a file of weights alone
OF_LSTM = {"lstm", "cu_dnnlstm", "rnn", "bidirectional"}  # classes as Keras 3 calls their groups


def looks_like(file: Any) -> bool:
    """Whether an h5py.File may be one of Keras's: a subclassed model has but `vars` of its own beside its attributes."""
    with hdf5.reading(hdf5.label(file)):
        return is_legacy(file) or any(name in file for name in (*CONTAINERS, "vars"))


def import_archive(archive: Archive, choices: Choices, make: Callable[..., Model_co]) -> Model_co:
    """What `make`, such as import_layers(), makes of a .keras file. DataError: damaged, or `make` cannot."""
    where = archive.where
    config = parse(archive.describe(CONFIG), f"{where}, {CONFIG}")
    metadata = parse(archive.describe(METADATA), f"{where}, {METADATA}")
    image = archive.read(WEIGHTS)
    hdf5_safety.check_heaps(lambda offset, count: image[offset : offset + count], len(image), f"{where}::{WEIGHTS}")
    with hdf5.open_image(image, f"{where}::{WEIGHTS}") as file:
        return import_hdf5(file, where, config, metadata.get("keras_version"), choices, make)


def import_file(file: Any, where: str, choices: Choices, make: Callable[..., Model_co]) -> Model_co:
    """A .weights.h5 or .h5 file, open. DataError as above."""
    config, version = (as_text(hdf5.attribute(file, name)) for name in ("model_config", "keras_version"))
    parsed = None if config is None else parse(config, f"{where}, attribute model_config")
    return import_hdf5(file, where, parsed, version, choices, make)


def import_hdf5(
    file: Any, where: str, config: Json, version: Json, choices: Choices, make: Callable[..., Model_co]
) -> Model_co:
    hdf5_safety.refuse_links(file)
    draft = Draft("Keras", where, read_tensors(file), choices)
    version = version if isinstance(version, str) else None
    with hdf5.reading(where), draft.building("weights"):
        legacy = is_legacy(file)
        if legacy:
            found = listed_layers(file, {tensor.name: tensor for tensor in draft.tensors})
        else:
            found = placed_layers(draft.tensors, group_names(file))
    return make(draft, found, config, version, (lambda _: default_gates(version)) if legacy else (lambda _: "sigmoid"))


def import_objects(
    objects: Objects, where: str, metadata: dict[str, str], choices: Choices, make: Callable[..., Model_co]
) -> Model_co:
    """The LSTMs among the objects of a TensorFlow 2 checkpoint. metadata: what a SavedModel says of them, by their places."""
    draft = Draft("TensorFlow 2", where, objects.tensors, choices)
    said = {place: parse(text, f"{where}, what it says of {shown(place) or 'the model'}") for place, text in metadata.items()}
    config = said.pop("", None)
    with draft.building("objects"):
        found = placed_layers(objects.tensors, {place: layer_name(entry) for place, entry in said.items()}, objects.models)
        if not found.by_path:  # Keras 3 exports a list of variables with their names
            named = named_layers((tensor.name, tensor) for tensor in objects.tensors)
            found = Found({scope: stored for scope, cells in named.items() if (stored := cells.stored())})

    for stored in found.by_path.values():
        program = objects.programs.get(stored.kernel_name, "")
        stored.called = "/".join(address(program, None)[0]) if program else ""

    def gates(stored: Stored) -> str | None:
        """Since TensorFlow 2.2, with sigmoid, the names of variables have the cell's; before that either may be meant."""
        program = objects.programs.get(stored.kernel_name, stored.kernel_name)
        return "sigmoid" if re.search(r"lstm_cell[^/]*/kernel$", program) else None

    version = config.get("keras_version") if config else None
    return make(draft, found, config, version if isinstance(version, str) else None, gates, said)


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


def default_gates(version: str | None) -> str | None:
    """recurrent_activation of an LSTM of Keras 2 that does not say it. None: this version had two.

    Keras had hard_sigmoid till 2.3; so had TensorFlow 1, whose 1.13 to 1.15 call their Keras 2.2.4-tf as TensorFlow 2.0 and 2.1
    do, which have sigmoid.
    """
    match = re.match(r"(\d{1,4})\.(\d{1,4})", version or "")
    if not match or (match[0] == "2.2" and version and version.endswith("-tf")):
        return None
    return "hard_sigmoid_keras2" if (int(match[1]), int(match[2])) < (2, 3) else "sigmoid"


# From what a file holds to its LSTMs.


def import_layers(
    draft: Draft,
    found: Found,
    config: Json,
    version: str | None,
    gates: Callable[[Stored], str | None],
    said: Mapping[str, dict[str, Json]] = {},
) -> Imported:
    """gates: recurrent_activation of a layer that the configuration says nothing of; None: not known. said: what is said of
    layers alone, by their places."""
    if config is not None:
        with draft.building("configuration"):
            refuse_code(config)
    graph = Graph(config) if config is not None and layers_of(config) is not None else None
    draft.choices.allow(draft.where, "select", *CLIPS, "residual", *(() if graph or said else UNSAID))
    if graph:
        with draft.building("configuration"):
            below = configured(graph, found, draft)
    else:
        below = alone(found, {found.places[place]: entry for place, entry in said.items() if place in found.places}, draft)
    stacks = {stack[0].name: stack for stack in chains(below)}
    reader = Reader(draft, graph, version, gates)
    return draft.assemble(
        {name: ", ".join(map(str, stack)) for name, stack in stacks.items()},
        lambda name: draft.stack(reader.read(stacks[name])),
    )


def configured(graph: Graph, found: Found, draft: Draft) -> dict[Layer, Layer | None]:
    """The LSTM layers of a model's configuration, each with the one whose outputs it takes."""
    made: dict[Path, Layer] = {}
    for path, record in graph.layers.items():
        if recurrent(record.entry):
            stored = found.get(path, record.group)
            if stored is None:
                raise DataError(
                    f"layer {shown(record.name)!r} is an LSTM, but the file holds no weights of it; was it cut or edited?"
                )
            if other := next((layer for layer in made.values() if layer.stored is stored), None):
                raise DataError(f"the weights of layers {shown(record.name)!r} and {shown(other.name)!r} cannot be told apart")
            made[path] = Layer(path, stored, record)
    below: dict[Layer, Layer | None] = {}
    for layer in made.values():
        assert layer.record
        source = graph.source(layer.record)
        lower = made.get(source.layer) if source and source.number == 0 else None
        gives_steps = lower and lower.record and config_of(recurrent(lower.record.entry)).get("return_sequences") is True
        below[layer] = lower if gives_steps else None
    claimed = [layer.stored for layer in made.values()]
    foreign = {path: stored for path, stored in found.by_path.items() if stored not in claimed}
    if draft.choices.select:
        below |= {Layer(path, stored, owner(graph, found, path)): None for path, stored in foreign.items()}
    elif not made:
        for path, stored in foreign.items():
            raise DataError(foreign_class(Layer(path, stored, owner(graph, found, path))))
        held = ", ".join(map(str, list(graph.layers.values())[:20])) or "none"
        raise DataError(f"expected an LSTM; the layers are {held}")
    return below


def owner(graph: Graph, found: Found, path: Path) -> LayerRecord | None:
    """The layer of the configuration that holds the weights at a path."""
    groups = [group for group, its_path in found.by_class.items() if its_path == path]
    for record in graph.layers.values():
        if record.path == path[: len(record.path)] or any(record.group == group[: len(record.group)] for group in groups):
            return record
    return None


def foreign_class(layer: Layer) -> str:
    record = layer.record
    name, kind = (record.name, kind_of(record.entry)) if record else (layer.name, "a class that it does not name")
    text = f"layer {shown(name)!r} is of {shown(kind)}, and what that computes the file does not say"
    if layer.stored.extra:
        return f"{text}; it has weights that no LSTM has: {', '.join(map(str, layer.stored.extra[:12]))}"
    return f"{text}; if it is what an LSTM does, choose it with --select {shown(layer.name)}"


def kind_of(entry: dict[str, Json], depth: int = 0) -> str:
    """The class of a serialized layer, and of what is in it."""
    config = config_of(entry)
    cells = config.get("cells")
    parts = [config.get("layer"), config.get("cell"), *(cells if isinstance(cells, list) else [])]
    inside = [kind_of(part, depth + 1) for part in parts if isinstance(part, dict)] if depth < 3 else []
    return f"{entry.get('class_name')}{' of ' * bool(inside)}{', '.join(inside)}"


def alone(found: Found, said: dict[Path, dict[str, Json]], draft: Draft) -> dict[Layer, Layer | None]:
    """The layers of a file without a graph of them, each with the one that feeds it as far as that is known."""
    records = {path: lone_record(path, entry) for path, entry in said.items()}
    layers = {path: Layer(path, stored, records.get(path)) for path, stored in found.by_path.items()}
    for path, layer in layers.items():
        if layer.record:
            if not recurrent(layer.record.entry) and not draft.choices.select:
                raise DataError(f"{draft.where}: {foreign_class(layer)}")
            continue
        kind = found.classes.get(path, "lstm")
        strange = [name for name in layer.stored.cell_names if not re.fullmatch(r"lstm_cell(_\d+)?", name)]
        if (strange or kind not in OF_LSTM) and not layer.stored.extra and not draft.choices.select:
            what = f"cell is called {shown(strange[0])!r}" if strange else f"class is called {shown(kind)!r}"
            raise DataError(
                f"{draft.where}: layer {shown(layer.name)!r}: its {what}, which may be no LSTM, and a file of weights alone "
                f"does not say what it computes; if it is what an LSTM does, choose it with --select {shown(layer.name)}"
            )
    below = guess_below(found, draft.choices.merge)
    return {layers[path]: layers[lower] if lower else None for path, lower in below.items()}
