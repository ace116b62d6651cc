"""The graph of layers that a Keras configuration says: a record for each layer, with models inside a model laid open.

A configuration is JSON, which Keras 1, 2 and 3 write in forms of their own; nothing in it is believed or run.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from lstmcli.errors import DataError, shown

Json = Any
Path = tuple[str, ...]  # the names of the models around a layer, and its own

PASSING = (  # layers that change nothing when a model is run
    "InputLayer", "Masking", "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout",
    "ActivityRegularization",
)  # fmt: skip
KEEPING_A_MASK = (  # of the layers that change something
    "LSTM", "CuDNNLSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "TimeDistributed", "Dense", "Activation",
    "BatchNormalization", "LayerNormalization", "ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax",
)  # fmt: skip
MAX_DEPTH = 32


class Output(NamedTuple):
    """Which output of which layer, and as what another layer takes it: "" for its input, else the argument's name."""

    layer: Path
    number: int
    argument: str = ""


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """A layer of a model. DataError is for its users: `config` may hold anything.

    group: how Keras 3 calls its group of weights, after the classes of the layers. inputs: what it takes in its only call;
    none where the graph does not say, or says several calls. known: whether its class is Keras's own, as far as the file says.
    """

    path: Path
    class_name: str
    config: dict[str, Json]
    group: Path
    inputs: tuple[Output, ...] = ()
    calls: int = 1
    known: bool = True
    entry: dict[str, Json] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "/".join(self.path)

    def __str__(self) -> str:
        return f"{shown(self.name)} ({shown(self.class_name)})"


class Graph:
    """The layers of a model in the order of its configuration; `model` is the class of the whole, `outputs` what it puts out,
    as far as the configuration says that."""

    def __init__(self, config: dict[str, Json]) -> None:
        self.model = str(config.get("class_name"))
        reader = Reader()
        reader.read(config, (), ())
        self.layers = without_masks({record.path: reader.resolved(record) for record in reader.records})
        self.outputs = [reader.origin(output) for (path, _), output in reader.outputs.items() if not path]

    def source(self, record: LayerRecord) -> Output | None:
        """The output that is a layer's input, of a layer that changes something. None: there is no such, or not just one."""
        for _ in range(len(self.layers) + 1):
            found = next((output for output in record.inputs if not output.argument), None)
            if found is None or found.layer not in self.layers or self.layers[found.layer].calls > 1:
                return None
            record = self.layers[found.layer]
            if record.class_name not in PASSING:
                return found
        return None

    def before(self, record: LayerRecord) -> list[LayerRecord]:
        """All layers that a layer's input comes from, in the order of the configuration."""
        found, waiting = set(), [record]
        while waiting:
            for output in waiting.pop().inputs:
                if output.layer in self.layers and output.layer not in found:
                    found.add(output.layer)
                    waiting.append(self.layers[output.layer])
        return [layer for path, layer in self.layers.items() if path in found and path != record.path]

    def after(self, record: LayerRecord) -> list[LayerRecord]:
        """All layers that take what a layer gives, in the order of the configuration."""
        takers: dict[Path, list[Path]] = {}
        for layer in self.layers.values():
            for output in layer.inputs:
                takers.setdefault(output.layer, []).append(layer.path)
        found, waiting = {record.path}, [record.path]
        while waiting:
            more = [path for path in takers.get(waiting.pop(), []) if path not in found]
            found.update(more)
            waiting += more
        return [layer for path, layer in self.layers.items() if path in found and path != record.path]

    def masked(self, record: LayerRecord) -> bool | None:
        """Whether a mask comes to a layer, so that it skips padding. None: not known."""
        above = self.before(record)
        if any(output.argument == "mask" for layer in [record, *above] for output in layer.inputs):
            return None
        if not all(layer.known for layer in above):
            return None
        if not any(layer.class_name == "Masking" or layer.config.get("mask_zero") is True for layer in above):
            return False
        others = {layer.class_name for layer in above} - {"Embedding", *PASSING, *KEEPING_A_MASK}
        return None if others else True


