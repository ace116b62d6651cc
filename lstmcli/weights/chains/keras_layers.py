"""Keras models in one line, Sequential or functional: from their layers, as the configuration says them, to a chain.

What a layer computes is what Keras 3 computes, and Keras 2 where the file is of it; a layer or an option of one that is not
known is refused by its name, because left out it would give wrong numbers.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, shown
from lstmcli.model.chain import Chain
from lstmcli.model.layers import (
    OVER_FEATURES,
    POINTWISE,
    Activation,
    Affine,
    Conv1D,
    Dense,
    Embedding,
    Flatten,
    Flip,
    Layer,
    LayerNorm,
    Masking,
    Pool,
    Pool1D,
    Repeat,
    Window,
)
from lstmcli.model.tree import Bidirectional, Model, Reverse
from lstmcli.weights.chains.keras_masks import Named, with_masks_as_heeded
from lstmcli.weights.chains.keras_tensors import tensors_of
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.draft import Draft
from lstmcli.weights.keras_format.configuration import Graph, Json, LayerRecord, config_of, is_own, layers_of, refuse_code
from lstmcli.weights.keras_format.stored_layers import Found, Stored
from lstmcli.weights.keras_lstm import Layer as LstmLayer
from lstmcli.weights.keras_lstm import Reader, recurrent

NOTHING = (
    "InputLayer", "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization",
)  # fmt: skip
OTHER_NAMES = {"swish": "silu", "hard_swish": "hard_silu"}
LEAKY = 0.2  # the slope of the function leaky_relu in Keras 3


def build(
    draft: Draft, found: Found, config: Json, version: str | None, gates: Callable[[Stored], str | None],
    said: Mapping[str, dict[str, Json]] = {},
) -> Chain:  # fmt: skip
    """Return the chain of a model. Raises DataError for one that is no chain, and names the layer that makes it so.

    draft, found, config, version, gates, said: as keras.import_layers() takes them.
    """
    if config is None or layers_of(config) is None:
        raise DataError(
            f"{draft.where}: holds weights, but not the layers that they belong to; save the whole model: model.save('m.keras')"
        )
    with draft.building("configuration"):
        refuse_code(config)
        graph = Graph(config)
        line = to_the_output(graph, in_one_line(graph), draft)
    reader = Reader(draft, graph, version, gates)
    maker = Maker(draft, found, reader, keras_major(version))
    maker.input(line[0].config)  # before TensorFlow 2.2 the first layer of a Sequential model stands for its input
    made: list[Named] = []
    for record in line:
        with draft.building(str(record)):
            made.append(Named(record.name, record.class_name, list(maker.layers(record))))
    with draft.building("masks"):
        made = with_masks_as_heeded(made, maker.fills)
    layers = [(layer, named.name) for named in made for layer in named.layers]
    with draft.building("model"):
        return Chain(tuple(layer for layer, _ in layers), tuple(name for _, name in layers))


def keras_major(version: str | None) -> int | None:
    return int(version[0]) if version and version[0].isdigit() else None


def in_one_line(graph: Graph) -> list[LayerRecord]:
    """Return the layers from the input to the output. Raises DataError where they branch."""
    feeds: dict[Any, list[LayerRecord]] = {}
    for record in graph.layers.values():
        inputs = [output for output in record.inputs if output.argument != "mask"]
        if record.calls > 1:
            raise DataError(f"layer {record} is called {record.calls} times; expected a model in one line")
        if len(inputs) > 1:
            names = ", ".join(shown("/".join(output.layer)) for output in inputs)
            raise DataError(f"layer {record} takes {len(inputs)} inputs ({names}); expected a model in one line")
        if inputs and inputs[0].number:
            raise DataError(f"layer {record} takes output {inputs[0].number} of {shown('/'.join(inputs[0].layer))}, not 0")
        feeds.setdefault(inputs[0].layer if inputs else None, []).append(record)
    line: list[LayerRecord] = []
    place: Any = None
    while place in feeds and len(line) <= len(graph.layers):
        if len(feeds[place]) > 1:
            names = ", ".join(map(str, feeds[place]))
            raise DataError(f"the layers {names} take the same input; expected a model in one line")
        (record,) = feeds[place]
        line.append(record)
        place = record.path
    if len(line) != len(graph.layers):
        left = ", ".join(str(record) for record in graph.layers.values() if record not in line)
        raise DataError(f"the layers {left} are not in one line with the others")
    return line


def to_the_output(graph: Graph, line: list[LayerRecord], draft: Draft) -> list[LayerRecord]:
    """Return the layers up to the one whose output is the first of the model. Raises DataError where that is a state."""
    if not graph.outputs:
        return line
    first, *others = graph.outputs
    names = [shown("/".join(output.layer)) for output in graph.outputs]
    if first.number:
        raise DataError(
            f"the model puts out output {first.number} of layer {names[0]}, not 0; expected one whose output is a layer's own, "
            "not a state: with return_sequences=False, output 0 of an LSTM is its final h"
        )
    if others:
        told = (f"output {output.number} of {name}" for output, name in zip(others, names[1:], strict=True))
        draft.note(f"the predictions are the output of {names[0]}; not computed: {', '.join(told)}")
    return line[: 1 + next((k for k, record in enumerate(line) if record.path == first.layer), len(line))]


class Maker:
    """Makes layers of records, one after the other. steps, width: how many steps and features come out of the last one, if
    that is known."""

    def __init__(self, draft: Draft, found: Found, reader: Reader, major: int | None) -> None:
        self.draft, self.found, self.reader, self.major = draft, found, reader, major
        self.fills: dict[Model, str] = {}  # what LSTMs put out at steps that a mask hides
        self.steps: int | None = None
        self.width: int | None = None
        self.vectors = False

    def layers(self, record: LayerRecord) -> Iterator[Layer | Model]:
        if record.class_name == "InputLayer":
            self.input(record.config)
        for layer in self.made(record, record.entry, record.class_name, record.config):
            if isinstance(layer, Window) and self.steps is not None:
                self.steps = int(layer.output_lengths(np.array([self.steps]))[0])
            self.vectors = self.vectors or isinstance(layer, Pool | Flatten)
            if isinstance(layer, Repeat):
                self.vectors, self.steps = False, layer.steps
            match layer:
                case Model():
                    self.width = layer.output_size
                case Embedding():
                    self.width = layer.table.shape[1]
                case Dense() | Conv1D():
                    self.width = layer.kernel.shape[-1]
                case Flatten() if self.width is not None:
                    self.width *= layer.steps
            yield layer

    def input(self, config: dict[str, Json]) -> None:
        shape = config.get("batch_shape", config.get("batch_input_shape"))
        if isinstance(shape, list) and len(shape) > 1 and isinstance(shape[1], int):
            self.steps = shape[1]
        if isinstance(shape, list) and len(shape) == 3 and isinstance(shape[2], int):
            self.width = shape[2]

    def made(self, record: LayerRecord, entry: Json, kind: str, config: dict[str, Json]) -> Iterator[Layer | Model]:
        if kind in NOTHING and is_own(entry):
            return
        if recurrent(entry):
            yield from self.lstm(record)
            return
        make = getattr(self, f"make_{kind}", None) if is_own(entry) else None
        if make is None:
            raise DataError("a layer of this kind is not known to this program; nothing is left out in silence")
        self.refuse_options(config, kind)
        yield from make(record, config)
        function = config.get("activation")
        if kind not in ("Activation",) and function not in (None, "linear"):
            yield self.function(function)

    def refuse_options(self, config: dict[str, Json], kind: str) -> None:
        if mode := config_of(config.get("dtype")).get("mode"):
            raise DataError(f"is quantized to {shown(str(mode))}, so that its float weights are gone; save the float model")
        expected = {"data_format": "channels_last", "groups": 1, "keepdims": False, "lora_rank": None, "mode": 0}
        for name, value in expected.items():
            if config.get(name, value) not in (value, None):
                raise DataError(f"{name} {shown(str(config[name]))} is not known to this program; expected {value}")

    def weights(self, record: LayerRecord) -> list[Tensor]:
        return tensors_of(self.found, record, self.draft.tensors)

    def arrays(self, record: LayerRecord, *ranks: int) -> list[Floats]:
        """Return the weights of a layer. Raises DataError where they are not of these ranks."""
        tensors = self.weights(record)
        if len(tensors) != len(ranks):
            held = ", ".join(map(str, tensors)) or "none"
            raise DataError(f"expected {len(ranks)} weights, the file holds {held}; was it cut or edited?")
        return [tensor.array(rank) for tensor, rank in zip(tensors, ranks, strict=True)]

    def lstm(self, record: LayerRecord) -> Iterator[Layer | Model]:
        stored = self.found.get(record.path, record.group)
        if stored is None:
            raise DataError("is an LSTM, but the file holds no weights of it; was it cut or edited?")
        inner = config_of(recurrent(record.entry))
        if inner.get("time_major") is True:
            raise DataError("time_major is not known to this program")
        backwards = inner.get("go_backwards") is True
        for model in self.reader.read_layer(LstmLayer(record.path, stored, record)):
            zeros = isinstance(model, Bidirectional) or inner.get("zero_output_for_mask") is True
            made: Model = Reverse(model) if backwards else model
            self.fills[made] = "zeros" if zeros else "next" if backwards else "previous"
            yield made
        if inner.get("return_sequences") is not True:
            yield Pool("final")
        elif backwards:
            yield Flip()

    def make_Embedding(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802 (Keras's name)
        (table,) = self.arrays(record, 2)
        if isinstance(config.get("input_length"), int):
            self.steps = config["input_length"]
        yield Embedding(table, config.get("mask_zero") is True)

    def make_Masking(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        yield Masking(float(config.get("mask_value", 0.0)))

    def make_Dense(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        yield Dense(*self.arrays(record, *((2, 1) if old(config, "use_bias", "bias", True) else (2,))))

    def make_TimeDistributed(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer | Model]:  # noqa: N802
        inner = config.get("layer")
        kind = str(inner.get("class_name")) if isinstance(inner, dict) else ""
        allowed = ("Dense", "Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "BatchNormalization", "LayerNormalization")
        if kind not in (*allowed, *NOTHING):
            raise DataError(f"of {shown(kind)} is not known to this program; of {', '.join(allowed)} it is")
        vectors, self.vectors = self.vectors, True  # it sees each step alone, and counts its axes so
        yield from self.made(record, inner, kind, config_of(inner))
        self.vectors = vectors

    def make_Activation(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        if config.get("activation") not in (None, "linear"):
            yield self.function(config.get("activation"))

    def function(self, value: Json) -> Layer:
        """Return the layer of an activation, named or serialized."""
        if isinstance(value, dict):
            value = value.get("config") if isinstance(value.get("config"), str) else value.get("class_name")
        name = OTHER_NAMES.get(str(value), str(value))
        if name == "hard_sigmoid":
            if self.major is None:
                raise DataError("hard_sigmoid is one function in Keras 2 and another in Keras 3; the file does not say which")
            name = "hard_sigmoid_keras2" if self.major < 3 else name
        if name not in (*POINTWISE, *OVER_FEATURES) or name == "prelu":
            raise DataError(f"activation {shown(str(value))} is not known to this program")
        return Activation(name, LEAKY if name == "leaky_relu" else None)

    def make_ReLU(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        limit, slope = config.get("max_value"), config.get("negative_slope") or 0.0
        if config.get("threshold") or (limit is not None and (limit != 6 or slope)):
            raise DataError(f"threshold {config.get('threshold')}, max_value {limit}: expected 0, and none or 6")
        yield Activation("relu6") if limit else Activation("leaky_relu", float(slope)) if slope else Activation("relu")

    def make_LeakyReLU(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        slope = config.get("negative_slope", config.get("alpha"))
        yield Activation("leaky_relu", 0.3 if slope is None else float(slope))

    def make_ELU(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        yield Activation("elu", float(config.get("alpha", 1.0)))

    def make_Softmax(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        self.last_axis(config)
        yield Activation("softmax")

    def make_PReLU(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        (tensor,) = self.weights(record)
        slopes = tensor.array(len(tensor.shape))
        if slopes.size != slopes.shape[-1]:
            raise DataError(f"{tensor}: a slope for each step is not known to this program; shared_axes=[1] has one for all")
        yield Activation("prelu", slopes=slopes.reshape(-1))

    def last_axis(self, config: dict[str, Json]) -> None:
        axis = config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        if axis not in (-1, 1 if self.vectors else 2):
            raise DataError(f"axis {shown(str(axis))} is not known to this program; expected the features, -1")

    def make_BatchNormalization(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        self.last_axis(config)
        scales, shifts = config.get("scale", True), config.get("center", True)
        arrays = [array.astype(np.float64) for array in self.arrays(record, *[1] * (2 + bool(scales) + bool(shifts)))]
        *learned, mean, variance = arrays
        scale = (learned[0] if scales else 1.0) / np.sqrt(variance + float(config.get("epsilon", 1e-3)))
        yield Affine(scale, (learned[-1] if shifts else 0.0) - mean * scale)

    def make_LayerNormalization(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        self.last_axis(config)
        if config.get("rms_scaling"):
            raise DataError("rms_scaling is not known to this program")
        scales, shifts = bool(config.get("scale", True)), bool(config.get("center", True))
        arrays = self.arrays(record, *[1] * (scales + shifts))
        width = len(arrays[0]) if arrays else self.width
        if width is None:
            raise DataError("without scale and center: the model does not say how many features it takes")
        scale, shift = arrays[0] if scales else None, arrays[-1] if shifts else None
        yield LayerNorm(width, scale, shift, float(config.get("epsilon", 1e-3)))

    def make_Conv1D(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        kernel, *bias = self.arrays(record, *((3, 1) if config.get("use_bias", True) else (3,)))
        yield Conv1D(
            size=len(kernel), stride=one(config.get("strides", 1)), dilation=one(config.get("dilation_rate", 1)),
            padding=str(config.get("padding", "valid")), kernel=kernel, bias=bias[0] if bias else None,
        )  # fmt: skip

    def make_MaxPooling1D(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        yield pooling(config, "max")

    def make_AveragePooling1D(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        yield pooling(config, "mean")

    def make_GlobalMaxPooling1D(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        yield Pool("max")

    def make_GlobalAveragePooling1D(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        yield Pool("mean")

    def make_Flatten(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        if self.vectors:
            return
        if self.steps is None:
            raise DataError("the model does not say how many steps it flattens")
        yield Flatten(self.steps)

    def make_RepeatVector(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        yield Repeat(one(config.get("n")))

    def make_Reshape(self, record: LayerRecord, config: dict[str, Json]) -> Iterator[Layer]:  # noqa: N802
        match config.get("target_shape"):
            case [int()] if self.vectors:
                return
            case [int()] if self.steps is not None:
                yield Flatten(self.steps)
                return
            case [1, int()] if self.vectors:
                yield Repeat(1)
                return
            case [int(steps), _] if not self.vectors and steps in (self.steps, -1):
                return
        raise DataError(f"to {shown(str(config.get('target_shape')))} means another order of the numbers, which is not known")


def pooling(config: dict[str, Json], function: str) -> Layer:
    size = one(old(config, "pool_size", "pool_length", 2))
    stride = old(config, "strides", "stride", None)
    return Pool1D(
        size=size,
        stride=size if stride is None else one(stride),
        padding=str(old(config, "padding", "border_mode", "valid")),
        function=function,
    )


def old(config: dict[str, Json], name: str, name_in_keras_1: str, default: Json) -> Json:
    """Return an option that Keras 1 called otherwise."""
    return config.get(name, config.get(name_in_keras_1, default))


def one(value: Json) -> int:
    """Return a number that may stand in a list of one."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"expected a whole number, got {shown(str(value))}")
    return value
