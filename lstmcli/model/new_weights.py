"""New models: the weights that TensorFlow's cells begin with, the same for a seed on any machine."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Floats
from lstmcli.errors import UsageError
from lstmcli.model.tree import ACTIVATIONS, Bidirectional, Cell, Model, Residual, Stack

MAX_PARAMETERS = 1 << 33
PIECE = 1 << 20  # values drawn at a time
FEW = 8192  # weights that are drawn sooner in Python than numpy.random is loaded, which takes 6 ms
WORD, LONG, STATE = (1 << 32) - 1, (1 << 64) - 1, (1 << 128) - 1  # the bits of numbers that Python does not limit


@dataclass(frozen=True)
class CellOptions:
    """What every new cell has; the meaning is that of LSTMCell's arguments. None: it is not there."""

    peepholes: bool = False
    projection: int | None = None  # its width
    cell_clip: float | None = None
    projection_clip: float | None = None
    forget_bias: float = 1.0
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if self.projection is not None and (not isinstance(self.projection, int) or self.projection < 1):
            raise UsageError(f"projection: expected a width above 0, got {self.projection}")
        for name in ("cell_clip", "projection_clip"):
            if (limit := getattr(self, name)) is not None and not limit > 0:
                raise UsageError(f"{name}: expected a number above 0, got {limit}")
        if self.projection is None and self.projection_clip is not None:
            raise UsageError(f"projection_clip {self.projection_clip}: there is no projection whose values it would limit")
        if not math.isfinite(self.forget_bias):
            raise UsageError(f"forget_bias: expected a finite number, got {self.forget_bias}")
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    @classmethod
    def chosen(cls, **options: Any) -> "CellOptions":
        """Makes them of options as typed: None where nothing was said, and tuples of the numbers for each layer."""
        said = {}
        for name, value in options.items():
            if isinstance(value, tuple):
                if len(value) != 1:
                    raise UsageError(f"{name}: expected one number for all new layers, got {len(value)}")
                (value,) = value
            if value is not None:
                said[name] = value
        return cls(**said)

    def outputs(self, units: int) -> int:
        """Returns the width of a cell's outputs."""
        return self.projection or units

    def parameters(self, inputs: int, units: int) -> int:
        """Counts the weights of a cell."""
        joint = (inputs + self.outputs(units) + 1) * 4 * units
        return joint + (3 * units if self.peepholes else 0) + units * (self.projection or 0)


PLAIN = CellOptions()


def init_model(
    input_size: int,
    units: int | Sequence[int],
    seed: int = 0,
    options: CellOptions = PLAIN,
    bidirectional: bool = False,
    residual: bool = False,
    **cell_options: Any,
) -> Model:
    """Makes a stack of new cells with TensorFlow's initial weights, the same for a seed on any machine.

    For each cell, bottom to top and forward before backward, Glorot-uniform draws: one over the joint kernel (E + P, 4*U),
    uniform in +-limit, limit = sqrt(6 / (E + P + 4*U)); then the peepholes i, f, o, limit sqrt(3 / U), and the projection
    (U, P), limit sqrt(6 / (U + P)), where there are any; zero bias, forget_bias 1 (tf.compat.v1.nn.rnn_cell.LSTMCell with no
    initializer). Weights are float32 whatever they will be computed in.

    units: of each layer, from the bottom to the top; a number alone is one layer.
    options, or its fields as arguments of their own, such as peepholes=True: what every cell has.
    bidirectional: every layer has a cell for each direction, their outputs side by side. residual: the input of every layer
    but the first is added to its output (ResidualWrapper).

    Raises UsageError for sizes below 1, a negative seed, anything but integers, more than MAX_PARAMETERS, and residual layers
    whose widths differ.
    """
    options = replace(options, **cell_options)
    given = f"input size {input_size}, units {units}, seed {seed}"
    try:
        widths = [index(width) for width in units] if isinstance(units, Iterable) else [index(units)]
        features, seed = index(input_size), index(seed)
    except TypeError as error:
        raise UsageError(f"expected whole numbers, and units as one or a list of them, got {given}") from error
    if features < 1 or not widths or min(widths) < 1 or seed < 0:
        raise UsageError(f"expected sizes above 0 and a seed from 0 on, got {given}")
    count = count_parameters(features, widths, options, bidirectional)
    if count > MAX_PARAMETERS:
        raise UsageError(
            f"units {', '.join(map(str, widths))} over {features} features have {count:,} parameters, {4 * count:,} bytes; "
            f"expected at most {MAX_PARAMETERS:,} parameters"
        )
    # PCG64's raw stream is the part of NumPy's generators that is promised never to change.
    bits = Pcg64(seed) if count < FEW else np.random.PCG64(seed)
    layers: list[Model] = []
    for k, (inputs, width) in enumerate(layer_sizes(features, widths, options, bidirectional)):
        layer: Model = new_cell(inputs, width, options, bits)
        if bidirectional:
            layer = Bidirectional(layer, new_cell(inputs, width, options, bits))
        if residual and k > 0:
            if layer.output_size != inputs:
                raise UsageError(
                    f"residual: layer {k} takes {inputs} features and puts out {layer.output_size}; expected equal widths"
                )
            layer = Residual(layer)
        layers.append(layer)
    return Stack(tuple(layers))


