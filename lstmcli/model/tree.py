"""What is computed: a tree of LSTM cells with their weights.

    Stack          layers from the bottom to the top, the outputs of one being the input of the next
    Bidirectional  one tree forward and one backward over the same input, their outputs merged
    Reverse        its inner tree from the last valid step to the first
    Residual       its inner tree plus its input
    Cell           the weights of one LSTM

Axes: E input features, U units, P output width of a cell (its projection's width, or U). Gate blocks stand in the order
i, f, g, o (input, forget, candidate, output) along 4*U.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from numpy.typing import ArrayLike

from lstmcli.blocks import FLOATS, Floats, State, is_float, read_only
from lstmcli.errors import DataError, LstmcliError

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain

MERGES = ("concat", "sum", "mean", "mul")
ACTIVATIONS = ("tanh", "relu", "sigmoid", "softsign", "softplus", "elu", "linear")
# Keras 3's hard sigmoid is relu6(x + 3) / 6, that of Keras 2 (and ONNX) is clip(x / 5 + 1 / 2, 0, 1).
RECURRENT_ACTIVATIONS = ("sigmoid", "hard_sigmoid", "hard_sigmoid_keras2")
CELL_OPTIONS = (
    "activation", "recurrent_activation", "forget_bias", "cell_clip", "projection_clip", "gate_clip", "input_forget",
)  # fmt: skip

InitialState = Mapping[str, ArrayLike] | tuple[ArrayLike, ArrayLike]
Runner = Callable[..., tuple[Any, State]]  # with the arguments of Model.__call__, the model first
_run: Runner | None = None


def set_runner(run: Runner) -> None:
    """Says what calling a model does: the engine, which imports this module and so cannot be imported by it."""
    global _run
    _run = run


class Model:
    """A tree that can be called: arrays in, arrays out."""

    kind: ClassVar[str]
    predict: ClassVar[Callable[..., Any]]  # both joined to it in api.py
    save: ClassVar[Callable[..., None]]
    read_whole: Callable[[], Chain] | None = None  # reads the whole model of the file that these LSTMs are from
    left_out: str | None = None  # what stands before them there, in a sentence

    @property
    def input_size(self) -> int:
        raise NotImplementedError

    @property
    def output_size(self) -> int:
        raise NotImplementedError

    def children(self) -> dict[str, Model]:
        """Returns the trees right below, by the name of their level in a file."""
        return {}

    def cells(self) -> Iterator[tuple[str, Cell]]:
        """Yields all cells with their place in the state tree, such as "1/forward"; reverse and residual add no level."""
        for name, child in self.children().items():
            for path, cell in child.cells():
                yield "/".join(part for part in (name if name != "inner" else "", path) if part), cell

    def state_widths(self) -> dict[str, int]:
        """Returns the width of each state array: {"0/c": U, "0/h": P, ...}; of a lone cell {"c": U, "h": P}."""
        widths = ((f"{path}/{part}", width) for path, cell in self.cells() for part, width in cell.widths().items())
        return {name.removeprefix("/"): width for name, width in widths}

    def learned_state(self) -> dict[str, Floats]:
        """Returns the vectors that sequences start from, by the names of state_widths; what is not here starts from zeros."""
        return {
            f"{path}/{part}".removeprefix("/"): start
            for path, cell in self.cells()
            for part, start in (("c", cell.initial_c), ("h", cell.initial_h))
            if start is not None
        }

    @property
    def cells_width(self) -> int:
        """Width of c of the top layer: of both directions side by side where it is bidirectional."""
        raise NotImplementedError

    @property
    def causal(self) -> bool:
        """Whether no step needs a later one, so that a sequence may be cut in time."""
        return all(child.causal for child in self.children().values())

    @property
    def pointwise(self) -> bool:
        """Whether outputs are added or multiplied anywhere: residual layers, and directions that are not concatenated."""
        return any(child.pointwise for child in self.children().values())

    def layers_by_name(self) -> dict[str, Model]:
        """Returns the layers of the outermost stacks, by their names in a result: "0", or "forward/0" below a direction."""
        return {}

    def arrays(self) -> Iterator[Floats]:
        """Yields all weights."""
        for _, cell in self.cells():
            yield from cell.weights().values()

    def parameters(self) -> int:
        """Counts the numbers in the weights."""
        return sum(weight.size for weight in self.arrays())

    def config(self) -> dict[str, Any]:
        """Returns everything but the weights, for a summary or a file's attributes."""
        return {"kind": self.kind} | {name: child.config() for name, child in self.children().items()}

    def __call__(
        self,
        x: ArrayLike | Sequence[Floats],
        lengths: ArrayLike | None = None,
        initial_state: InitialState | None = None,
        threads: int | None = None,
        padding: str = "post",
        mask: ArrayLike | None = None,
        dtype: str | None = None,
        **unknown: object,
    ) -> tuple[Any, State]:
        """Runs the model over a padded batch, or over a list of sequences.

        x (B, T, E) float16, bfloat16, float32 or float64; what stands in its padding does not matter. float64 is computed in
        float64, all else in float32. lengths (B,) integers, 0 <= lengths[b] <= T; None: all T. padding: "post", the first
        lengths[b] steps are valid, or "pre", the last ones. mask (B, T), instead of both: 1 where a step is valid, in one run
        in each row.
        Or x is a list of B arrays (length, E), without any of these.
        initial_state: arrays (B, width) by name as in the returned state, or the pair (c, h) for a single cell; None: zeros, or
        what the model has learned. threads: at most so many; None: all CPUs this process may use.
        dtype: "bfloat16" computes any x with products of bfloat16 numbers, and returns float32.

        Returns outputs (B, T, output_size), where x has its steps and zeros in the padding (of a list: a list of B arrays
        (length, output_size)), and the state after each last valid step, such as {"0/c": (B, U), "0/h": (B, P)}; the initial
        state where the length is 0. All new arrays; nothing given is written. Raises DataError for arrays that do not fit.
        """
        assert _run, "import lstmcli"
        if unknown:
            from lstmcli.model.description import unknown_argument

            raise TypeError(unknown_argument(*unknown))
        try:
            return _run(self, x, lengths, initial_state, threads, padding, mask, dtype)
        except LstmcliError as error:  # a notebook would show the code of every call in between
            raise error.with_traceback(None) from None

    def __repr__(self) -> str:
        from lstmcli.model.description import in_short

        return in_short(self)

    def _repr_html_(self) -> str:
        from lstmcli.model.description import as_html

        return as_html(self)


