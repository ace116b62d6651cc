"""Offsets and lengths of a ragged input, read as a whole: they say how many sequences there are."""

import numpy as np

from lstmcli.blocks import Lengths
from lstmcli.errors import DataError, UsageError
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.file_kind import FileKind, open_by_kind, split_spec
from lstmcli.files.npy import NpyArray
from lstmcli.inputs.valid_steps import Table, likely_name, parse_lines

TEXT_LIMIT = 64 << 20  # bytes


def read_numbers(spec: str, option: str) -> tuple[Lengths, str]:
    """Returns the numbers in an NPY, NPZ or HDF5 file or a text, and where they lie.

    option: --lens or --offsets, for messages. Raises UsageError for `-`, MissingInputError, DataError and StorageError.
    """
    path, name = split_spec(spec)
    if path == "-":
        raise UsageError(f"{option} -: only --input may be -; give a file")
    with open_by_kind(path) as (file, kind):
        if kind is FileKind.HDF5:
            with hdf5.open_file(path) as container:
                default = "offsets" if option == "--offsets" else likely_name
                found = name or (default if isinstance(default, str) else default(container))
                return numbers_of(hdf5.DatasetRows(hdf5_safety.dataset(container, found)))
        if kind is FileKind.ZIP:
            from lstmcli.files.zip_reader import NpzMember, npz_names  # loading zipfile takes 10 ms

            member = NpzMember(file, npz_names(file), (name or option.lstrip("-")).lstrip("/"))
            array = NpyArray(member.fetch, member.name)
            array.check_size(member.size)
            return numbers_of(array)
        if name is not None:
            raise DataError(f"{file.name}: dataset {name} is named, but this is not an HDF5 file")
        if kind is FileKind.NPY:
            array = NpyArray(file.fetch, file.name)
            array.check_size(file.opened.st_size)
            return numbers_of(array)
        if file.opened.st_size > TEXT_LIMIT:
            raise DataError(f"{file.name}: expected a text of at most {TEXT_LIMIT} bytes, got {file.opened.st_size}")
        return parse_lines(file.take(0, file.opened.st_size), file.name), file.name


def numbers_of(table: Table) -> tuple[Lengths, str]:
    """Returns whole numbers from 0 on. Raises DataError for other values, ranks and dtypes."""
    size = max(table.shape, default=0)
    if table.shape not in ((size,), (size, 1), (1, size)):
        raise DataError(f"{table.name}: expected one number for each sequence, got shape {table.shape}")
    if table.dtype.kind not in "iuf":
        raise DataError(f"{table.name}: expected whole numbers, got {table.dtype}")
    if 8 * size > hdf5.LARGE:
        raise DataError(f"{table.name}: {size} numbers are more than this program reads at once")
    values = table.rows(0, table.shape[0]).reshape(size)
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= 0) & (values < 1 << 48) & (values == np.trunc(values)))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{table.name}, row {row}: expected a whole number from 0 on, got {values[row]}")
    return values.astype(np.int64), table.name
