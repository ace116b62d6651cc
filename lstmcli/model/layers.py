"""The layers of a whole model that are no LSTMs: what stands before, between and after these.

Between the layers there are either sequences, rows (R, width) of all their valid steps, or vectors, one row (width,) for
each sequence. `ids` are sequences of token ids, which only an embedding takes.

Axes: D and O input and output features of a layer, V ids of a table, K taps of a convolution.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lstmcli.blocks import Floats, Lengths, read_only
from lstmcli.errors import DataError

# What an activation layer computes. The first line has those of cells; `alpha` is the slope of leaky_relu below 0, the limit of
# elu; prelu has a slope for each feature. gelu is x * Phi(x), gelu_tanh its approximation with tanh.
POINTWISE = (
    *("linear", "tanh", "sigmoid", "relu", "softsign", "softplus", "elu", "hard_sigmoid", "hard_sigmoid_keras2"),
    *("leaky_relu", "prelu", "relu6", "selu", "gelu", "gelu_tanh", "silu", "exponential"),
)
OVER_FEATURES = ("softmax", "log_softmax")
ALPHAS = {"leaky_relu": 0.01, "elu": 1.0}  # PyTorch's; Keras' is in its configuration
POOLS = ("final", "last", "mean", "max", "sum")
FILLS = ("zeros", "previous", "next")
PADDINGS = ("valid", "same", "causal")
WHOLE: tuple[type, ...] = (int, np.integer)
TYPES = {
    "bool": (bool,),
    "int": WHOLE,
    "float": (*WHOLE, float, np.floating),
    "str": (str,),
}  # of options, by the annotations of their fields


class Form(NamedTuple):
    """What lies between two layers."""

    kind: str  # "ids", "sequences" or "vectors"
    width: int


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a chain that is not an LSTM. Arrays are weights and cannot be written; the rest are options."""

    kind: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("sequences", "vectors")
    axes: ClassVar[dict[str, str]] = {}  # of the weights; those of one letter have one size

    def __post_init__(self) -> None:
        self._check_options()
        sizes: dict[str, int] = {}
        for name, weight in self.weights().items():
            if weight.dtype.kind != "f" or weight.dtype.itemsize > 8:
                raise DataError(f"{name}: expected float16, float32 or float64, got {weight.dtype}")
            axes = self.axes[name]
            fits = weight.ndim == len(axes)
            if not fits or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, weight.shape, strict=True)):
                raise DataError(f"{name}: expected axes ({', '.join(axes)}) that fit the other weights, got {weight.shape}")
            object.__setattr__(self, name, read_only(np.ascontiguousarray(weight)))

    def _check_options(self) -> None:
        """Raises DataError for a value of another type than its field, and for a count that is none."""
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), str(field.type).split(" | ")
            if field.name in self.axes:
                fits = isinstance(value, np.ndarray) or (value is None and "None" in kinds)
            elif value is None or "tuple" in kinds[-1]:  # Window looks at the tuple
                fits = "None" in kinds or "tuple" in kinds[-1]
            else:
                fits = isinstance(value, TYPES[kinds[0]]) and (kinds[0] == "bool" or not isinstance(value, bool))
                fits = fits and (kinds[0] != "int" or 0 < value < 1 << 31)
            if not fits:
                raise DataError(f"{field.name}: expected {field.type}, got {value!r}"[:200])

    def weights(self) -> dict[str, Floats]:
        """Returns the arrays that are there, by their names in a model file."""
        return {name: value for name, value in self._fields() if isinstance(value, np.ndarray)}

    def options(self) -> dict[str, Any]:
        """Returns what else the layer is told, by its name in a model file."""
        return {name: value for name, value in self._fields() if not isinstance(value, np.ndarray) and value is not None}

    def _fields(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]

    def output(self, form: Form) -> Form:
        """Returns what comes out. Raises DataError where the layer cannot take what comes in."""
        if form.kind not in self.takes:
            raise DataError(f"takes {' or '.join(self.takes)}, got {form.kind}")
        return form

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Returns how many steps come out of sequences of so many."""
        return lengths


def expect_width(form: Form, width: int) -> None:
    if form.width != width:
        raise DataError(f"takes {width} features, got {form.width}")


def expect_one_of(names: tuple[str, ...], name: str) -> None:
    if name not in names:
        raise DataError(f"expected one of {', '.join(names)}, got {name!r}")


@dataclass(frozen=True, eq=False)
class Embedding(Layer):
    """Rows of table (V, O) by token id; with mask_zero the steps of id 0 are no steps (Keras)."""

    kind = "embedding"
    takes = ("ids",)
    axes: ClassVar = {"table": "VO"}
    table: Floats
    mask_zero: bool = False

    def output(self, form: Form) -> Form:
        super().output(form)
        return Form("sequences", self.table.shape[1])


@dataclass(frozen=True, eq=False)
class Masking(Layer):
    """Steps whose features all equal `value` are no steps (Keras)."""

    kind = "masking"
    takes = ("sequences",)
    value: float = 0.0


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """y = x kernel + bias, at every step or of every vector: kernel (D, O), bias (O,) or None."""

    kind = "dense"
    axes: ClassVar = {"kernel": "DO", "bias": "O"}
    kernel: Floats
    bias: Floats | None = None

    def output(self, form: Form) -> Form:
        super().output(form)
        expect_width(form, self.kernel.shape[0])
        return Form(form.kind, self.kernel.shape[1])


@dataclass(frozen=True, eq=False)
class Activation(Layer):
    """A function of each feature, or over all features of a row: POINTWISE and OVER_FEATURES. slopes (D,) are prelu's."""

    kind = "activation"
    axes: ClassVar = {"slopes": "D"}
    function: str
    alpha: float | None = None
    slopes: Floats | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_one_of((*POINTWISE, *OVER_FEATURES), self.function)
        if (self.slopes is not None) != (self.function == "prelu"):
            raise DataError(f"{self.function}: slopes are prelu's, one for each feature")

    def output(self, form: Form) -> Form:
        super().output(form)
        if self.slopes is not None:
            expect_width(form, len(self.slopes))
        return form


