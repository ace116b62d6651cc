"""What an import is made of: the tensors that a file holds, what the user says about them, and the tree that came of it."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.model.tree import ACTIVATIONS, MERGES, RECURRENT_ACTIVATIONS, Bidirectional, Cell, Model, Stack, as_root
from lstmcli.weights.containers.tensor import DTYPES, Tensor
from lstmcli.weights.selection import Pair, layers_of, paired, parse_select, resolve, with_cells, with_residual, without_reverse

MANY = 12  # tensors listed in a message
CLIPS = ("cell_clip", "projection_clip")
# What may be said of the weights of any framework, because weights alone do not say how they are used.
ABOUT_USE = ("select", "activation", "recurrent_activation", *CLIPS, "merge", "residual")
SLOT = re.compile(
    r"(^|[./])(optimizers?(_states?|_weights)?|optim)[./]|(^|[./])(max_)?exp_avg(_sq)?s?([./]|$)|[./]momentum_buffer([./]|$)"
    r"|/(Adam|Adagrad|Adadelta|Momentum|RMSProp|Ftrl|AdamW|LAMB)(Optimizer)?(_\d+)?$|(^|/)beta[12]_power(_\d+)?$"
    r"|/\.OPTIMIZER_SLOT/|(^|/)(training/)?(Adam|AdamW|SGD|RMSprop|Adagrad)/"
)

Node = TypeVar("Node")
Key = TypeVar("Key")
Numbers = float | Sequence[float | None] | None  # for all layers, or for each from the bottom to the top


@dataclass(frozen=True)
class Choices:
    """What the user says: which LSTMs of several, and what the file does not hold. None, and no select: nothing.

    select: see parse_select. residual: "upper" (all layers but the lowest), "all", "whole" (around the whole model), or numbers
    of layers, from 0 at the bottom.
    """

    select: tuple[str, ...] = ()
    forget_bias: Numbers = None
    cell_clip: Numbers = None
    projection_clip: Numbers = None
    activation: str | None = None
    recurrent_activation: str | None = None
    merge: str | None = None
    residual: str | None = None

    def __post_init__(self) -> None:
        given: Any = self.select or ()
        object.__setattr__(self, "select", (given,) if isinstance(given, str) else tuple(given))
        known = {"activation": ACTIVATIONS, "recurrent_activation": RECURRENT_ACTIVATIONS, "merge": MERGES}
        for name, values in known.items():
            if (said := getattr(self, name)) not in (None, *values):
                raise UsageError(f"{option(name)}: expected one of {', '.join(values)}, got {said!r}")
        for number in self.of_layers("forget_bias", None, 0.0):
            if number is None or not math.isfinite(number):
                raise UsageError(f"--forget-bias: expected finite numbers, got {self.forget_bias}")
        for name in CLIPS:
            if not all(clip is None or clip > 0 for clip in self.of_layers(name, None, None)):
                raise UsageError(f"{option(name)}: expected numbers above 0, or none, got {getattr(self, name)}")

    def of_layers(self, name: str, count: int | None, default: float | None) -> list[float | None]:
        """What is said for each of `count` layers, bottom to top: one number is for all. count None: as many as are said."""
        said = getattr(self, name)
        if said is None:
            said = default
        values = list(said) if isinstance(said, Sequence) else [said]
        if count is not None and len(values) not in (1, count):
            raise UsageError(f"{option(name)}: expected one number, or one for each of {count} layers, got {len(values)}")
        return values * (count or 1) if len(values) == 1 else values

    def allow(self, where: str, *names: str) -> None:
        """UsageError where something is said that this kind of file holds itself, or has no room for."""
        for field in fields(self):
            if getattr(self, field.name) not in (None, ()) and field.name not in names:
                raise UsageError(f"{option(field.name)}: {where} says all about its model itself; leave the option out")


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Origin:
    """A field of a cell, and the tensor that it, or a part of it, came from."""

    tensor: Tensor
    field: str
    how: str


@dataclass(frozen=True)
class Mapped:
    """A line of the mapping: tensor `name` of `shape` went into `field` of the cell at `path`."""

    name: str
    shape: tuple[int, ...]
    path: str
    field: str
    how: str


@dataclass(frozen=True)
class Imported:
    """A model, where its weights came from (for a model file: from itself, and the rest is empty), and what is to be known.

    left_out: tensors that are no part of it. assumed: sentences about what the file does not say, and the numbers depend on.
    before, after: the layers of the file's whole model that stand before and after the LSTMs, and are not run. masked: whether
    its framework masks the padding of what comes to the LSTMs; None: not known.
    """

    model: Model
    kind: str
    mapping: tuple[Mapped, ...] = ()
    left_out: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    masked: bool | None = None

    def warnings(self) -> list[str]:
        """What nobody should miss, however little they want to be told."""
        return [*self.assumed, *([left_out_before(self.before)] if self.before else [])]


def is_slot(name: str) -> bool:
    """Says whether a tensor is what an optimizer of PyTorch, Keras or TensorFlow keeps beside the weights."""
    return bool(SLOT.search(name))


def left_out_before(layers: Iterable[str]) -> str:
    return f"left out, before the LSTM: {', '.join(layers)}; the input must be what comes out of there"


class Draft:
    """An import as it is made: each cell with the tensors it came from, and what the user should know (see Imported)."""

    def __init__(self, kind: str, where: str, tensors: Iterable[Tensor], choices: Choices) -> None:
        self.kind, self.where, self.choices = kind, where, choices
        self.tensors = list(tensors)
        self.origins: dict[Cell, list[Origin]] = {}
        self.notes: list[str] = []
        self.assumed: list[str] = []
        self.before: list[str] = []
        self.after: list[str] = []
        self.masked: bool | None = None
        self.explained: set[str] = set()  # tensors beside an LSTM's weights that it does not need, and that are known
        self.others: dict[str, str] = {}  # what stands where an LSTM could, by its name: "a GRU", which is not run
        self.hint = ""  # why there may be no LSTM
        self.merged = False  # whether --merge was needed below the top layer

    @contextmanager
    def building(self, what: str) -> Iterator[None]:
        """Says in a DataError which part of which file it is about. Of infinities and NaN, cell() says that they are there."""
        try:
            with np.errstate(all="ignore"):
                yield
        except DataError as error:
            text = str(error)
            raise DataError(text if text.startswith(self.where) else f"{self.where}: {shown(what)}: {text}") from error

    def cell(self, origins: list[Origin], input_kernel: Floats, recurrent_kernel: Floats, **options: Any) -> Cell:
        made = Cell(packed(input_kernel), packed(recurrent_kernel), **options)
        self.origins[made] = origins
        self.note_dtypes(origins)
        if not all(np.isfinite(weight).all() for weight in made.weights().values()):
            self.note(f"{', '.join(str(origin.tensor) for origin in origins)}: not all finite numbers")
        return made

    def note_dtypes(self, origins: list[Origin]) -> None:
        if any(origin.tensor.dtype == "BF16" for origin in origins):
            self.note("bfloat16 weights are kept as float32, which holds them exactly")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def assume(self, sentence: str) -> None:
        """Says what the file does not, and the numbers depend on; no option of the user keeps it from being told."""
        if sentence not in self.assumed:
            self.assumed.append(sentence)

    def place(self, fields: dict[Key, Tensor], key: Key, tensor: Tensor) -> None:
        """Puts a tensor into a field. DataError: there is one already, so that its reduced name says too little."""
        if key in fields:
            raise DataError(
                f"{self.where}: {tensor} and {fields[key]} would both be {shown(str(key))} of one LSTM; "
                "their names do not say which one it is; give a file with one of them"
            )
        fields[key] = tensor

    def assemble(
        self,
        found: Mapping[str, str],
        build: Callable[[str], Model],
        owned: Callable[[str], Iterable[Tensor]] = lambda name: (),
    ) -> Imported:
        """The LSTMs that the user chose, built and put together as was said.

        found: descriptions of the LSTMs in the file, by name. build(name): the tree of one of them; its stacks are made by
        stack(). owned(name): the tensors that bear its name, of which none may be left over. DataError, UsageError.
        """
        layers: list[Model] = []
        chosen: list[str] = []

        def made(name: str) -> Model:
            chosen.append(name)
            with self.building(f"LSTM {name!r}"):
                return build(name)

        for part in resolve(parse_select(self.choices.select), found, self):
            if isinstance(part, Pair):
                sides = [[layer for name in names for layer in layers_of(made(name))] for names in part]
                with self.building(f"LSTM fw={','.join(part.forward)} bw={','.join(part.backward)}"):
                    forward, backward = self.stack(sides[0]), self.stack(without_reverse(sides[1]))
                    layers.append(paired(forward, backward))
            else:
                layers.append(made(part))
        if len(layers) == 1:
            model = layers[0]
        else:
            with self.building(f"LSTMs {', '.join(chosen)}"):
                model = self.stack(below for layer in layers for below in layers_of(layer))
        return self.finish(model, {tensor.name for name in chosen for tensor in owned(name)})

    def stack(self, layers: Iterable[Model]) -> Stack:
        """Layers from the bottom to the top, the directions of each merged as the next one's width needs. DataError."""
        layers = list(layers)
        for k, (below, above) in enumerate(itertools.pairwise(layers)):
            if isinstance(below, Bidirectional) and below.merge == "concat" and below.output_size == 2 * above.input_size:
                if self.choices.merge is None:
                    raise DataError(
                        f"layer {k} puts out twice {above.input_size} features, layer {k + 1} takes {above.input_size}; "
                        "expected --merge sum, mean or mul"
                    )
                layers[k], self.merged = replace(below, merge=self.choices.merge), True
        return Stack(tuple(layers))

    def finish(self, model: Model, owned: Iterable[str] = ()) -> Imported:
        """The model with all that the user said of it. owned: names of tensors of which none that is a weight may be left."""
        model = as_root(model)
        model = self.with_options(self.with_merge(model))
        if self.choices.residual:
            model = with_residual(model, self.choices.residual)
        root = as_root(model)
        mapping = [
            Mapped(origin.tensor.name, origin.tensor.shape, path, origin.field, origin.how)
            for path, cell in root.cells()
            for origin in self.origins[cell]
        ]
        used = {mapped.name for mapped in mapping}
        left_out = [tensor for tensor in self.tensors if tensor.name not in used]
        left_over = set(owned) - self.explained
        if more := [str(tensor) for tensor in left_out if tensor.name in left_over and looks_like_weight(tensor)]:
            raise DataError(
                f"{self.where}: {', '.join(more[:MANY])}: beside the LSTM's own weights, and no part of an LSTM that this "
                "program runs: the numbers would be wrong; if it has another use, leave it out of the file"
            )
        return Imported(
            root, self.kind, tuple(mapping), tuple(left_out), tuple(self.notes), tuple(self.assumed), tuple(self.before),
            tuple(self.after), self.masked,
        )  # fmt: skip

    def with_merge(self, root: Model) -> Model:
        """The directions of the top layer merged as was said."""
        merge = self.choices.merge
        if merge is None:
            return root
        match root:
            case Bidirectional(merge="concat"):
                return replace(root, merge=merge)
            case Stack(layers=(*below, Bidirectional(merge="concat") as top)):
                return Stack((*below, replace(top, merge=merge)))
        if not self.merged:
            raise UsageError(f"--merge: the top layer in {self.where} is not bidirectional; leave it out")
        return root

    def with_options(self, root: Model) -> Model:
        """The cells of each layer with the options that were said for it. UsageError: for another number of layers."""
        paths = {cell: "/".join(part for part in path.split("/") if part.isdigit()) for path, cell in root.cells()}
        layers = {layer: k for k, layer in enumerate(dict.fromkeys(paths.values()))}
        said: dict[str, list[Any]] = {
            name: self.choices.of_layers(name, len(layers), None)
            for name in ("forget_bias", *CLIPS)
            if getattr(self.choices, name) is not None
        }
        for name in ("activation", "recurrent_activation"):
            if (value := getattr(self.choices, name)) is not None:
                said[name] = [value] * len(layers)
        if any(said.get("projection_clip", ())) and all(cell.projection is None for cell in paths):
            raise UsageError(f"--projection-clip: no layer of the LSTM in {self.where} has a projection")
        cells = {}
        for cell, layer in paths.items():
            options = {name: values[layers[layer]] for name, values in said.items()}
            if cell.projection is None:
                options.pop("projection_clip", None)
            cells[cell] = replace(cell, **options) if options else cell
            self.origins[cells[cell]] = self.origins[cell]
        return with_cells(root, cells)


