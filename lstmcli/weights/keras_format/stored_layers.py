"""What a file of Keras holds of its layers: the tensors of LSTM cells, put together whichever way they are named."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lstmcli.errors import DataError, shown
from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.keras_format.configuration import Path

FIELDS = ("kernel", "recurrent_kernel", "bias")
GATES = "ifco"  # c is the candidate, our g
NUMBERED = re.compile(r"(?P<kind>.*?)_?(?P<count>\d{1,9})", re.DOTALL)

CellTensors = dict[str, list[Tensor]]  # by field, as in FIELDS: one tensor, or those of the gates in the order of GATES


@dataclass(eq=False)
class Stored:
    """What a file holds of one layer with LSTM cells.

    cells: the tensors of each by direction ("forward", "backward"), from the bottom to the top. extra: weights beside them.
    cell_names: what the file calls the cells, where it does. stacked: whether it says that each cell takes what the one before
    it gives. old: whether it is of Keras 1. called: how the program called the layer that the file calls otherwise.
    """

    cells: dict[str, list[CellTensors]]
    extra: list[Tensor] = field(default_factory=list)
    cell_names: list[str] = field(default_factory=list)
    stacked: bool = False
    old: bool = False
    called: str = ""

    @property
    def input_size(self) -> int:
        return self.cells["forward"][0]["kernel"][0].shape[0]

    @property
    def kernel_name(self) -> str:
        return self.cells["forward"][0]["kernel"][0].name

    def output_size(self, merge: str | None) -> int:
        """merge: how the directions are, if not side by side."""
        widths = [cells[-1]["recurrent_kernel"][0].shape[0] for cells in self.cells.values()]
        return sum(widths) if merge in (None, "concat") else widths[0]

    @property
    def is_cudnn(self) -> bool:
        """Its bias has eight parts."""
        cell = self.cells["forward"][0]
        return "bias" in cell and cell["bias"][0].shape[0] == 2 * cell["recurrent_kernel"][0].shape[-1]

    def tensors(self) -> list[Tensor]:
        return [tensor for cells in self.cells.values() for cell in cells for tensors in cell.values() for tensor in tensors]

    def __str__(self) -> str:
        kernels = [cell["kernel"][0] for cell in self.cells["forward"]]
        sizes = ", ".join(str(kernel.shape) for kernel in kernels)
        return f"{sizes}{', bidirectional' * (len(self.cells) > 1)}"


class Member(NamedTuple):
    """A layer among those of a model: its path if it has LSTM cells, what the file calls it or its class, and its weights."""

    path: Path | None
    name: str
    weights: list[Tensor]

    @property
    def kind(self) -> str:
        return kind_and_count(self.name)[0]


@dataclass
class Found:
    """The layers with LSTM cells in a file.

    by_path: by names: the layers' own in a file of Keras 2, and in another those in `named`. by_class: by what Keras 3
    calls its groups, after the classes of the layers. classes: what the group of a layer says of its class. places: which layer
    is at a place. models: the layers of each model, in their order; by_kind: where only the order within each class is known.
    weights: of any layer, by its path, where a SavedModel names its layers.
    """

    by_path: dict[Path, Stored]
    by_class: dict[Path, Path] = field(default_factory=dict)
    named: set[Path] = field(default_factory=set)
    classes: dict[Path, str] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)
    models: list[list[Member]] = field(default_factory=list)
    by_kind: list[list[Member]] = field(default_factory=list)
    weights: dict[Path, list[Tensor]] = field(default_factory=dict)

    def get(self, path: Path, group: Path) -> Stored | None:
        """What is stored of the layer of this path and group in a configuration."""
        if self.by_class:
            found = path if path in self.named else self.by_class.get(group)
            return self.by_path[found] if found and (found == path or found not in self.named) else None
        # A file of Keras 2 has one group for all that is inside a model.
        return next((self.by_path[key] for key in (path, (path[0], path[-1]), path[:1]) if key in self.by_path), None)


class Cells:
    """The tensors of one layer's cells as they are found, by direction and by what tells the cells apart."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, dict[str, Tensor]]] = {}
        self.order: dict[str, dict[str, int]] = {}
        self.extra: list[Tensor] = []
        self.names: list[str] = []
        self.stacked = self.old = False

    def tensors(self) -> list[Tensor]:
        return [tensor for cells in self.found.values() for fields in cells.values() for tensor in fields.values()]

    def put(self, direction: str | None, cell: str, field: str, tensor: Tensor) -> None:
        fields = self.found.setdefault(direction or "forward", {}).setdefault(cell, {})
        if field in fields:
            raise DataError(f"{tensor} and {fields[field]} would both be {shown(field)} of one LSTM")
        fields[field] = tensor

    def stored(self) -> Stored | None:
        """None where they are not those of an LSTM, by their shapes: a GRU has three gates."""
        cells = {
            direction: [tensors_of(found[cell]) for cell in sorted(found, key=kind_and_count)]
            for direction, found in sorted(self.found.items(), reverse=True)
        }
        if "forward" not in cells or not all(is_lstm(cell) for each in cells.values() for cell in each):
            return None
        return Stored(cells, self.extra, self.names, self.stacked, self.old)


def tensors_of(fields: dict[str, Tensor]) -> CellTensors:
    """By field, with the gates of Keras 1 in order."""
    cell = {name: [fields[name]] for name in FIELDS if name in fields}
    for name in FIELDS:
        gates = [fields[f"{name} {gate}"] for gate in GATES if f"{name} {gate}" in fields]
        if gates:
            cell[name] = gates
    return cell


def is_lstm(cell: CellTensors) -> bool:
    parts = len(cell.get("recurrent_kernel", ()))
    if parts not in (1, 4) or any(len(tensors) != parts for tensors in cell.values()):
        return False
    shapes = {name: {tensor.shape for tensor in tensors} for name, tensors in cell.items()}
    if any(len(each) != 1 for each in shapes.values()) or "kernel" not in shapes:
        return False
    (kernel,), (recurrent,) = shapes["kernel"], shapes["recurrent_kernel"]
    if len(kernel) != 2 or len(recurrent) != 2 or not recurrent[0]:
        return False
    width = 4 * recurrent[0] // parts
    return kernel[1] == recurrent[1] == width and shapes.get("bias", {(width,)}) <= {(width,), (2 * width,) * (parts == 1)}


def kind_and_count(name: str) -> tuple[str, int]:
    match = NUMBERED.fullmatch(name)
    return (match["kind"], int(match["count"])) if match else (name, 0)


def as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value) if isinstance(value, str) else None