@dataclass(frozen=True, eq=False)
class Affine(Layer):
    """y = x * scale + shift for each feature, (D,): a BatchNormalization as it predicts."""

    kind = "affine"
    axes: ClassVar = {"scale": "D", "shift": "D"}
    scale: Floats
    shift: Floats

    def output(self, form: Form) -> Form:
        super().output(form)
        expect_width(form, len(self.scale))
        return form


@dataclass(frozen=True, eq=False)
class LayerNorm(Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * scale + shift over the features of a row; scale, shift (D,) or None."""

    kind = "layer_norm"
    axes: ClassVar = {"scale": "D", "shift": "D"}
    width: int
    scale: Floats | None = None
    shift: Floats | None = None
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(len(weight) != self.width for weight in self.weights().values()) or not 0 <= self.epsilon < np.inf:
            raise DataError(
                f"expected {self.width} numbers in scale and shift, and an epsilon of 0 or more, got {self.epsilon}"
            )

    def output(self, form: Form) -> Form:
        super().output(form)
        expect_width(form, self.width)
        return form


@dataclass(frozen=True, eq=False)
class Window(Layer):
    """What looks at `size` steps at once, `stride` apart, `dilation` between them.

    padding: "valid" none, "same" as many zeros as keep ceil(length / stride) steps (one more behind than before, as TensorFlow
    does), "causal" zeros before alone; or two numbers, before and behind.
    """

    takes = ("sequences",)

    size: int = 1
    stride: int = 1
    dilation: int = 1
    padding: str | tuple[int, int] = "valid"

    def __post_init__(self) -> None:
        super().__post_init__()
        pair = self.padding if isinstance(self.padding, tuple) else ()
        is_pair = len(pair) == 2 and all(isinstance(one, WHOLE) and 0 <= one < 1 << 31 for one in pair)
        if self.padding not in PADDINGS and not is_pair:
            raise DataError(f"padding: expected one of {', '.join(PADDINGS)}, or two numbers, got {self.padding!r}")

    @property
    def reach(self) -> int:
        """Steps from the first to the last that is looked at, both included."""
        return (self.size - 1) * self.dilation + 1

    def output_lengths(self, lengths: Lengths) -> Lengths:
        if self.padding == "same":
            return -(-lengths // self.stride)
        before, behind = (self.reach - 1, 0) if self.padding == "causal" else (0, 0)
        if isinstance(self.padding, tuple):
            before, behind = self.padding
        steps = (lengths + before + behind - self.reach) // self.stride + 1
        found: Lengths = np.where(lengths > 0, np.maximum(steps, 0), 0)
        return found

    def before(self, lengths: Lengths) -> Lengths:
        """Returns how many steps of padding stand before each sequence."""
        if self.padding == "same":
            missing = (self.output_lengths(lengths) - 1) * self.stride + self.reach - lengths
            found: Lengths = np.maximum(missing, 0) // 2
            return found
        if isinstance(self.padding, tuple):
            return np.full_like(lengths, self.padding[0])
        return np.full_like(lengths, self.reach - 1 if self.padding == "causal" else 0)


@dataclass(frozen=True, eq=False)
class Conv1D(Window):
    """y[t] = bias + sum over taps and channels of x[t * stride + tap * dilation] kernel[tap]: kernel (K, D, O), bias (O,)."""

    kind = "conv1d"
    axes: ClassVar = {"kernel": "KDO", "bias": "O"}
    kernel: Floats = dataclasses.field(default_factory=lambda: np.zeros((1, 1, 1), np.float32))
    bias: Floats | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != len(self.kernel):
            raise DataError(f"kernel: expected {self.size} taps, the size, got {len(self.kernel)}")

    def output(self, form: Form) -> Form:
        super().output(form)
        expect_width(form, self.kernel.shape[1])
        return Form("sequences", self.kernel.shape[2])


@dataclass(frozen=True, eq=False)
class Pool1D(Window):
    """The largest, or the mean, of each window. Padding is never the largest; count_padding: it counts in a mean, as 0."""

    kind = "pool1d"
    function: str = "max"
    count_padding: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_one_of(("max", "mean"), self.function)


@dataclass(frozen=True, eq=False)
class Pool(Layer):
    """One vector of each sequence, over its valid steps.

    final  the final h of the LSTM below, both directions side by side or merged as its outputs are
    last   its last step      mean, max, sum  over its steps, zeros where it has none
    """

    kind = "pool"
    takes = ("sequences",)
    function: str

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_one_of(POOLS, self.function)

    def output(self, form: Form) -> Form:
        super().output(form)
        return Form("vectors", form.width)


@dataclass(frozen=True, eq=False)
class Attention(Layer):
    """sum over steps of w[t] x[t], w = softmax over the steps of `score` (D,) . f(x[t]) + bias, f = tanh or linear."""

    kind = "attention"
    takes = ("sequences",)
    axes: ClassVar = {"score": "D"}
    score: Floats
    bias: float = 0.0
    function: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_one_of(("linear", "tanh"), self.function)

    def output(self, form: Form) -> Form:
        super().output(form)
        expect_width(form, len(self.score))
        return Form("vectors", form.width)


@dataclass(frozen=True, eq=False)
class Flatten(Layer):
    """All steps of a sequence side by side; every sequence must have `steps` of them."""

    kind = "flatten"
    takes = ("sequences",)
    steps: int

    def output(self, form: Form) -> Form:
        super().output(form)
        return Form("vectors", form.width * self.steps)


@dataclass(frozen=True, eq=False)
class Repeat(Layer):
    """A sequence that has a vector at each of `steps` steps."""

    kind = "repeat"
    takes = ("vectors",)
    steps: int

    def output(self, form: Form) -> Form:
        super().output(form)
        return Form("sequences", form.width)

    def output_lengths(self, lengths: Lengths) -> Lengths:
        return np.full_like(lengths, self.steps)


@dataclass(frozen=True, eq=False)
class Flip(Layer):
    """The steps of each sequence from the last to the first: what go_backwards with return_sequences puts out (Keras)."""

    kind = "flip"
    takes = ("sequences",)


@dataclass(frozen=True, eq=False)
class Unmask(Layer):
    """The steps that a mask hides are there again, for what looks at several steps (Keras). fill: what stands there.

    zeros   zeros      previous   what the shown step before has, zeros before the first one      next   likewise, from the end
    """

    kind = "unmask"
    takes = ("sequences",)
    fill: str

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_one_of(FILLS, self.fill)


LAYERS: dict[str, type[Layer]] = {
    layer.kind: layer
    for layer in (
        Embedding, Masking, Dense, Activation, Affine, LayerNorm, Conv1D, Pool1D, Pool, Attention, Flatten, Repeat, Flip,
        Unmask,
    )
}  # fmt: skip
