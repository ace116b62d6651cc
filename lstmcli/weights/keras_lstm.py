"""Keras: from the weights of LSTM layers, and what a configuration says of them, to a tree of cells.

In a CuDNNLSTM the kernels are transposed gate by gate, and the two halves of the bias (8U,) are summed (_convert_rnn_weights in
Keras 2).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.model.tree import Bidirectional, Cell, Model, Reverse
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.draft import Draft, Origin, summed
from lstmcli.weights.keras_format.configuration import PASSING, Graph, Json, LayerRecord, Path, config_of, is_own
from lstmcli.weights.keras_format.stored_layers import FIELDS, GATES, CellTensors, Stored

MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "mean"}


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of LSTM cells, with its record where the file has a configuration."""

    path: Path
    stored: Stored
    record: LayerRecord | None = None

    @property
    def name(self) -> str:
        return "/".join(self.path)

    def __str__(self) -> str:
        return f"{shown(self.stored.called or self.name)} {self.stored}"


def recurrent(entry: Json) -> dict[str, Json] | None:
    """The LSTM, or the RNN of LSTM cells, that a serialized layer is or wraps; None if it is another layer."""
    kind = entry.get("class_name") if is_own(entry) else None
    if kind == "Bidirectional":
        entry = config_of(entry).get("layer")
        kind = entry.get("class_name") if isinstance(entry, dict) and is_own(entry) else None
    if kind in ("LSTM", "CuDNNLSTM") or (kind == "RNN" and all(is_cell(cell) for cell in cells_of(entry))):
        return dict(entry)
    return None


def cells_of(layer: Json) -> list[Json]:
    """The serialized cells of an RNN, or the LSTM itself, from the bottom to the top."""
    if layer.get("class_name") != "RNN":
        return [layer]
    cell = config_of(layer).get("cell")
    if isinstance(cell, dict) and cell.get("class_name") == "StackedRNNCells" and is_own(cell):
        cell = config_of(cell).get("cells")
    return cell if isinstance(cell, list) else [cell]


def is_seeded(record: LayerRecord) -> bool:
    """Whether a layer is given an initial state by the graph."""
    if any(output.argument not in ("", "mask") for output in record.inputs):
        return True
    match record.entry.get("inbound_nodes"):
        case [{"kwargs": {"initial_state": state}}] | [[[str(), _, _, {"initial_state": state}], *_]]:
            return bool(state)
    return False


def is_cell(entry: Json) -> bool:
    return isinstance(entry, dict) and entry.get("class_name") == "LSTMCell" and is_own(entry)


