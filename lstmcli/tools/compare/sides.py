"""The two sides of a comparison: a file opened as named arrays, in whatever form these lie in it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, Valid, is_bfloat16, packed_starts
from lstmcli.errors import DataError, LstmcliError, UsageError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, is_several, open_by_kind, split_spec
from lstmcli.files.npy import NpyArray
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.ragged.flat import read_numbers
from lstmcli.inputs.source import Source
from lstmcli.inputs.valid_steps import read_valid_steps
from lstmcli.model.tree import Model
from lstmcli.results.stored_result import RowArray, StepArray, StoredResult
from lstmcli.tools.compare.differences import Array, Piece, Values
from lstmcli.tools.sequences import open_floats_or_ids
from lstmcli.tools.what_is import What, what_is

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain


Form = tuple[tuple[int, ...], np.dtype[Any]]  # shape and dtype
LONE = "array"  # what the array of an NPY file is called


class Side(NamedTuple):
    """A file to compare."""

    spec: str
    kind: str  # for people
    arrays: dict[str, Array]
    ids: Sequence[str] | None = None
    weights: dict[str, Array] | None = None  # of a result: those of the model that made it
    attributes: dict[str, Any] | None = None  # of a result; of a model its configuration
    is_model: bool = False
    result: bool = False


class Table(Protocol):
    """An array that is read by rows."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, first: int, count: int) -> NDArray[Any]: ...


class Steps(Array):
    """An array that has steps, read through a source."""

    def __init__(self, name: str, source: Source, valid: Valid) -> None:
        super().__init__(name, source.shape, np.dtype(np.int64) if source.token_ids else source.exact_dtype)
        self.width, self.source = source.shape[2], source
        self.set_valid(valid)

    def set_valid(self, valid: Valid) -> None:
        self.valid, self.lengths = valid, valid.lengths

    def read(self, piece: Piece, buffer: Values) -> Values:
        assert piece.lengths is not None
        rows = buffer[: piece.rows]
        starts = self.valid.starts[piece.first : piece.first + piece.count] + piece.start
        self.source.read(piece.first, starts, piece.lengths, rows)
        return rows


class Rows(Array):
    """An array without steps: a row for each sequence, or whatever its first axis is."""

    def __init__(self, name: str, table: Table) -> None:
        super().__init__(name, table.shape, np.dtype(np.float32) if is_bfloat16(table.dtype) else table.dtype)
        self.table = table

    def read(self, piece: Piece, buffer: Values) -> Values:
        rows = np.ascontiguousarray(self.table.rows(piece.first, piece.count), self.dtype)
        return rows.reshape(piece.count, self.width)


class FlatSteps(Array):
    """Rows (R, width) taken as the steps of sequences of these lengths, one after the other."""

    def __init__(self, rows: Rows, lengths: Lengths) -> None:
        super().__init__(rows.name, (len(lengths), int(lengths.max(initial=0)), rows.width), rows.dtype)
        self.width, self.table, self.lengths, self.begins = rows.width, rows.table, lengths, packed_starts(lengths)

    def read(self, piece: Piece, buffer: Values) -> Values:
        assert piece.lengths is not None
        begins, rows = self.begins[piece.first : piece.first + piece.count] + piece.start, buffer[: piece.rows]
        if (np.diff(begins) == piece.lengths[:-1]).all():
            rows[:] = self.table.rows(int(begins[0]), piece.rows)
            return rows
        at = 0
        for begin, count in zip(begins.tolist(), piece.lengths.tolist(), strict=True):
            rows[at : at + count] = self.table.rows(begin, count)
            at += count
        return rows


class InMemory:
    """A Table of an array in memory."""

    def __init__(self, name: str, values: NDArray[Any]) -> None:
        self.name, self.values, self.shape, self.dtype = name, values, values.shape, values.dtype

    def rows(self, first: int, count: int) -> NDArray[Any]:
        return np.atleast_1d(self.values)[first : first + count]


class NpzTable:
    """A Table of an array of an NPZ. last: the one of them that was read last; deflated, it is in memory."""

    def __init__(self, file: FileBytes, names: list[str], name: str, form: Form, last: dict[str, NpyArray]) -> None:
        self.file, self.names, self.name, self.last = file, names, name, last
        self.shape, self.dtype = form

    def rows(self, first: int, count: int) -> NDArray[Any]:
        from lstmcli.files.zip_reader import NpzMember

        if self.name not in self.last:
            self.last.clear()
            self.last[self.name] = NpyArray(NpzMember(self.file, self.names, self.name).fetch, self.name)
        return self.last[self.name].rows(first, count)


@contextmanager
def open_side(spec: str) -> Iterator[Side]:
    """Opens what a user has named. Raises MissingInputError, DataError, StorageError, and UsageError for `-`."""
    if spec == "-":
        raise UsageError("-: compare reads both files more than once, so neither can be a pipe; give files")
    with ExitStack() as opened:
        kind, name = what_is(spec), split_spec(spec)[1]
        if kind is What.RESULT or (kind is What.DATA and name and is_result(split_spec(spec)[0])):
            yield of_result(spec, opened.enter_context(StoredResult(split_spec(spec)[0])), (name or "").strip("/"))
        elif kind in (What.MODEL, What.WEIGHTS):
            yield of_weights_or_data(spec, opened)
        elif kind is What.TEXT:
            numbers, where = read_numbers(spec, "--lens")
            yield Side(spec, "numbers", {"lengths": Rows("lengths", InMemory(where, numbers))})
        elif kind is What.DATA:
            yield of_data(spec, opened)
        else:
            raise DataError(f"{shown(spec)}: expected a result, arrays, a model or weights, got a {kind.value}")


