"""Sequences as one HDF5 dataset (L, E) each."""

import hashlib
from contextlib import ExitStack
from typing import Any

import numpy as np

from lstmcli.blocks import Lengths, is_float
from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.beside.ids import as_id, check_ids
from lstmcli.inputs.source import STAGING, Rows, Source, StoredArray

DECODED = -1  # in the place of an offset: libhdf5 must decode it


class SequenceDatasets(Source):
    """The float datasets of an HDF5 group, each a sequence: (L, E), or (E,) for a single step.

    Groups in it are gone through as well. Where all names of a group are numbers, their order is that of the numbers, else
    that of the file.
    """

    def __init__(self, group: Any, names: list[str], files: ExitStack) -> None:
        """names: of the datasets in the group, in their order. Raises DataError, also for widths and dtypes that differ."""
        where = hdf5.label(group)
        self.group, self.names = group, names
        items = [hdf5_safety.dataset(group, name) for name in names]
        width, dtype = items[0].shape[-1], hdf5.dtype_of(items[0])
        data = FileBytes(group.file.id.get_vfd_handle(), where)
        lengths, offsets = np.empty(len(items), np.int64), np.empty(len(items), np.int64)
        for k, item in enumerate(items):
            if item.ndim not in (1, 2) or item.shape[-1] != width or hdf5.dtype_of(item) != dtype:
                raise DataError(
                    f"{hdf5.label(item)}: expected a sequence (steps, {width}) of {dtype}, as {shown(names[0])} is, "
                    f"got {item.shape} {item.dtype}; all sequences have one width and one dtype"
                )
            lengths[k] = item.shape[0] if item.ndim == 2 else 1
            offset = hdf5.raw_offset(item)
            offsets[k] = DECODED if offset is None else offset
            if offset is not None and offset + item.nbytes > data.opened.st_size:
                raise DataError(
                    f"{hdf5.label(item)}: ends at byte {offset + item.nbytes}, past the end of the file; it was cut"
                )
        array = StoredArray(data, where, (len(items), int(lengths.max()), width), dtype)
        super().__init__(array, files, data.opened.st_size)
        self.offsets, self.lengths, self.lengths_origin = offsets, lengths, where
        ids = [original_id(item) or as_id(name) for item, name in zip(items, names, strict=True)]
        check_ids(ids, where)
        self.ids, self.ids_origin = ids, where
        self.piece = max(1, STAGING // (width * dtype.itemsize))  # rows converted or decoded at a time

    def identity(self) -> dict[str, Any]:
        names = "\0".join(self.names).encode("utf-8", "surrogateescape")
        return super().identity() | {"sequences": hashlib.sha256(names + self.offsets.tobytes()).hexdigest()[:16]}

    def _read(self, first: int, starts: Lengths, lengths: Lengths, rows: Rows) -> None:
        at = 0
        for sequence, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True), first):
            if length:
                self._read_one(sequence, start, rows[at : at + length])
                at += length

    def _read_one(self, sequence: int, start: int, target: Rows) -> None:
        """Reads the steps of one sequence from `start` on into target (steps, E)."""
        row, offset = self.shape[2] * self.dtype.itemsize, int(self.offsets[sequence])
        if offset == DECODED:
            item = hdf5_safety.dataset(self.group, self.names[sequence])
            stored = hdf5.DatasetRows(item)
            if item.ndim == 1:
                target[0] = stored.rows(0, self.shape[2])
                return
            for at in range(0, len(target), self.piece):
                part = target[at : at + self.piece]
                part[:] = stored.rows(start + at, len(part))
        elif self.dtype == target.dtype:
            self.data.fetch(target.reshape(-1).view(np.uint8).data, offset + start * row)
        else:
            for at in range(0, len(target), self.piece):
                part = target[at : at + self.piece]
                values = np.empty(part.shape, self.dtype)
                self.data.fetch(values.reshape(-1).view(np.uint8).data, offset + (start + at) * row)
                part[:] = values


def original_id(item: Any) -> str | None:
    """Returns the id that a dataset says in its attribute `original_id`, as bio_embeddings writes it, or None."""
    with hdf5.reading(hdf5.label(item)):
        if "original_id" not in item.attrs:
            return None
        value = item.attrs["original_id"]
    return as_id(value if isinstance(value, bytes) else str(value))


def sequence_names(group: Any) -> list[str]:
    """Lists the float datasets in a group, in their order. Raises DataError for links, which would be left out."""
    import h5py

    links: list[bytes] = []

    def visit(name: bytes, info: Any) -> bytes | None:
        links.append(name)
        return None if info.type == h5py.h5l.TYPE_HARD else name  # an exception must not pass through libhdf5

    where = hdf5.label(group)
    with hdf5.reading(where):
        if (soft := group.id.links.visit(visit, info=True)) is not None:
            raise DataError(
                f"{where.rstrip('/')}/{shown(soft.decode('utf-8', 'backslashreplace'))}: is a soft or external link, which are "
                "not followed in a ragged input; copy into the file what it points to"
            )
        found = [(name.decode("utf-8", "surrogateescape"), group[name]) for name in links]
        names = [name for name, item in found if isinstance(item, h5py.Dataset) and is_float_dataset(item)]
    return in_order(names)


def is_float_dataset(item: Any) -> bool:
    entry = hdf5.entry_of("", item)
    return bool(entry.shape) and entry.dtype is not None and is_float(entry.dtype)


def in_order(names: list[str]) -> list[str]:
    """Returns names in the order of the numbers at each level where all names are numbers, and else as they come."""
    parts = [name.split("/") for name in names]
    levels: dict[str, dict[str, int]] = {}  # the names in each group, by its own name
    for path in parts:
        for k, part in enumerate(path):
            own = levels.setdefault("/".join(path[:k]), {})
            own.setdefault(part, len(own))
    for own in levels.values():
        if all(part.isascii() and part.isdecimal() for part in own):
            own.update({part: int(part) for part in own})
    keys = [tuple(levels["/".join(path[:k])][part] for k, part in enumerate(path)) for path in parts]
    return [name for _, name in sorted(zip(keys, names, strict=True))]
