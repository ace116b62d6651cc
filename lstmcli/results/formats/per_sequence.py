"""The layout per-sequence: a dataset (length, D) for each sequence, in a group with the name of the array.

A dataset has the id of its sequence as its name. Where ids hold a `/`, groups nest, as they do where such a file is read.
Where there is no sequence, the attribute `empty` of the group, (0, D), says width and dtype.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from lstmcli.blocks import Lengths, is_float
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5

EMPTY = "empty"


def check_names(ids: Sequence[str], where: str) -> None:
    """Raises DataError for the first id that cannot be the name of a dataset beside the others."""
    names = set(ids)
    for row, name in enumerate(ids):
        parts = name.split("/")
        groups = accumulate(parts[:-1], "{}/{}".format)
        if "" in parts or "." in parts or "\0" in name or not names.isdisjoint(groups):
            raise DataError(
                f"{where}, sequence {row}: its id {shown(name)} cannot be the name of a dataset; --layout flat keeps any id"
            )


def allocate_each(
    file: Any, name: str, ids: Sequence[str], lengths: Lengths, step: tuple[int, ...], dtype: np.dtype[Any], properties: Any
) -> Lengths:
    """Makes the datasets, with the properties of their creation. Returns the offset of each in the file.

    step: the shape of a step, (D,); of a token id ().
    """
    import h5py

    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5py.h5t.CSET_UTF8)
    kind = h5py.h5t.py_create(dtype)
    group = file.create_group(name)
    if not ids:
        group.attrs[EMPTY] = np.empty((0, *step), dtype)
    begins = np.empty(len(ids), np.int64)
    for row, (sequence, length) in enumerate(zip(ids, lengths.tolist(), strict=True)):
        space = h5py.h5s.create_simple((length, *step))
        dataset = h5py.h5d.create(group.id, sequence.encode(), kind, space, properties, links)
        begins[row] = dataset.get_offset() or 0  # None where there are no steps
    return begins


def form_of_empty(group: Any) -> tuple[int, np.dtype[Any]]:
    """Returns width and dtype of an array of a result without sequences. Raises DataError."""
    empty = hdf5.attribute(group, EMPTY)
    if not (isinstance(empty, np.ndarray) and empty.ndim == 2 and empty.shape[1] and is_float(empty.dtype)):
        raise DataError(
            f"{hdf5.label(group)}: damaged: expected a dataset for each sequence, or an attribute {EMPTY}, got none"
        )
    return empty.shape[1], empty.dtype