class Reader:
    """Makes trees of layers, and tells the draft what is left out and what is assumed."""

    def __init__(self, draft: Draft, graph: Graph | None, version: str | None, gates: Callable[[Stored], str | None]) -> None:
        self.draft, self.graph, self.version, self.gates = draft, graph, version, gates
        self.chosen: list[Layer] = []

    def read(self, layers: list[Layer]) -> Iterator[Model]:
        """go_backwards gives a layer's outputs last step first, so that the layers above run the other way, too."""
        self.chosen += layers
        if self.graph:
            self.place(self.graph)
        backwards = False
        for layer in layers:
            with self.draft.building(f"layer {layer.name!r}"):
                inner = recurrent(layer.record.entry) if layer.record else None
                backwards ^= config_of(inner).get("go_backwards") is True
                for made in self.read_layer(layer):
                    yield Reverse(made) if backwards else made
        if backwards:
            self.draft.note(
                "go_backwards: outputs stand at the steps that they belong to, where Keras gives the last step first"
            )
        if not self.graph:
            self.assume(layers)

    def place(self, graph: Graph) -> None:
        """What stands before and after all layers that were chosen, and is not run."""
        records = [layer.record for layer in self.chosen if layer.record]
        left = [record for record in graph.layers.values() if record not in records and record.class_name not in PASSING]
        before = {above for record in records for above in graph.before(record)}
        after = {below for record in records for below in graph.after(record)} - before
        self.draft.before = [str(record) for record in left if record in before]
        self.draft.after = [str(record) for record in left if record in after]
        self.draft.masked = graph.masked(records[0]) if records else None

    def assume(self, layers: list[Layer]) -> None:
        """Tells what of these layers the file does not say, where it has no graph of them."""
        said = self.draft.choices
        unsaid: list[str] = []
        if unknown := [layer for layer in layers if layer.record is None]:
            unsaid = ["activation tanh"] * (said.activation is None) + ["no go_backwards"]
            if any("backward" in layer.stored.cells for layer in unknown) and said.merge is None:
                unsaid.append("merge concat")
        if len(layers) > 1:
            unsaid.append("the order of the layers")
        if unsaid:
            self.draft.assume(f"assumed: {', '.join(unsaid)}; the file does not hold them")

    def read_layer(self, layer: Layer) -> list[Model]:
        """The cells of a layer from the bottom to the top, or one that runs both ways."""
        stored = layer.stored
        if stored.extra:
            raise DataError(
                f"{', '.join(map(str, stored.extra[:12]))}: weights that no LSTM has; this is a layer of another kind, "
                "and as an LSTM its numbers would be wrong"
            )
        entry = layer.record.entry if layer.record else None
        inner = recurrent(entry) if entry else None
        if entry and not inner:
            self.draft.assume(f"layer {layer.record} is read as if it were an LSTM of Keras")
        if inner and ("backward" in stored.cells) != (entry is not None and entry.get("class_name") == "Bidirectional"):
            raise DataError("the configuration and the weights do not agree on whether it is bidirectional")
        if layer.record and is_seeded(layer.record):
            self.draft.assume(f"layer {shown(layer.name)!r} gets its initial state from the graph, which is not imported")
        if config_of(inner).get("stateful") is True:
            self.draft.assume(
                f"layer {shown(layer.name)!r} is stateful: Keras goes on from the batch before; here each sequence starts "
                "from zeros, or what --initial-state of run says"
            )
        sides = {}
        for direction, cells in stored.cells.items():
            configs = [config_of(cell) for cell in self.configs(entry, inner, direction)]
            if inner and len(configs) != len(cells):
                raise DataError(f"the configuration says {len(configs)} cells, the file holds {len(cells)}")
            if len(cells) > 1 and not inner:
                if not stored.stacked:
                    raise DataError(f"holds {len(cells)} cells, and does not say how they are connected")
                configs = []
            configs = configs or [{}] * len(cells)
            sides[direction] = [self.read_cell(cell, config, stored) for cell, config in zip(cells, configs, strict=True)]
        if "backward" not in sides:
            return list(sides["forward"])
        merge = config_of(entry).get("merge_mode", "concat") if inner else "concat"
        if not isinstance(merge, str) or merge not in MERGES:
            raise DataError(f"merge_mode: expected one of {', '.join(MERGES)}, got {shown(str(merge))}")
        forward, backward = (
            cells[0] if len(cells) == 1 else self.draft.stack(cells) for cells in (sides["forward"], sides["backward"])
        )
        return [Bidirectional(forward, backward, MERGES[merge])]

    def configs(self, entry: Json, inner: Json, direction: str) -> list[Json]:
        """The serialized cells of one direction; none without a configuration."""
        other = config_of(entry).get("backward_layer") if direction == "backward" else None
        if isinstance(other, dict):
            inner = recurrent(other)
            if inner is None:
                raise DataError(f"its backward layer is a {shown(str(other.get('class_name')))}, not an LSTM")
        if inner is None:
            return [entry] if entry else []
        return cells_of(inner)

    def read_cell(self, tensors: CellTensors, config: dict[str, Json], stored: Stored) -> Cell:
        origins = [
            Origin(tensor, field, f"gate {gate}" if len(tensors[name]) > 1 else "as it is")
            for name, field in zip(FIELDS, ("input_kernel", "recurrent_kernel", "bias"), strict=True)
            for tensor, gate in zip(tensors.get(name, ()), GATES, strict=False)
        ]
        kernel, recurrent_kernel = (joined(tensors[name], rank=2) for name in FIELDS[:2])
        bias = joined(tensors["bias"], rank=1) if "bias" in tensors else None
        units = len(recurrent_kernel)
        said = config.get("units", config.get("output_dim", units))
        if said != units or config.get("use_bias", bias is not None) is not (bias is not None):
            raise DataError(
                f"{tensors['recurrent_kernel'][0]} does not agree with the configuration: {shown(str(said))} units, "
                f"use_bias {shown(str(config.get('use_bias')))}"
            )
        if bias is not None and len(bias) == 8 * units:
            kernel = np.hstack([gate.T.reshape(gate.shape, order="F") for gate in np.hsplit(kernel, 4)])
            recurrent_kernel = np.hstack([gate.T for gate in np.hsplit(recurrent_kernel, 4)])
            bias = summed(*np.split(bias, 2))
            hows = ("gates of CuDNNLSTM, transposed", "gates of CuDNNLSTM, transposed", "the two halves summed")
            origins = [Origin(origin.tensor, origin.field, how) for origin, how in zip(origins, hows, strict=True)]
        return self.draft.cell(
            origins, kernel, recurrent_kernel, bias=bias,
            activation=activation(config, "activation", "tanh"), recurrent_activation=self.recurrent_activation(config, stored),
        )  # fmt: skip

    def recurrent_activation(self, config: dict[str, Json], stored: Stored) -> str:
        name = next((name for name in ("recurrent_activation", "inner_activation") if name in config), None)
        chosen = self.draft.choices.recurrent_activation
        major = re.match(r"[0-9]{1,4}", self.version or "")
        if name:
            found = activation(config, name, "sigmoid")
            if found != "hard_sigmoid":
                return found
            if stored.old or (major and int(major[0]) < 3):
                return "hard_sigmoid_keras2"
            if not major:
                raise DataError("hard_sigmoid is one function in Keras 2 and another in Keras 3; the file does not say which")
            return found
        if stored.is_cudnn:
            if chosen not in (None, "sigmoid"):
                raise UsageError(f"--recurrent-activation {chosen}: a CuDNNLSTM, as its bias of 8 parts shows, has sigmoid")
            return "sigmoid"
        default = "hard_sigmoid_keras2" if stored.old else self.gates(stored)
        if chosen:
            if chosen == "hard_sigmoid" and (stored.old or default is None or (major and int(major[0]) < 3)):
                raise UsageError(
                    "--recurrent-activation hard_sigmoid: is that of Keras 3; that of Keras 2 is hard_sigmoid_keras2"
                )
            return chosen
        if default is None:
            raise DataError(
                f"was written by Keras {shown(self.version or 'of an unknown version')}, whose LSTM has hard_sigmoid gates in "
                "TensorFlow 1 and before Keras 2.3, and sigmoid since; a file of weights alone does not say which: "
                "give --recurrent-activation hard_sigmoid_keras2 or sigmoid"
            )
        why = "Keras's default before 2.3" if default != "sigmoid" else "Keras's default"
        self.draft.assume(f"recurrent_activation {default} is assumed, {why}; --recurrent-activation says another")
        return default


def joined(parts: list[Tensor], rank: int) -> Floats:
    """The gates side by side."""
    arrays = [tensor.array(rank) for tensor in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)


def activation(config: dict[str, Json], name: str, default: str) -> str:
    """By name; a file may hold a serialized function instead, of which the registered ones have a name, too."""
    value = config.get(name, default)
    if isinstance(value, dict):
        value = value.get("config")
    if not isinstance(value, str | None):
        raise DataError(f"{name}: expected the name of a function, got {type(value).__name__}")
    return "linear" if value is None else value
