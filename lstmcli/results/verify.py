"""Checks that a file is whole and holds what was written into it."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from lstmcli.blocks import Valid, packed_starts
from lstmcli.engine.model_check import confirm
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, open_by_kind
from lstmcli.files.npy import NpyArray
from lstmcli.files.positioned_file import FileBytes
from lstmcli.files.zip_reader import reading_zip
from lstmcli.model.chain_file import any_model_in, load_any_model
from lstmcli.model.model_check import read_check
from lstmcli.model.model_file import FORMAT, load_model
from lstmcli.results.formats.fields import FLAT, PADDED, Checksums, Extent, Field
from lstmcli.results.formats.hdf5_result import CHECKSUMS, CONTAINER, container_checksum
from lstmcli.results.formats.result import crc32_rows

BLOCK = 16 << 20  # bytes read at a time


def verify(path: str) -> str:
    """Checks a result, a model file, or the NPY and NPZ files of a result. Returns in words what was found to be right.

    Raises DataError, which says where damage shows first, MissingInputError or StorageError.
    """
    with open_by_kind(path) as (data, kind):
        if kind is FileKind.HDF5:
            return verify_hdf5(path)
        if kind is FileKind.NPY:
            return verify_npy(data)
        if kind is FileKind.ZIP:
            return verify_npz(path)
    raise DataError(f"{data.name}: expected a result (HDF5, NPY, NPZ) or a model file; this is none, or was never completed")


def verify_hdf5(path: str) -> str:
    with hdf5.open_file(path) as file:
        has_checksums = hdf5_safety.find(file, CHECKSUMS) is not None
    if not has_checksums and model_format(path) == FORMAT:
        return f"a model file, readable; it has no checksums{repeated_check(path)}"
    with open_result(path) as whole:
        any_model_in(whole.file)
        for name, field in whole.fields.items():
            if whole.layout == PADDED or not field.has_steps:
                verify_padded(name, field, whole)
            else:
                verify_unpadded(name, field, whole)
    return f"{len(whole.valid.lengths):,} sequences, {len(whole.fields)} arrays, all checksums right"


def repeated_check(path: str) -> str:
    """Repeats the check in a model file, if it has one. Raises DataError: the model computes something else."""
    with hdf5.open_file(path) as file:
        check = read_check(file)
    return f"; its check, repeated: {confirm(load_model(path), check, f'{shown(path)}::/check')}" if check else ""


def model_format(path: str) -> str:
    """Returns the format of a file with a model, after loading that."""
    load_any_model(path)
    with hdf5.open_file(path) as file, hdf5.reading(shown(path)):
        return str(file.attrs["format"])


class CheckedResult(NamedTuple):
    """A result whose bytes are what was written, but for the values of its fields, which were not read."""

    file: Any  # h5py.File
    data: FileBytes
    valid: Valid
    layout: str
    fields: dict[str, Field]
    sums: dict[str, Checksums]  # of the rows of the fields

    @property
    def placed(self) -> Valid:
        """As Metadata.placed."""
        return self.valid if self.layout == PADDED else Valid(np.zeros_like(self.valid.lengths), self.valid.lengths)


@contextmanager
def open_result(path: str) -> Iterator[CheckedResult]:
    """Opens a result and checks all but the values of its fields.

    Raises MissingInputError, StorageError, or DataError if it is no result, or damaged, cut or incomplete.
    """
    with hdf5.open_file(path) as file:
        data = FileBytes(file.id.get_vfd_handle(), shown(path))
        group = hdf5_safety.find(file, CHECKSUMS)
        if group is None:
            raise DataError(f"{data.name}::/{CHECKSUMS}: expected a result with checksums, found none")
        own = hdf5_safety.dataset(file, CONTAINER)
        names = [e.name.removeprefix("/") for e in hdf5.entries(group)]
        items = {name: hdf5_safety.dataset(file, name) for name in names if f"{CHECKSUMS}/{name}" != CONTAINER}
        extents = {name: extent(item) for name, item in items.items()}
        # This comes before anything else is read, because libhdf5 walks some damaged structures forever.
        if container_checksum(data.take, data.opened.st_size, [extent(own), *extents.values()]) != hdf5.read_array(own)[0]:
            raise DataError(
                f"{data.name}: its structure, lengths, model or checksums are not what was written; "
                "it was damaged, changed, or never completed"
            )
        lengths = np.asarray(hdf5.read_array(hdf5_safety.dataset(file, "lengths")))
        starts = np.zeros_like(lengths)
        if hdf5_safety.find(file, "starts") is not None:
            starts = np.asarray(hdf5.read_array(hdf5_safety.dataset(file, "starts")))
        sums = {name: hdf5.read_array(hdf5_safety.dataset(group, name)) for name in items}
        layout = FLAT if hdf5_safety.find(file, "offsets") is not None else PADDED
        fields = {}
        for name, item in items.items():
            shape, dtype, begins = item.shape, hdf5.dtype_of(item), None
            if layout == FLAT and not name.startswith("state/"):
                if lengths.min(initial=0) < 0 or shape[:1] != (lengths.sum(),):
                    raise DataError(f"{data.name}::/{name}: expected {lengths.sum()} rows, one for each step, got {shape}")
                begins = extents[name].offset + packed_starts(lengths) * shape[1] * dtype.itemsize
                shape = (len(lengths), int(lengths.max(initial=0)), shape[1])
            fields[name] = Field(data, extents[name].offset, shape, dtype, begins)
        yield CheckedResult(file, data, Valid(starts, lengths), layout, fields, sums)


def extent(item: Any) -> Extent:
    """Returns where a contiguous dataset lies. Raises DataError if it is not contiguous."""
    offset = hdf5.raw_offset(item)
    if offset is None:
        raise DataError(f"{hdf5.label(item)}: expected it in one piece, as it was written; was the file repacked?")
    return Extent(offset, item.nbytes)


def verify_unpadded(name: str, field: Field, whole: CheckedResult) -> None:
    """Raises DataError for the first sequence that is not what its checksum says; its steps lie without padding."""
    where, expected = f"{whole.data.name}::/{name}", whole.sums[name]
    for group in field.groups(whole.valid.lengths):
        places = whole.placed.part(group.start, group.stop)
        sums = np.zeros(len(places.lengths), np.uint32)
        crc32_rows(field.get(group.start, places), np.cumsum(places.lengths), sums)
        if len(wrong := np.flatnonzero(sums != expected[group])):
            row = group.start + wrong[0]
            raise DataError(f"{where}, sequence {row}: its bytes are not what was written: their checksum differs")


def verify_padded(name: str, field: Field, whole: CheckedResult) -> None:
    """Raises DataError for the first row that is not what its checksum says, or that has anything but zeros in its padding."""
    where, valid, sums, batch = f"{whole.data.name}::/{name}", whole.valid, whole.sums[name], field.shape[0]
    row = math.prod(field.shape[1:]) * field.dtype.itemsize
    if not batch or not row:
        return
    for first in range(0, batch, count := max(1, BLOCK // row)):
        part = np.empty((min(count, batch - first), row), np.uint8)
        whole.data.fetch(part.reshape(-1).data, field.offset + first * row)
        here = slice(first, first + len(part))
        begins, ends = np.zeros(len(part), np.int64), np.full(len(part), row)
        if field.has_steps:
            step = row // field.shape[1]
            begins = valid.starts[here] * step
            ends = begins + valid.lengths[here] * step
        places = zip(begins.tolist(), ends.tolist(), sums[here].tolist(), strict=True)
        for k, (values, (begin, end, checksum)) in enumerate(zip(part, places, strict=True), first):
            if zlib.crc32(values[begin:end].data) != checksum:
                raise DataError(f"{where}, row {k}: its bytes are not what was written: their checksum differs")
            if values[:begin].any() or values[end:].any():
                raise DataError(f"{where}, row {k}: expected zeros outside of its {valid.lengths[k]} steps")


def verify_npy(data: FileBytes) -> str:
    array = NpyArray(data.fetch, data.name)
    array.check_size(data.opened.st_size)
    return f"{array.shape} {array.dtype}, of the right size; NPY files have no checksums"


def verify_npz(path: str) -> str:
    with reading_zip(shown(path)), zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
        count = len(archive.namelist())
    if bad is not None:
        raise DataError(f"{shown(path)}: {shown(bad)} is not what was written: its checksum differs")
    return f"{count} arrays, all checksums right"