class Reader:
    """Reads a configuration into records, whose inputs are the outputs of models inside until they are resolved."""

    def __init__(self) -> None:
        self.records: list[LayerRecord] = []
        self.outputs: dict[tuple[Path, int], Output] = {}  # of a model inside: of which of its layers they are

    def read(self, model: dict[str, Json], path: Path, group: Path, given: tuple[Output, ...] = (), calls: int = 1) -> None:
        """Adds the layers of a model, which is given `given` where it is called."""
        entries = layers_of(model) or []
        sequential = model.get("class_name") == "Sequential"
        taken = [layer for layer, _ in references(config_of(model).get("input_layers"))]
        counts: dict[str, int] = {}
        previous = given
        for entry in entries if len(path) <= MAX_DEPTH else []:
            name, kind = layer_name(entry), str(entry.get("class_name"))
            snake = snake_case(kind)
            counts[snake] = counts.get(snake, -1) + 1
            place, called = (*path, name), (*group, snake + (f"_{counts[snake]}" if counts[snake] else ""))
            nodes = entry.get("inbound_nodes")
            nodes = nodes if isinstance(nodes, list) else []
            if sequential:
                inputs, times = previous, calls
                previous = (Output(place, 0),)
            elif name in taken and not nodes:
                inputs, times = given[taken.index(name) : taken.index(name) + 1], calls
            else:
                inputs = tuple(output._replace(layer=(*path, *output.layer)) for node in nodes[:1] for output in tensors(node))
                inputs, times = inputs if len(nodes) == 1 else (), calls * len(nodes)
            if layers_of(entry) is not None:
                self.read(entry, place, called, inputs, times)
            else:
                self.records.append(LayerRecord(place, kind, config_of(entry), called, inputs, times, is_own(entry), entry))
        if sequential:
            if previous:
                self.outputs[path, 0] = previous[0]
        else:
            for k, (name, index) in enumerate(references(config_of(model).get("output_layers"))):
                self.outputs[path, k] = Output((*path, name), index)

    def resolved(self, record: LayerRecord) -> LayerRecord:
        return replace(record, inputs=tuple(map(self.origin, record.inputs)))

    def origin(self, output: Output) -> Output:
        """The output of a layer that the output of a model inside is."""
        layer, index = output.layer, output.number
        for _ in range(MAX_DEPTH):
            if (layer, index) not in self.outputs:
                break
            layer, index = self.outputs[layer, index][:2]
        return Output(layer, index, output.argument)


def without_masks(layers: dict[Path, LayerRecord]) -> dict[Path, LayerRecord]:
    """Return the layers without the masks that come to them by themselves, where all masks do: Keras 3 writes these as
    operators of their own, and as an argument of each layer that heeds them."""
    operators: set[Path] = set()
    for record in layers.values():
        for output in record.inputs:
            if output.argument == "mask":
                if not (made := mask_operators(layers, record, output.layer)):
                    return layers
                operators.update(made)
    left = {path: without_mask(record) for path, record in layers.items() if path not in operators}
    used = any(output.layer in operators for record in left.values() for output in record.inputs)
    return layers if used else left


def without_mask(record: LayerRecord) -> LayerRecord:
    return replace(record, inputs=tuple(output for output in record.inputs if output.argument != "mask"))


def mask_operators(layers: dict[Path, LayerRecord], record: LayerRecord, mask: Path) -> list[Path]:
    """Return the operators of a mask, if it is that of the Masking or Embedding from which a layer's input comes; else []."""
    below = feeding(layers, record)
    while below and below.class_name in (*PASSING, *KEEPING_A_MASK) and below.class_name != "Masking":
        below = feeding(layers, below)
    found, operator = [mask], layers.get(mask)
    if below and below.class_name == "Masking":
        if not operator or operator.class_name != "Any" or operator.config.get("axis") not in (-1, [-1]):
            return []
        operator = feeding(layers, operator)
        found += [operator.path] if operator else []
    elif not below or below.config.get("mask_zero") is not True:
        return []
    if not operator or operator.class_name != "NotEqual" or operator.inputs != below.inputs[:1]:
        return []
    match operator.entry.get("inbound_nodes"):
        case [{"args": [_, int() | float() as number]}] if number == below.config.get("mask_value", 0):
            return found
    return []


