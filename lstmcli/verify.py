"""Whether a file is whole and holds what was written into it."""

import math
import os
import zipfile
import zlib
from typing import Any

import numpy as np

from lstmcli import hdf5
from lstmcli.arrays import Lengths
from lstmcli.errors import DataError, StorageError, shown
from lstmcli.model_file import FORMAT, load_model
from lstmcli.npy import NPY_MAGIC, read_header
from lstmcli.raw import FileBytes
from lstmcli.results import CHECKSUMS, CONTAINER, Extent, container_checksum
from lstmcli.sources import is_hdf5

BLOCK = 16 << 20  # bytes read at a time


def verify(path: str) -> str:
    """Checks a result, a model file, or the NPY and NPZ files of a result; what was found to be right, for people.

    DataError: it is damaged, cut or incomplete, and where that shows first. MissingInputError, StorageError.
    """
    fd = hdf5.open_readable(path)
    try:
        data = FileBytes(fd, shown(path))
        if is_hdf5(fd, data.name):
            return verify_hdf5(path, data)
        begin = bytearray(min(len(NPY_MAGIC), data.opened.st_size))
        data.fetch(memoryview(begin), 0)
        if begin == NPY_MAGIC:
            return verify_npy(data)
        if begin.startswith(b"PK"):
            return verify_npz(path)
    finally:
        os.close(fd)
    raise DataError(f"{data.name}: expected a result (HDF5, NPY, NPZ) or a model file; this is none, or was never completed")


def verify_hdf5(path: str, data: FileBytes) -> str:
    with hdf5.open_file(path) as file:
        group = hdf5.find(file, CHECKSUMS)
        if group is None:
            load_model(path)
            if file.attrs["format"] == FORMAT:
                return "a model file, readable; it has no checksums"
            raise DataError(f"{data.name}::/{CHECKSUMS}: expected checksums, found none; an older version made this result")
        own = hdf5.dataset(file, CONTAINER)
        names = [e.name.removeprefix("/") for e in hdf5.entries(group)]
        fields = {name: hdf5.dataset(file, name) for name in names if f"{CHECKSUMS}/{name}" != CONTAINER}
        extents = [extent(item) for item in (own, *fields.values())]
        # Before anything else is read: libhdf5 walks some damaged structures forever.
        if container_checksum(data.take, data.opened.st_size, extents) != hdf5.read_array(own)[0]:
            raise DataError(
                f"{data.name}: its structure, lengths, model or checksums are not what was written; "
                "it was damaged, changed, or never completed"
            )
        load_model(path)
        lengths = np.asarray(hdf5.read_array(hdf5.dataset(file, "lengths")))
        for name, item in fields.items():
            verify_field(item, extent(item).offset, data, lengths, hdf5.read_array(hdf5.dataset(group, name)))
    return f"{len(lengths):,} sequences, {len(fields)} arrays, all checksums right"


def extent(item: Any) -> Extent:
    """Of a contiguous dataset."""
    offset = hdf5.raw_offset(item)
    if offset is None:
        raise DataError(f"{hdf5.label(item)}: expected it in one piece, as it was written; was the file repacked?")
    return Extent(offset, item.nbytes)


def verify_field(item: Any, offset: int, data: FileBytes, lengths: Lengths, sums: Any) -> None:
    """DataError naming the first row that is not what its checksum says, or that has anything but zeros past its length."""
    where, batch = hdf5.label(item), item.shape[0]
    if not item.size:
        return
    row = math.prod(item.shape[1:]) * item.dtype.itemsize
    for first in range(0, batch, count := max(1, BLOCK // row)):
        part = np.empty((min(count, batch - first), row), np.uint8)
        data.fetch(part.reshape(-1).data, offset + first * row)
        here = slice(first, first + len(part))
        sizes = lengths[here] * (row // item.shape[1]) if item.ndim == 3 else np.full(len(part), row)
        for k, (values, size, checksum) in enumerate(zip(part, sizes.tolist(), sums[here].tolist(), strict=True), first):
            if zlib.crc32(values[:size]) != checksum:
                raise DataError(f"{where}, row {k}: its bytes are not what was written: their checksum differs")
            if values[size:].any():
                raise DataError(f"{where}, row {k}: expected zeros past its {lengths[k]} steps")


def verify_npy(data: FileBytes) -> str:
    dtype, _, shape, offset = read_header(data.fetch, data.name)
    if (size := offset + math.prod(shape) * dtype.itemsize) != data.opened.st_size:
        raise DataError(f"{data.name}: expected {size:,} bytes for shape {shape} of {dtype}, got {data.opened.st_size:,}")
    return f"{shape} {dtype}, of the right size; NPY files have no checksums"


def verify_npz(path: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            count = len(archive.namelist())
    except OSError as error:
        raise StorageError(f"{shown(path)}: reading failed: {error.strerror}") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"{shown(path)}: damaged: {shown(str(error))}") from error
    if bad is not None:
        raise DataError(f"{shown(path)}: {shown(bad)} is not what was written: its checksum differs")
    return f"{count} arrays, all checksums right"