def looks_like_weight(tensor: Tensor) -> bool:
    return tensor.dtype in DTYPES and 1 <= len(tensor.shape) <= 3


def summed(one: Floats, other: Floats) -> Floats:
    """The exact sum of two biases: in their own precision where that holds it, else in float64.

    A float32 kernel rounds it once, to what a sum in float32 is; one in float64 loses nothing. DataError: other shapes.
    """
    if one.shape != other.shape:
        raise DataError(f"expected biases of one shape, got {one.shape} and {other.shape}")
    exact = np.add(one, other, dtype=np.float64)
    rounded: Floats = exact.astype(np.result_type(one, other))
    return rounded if np.array_equal(rounded, exact, equal_nan=True) else exact


def packed(weight: Floats) -> Floats:
    """C-contiguous and read-only, so that a cell need not copy it."""
    packed = np.array(weight, order="C")
    packed.flags.writeable = False
    return packed


def reorder(gates: Floats, permutation: tuple[int, ...], axis: int = -1) -> Floats:
    """Blocks along `axis`, in the order of a file, put into the order i, f, g, o. DataError: it has no such blocks."""
    if gates.shape[axis] % len(permutation):
        raise DataError(f"expected {len(permutation)} equal blocks of gates, got shape {gates.shape}")
    blocks = np.split(gates, len(permutation), axis)
    return np.concatenate([blocks[k] for k in permutation], axis)


def chains(below: Mapping[Node, Node | None]) -> list[list[Node]]:
    """Nodes, by the one that each is fed by, as runs from the bottom to the top. One that feeds several ends its run."""
    fed = [lower for lower in below.values() if lower]
    above = {lower: node for node, lower in below.items() if lower and fed.count(lower) == 1}
    runs = []
    for node, lower in below.items():
        if lower is None or lower not in above:
            run = [node]
            while run[-1] in above:
                run.append(above[run[-1]])
            runs.append(run)
    return runs
