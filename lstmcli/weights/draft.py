"""What an import is made of: the tensors that a file holds, what the user says about them, and the tree that came of it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from lstmcli.blocks import Floats
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.model.tree import ACTIVATIONS, Cell, Model, as_root
from lstmcli.weights.containers.tensor import Tensor

MANY = 12  # tensors listed in a message

Node = TypeVar("Node")
Numbers = float | Sequence[float | None] | None  # for all layers, or for each from the bottom to the top


@dataclass(frozen=True)
class Choices:
    """What the user says: which LSTM of several, and what the file does not hold. None: nothing."""

    select: str | None = None
    forget_bias: Numbers = None
    cell_clip: Numbers = None
    projection_clip: Numbers = None
    activation: str | None = None

    def __post_init__(self) -> None:
        if self.activation not in (None, *ACTIVATIONS):
            raise UsageError(f"--activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        for number in self.of_layers("forget_bias", None, 0.0):
            if number is None or not math.isfinite(number):
                raise UsageError(f"--forget-bias: expected finite numbers, got {self.forget_bias}")
        for name in ("cell_clip", "projection_clip"):
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
            if getattr(self, field.name) is not None and field.name not in names:
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
    """A model, where its weights came from (for a model file: from itself, and the rest is empty), and what the user should
    know: which tensors were left out, what was assumed."""

    model: Model
    kind: str
    mapping: tuple[Mapped, ...] = ()
    left_out: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()


class Draft:
    """An import as it is made: each cell with the tensors it came from, and the notes."""

    def __init__(self, kind: str, where: str, tensors: Iterable[Tensor]) -> None:
        self.kind, self.where = kind, where
        self.tensors = list(tensors)
        self.origins: dict[Cell, list[Origin]] = {}
        self.notes: list[str] = []

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

    def finish(self, model: Model) -> Imported:
        root = as_root(model)
        mapping = [
            Mapped(origin.tensor.name, origin.tensor.shape, path, origin.field, origin.how)
            for path, cell in root.cells()
            for origin in self.origins[cell]
        ]
        used = {mapped.name for mapped in mapping}
        left_out = (tensor for tensor in self.tensors if tensor.name not in used)
        return Imported(root, self.kind, tuple(mapping), tuple(left_out), tuple(self.notes))


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


def choose(found: Mapping[str, str], select: str | None, draft: Draft) -> str:
    """The name of the only LSTM, or of the only one whose name is, or begins with, `select`. DataError lists them."""
    fitting = list(found)
    if select is not None:
        fitting = [select] if select in found else [name for name in found if name.startswith(select)]
    if len(fitting) == 1:
        return fitting[0]
    if not found:
        more = f" and {len(draft.tensors) - MANY} more" if len(draft.tensors) > MANY else ""
        held = ", ".join(map(str, draft.tensors[:MANY])) + more or "nothing"
        raise DataError(f"{draft.where}: expected the weights of an LSTM as {draft.kind} names them; it holds {held}")
    listed = "; ".join(f"{shown(name) or repr(name)}: {found[name]}" for name in list(fitting or found)[:MANY])
    if not fitting:
        raise DataError(f"{draft.where}: no LSTM's name begins with {shown(select or '')!r}; there is {listed}")
    raise DataError(f"{draft.where}: holds {len(fitting)} LSTMs; choose one with --select PREFIX: {listed}")
