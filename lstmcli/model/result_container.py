"""The container of a result, which is all of its file but the values of its arrays: whether it is what was written."""

import math
from typing import Any, NamedTuple

import numpy as np

from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.hdf5 import CHECKSUMS, CONTAINER, Extent
from lstmcli.files.positioned_file import FileBytes

ONE = ""  # the name of the dataset of an array that is in one


class StoredDataset(NamedTuple):
    """Where a dataset lies."""

    extent: Extent
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


StoredDatasets = dict[str, StoredDataset]  # what an array is stored in: one dataset named ONE, or those in a group


def check_container(file: Any, data: FileBytes) -> dict[str, StoredDatasets]:
    """Compares the container of an open h5py.File with its checksum; data: the same file. Returns its arrays by name.

    Raises DataError where it is damaged, or has no checksums, and StorageError.
    """
    group = hdf5_safety.find(file, CHECKSUMS)
    if group is None:
        raise DataError(f"{data.name}::/{CHECKSUMS}: expected a result with checksums, found none")
    with hdf5.reading(data.name):
        own = hdf5_safety.dataset(file, CONTAINER)
        names = [entry.name.removeprefix("/") for entry in hdf5.entries(group)]
        stored = {name: datasets_of(file, name) for name in names if f"{CHECKSUMS}/{name}" != CONTAINER}
        extents = [extent(own), *(one.extent for each in stored.values() for one in each.values())]
        is_one = own.shape == (1,) and hdf5.dtype_of(own) == np.uint32
    # This comes before anything else is read, because libhdf5 walks some damaged structures forever.
    if not is_one or hdf5.container_checksum(data.take, data.opened.st_size, extents) != hdf5.read_array(own)[0]:
        raise DataError(
            f"{data.name}: its structure, lengths, model or checksums are not what was written; "
            "it was damaged, changed, or never completed"
        )
    return stored


def datasets_of(file: Any, name: str) -> StoredDatasets:
    """Returns what an array of a result is stored in."""
    group = hdf5_safety.find(file, name)
    if not hasattr(group, "keys"):
        return {ONE: stored_dataset(hdf5_safety.dataset(file, name))}
    from lstmcli.files.hdf5_bytes.list_datasets import UNKNOWN, datasets_below

    others: list[str] = []
    found: StoredDatasets = {}
    for name, shape, dtype, offset, _ in datasets_below(group, others):
        if dtype is None or offset == UNKNOWN:
            found[name] = stored_dataset(hdf5_safety.dataset(group, name))
        else:
            found[name] = StoredDataset(Extent(offset, math.prod(shape) * dtype.itemsize), shape, dtype)
    if others:
        raise DataError(f"{hdf5.label(group)}: {shown(others[0])} is a link, which no result has")
    return found


def stored_dataset(item: Any) -> StoredDataset:
    return StoredDataset(extent(item), item.shape, hdf5.dtype_of(item))


def extent(item: Any) -> Extent:
    """Returns where a contiguous dataset lies. Raises DataError if it is not contiguous."""
    offset = hdf5.raw_offset(item)
    if offset is None:
        raise DataError(f"{hdf5.label(item)}: expected it in one piece, as it was written; was the file repacked?")
    with hdf5.reading(hdf5.label(item)):
        return Extent(offset, item.nbytes)
