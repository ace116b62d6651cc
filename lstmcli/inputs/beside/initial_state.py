"""The states that a run starts from: those of an earlier result, an HDF5 group like its /state, or an NPZ.

An array has a row for each sequence, or a single one, which is the start of every sequence.

Axes: N sequences; W, the width of an array: a cell's units (c) or outputs (h). Only the rows of a block are read at a time.
"""

import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import FLOATS, Lengths, State, is_float
from lstmcli.errors import DataError, UsageError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, open_by_kind, split_spec
from lstmcli.files.positioned_file import FileBytes, open_readable, without_folder
from lstmcli.inputs.beside.ids import ids_in, rows_by_id


class Array(Protocol):
    """An array (N, W) or (1, W) in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, first: int, count: int) -> NDArray[Any]: ...

    def finish(self) -> None: ...


class States(NamedTuple):
    """The rows of all arrays of a model's state, by the names in it, such as "0/c"."""

    name: str
    arrays: dict[str, Array]
    dtype: np.dtype[Any]
    data: FileBytes
    files: ExitStack
    places: Lengths | None = None  # (N,) the row of each sequence, where they were found by their ids
    others: tuple[FileBytes, ...] = ()  # files in which the values of an HDF5 file lie

    def read(self, first: int, count: int) -> State:
        """Returns new arrays (count, W) of `dtype` for the sequences first, first + 1, ... Raises DataError, StorageError."""
        return {name: self._converted(array, first, count) for name, array in self.arrays.items()}

    def _converted(self, array: Array, first: int, count: int) -> NDArray[Any]:
        try:
            with np.errstate(over="raise", invalid="ignore"):
                if array.shape[0] == 1:  # the computation writes into what it gets, so each sequence has a copy
                    return np.ascontiguousarray(array.rows(0, 1), self.dtype).repeat(count, axis=0)
                if self.places is None:
                    return np.ascontiguousarray(array.rows(first, count), self.dtype)
                return gather(array, self.places[first : first + count], self.dtype)
        except FloatingPointError as error:
            raise DataError(
                f"{array.name}, sequences {first} to {first + count - 1}: a value is too large for {self.dtype}; "
                "compute in float64"
            ) from error

    def identity(self) -> dict[str, Any]:
        """Returns what tells these states from others, ready for JSON."""
        forms = {name: [array.dtype.str, *array.shape] for name, array in self.arrays.items()}
        found = self.data.identity() | {"name": without_folder(self.name), "arrays": forms}
        if self.places is not None:
            found["rows"] = zlib.crc32(self.places.tobytes())
        if self.others:
            found["files"] = [other.identity() for other in self.others]
        return found

    def finish(self) -> None:
        """Raises DataError if the file was changed meanwhile, or an array of an NPZ is not what was written."""
        for array in self.arrays.values():
            array.finish()
        for file in (self.data, *self.others):
            file.finish()

    def close(self) -> None:
        self.files.close()


def open_states(
    spec: str,
    widths: dict[str, int],
    batch: int,
    dtype: np.dtype[Any],
    ids: Sequence[str] | None = None,
    follow_links: bool = False,
) -> States:
    """Opens the initial state of `batch` sequences, or one row for all: a result, `file.h5::/group`, or an NPZ.

    widths: of the model's states by name, as Model.state_widths. NaN passes, as it does in a model called from Python.
    ids: of the sequences; where a dataset `ids` lies beside the group too, a sequence gets the row of its id, and there may be
    others. follow_links: in HDF5 they may be links or lie in other files.
    Raises MissingInputError for no such file, and DataError for the state of another model or batch, or no state at all.
    """
    path, group = split_spec(spec)
    if path == "-":
        raise UsageError("--initial-state -: only --input may be -; give a file")
    with ExitStack() as files:
        data, kind = files.enter_context(open_by_kind(path))
        places, others = None, list[FileBytes]()
        if kind is FileKind.HDF5:
            file = files.enter_context(hdf5.open_file(path))
            name, datasets = hdf5_arrays(file, data, group or "/state", follow_links)
            arrays: dict[str, Array] = {**datasets}
            for other in sorted({path for rows in datasets.values() for path in hdf5_safety.other_files(rows.item)}):
                fd = open_readable(str(other))
                files.callback(os.close, fd)
                others.append(FileBytes(fd, shown(str(other))))
            found = find_ids(file, group or "/state", arrays, follow_links) if ids else None
            if ids and found:
                places, batch = np.array(rows_by_id(ids, found, name), np.int64), len(found)
        elif group is not None:
            raise DataError(f"{data.name}: group {shown(group)} is named, but this is not an HDF5 file")
        elif kind is FileKind.ZIP:
            from lstmcli.files.zip_reader import open_npz  # loading zipfile takes 10 ms

            content = files.enter_context(os.fdopen(os.dup(data.fd), "rb"))
            name, arrays = data.name, dict(open_npz(content, data.name, files))
        else:
            raise DataError(f"{data.name}: expected the states of a result: HDF5 or NPZ; this is neither, or is damaged")
        check(name, arrays, widths, batch)
        return States(name, {n: arrays[n] for n in widths}, dtype, data, files.pop_all(), places, tuple(others))