def layer_sizes(input_size: int, units: Sequence[int], options: CellOptions, bidirectional: bool) -> Iterator[tuple[int, int]]:
    """Yields the input size and the units of each layer."""
    for width in units:
        yield input_size, width
        input_size = options.outputs(width) * (2 if bidirectional else 1)


def count_parameters(input_size: int, units: Sequence[int], options: CellOptions = PLAIN, bidirectional: bool = False) -> int:
    """Counts the weights of the model that init_model would make."""
    sizes = layer_sizes(input_size, units, options, bidirectional)
    return sum(options.parameters(*size) for size in sizes) * (2 if bidirectional else 1)


def new_cell(inputs: int, units: int, options: CellOptions, bits: "Pcg64 | np.random.PCG64") -> Cell:
    outputs = options.outputs(units)
    joint = glorot_uniform((inputs + outputs, 4 * units), bits)
    peephole = np.stack([glorot_uniform((units,), bits) for _ in range(3)]) if options.peepholes else None
    projection = glorot_uniform((units, outputs), bits) if options.projection else None
    bias = np.zeros(4 * units, np.float32)
    bias.flags.writeable = False
    return Cell(
        joint[:inputs],
        joint[inputs:],
        bias,
        peephole,
        projection,
        activation=options.activation,
        forget_bias=options.forget_bias,
        cell_clip=options.cell_clip,
        projection_clip=options.projection_clip,
    )


def glorot_uniform(shape: tuple[int, ...], bits: "Pcg64 | np.random.PCG64") -> Floats:
    """Draws an array, uniform in +-sqrt(6 / (fan in + fan out)); both fans of a vector are its size. Not writeable."""
    limit = math.sqrt(6 / (shape[0] + shape[-1]))
    values = np.empty(math.prod(shape), np.float32)
    for at in range(0, len(values), PIECE):
        part = values[at : at + PIECE]
        uniform = (bits.random_raw(len(part)) >> np.uint64(11)) * 2.0**-53
        part[:] = (2 * uniform - 1) * limit
    values.flags.writeable = False
    return values.reshape(shape)


class Pcg64:
    """numpy.random.PCG64, for few weights."""

    def __init__(self, seed: int) -> None:
        high, low, *increment = seed_words(seed)
        self.increment = (increment[0] << 65 | increment[1] << 1 | 1) & STATE
        self.state = self.increment + (high << 64 | low)
        self.random_raw(1)

    def random_raw(self, count: int) -> NDArray[np.uint64]:
        """Draws so many numbers of 64 random bits."""
        drawn, state = [], self.state
        for _ in range(count):
            state = (state * 0x2360ED051FC65DA44385DF649FCCF645 + self.increment) & STATE
            folded, turns = (state >> 64 ^ state) & LONG, state >> 122
            drawn.append((folded >> turns | folded << 64 - turns) & LONG)
        self.state = state
        return np.array(drawn, np.uint64)


def seed_words(seed: int) -> list[int]:
    """Returns the four numbers of 64 bits that numpy.random.SeedSequence makes of a seed."""
    scramble = scrambler(0x43B0D7E5, 0x931E8875)
    words = [seed >> at & WORD for at in range(0, max(128, seed.bit_length()), 32)]
    pool = [scramble(word) for word in words[:4]]
    for source in range(4):
        for target in range(4):
            if target != source:
                pool[target] = blend(pool[target], scramble(pool[source]))
    for word in words[4:]:
        pool = [blend(old, scramble(word)) for old in pool]
    scramble = scrambler(0x8B51F9DD, 0x58F38DED)
    made = [scramble(word) for word in pool * 2]
    return [low | high << 32 for low, high in zip(made[::2], made[1::2], strict=True)]


def scrambler(key: int, factor: int) -> Callable[[int], int]:
    """Returns a function of a word that is another one at each call."""

    def scramble(word: int) -> int:
        nonlocal key
        word ^= key
        key = key * factor & WORD
        word = word * key & WORD
        return word ^ word >> 16

    return scramble


def blend(a: int, b: int) -> int:
    word = (0xCA01F9DD * a - 0x4973F715 * b) & WORD
    return word ^ word >> 16
