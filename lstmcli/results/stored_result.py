"""A finished result, read again: its arrays by sequence, without padding, in whatever layout they are stored.

Axes: N sequences; T steps, padded; D, the width of an array. Nothing but lengths and ids is read before it is asked for.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Lengths, Valid
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.beside.ids import strings_of
from lstmcli.inputs.open_input import source_of
from lstmcli.inputs.ragged.datasets import in_datasets, in_order, named_below
from lstmcli.inputs.ragged.flat import FlatSequences
from lstmcli.inputs.ragged.placed import PlacedSequences
from lstmcli.inputs.source import Source, StoredArray
from lstmcli.model.model_file import RESULT_FORMAT, check_format, undamaged
from lstmcli.results.virtual_merge import dataset_in, is_virtual_merge, parts_of

if TYPE_CHECKING:
    from lstmcli.model.chain import Chain
    from lstmcli.model.tree import Model

STEP_ARRAYS = ("outputs", "cells", "layers", "predictions")
ARRAYS = (*STEP_ARRAYS, "pooled", "state")  # and groups of them; what else lies beside them says what their rows are
Key = int | str | slice


class ResultArray:
    """An array of a result, by sequence: array[3], array["an id"], array[10:20]."""

    def __init__(self, name: str, ids: "Ids", shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.name, self.ids, self.shape, self.dtype = name, ids, shape, dtype

    def read(self, first: int, count: int) -> NDArray[Any]:
        raise NotImplementedError

    def whole(self) -> NDArray[Any]:
        """Returns all of it in memory, of this shape."""
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole: NDArray[Any] = np.asarray(self.whole(), dtype)
        return whole

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<lstmcli {type(self).__name__} {self.name} {self.shape} {self.dtype}>"

    def row(self, key: int | str) -> int:
        """Returns the number of a sequence from 0 on. Raises DataError for no such id, IndexError for no such number."""
        if isinstance(key, str):
            return self.ids.row(key)
        if not -len(self) <= key < len(self):
            raise IndexError(f"{self.name}: expected a sequence of 0 .. {len(self) - 1}, got {key}")
        return key % len(self)


class StepArray(ResultArray):
    """An array with a row for each step: (length, D) of each sequence. Its shape is that of padded()."""

    def __init__(self, name: str, ids: "Ids", source: Source, valid: Valid) -> None:
        super().__init__(name, ids, source.shape, source.dtype.newbyteorder("="))
        self.source, self.valid = source, valid

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Returns the steps of the sequences first, first + 1, ..., one after the other: (sum of their lengths, D)."""
        starts, lengths = self.valid.part(first, first + count)
        rows = np.empty((int(lengths.sum()), self.shape[2]), self.dtype)
        self.source.read(first, starts, lengths, rows)
        return rows

    def __getitem__(self, key: Key) -> Any:
        """Returns an array (length, D) of one sequence, or a list of them for a slice."""
        if not isinstance(key, slice):
            return self.read(self.row(key), 1)
        return [self.read(row, 1) for row in range(*key.indices(len(self)))]

    def whole(self) -> NDArray[Any]:
        return self.padded()

    def padded(self, first: int = 0, count: int | None = None) -> NDArray[Any]:
        """Returns (count, T, D) in memory, with the steps where the input has them, and zeros elsewhere."""
        starts, lengths = self.valid.part(first, first + (len(self) if count is None else count))
        whole = np.zeros((len(lengths), *self.shape[1:]), self.dtype)
        steps = np.arange(self.shape[1])
        whole[(steps >= starts[:, None]) & (steps < (starts + lengths)[:, None])] = self.read(first, len(lengths))
        return whole