def feeding(layers: dict[Path, LayerRecord], record: LayerRecord) -> LayerRecord | None:
    """The layer whose output is a layer's input."""
    return next((layers.get(output.layer) for output in record.inputs if not output.argument), None)


def lone_record(path: Path, entry: dict[str, Json]) -> LayerRecord:
    """Of a layer that is described alone, without the model around it."""
    return LayerRecord(path, str(entry.get("class_name")), config_of(entry), (), known=is_own(entry), entry=entry)


def tensors(node: Json) -> Iterator[Output]:
    """What a layer takes in a call, as its configuration says it, with the names of the layers as paths of one part."""
    if isinstance(node, dict):  # Keras 3
        arguments = node.get("args")
        for k, argument in enumerate(arguments if isinstance(arguments, list) else []):
            for j, (name, index) in enumerate(keras_tensors(argument)):
                yield Output((name,), index, f"{k}" if k else f"0.{j}" * (j > 0))
        named = node.get("kwargs")
        for key, argument in (named if isinstance(named, dict) else {}).items():
            for name, index in keras_tensors(argument):
                yield Output((name,), index, str(key))
    elif isinstance(node, list):  # Keras 1 and 2: lists of name, call, output, arguments
        for k, part in enumerate([node] if node and isinstance(node[0], str) else node):
            match part:
                case [str(name), int(), int(index), *more]:
                    yield Output((name,), index, f"0.{k}" * (k > 0))
                    for key, argument in (more[0] if more and isinstance(more[0], dict) else {}).items():
                        for other, its_index in references(argument):
                            yield Output((other,), its_index, str(key))


def keras_tensors(value: Json, depth: int = 0) -> Iterator[tuple[str, int]]:
    """The layer and the output that each tensor in an argument of Keras 3 is."""
    match value:
        case {"class_name": "__keras_tensor__", "config": {"keras_history": [str(name), _, int(index)]}}:
            yield name, index
        case list() | dict() if depth < MAX_DEPTH:
            for each in value.values() if isinstance(value, dict) else value:
                yield from keras_tensors(each, depth + 1)


def references(value: Json, depth: int = 0) -> Iterator[tuple[str, int]]:
    """The layer and the output of each reference [name, call, output] in an argument, which may be one itself."""
    match value:
        case [str(name), int(), int(index), *_]:
            yield name, index
        case list() | dict() if depth < MAX_DEPTH:
            for each in value.values() if isinstance(value, dict) else value:
                yield from references(each, depth + 1)


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


def config_of(entry: Json) -> dict[str, Json]:
    """The config of a serialized object."""
    found = entry.get("config") if isinstance(entry, dict) else None
    return found if isinstance(found, dict) else {}


def is_own(entry: Json) -> bool:
    """Whether a serialized object is of a class of Keras's own, as far as the file says: others are registered under a name."""
    return isinstance(entry, dict) and entry.get("registered_name") in (None, "") and ">" not in str(entry.get("class_name"))


def layers_of(model: dict[str, Json]) -> list[dict[str, Json]] | None:
    """The serialized layers of a model; None of what is none."""
    config = model.get("config")
    found = config if isinstance(config, list) else config_of(model).get("layers")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else None


def layer_name(entry: dict[str, Json]) -> str:
    return str(config_of(entry).get("name") or entry.get("name") or "")


def snake_case(name: str) -> str:
    """As Keras has it (to_snake_case in keras/src/utils/naming.py)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
