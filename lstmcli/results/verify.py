"""Checks that a file is whole and holds what was written into it."""

import math
import os
import zipfile
import zlib
from typing import Any

import numpy as np

from lstmcli.engine.model_check import confirm
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, open_by_kind
from lstmcli.files.hdf5 import CHECKSUMS
from lstmcli.files.npy import NpyArray
from lstmcli.files.positioned_file import FileBytes
from lstmcli.files.zip_reader import reading_zip
from lstmcli.files.zip_writer import Member, crc32, directory, local_header
from lstmcli.model.chain_file import any_model_in, load_any_model
from lstmcli.model.model_check import read_check
from lstmcli.model.model_file import FORMAT, load_model
from lstmcli.results.checked_result import CheckedResult, open_result
from lstmcli.results.formats.fields import PADDED, Field
from lstmcli.results.formats.result import crc32_rows
from lstmcli.results.virtual_merge import is_virtual_merge, parts_of

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
            return verify_npz(data)
    raise DataError(f"{data.name}: expected a result (HDF5, NPY, NPZ) or a model file; this is none, or was never completed")


def verify_hdf5(path: str) -> str:
    with hdf5.open_file(path) as file:
        has_checksums = hdf5_safety.find(file, CHECKSUMS) is not None
        if is_virtual_merge(file):
            return verify_virtual(file)
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


def verify_virtual(file: Any) -> str:
    """Checks a virtual merge, and the parts that its arrays lie in. Raises DataError, StorageError."""
    parts = parts_of(file)
    for part in parts:
        try:
            verify_hdf5(part)
        except DataError as error:
            raise DataError(f"{hdf5.label(file).removesuffix('::/')}: lies in {shown(part)}: {error}") from error
    return f"{len(file['lengths']):,} sequences in {len(parts):,} parts, all checksums right"


def repeated_check(path: str) -> str:
    """Repeats the check in a model file, if it has one. Raises DataError: the model computes something else."""
    with hdf5.open_file(path) as file:
        check = read_check(file)
    return f"; its check, repeated: {confirm(load_model(path), check, f'{shown(path)}::/check')}" if check else ""


def model_format(path: str) -> str:
    """Returns the format of a file with a model, after loading that."""
    load_any_model(path)
    with hdf5.open_file(path) as file:
        return str(hdf5.attribute(file, "format"))


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
    if row > BLOCK:
        for k in range(batch):
            verify_long_row(name, field, whole, k, row)
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


def verify_long_row(name: str, field: Field, whole: CheckedResult, k: int, size: int) -> None:
    """Does for row `k` of so many bytes, in pieces, what verify_padded() does for many rows at a time."""
    where, begin, end = f"{whole.data.name}::/{name}, row {k}", 0, size
    if field.has_steps:
        step = size // field.shape[1]
        begin = int(whole.valid.starts[k]) * step
        end = begin + int(whole.valid.lengths[k]) * step
    checksum, padded = 0, False
    piece = np.empty(min(BLOCK, size), np.uint8)
    for since, until in [(0, begin), (begin, end), (end, size)]:
        for at in range(since, until, BLOCK):
            part = piece[: until - at]
            whole.data.fetch(part.data, field.offset + k * size + at)
            if since == begin and until == end:
                checksum = zlib.crc32(part.data, checksum)
            else:
                padded |= bool(part.any())
    if checksum != whole.sums[name][k]:
        raise DataError(f"{where}: its bytes are not what was written: their checksum differs")
    if padded:
        raise DataError(f"{where}: expected zeros outside of its {whole.valid.lengths[k]} steps")


def verify_npy(data: FileBytes) -> str:
    array = NpyArray(data.fetch, data.name)
    array.check_size(data.opened.st_size)
    return f"{array.shape} {array.dtype}, of the right size; NPY files have no checksums"


def verify_npz(data: FileBytes) -> str:
    """Compares all bytes around the arrays with those that are written around arrays of these names, sizes and checksums."""
    size, end, members = data.opened.st_size, 0, []
    with reading_zip(data.name), os.fdopen(os.dup(data.fd), "rb") as content, zipfile.ZipFile(content) as archive:
        found = [(info.filename.encode(), info.file_size) for info in archive.infolist()]
    if not found:
        raise DataError(f"{data.name}: expected the arrays of a result, found none")
    for name, count in found:
        begin = end + len(local_header(name, count, 0))
        if begin + count > size:
            raise DataError(f"{data.name}: {shown(name.decode())} goes on past the end of the file; it was cut or damaged")
        member = Member(name, end, begin, count)
        checksum = crc32(data.take, begin, count)
        if data.take(end, begin - end) != local_header(name, count, checksum):
            raise DataError(f"{data.name}: {shown(name.decode())} is not what was written: its checksum or its header differs")
        members.append((member, checksum))
        end = begin + count
    if data.take(end, size - end) != directory(members, end):
        raise DataError(f"{data.name}: its directory is not what was written; it was damaged, or written by another program")
    return f"{len(members)} arrays, all checksums right"