class RowArray(ResultArray):
    """An array with a row (D,) for each sequence: final states, pooled steps. numpy.asarray() reads all of it."""

    def __init__(self, name: str, ids: "Ids", table: hdf5.DatasetRows) -> None:
        super().__init__(name, ids, table.shape, table.dtype.newbyteorder("="))
        self.table = table

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Returns the rows of the sequences first, first + 1, ...: (count, D)."""
        return np.asarray(self.table.rows(first, count), self.dtype)

    def __getitem__(self, key: Key) -> NDArray[Any]:
        if not isinstance(key, slice):
            return self.read(self.row(key), 1).reshape(self.shape[1:])
        first, stop, step = key.indices(len(self))
        return self.read(first, max(0, stop - first))[::step] if step > 0 else self.read(0, len(self))[key]

    def whole(self) -> NDArray[Any]:
        return self.read(0, len(self))


class Ids:
    """The ids of the sequences of a result, read when they are wanted; where there are none, their numbers."""

    def __init__(self, file: Any, count: int) -> None:
        self.file, self.count = file, count

    @cached_property
    def stored(self) -> list[str] | None:
        if hdf5_safety.find(self.file, "ids") is None:
            return None
        item = hdf5_safety.dataset(self.file, "ids")
        if item.shape != (self.count,) or item.dtype.kind not in "OS":
            raise DataError(f"{hdf5.label(item)}: expected {self.count} strings, one for each sequence, got {item.shape}")
        return strings_of(item)

    @cached_property
    def rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.stored or ())}

    def row(self, name: str) -> int:
        """Returns the number of the sequence with this id. Raises DataError."""
        if self.stored is None:
            raise DataError(f"{shown(self.file.filename)}: has no ids; name a sequence by its number")
        if name not in self.rows:
            raise DataError(f"{shown(self.file.filename)}::/ids: has no {shown(name)}")
        return self.rows[name]


class StoredResult:
    """A result of `lstmcli run` or `lstmcli predict` in HDF5, open for reading. A context manager; close() ends it.

    lengths (N,), ids (N,) or None, options, versions and the like as attributes; the arrays by name: outputs, cells,
    predictions, layers["0"], state["0/h"], pooled. What the result does not hold is None, or an empty dict.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises MissingInputError, or DataError for a file that is no result, or a damaged one."""
        self.path = os.fspath(path)
        with ExitStack() as opened:
            self.file = opened.enter_context(undamaged(self.path))
            self.where = shown(self.path)
            if hdf5.attribute(self.file, "format") != RESULT_FORMAT:
                raise DataError(f"{self.where}: expected a result of lstmcli run or predict, got another file")
            check_format(self.file)
            self.parts = parts_of(self.file) if is_virtual_merge(self.file) else None  # the files that its arrays lie in
            self.valid = self._valid()
            self._ids = Ids(self.file, len(self.lengths))
            self.layout = "padded"
            self.arrays = {name: array for name in self._array_names() if (array := self._open(name)) is not None}
            self.files = opened.pop_all()

    def _valid(self) -> Valid:
        lengths = hdf5.read_array(hdf5_safety.dataset(self.file, "lengths")).astype(np.int64)
        starts = np.zeros_like(lengths)
        if hdf5_safety.find(self.file, "starts") is not None:
            starts = hdf5.read_array(hdf5_safety.dataset(self.file, "starts")).astype(np.int64)
        if lengths.ndim != 1 or starts.shape != lengths.shape or min(lengths.min(initial=0), starts.min(initial=0)) < 0:
            raise DataError(f"{self.where}::/lengths: damaged: expected whole numbers from 0 on, one for each sequence")
        return Valid(starts, lengths)

    def _array_names(self) -> list[str]:
        """Lists the arrays in the order of ARRAYS."""
        checksums = hdf5_safety.find(self.file, "checksums")  # a result of merge --virtual has none
        found = [entry.name.removeprefix("/") for entry in hdf5.entries(self.file if checksums is None else checksums)]
        places = {name: k for k, name in enumerate(ARRAYS)}
        names = in_order([name for name in found if name.partition("/")[0] in places])
        return sorted(names, key=lambda name: places[name.partition("/")[0]])

    def _open(self, name: str) -> ResultArray | None:
        item = hdf5_safety.find(self.file, name)
        if hasattr(item, "keys"):
            self.layout = "per-sequence"
            names = list(self._ids.stored or in_order([e.name.removeprefix("/") for e in hdf5.entries(item)]))
            if not names:
                return self._without_sequences(name, item)
            sequences = in_datasets(item, named_below(item, names), token_ids=False)
            return StepArray(name, self._ids, PlacedSequences(sequences, ExitStack()), self._placed())
        item = hdf5_safety.dataset(self.file, name) if self.parts is None else dataset_in(self.file, name, self.parts)
        count, label = len(self.lengths), hdf5.label(item)
        offsets = self._offsets() if item.ndim == 2 and name.partition("/")[0] in STEP_ARRAYS else None
        if offsets is None and item.ndim != 3:
            if item.ndim < 1 or item.shape[0] != count:
                raise DataError(f"{label}: expected {count} rows, one for each sequence, got shape {item.shape}")
            return RowArray(name, self._ids, hdf5.DatasetRows(item))
        data = FileBytes(self.file.id.get_vfd_handle(), label)
        array = StoredArray(data, label, item.shape, hdf5.dtype_of(item), hdf5.raw_offset(item), dataset=item)
        if offsets is not None:
            self.layout = "flat"
            if item.shape[0] != offsets[-1]:
                raise DataError(f"{label}: {item.shape} does not fit /offsets, which end at {offsets[-1]}; damaged?")
            inner = source_of(array._replace(shape=(*item.shape, 1)), ExitStack())
            flat = FlatSequences(inner, offsets[:-1], self.lengths, label, ExitStack())
            return StepArray(name, self._ids, flat, self._placed())
        if item.shape[0] != count or (self.valid.starts + self.lengths).max(initial=0) > item.shape[1]:
            raise DataError(f"{label}: {item.shape} does not fit the lengths; damaged?")
        return StepArray(name, self._ids, source_of(array, ExitStack()), self.valid)

    def _without_sequences(self, name: str, group: Any) -> ResultArray:
        from lstmcli.results.formats.per_sequence import form_of_empty  # which few results need

        width, dtype = form_of_empty(group)
        if len(self.lengths):
            raise DataError(f"{hdf5.label(group)}: damaged: expected {len(self.lengths)} sequences, got none")
        array = StoredArray(
            FileBytes(self.file.id.get_vfd_handle(), hdf5.label(group)), hdf5.label(group), (0, 0, width), dtype
        )
        return StepArray(name, self._ids, source_of(array, ExitStack()), self._placed())

    def _offsets(self) -> Lengths | None:
        if hdf5_safety.find(self.file, "offsets") is None:
            return None
        offsets: Lengths = hdf5.read_array(hdf5_safety.dataset(self.file, "offsets")).astype(np.int64)
        if not np.array_equal(offsets, np.r_[0, np.cumsum(self.lengths)]):
            raise DataError(f"{self.where}::/offsets: damaged: they do not fit the lengths")
        return offsets

    def _placed(self) -> Valid:
        """The valid steps as an array without padding counts them."""
        return Valid(np.zeros_like(self.lengths), self.lengths)

    @property
    def lengths(self) -> Lengths:
        return self.valid.lengths

    @property
    def ids(self) -> Sequence[str] | None:
        return self._ids.stored

    @property
    def outputs(self) -> Any:
        return self.arrays.get("outputs")

    @property
    def cells(self) -> Any:
        return self.arrays.get("cells")

    @property
    def predictions(self) -> Any:
        return self.arrays.get("predictions")

    @property
    def pooled(self) -> Any:
        return self.arrays.get("pooled")

    @property
    def state(self) -> Mapping[str, Any]:
        return {name.removeprefix("state/"): array for name, array in self.arrays.items() if name.startswith("state/")}

    @property
    def layers(self) -> Mapping[str, Any]:
        return {name.removeprefix("layers/"): array for name, array in self.arrays.items() if name.startswith("layers/")}

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """What the result says of its run: options, versions, model_config, assumed, part, nonfinite_steps, ..."""
        with hdf5.reading(self.where):
            found = {name: hdf5.attribute(self.file, name) for name in self.file.attrs}
        return {name: plain(value) for name, value in found.items()}

    @cached_property
    def model(self) -> "Model | Chain":
        """The model that was used."""
        from lstmcli.model.chain_file import any_model_in

        return any_model_in(self.file)

    def to_pandas(self, name: str | None = None) -> Any:
        """Returns a DataFrame in memory, if pandas is installed.

        name: an array, such as "outputs": a row for each valid step, by id and step; or "state/0/h": a row for each sequence.
        None: all arrays that have a row for each sequence, side by side. Raises DataError for no such array.
        """
        from lstmcli.results.tables_in_memory import to_pandas

        return to_pandas(self, name)

    def to_xarray(self) -> Any:
        """Returns a Dataset in memory, if xarray is installed: all arrays by name, padded with NaN, sequences by id."""
        from lstmcli.results.tables_in_memory import to_xarray

        return to_xarray(self)

    def close(self) -> None:
        self.files.close()

    def __enter__(self) -> "StoredResult":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{array.name} {array.shape} {array.dtype}" for array in self.arrays.values())
        return f"<lstmcli result {self.path}: {len(self)} sequences, {self.layout}; {arrays}>"


def plain(value: Any) -> Any:
    """Returns an attribute as JSON values."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str) and value[:1] in "{[":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