def is_result(path: str) -> bool:
    return not is_several(path) and is_hdf5_file(path) and what_is(path) is What.RESULT


def of_result(spec: str, result: StoredResult, name: str) -> Side:
    """Takes the arrays of a result; name: only this one, or those below it."""
    arrays: dict[str, Array] = {}
    for array in result.arrays.values():
        if name and array.name != name and not array.name.startswith(f"{name}/"):
            continue
        if isinstance(array, StepArray):
            arrays[array.name] = Steps(array.name, array.source, array.valid)
        elif isinstance(array, RowArray):
            arrays[array.name] = Rows(array.name, array.table)
    if not arrays:
        raise DataError(f"{shown(spec)}: has no such array; there is {', '.join(result.arrays)}")
    weights = weights_of(result.model)
    return Side(spec, f"result, {result.layout}", arrays, result.ids, weights, result.attributes, result=not name)


def of_weights_or_data(spec: str, opened: ExitStack) -> Side:
    """Takes the arrays of a model, or, where a file that may hold one holds none, its sequences."""
    try:
        return of_weights(spec)
    except DataError as error:
        with suppress(LstmcliError):
            return of_data(spec, opened)
        raise error


def of_weights(spec: str) -> Side:
    """Takes the arrays of a model under its own names, which do not depend on the framework."""
    from lstmcli.weights.chains.load import load_chain
    from lstmcli.weights.load import Choices, holds_chain, load_weights

    if holds_chain(spec):
        whole = load_chain(spec, Choices())
        return model_side(spec, f"whole model, {whole.kind}", whole.chain)
    found = load_weights(spec, Choices())
    return model_side(spec, f"model, {found.kind}", found.model)


def model_side(spec: str, kind: str, model: "Model | Chain") -> Side:
    return Side(spec, kind, weights_of(model), attributes={"model_config": model.config()}, is_model=True)


def weights_of(model: "Model | Chain") -> dict[str, Array]:
    """Returns the arrays of a model by the names of its file, such as "0/forward/bias"."""
    named: dict[str, NDArray[Any]] = {}
    trees = {"": model} if isinstance(model, Model) else {str(k): layer for k, layer in enumerate(model.layers)}
    for place, tree in trees.items():
        if not isinstance(tree, Model):
            named |= {f"{place}/{field}": weight for field, weight in tree.weights().items()}
            continue
        for path, cell in tree.cells():
            parts = cell.weights().items()
            named |= {"/".join(part for part in (place, path, field) if part): weight for field, weight in parts}
    return {name: Rows(name, InMemory(name, values)) for name, values in named.items()}


def of_data(spec: str, opened: ExitStack) -> Side:
    """Takes the sequences of an input, or else all arrays of a file."""
    several = is_several(split_spec(spec)[0])
    if not several and not is_hdf5_file(spec):
        arrays = all_arrays(spec, opened)
        if arrays and not may_be_sequences(arrays):
            return side_of(spec, arrays)
    try:
        source = opened.enter_context(closing(open_floats_or_ids(spec)))
        valid = read_valid_steps(None, None, source).valid
    except LstmcliError:
        if several or not (arrays := all_arrays(spec, opened)):
            raise
        return side_of(spec, arrays)
    return Side(spec, "sequences", {"sequences": Steps("sequences", source, valid)}, source.ids)


def may_be_sequences(arrays: dict[str, Table]) -> bool:
    """Says whether the arrays of an NPY or NPZ file can be meant as sequences; run takes any array of rank 2 as one of them."""
    if LONE in arrays:
        return len(arrays[LONE].shape) == 3
    return not all(name.rpartition("/")[2] in ("c", "h") for name in arrays)


def side_of(spec: str, arrays: dict[str, Table]) -> Side:
    return Side(spec, "arrays", {name: Rows(name, table) for name, table in arrays.items()})


def is_hdf5_file(spec: str) -> bool:
    with open_by_kind(split_spec(spec)[0]) as (_, kind):
        return kind is FileKind.HDF5


def all_arrays(spec: str, opened: ExitStack) -> dict[str, Table]:
    """Opens all arrays of numbers in an NPY, NPZ or HDF5 file, or the one that is named. Raises DataError."""
    path, name = split_spec(spec)
    file, kind = opened.enter_context(open_by_kind(path))
    if kind is FileKind.NPY:
        array = NpyArray(file.fetch, file.name)
        array.check_size(file.opened.st_size)
        return {LONE: array}
    if kind is FileKind.ZIP:
        from lstmcli.files.zip_reader import npz_forms, npz_names

        names, last = npz_names(file), dict[str, NpyArray]()
        forms = {one: form for one, form in npz_forms(file).items() if name in (None, f"/{one}")}
        return {one: NpzTable(file, names, one, form, last) for one, form in forms.items()}
    if kind is not FileKind.HDF5:
        return {}
    container = opened.enter_context(hdf5.open_file(path))
    wanted = [e.name for e in hdf5.entries(container) if e.dtype is not None and e.dtype.kind in "biuf"]
    return {
        one.strip("/"): hdf5.DatasetRows(hdf5_safety.dataset(container, one))
        for one in wanted
        if name in (None, one) or one.startswith(f"{name}/")
    }
