"""What a whole model computes: layers one after the other (model/layers.py), of which LSTMs (model/tree.py) are some."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lstmcli.blocks import Floats, Lengths, Valid
from lstmcli.errors import DataError
from lstmcli.model.layers import (
    Activation,
    Affine,
    Attention,
    Conv1D,
    Dense,
    Embedding,
    Form,
    Layer,
    LayerNorm,
    Masking,
    Pool,
    Unmask,
    expect_width,
)
from lstmcli.model.tree import Model


@dataclass(frozen=True, eq=False, repr=False)
class Chain:
    """A whole model. names: of its layers in the file that they came from, for messages. Raises DataError where two layers
    do not fit together."""

    kind: ClassVar[str] = "chain"
    predict: ClassVar[Callable[..., Any]]  # both joined to it in api.py
    save: ClassVar[Callable[..., None]]
    layers: tuple[Layer | Model, ...]
    names: tuple[str, ...]
    forms: tuple[Form, ...] = dataclasses.field(init=False)  # what goes into each layer, and what comes out of the last

    def __post_init__(self) -> None:
        if not self.layers:
            raise DataError("chain: expected at least one layer, got none")
        forms = [self._first()]
        for layer, name in zip(self.layers, self.names, strict=True):
            try:
                forms.append(self._next(layer, forms[-1]))
            except DataError as error:
                raise DataError(f"layer {name!r} ({layer.kind}): {error}") from error
        object.__setattr__(self, "forms", tuple(forms))

    def _first(self) -> Form:
        """The first layer whose width is known says it: those before it keep theirs."""
        for layer in self.layers:
            match layer:
                case Embedding():
                    return Form("ids", 1)
                case Model():
                    return Form("sequences", layer.input_size)
                case Dense():
                    return Form("sequences", layer.kernel.shape[0])
                case Conv1D():
                    return Form("sequences", layer.kernel.shape[1])
                case Affine():
                    return Form("sequences", len(layer.scale))
                case LayerNorm():
                    return Form("sequences", layer.width)
                case Attention():
                    return Form("sequences", len(layer.score))
                case Activation(slopes=np.ndarray() as slopes):
                    return Form("sequences", len(slopes))
        raise DataError("chain: no layer says how many features it takes")

    def _next(self, layer: Layer | Model, form: Form) -> Form:
        if isinstance(layer, Layer):
            if isinstance(layer, Pool) and layer.function == "final" and not self._follows_lstm(layer):
                raise DataError("the final state is that of an LSTM: expected one right before it")
            return layer.output(form)
        if form.kind != "sequences":
            raise DataError(f"takes sequences, got {form.kind}")
        expect_width(form, layer.input_size)
        return Form("sequences", layer.output_size)

    def _follows_lstm(self, layer: Layer) -> bool:
        place = next(k for k, other in enumerate(self.layers) if other is layer)
        return place > 0 and isinstance(self.layers[place - 1], Model)

    @property
    def takes_ids(self) -> bool:
        return self.forms[0].kind == "ids"

    @property
    def input_size(self) -> int:
        return self.forms[0].width

    @property
    def output_size(self) -> int:
        return self.forms[-1].width

    @property
    def has_steps(self) -> bool:
        """Whether there is a prediction for each step, not one for each sequence."""
        return self.forms[-1].kind == "sequences"

    @property
    def masks(self) -> bool:
        """Whether the model says itself which steps of its input are none."""
        first = self.layers[0]
        return (isinstance(first, Embedding) and first.mask_zero) or any(isinstance(layer, Masking) for layer in self.layers)

    @property
    def unmasked(self) -> str | None:
        """The name of the first layer that sees the steps that a mask of the model hides."""
        return next((self.names[k] for k, layer in enumerate(self.layers[:-1], 1) if isinstance(layer, Unmask)), None)

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Returns the steps of the predictions for sequences of so many valid steps."""
        for layer in self.layers:
            if isinstance(layer, Layer):
                lengths = layer.output_lengths(lengths)
        return lengths

    def valid_predictions(self, valid: Valid) -> Valid:
        """Returns which steps of the predictions are valid, where these of the input are; of vectors, those of the input."""
        lengths = self.output_lengths(valid.lengths) if self.has_steps else valid.lengths
        return valid if np.array_equal(lengths, valid.lengths) else Valid(np.zeros_like(lengths), lengths)

    def prediction_shape(self, batch: int, time: int) -> tuple[int, ...]:
        """Returns the shape of the predictions for `batch` sequences of up to `time` steps."""
        if not self.has_steps:
            return batch, self.output_size
        return batch, int(self.output_lengths(np.array([time]))[0]), self.output_size

    def arrays(self) -> Iterator[Floats]:
        """Yields all weights."""
        for layer in self.layers:
            yield from layer.arrays() if isinstance(layer, Model) else layer.weights().values()

    def __repr__(self) -> str:
        from lstmcli.model.description import in_short

        return in_short(self)

    def _repr_html_(self) -> str:
        from lstmcli.model.description import as_html

        return as_html(self)

    def parameters(self) -> int:
        """Returns how many numbers the weights are."""
        return sum(weight.size for weight in self.arrays())

    def config(self) -> dict[str, Any]:
        """Returns everything but the weights."""
        layers = [
            layer.config()
            if isinstance(layer, Model)
            else {"kind": layer.kind} | layer.options() | {name: list(w.shape) for name, w in layer.weights().items()}
            for layer in self.layers
        ]
        return {"kind": "chain", "layers": layers}


def whole_model(model: Model | Chain) -> Chain:
    """Returns the whole model that LSTMs are a part of: the file that they came from is read once more, at the first call.
    LSTMs from elsewhere are a whole model by themselves."""
    if isinstance(model, Chain):
        return model
    found: Chain | None = vars(model).get("_whole")
    if found is None:
        found = model.read_whole() if model.read_whole else Chain((model,), ("model",))
        object.__setattr__(model, "_whole", found)
    return found
