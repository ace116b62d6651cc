"""A result that is complete, opened to be read: where its arrays lie, whatever its layout, and their checksums."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from lstmcli.blocks import Lengths, Valid, packed_starts
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.hdf5 import CHECKSUMS
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.beside.ids import strings_of
from lstmcli.model.result_container import ONE, StoredDatasets, check_container
from lstmcli.results.formats.fields import FLAT, PADDED, PER_SEQUENCE, Checksums, Field, has_steps
from lstmcli.results.formats.per_sequence import form_of_empty
from lstmcli.results.formats.result import WindowRows
from lstmcli.results.virtual_merge import is_virtual_merge


class CheckedResult(NamedTuple):
    """A result whose bytes are what was written, but for the values of its fields, which were not read."""

    file: Any  # h5py.File
    data: FileBytes
    valid: Valid
    ids: Sequence[str] | None
    layout: str
    fields: dict[str, Field]
    sums: dict[str, Checksums]  # of the rows of the fields

    @property
    def placed(self) -> Valid:
        """As Metadata.placed."""
        return self.valid if self.layout == PADDED else Valid(np.zeros_like(self.valid.lengths), self.valid.lengths)

    @property
    def windows(self) -> WindowRows | None:
        """As Metadata.windows. Raises DataError."""
        if hdf5_safety.find(self.file, "series") is None:
            return None
        series, first_steps = (hdf5.read_array(hdf5_safety.dataset(self.file, name)) for name in ("series", "first_step"))
        known = hdf5_safety.find(self.file, "series_ids") is not None
        return WindowRows(series, first_steps, strings_of(hdf5_safety.dataset(self.file, "series_ids")) if known else None)


@contextmanager
def open_result(path: str) -> Iterator[CheckedResult]:
    """Opens a result and checks all but the values of its fields.

    Raises MissingInputError, StorageError, or DataError if it is no result, or damaged, cut or incomplete.
    """
    with hdf5.open_file(path) as file:
        if is_virtual_merge(file):
            raise DataError(f"{shown(path)}: its arrays lie in other files; make one that holds them: merge without --virtual")
        data = FileBytes(file.id.get_vfd_handle(), shown(path))
        stored = check_container(file, data)
        lengths = np.asarray(hdf5.read_array(hdf5_safety.dataset(file, "lengths")))
        starts = np.zeros_like(lengths)
        if hdf5_safety.find(file, "starts") is not None:
            starts = np.asarray(hdf5.read_array(hdf5_safety.dataset(file, "starts")))
        ids = strings_of(hdf5_safety.dataset(file, "ids")) if hdf5_safety.find(file, "ids") is not None else None
        layout = FLAT if hdf5_safety.find(file, "offsets") is not None else PADDED
        if any(ONE not in each for each in stored.values()):
            layout = PER_SEQUENCE
        fields = {name: field_of(file, data, name, each, lengths, ids, layout) for name, each in stored.items()}
        sums = {name: hdf5.read_array(hdf5_safety.dataset(file, f"{CHECKSUMS}/{name}")) for name in stored}
        yield CheckedResult(file, data, Valid(starts, lengths), ids, layout, fields, sums)


def field_of(
    file: Any, data: FileBytes, name: str, stored: StoredDatasets, lengths: Lengths, ids: Sequence[str] | None, layout: str
) -> Field:
    """Returns an array of a result. Raises DataError where it does not have the steps that the lengths say."""
    where, longest, total = f"{data.name}::/{name}", int(lengths.max(initial=0)), int(lengths.sum())
    if ONE in stored:
        (offset, _), shape, dtype = stored[ONE]
        if layout == PADDED or not has_steps(name):
            return Field(data, offset, shape, dtype)
        if len(shape) != 2 or shape[0] != total or lengths.min(initial=0) < 0:
            raise DataError(f"{where}: expected {total} rows, one for each step, got {shape}")
        begins = offset + packed_starts(lengths) * shape[1] * dtype.itemsize
        return Field(data, offset, (len(lengths), longest, shape[1]), dtype, begins)
    if ids is None or len(ids) != len(lengths) or stored.keys() != set(ids):
        raise DataError(f"{where}: expected a dataset for each of the {len(lengths)} sequences, named by /ids")
    if not ids:
        width, dtype = form_of_empty(hdf5_safety.find(file, name))
        return Field(data, 0, (0, 0, width), dtype)
    first = stored[ids[0]]
    for row, (one, length) in enumerate(zip(map(stored.__getitem__, ids), lengths.tolist(), strict=True)):
        if one.shape != (length, *first.shape[1:]) or len(one.shape) != 2 or one.dtype != first.dtype:
            raise DataError(f"{where}/{shown(ids[row])}: expected {length} steps, got {one.shape} {one.dtype}")
    begins = np.array([stored[name].extent.offset for name in ids], np.int64)
    return Field(data, 0, (len(lengths), longest, first.shape[1]), first.dtype, begins)