@dataclass(frozen=True, eq=False, repr=False)
class Cell(Model):
    """One LSTM: the equations are in kernel/tile.py.

    input_kernel (E, 4*U), recurrent_kernel (P, 4*U), bias (4*U,) or None, peephole (3, U) with rows i, f, o or None,
    projection (U, P) or None. `forget_bias` is added to the forget gate at run time, on top of `bias`.
    initial_c (U,), initial_h (P,): the learned state that every sequence starts from where none is given; None: zeros.
    cell_clip, projection_clip: limits of c and of the projected h (TensorFlow's); gate_clip: of the gates' sums, before
    their activations (the ONNX operator's clip). input_forget: the forget gate is 1 - i, and its weights are not used (ONNX).
    Weights cannot be changed later, because they are packed once: an array that could be is copied.
    Raises DataError for shapes, activations and limits that are none.
    """

    kind: ClassVar[str] = "cell"
    input_kernel: Floats
    recurrent_kernel: Floats
    bias: Floats | None = None
    peephole: Floats | None = None
    projection: Floats | None = None
    initial_c: Floats | None = None
    initial_h: Floats | None = None
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    forget_bias: float = 0.0
    cell_clip: float | None = None
    projection_clip: float | None = None
    gate_clip: float | None = None
    input_forget: bool = False

    def __post_init__(self) -> None:
        for name, weight in self.weights().items():
            object.__setattr__(self, name, read_only(weight))
        if self.input_kernel.ndim != 2 or self.input_kernel.shape[1] % 4 or not self.input_kernel.shape[1]:
            raise DataError(f"input_kernel: expected shape (input size, 4 * units), got {self.input_kernel.shape}")
        expected = {
            "recurrent_kernel": (self.output_size, 4 * self.units),
            "bias": (4 * self.units,),
            "peephole": (3, self.units),
            "projection": (self.units, self.output_size),
            "initial_c": (self.units,),
            "initial_h": (self.output_size,),
        }
        for name, weight in self.weights().items():
            if name in expected and weight.shape != expected[name]:
                raise DataError(f"{name}: expected shape {expected[name]} for {self.units} units, got {weight.shape}")
            if not is_float(weight.dtype):
                raise DataError(f"{name}: expected {FLOATS}, got {weight.dtype}")
        for name in ("cell_clip", "projection_clip", "gate_clip"):
            clip = getattr(self, name)
            if clip is not None and not clip > 0:
                raise DataError(f"{name}: expected a number above 0, got {clip}")
        for name, known in [("activation", ACTIVATIONS), ("recurrent_activation", RECURRENT_ACTIVATIONS)]:
            if getattr(self, name) not in known:
                raise DataError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not math.isfinite(self.forget_bias):
            raise DataError(f"forget_bias: expected a finite number, got {self.forget_bias}")

    @property
    def units(self) -> int:
        return int(self.input_kernel.shape[1]) // 4

    @property
    def input_size(self) -> int:
        return int(self.input_kernel.shape[0])

    @property
    def output_size(self) -> int:
        if self.projection is None:
            return self.units
        return int(self.projection.shape[-1])

    @property
    def cells_width(self) -> int:
        return self.units

    def cells(self) -> Iterator[tuple[str, Cell]]:
        yield "", self

    def widths(self) -> dict[str, int]:
        return {"c": self.units, "h": self.output_size}

    def weights(self) -> dict[str, Floats]:
        """Returns the arrays that are there, by their names in a model file."""
        names = ("input_kernel", "recurrent_kernel", "bias", "peephole", "projection", "initial_c", "initial_h")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def options(self) -> dict[str, Any]:
        """Returns those of CELL_OPTIONS that are set."""
        values = {name: getattr(self, name) for name in CELL_OPTIONS}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    def config(self) -> dict[str, Any]:
        facts = {"kind": self.kind, "input_size": self.input_size, "weights": list(self.weights()), "units": self.units}
        return facts | self.options()