def find_ids(file: Any, group: str, arrays: dict[str, Array], follow_links: bool) -> list[str] | None:
    """Returns the ids of the rows of states, beside their group; None where there are none."""
    batch = max((array.shape[0] for array in arrays.values() if array.shape), default=0)
    path = f"{group.rstrip('/').rpartition('/')[0]}/ids"
    return ids_in(file, [path], batch, follow_links)[0]


def gather(array: Array, places: Lengths, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns rows of an array, those that follow one another in a single read."""
    rows = np.empty((len(places), *array.shape[1:]), dtype)
    for part in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
        if len(part):
            rows[part] = array.rows(int(places[part[0]]), len(part))
    return rows


class ResultRows(hdf5.DatasetRows):
    """States of a result, whose rows have checksums."""

    def __init__(self, item: Any, sums: NDArray[np.uint32]) -> None:
        super().__init__(item)
        self.sums = sums

    def rows(self, first: int, count: int) -> NDArray[Any]:
        rows = super().rows(first, count)
        for row, (values, checksum) in enumerate(zip(rows, self.sums[first : first + count].tolist(), strict=True), first):
            if zlib.crc32(values) != checksum:
                raise DataError(f"{self.name}, row {row}: its bytes are not what was written: their checksum differs")
        return rows


def hdf5_arrays(file: Any, data: FileBytes, name: str, follow_links: bool) -> tuple[str, dict[str, hdf5.DatasetRows]]:
    """Returns where the states in a group of an open h5py.File come from, and its arrays. data: the same file."""
    group = hdf5_safety.find(file, name, follow_links)
    if group is None or not hasattr(group, "keys"):
        got = "no such group" if group is None else "a dataset"
        raise DataError(
            f"{hdf5.label(file).rstrip('/')}{shown(name)}: expected a group of states, as in a result (unless it was made "
            f"with --save outputs), got {got}; name another one: FILE::/group"
        )
    names = [entry.name.removeprefix("/") for entry in hdf5.entries(group)]
    items = {name: hdf5_safety.dataset(group, name, follow_links) for name in names}
    if hdf5_safety.find(file, hdf5.CONTAINER) is None:
        return hdf5.label(group), {name: hdf5.DatasetRows(item) for name, item in items.items()}
    from lstmcli.model.result_container import check_container  # of a result alone

    check_container(file, data)
    sums = {name: hdf5_safety.find(file, f"{hdf5.CHECKSUMS}{item.name}") for name, item in items.items()}
    if absent := [name for name, item in sums.items() if item is None]:
        raise DataError(f"{hdf5.label(group)}: {shown(absent[0])} has no checksum in this result; copy the group to a new file")
    return hdf5.label(group), {name: ResultRows(item, hdf5.read_array(sums[name])) for name, item in items.items()}


def check(name: str, arrays: dict[str, Array], widths: dict[str, int], batch: int) -> None:
    """Raises DataError unless these are the states of `batch` sequences in a model whose states have these widths."""
    if arrays.keys() != widths.keys():
        missing = sorted(widths.keys() - arrays.keys())
        surplus = sorted(arrays.keys() - widths.keys())
        found = [f"{what} {listed(names)}" for what, names in (("without", missing), ("with", surplus)) if names]
        raise DataError(
            f"{name}: the state of another model: expected arrays named {listed(list(widths))}, got a file "
            f"{' and '.join(found)}; give the result of a run with the same --weights"
        )
    for cell, width in widths.items():
        array = arrays[cell]
        if not is_float(array.dtype):
            raise DataError(f"{array.name}: expected {FLOATS}, got {array.dtype}")
        if len(array.shape) == 2 and array.shape[1] == width:
            if array.shape[0] not in (1, batch):
                raise DataError(
                    f"{array.name}: expected the states of {batch} sequences, as in the input, or one row for all of them, "
                    f"got {array.shape[0]}"
                )
        elif array.shape != (batch, width):
            raise DataError(
                f"{array.name}: the state of another model: expected shape {(batch, width)} for {cell}, got {array.shape}"
            )


def listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(shown, names[:8])) + more
