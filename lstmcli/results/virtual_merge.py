"""A result of `merge --virtual`: a small HDF5 file whose arrays lie in the parts. It names them, with their checksums."""

import os
from pathlib import Path
from typing import Any

from lstmcli.errors import DataError, MissingInputError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.hdf5 import CONTAINER
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.beside.ids import strings_of
from lstmcli.model.model_file import undamaged
from lstmcli.model.result_container import extent

PARTS = "parts"  # the group with what the arrays lie in
PART_NAMES = f"{PARTS}/names"  # relative to the folder of the file
PART_SUMS = f"{PARTS}/checksums"  # of their containers, which hold those of their rows
MERGED_SUM = f"{PARTS}/container"  # of all bytes of the file but these


def is_virtual_merge(file: Any) -> bool:
    return hdf5_safety.find(file, MERGED_SUM) is not None


def parts_of(file: Any) -> list[str]:
    """Returns the files that the arrays of a virtual merge, an open h5py.File, lie in: the parts that were merged, still there.

    Compares all bytes of the file and all of the parts but the values of their arrays with their checksums.
    Raises DataError, StorageError.
    """
    where = hdf5.label(file).removesuffix("::/")
    data, own = FileBytes(file.id.get_vfd_handle(), where), hdf5_safety.dataset(file, MERGED_SUM)
    if hdf5.container_checksum(data.take, data.opened.st_size, [extent(own)]) != hdf5.read_array(own)[0]:
        raise DataError(f"{where}: is not what was written; it was damaged or changed: make it again with merge --virtual")
    folder = Path(os.fsdecode(file.filename)).parent
    parts = [str(folder / name) for name in strings_of(hdf5_safety.dataset(file, PART_NAMES))]
    for part, checksum in zip(parts, hdf5.read_array(hdf5_safety.dataset(file, PART_SUMS)), strict=True):
        try:
            if container_sum(part) != checksum:
                raise DataError("is another part than the one that was merged")
        except (DataError, MissingInputError) as error:
            raise DataError(f"{where}: lies in {shown(part)}: {error}") from error
    return parts


def dataset_in(file: Any, name: str, parts: list[str]) -> Any:
    """Returns the h5py.Dataset `name` of a virtual merge. Raises DataError where its values lie in anything but the parts."""
    item = hdf5_safety.dataset(file, name, follow=True)
    known = {os.path.realpath(part) for part in parts}
    for path in hdf5_safety.other_files(item):
        if os.path.realpath(path) not in known:
            raise DataError(f"{hdf5.label(item)}: lies in {shown(str(path))}, which is none of the parts that were merged")
    return item


def container_sum(path: str) -> int:
    """Returns the checksum of the container of a result, which is right. Raises DataError, MissingInputError."""
    with undamaged(path) as file:
        return int(hdf5.read_array(hdf5_safety.dataset(file, CONTAINER))[0])