@dataclass(frozen=True, eq=False, repr=False)
class Stack(Model):
    kind: ClassVar[str] = "stack"
    layers: tuple[Model, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise DataError("stack: expected at least one layer, got none")
        for k, (below, above) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            if below.output_size != above.input_size:
                raise DataError(
                    f"stack: layer {k} puts out {below.output_size} features, layer {k + 1} takes {above.input_size}"
                )

    @property
    def input_size(self) -> int:
        return self.layers[0].input_size

    @property
    def output_size(self) -> int:
        return self.layers[-1].output_size

    @property
    def cells_width(self) -> int:
        return self.layers[-1].cells_width

    def layers_by_name(self) -> dict[str, Model]:
        return self.children()

    def children(self) -> dict[str, Model]:
        return {str(k): layer for k, layer in enumerate(self.layers)}


@dataclass(frozen=True, eq=False, repr=False)
class Bidirectional(Model):
    kind: ClassVar[str] = "bidirectional"
    forward: Model
    backward: Model
    merge: str = "concat"

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise DataError(f"bidirectional: expected merge to be one of {', '.join(MERGES)}, got {self.merge!r}")
        if self.forward.input_size != self.backward.input_size:
            raise DataError(
                f"bidirectional: forward takes {self.forward.input_size} features, backward {self.backward.input_size}"
            )
        if self.merge != "concat" and self.forward.output_size != self.backward.output_size:
            raise DataError(
                f"bidirectional: merge {self.merge!r} needs equal widths, "
                f"got {self.forward.output_size} and {self.backward.output_size}"
            )

    @property
    def input_size(self) -> int:
        return self.forward.input_size

    @property
    def output_size(self) -> int:
        return self.forward.output_size + (self.backward.output_size if self.merge == "concat" else 0)

    @property
    def cells_width(self) -> int:
        return self.forward.cells_width + self.backward.cells_width

    @property
    def causal(self) -> bool:
        return False

    @property
    def pointwise(self) -> bool:
        return self.merge != "concat" or super().pointwise

    def layers_by_name(self) -> dict[str, Model]:
        sides = self.children().items()
        return {f"{side}/{name}": layer for side, tree in sides for name, layer in tree.layers_by_name().items()}

    def children(self) -> dict[str, Model]:
        return {"forward": self.forward, "backward": self.backward}

    def config(self) -> dict[str, Any]:
        return super().config() | {"merge": self.merge}


@dataclass(frozen=True, eq=False, repr=False)
class Wrapper(Model):
    """A tree around another one, with the same input and output size."""

    inner: Model

    @property
    def input_size(self) -> int:
        return self.inner.input_size

    @property
    def output_size(self) -> int:
        return self.inner.output_size

    @property
    def cells_width(self) -> int:
        return self.inner.cells_width

    def layers_by_name(self) -> dict[str, Model]:
        return self.inner.layers_by_name()

    def children(self) -> dict[str, Model]:
        return {"inner": self.inner}


class Reverse(Wrapper):
    kind: ClassVar[str] = "reverse"

    @property
    def causal(self) -> bool:
        return False


@dataclass(frozen=True, eq=False, repr=False)  # its __init__ is to call its __post_init__
class Residual(Wrapper):
    kind: ClassVar[str] = "residual"

    def __post_init__(self) -> None:
        if self.input_size != self.output_size:
            raise DataError(f"residual: expected equal widths, got input {self.input_size}, output {self.output_size}")

    @property
    def pointwise(self) -> bool:
        return True


def as_chain(model: Model | Chain) -> Chain | None:
    """Returns a model that is a chain, and None for a tree, without loading what chains are made of: most runs have none."""
    return cast("Chain", model) if model.kind == "chain" else None


def as_root(model: Model) -> Model:
    """Returns a tree whose cells all have a name: a lone cell counts as a stack of one."""
    return model if all(path for path, _ in model.cells()) else Stack((model,))
