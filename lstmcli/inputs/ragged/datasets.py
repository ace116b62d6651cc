"""Sequences as one HDF5 dataset each: (L, E), or (E,) for a single step; of token ids (L,)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.beside.ids import as_id
from lstmcli.inputs.ragged.placed import DECODED, Sequences
from lstmcli.inputs.valid_steps import LENGTHS, MASKS

OTHERS = {*LENGTHS, *MASKS, "offsets", "idptr", "ids", "keys", "names", "texts"}  # integers that are no token ids


def in_datasets(group: Any, names: list[str], token_ids: bool) -> Sequences:
    """Returns the sequences that are datasets of an HDF5 group, with these names in their order.

    Raises DataError, also for widths and dtypes that differ.
    """
    where = hdf5.label(group)
    items = [hdf5_safety.dataset(group, name) for name in names]
    dtype = hdf5.dtype_of(items[0])
    takes_ids = token_ids and dtype.kind in "iu"
    width = 1 if takes_ids else items[0].shape[-1]
    data = FileBytes(group.file.id.get_vfd_handle(), where)
    lengths, offsets = np.empty(len(items), np.int64), np.empty(len(items), np.int64)
    for k, item in enumerate(items):
        fits = item.ndim == 1 if takes_ids else item.ndim in (1, 2) and item.shape[-1] == width
        if not fits or hdf5.dtype_of(item) != dtype:
            raise DataError(
                f"{hdf5.label(item)}: expected a sequence {'(steps,)' if takes_ids else f'(steps, {width})'} of {dtype}, as "
                f"{shown(names[0])} is, got {item.shape} {item.dtype}; all sequences have one width and one dtype"
            )
        lengths[k] = item.shape[0] if item.ndim == 2 or takes_ids else 1
        offset = hdf5.raw_offset(item)
        offsets[k] = DECODED if offset is None else offset
        if offset is not None and offset + item.nbytes > data.opened.st_size:
            raise DataError(f"{hdf5.label(item)}: ends at byte {offset + item.nbytes}, past the end of the file; it was cut")
    ids = [original_id(item) or as_id(name.encode("utf-8", "surrogateescape")) for item, name in zip(items, names, strict=True)]

    def decode(number: int, first: int, count: int) -> NDArray[Any]:
        item = hdf5_safety.dataset(group, names[number])
        if item.ndim == 2 or takes_ids:
            return hdf5.DatasetRows(item).rows(first, count).reshape(count, -1)
        return hdf5.DatasetRows(item).rows(0, width)[None]

    chunk = max((int(np.prod(item.chunks)) for item in items if item.chunks), default=0) * dtype.itemsize
    stored = data.opened.st_size
    return Sequences(data, where, ids, lengths, width, dtype, offsets, stored, decode, chunk, takes_ids)


def original_id(item: Any) -> str | None:
    """Returns the id that a dataset says in its attribute `original_id`, as bio_embeddings writes it, or None."""
    with hdf5.reading(hdf5.label(item)):
        if "original_id" not in item.attrs:
            return None
        value = item.attrs["original_id"]
    return as_id(value if isinstance(value, bytes) else str(value))


def sequence_names(group: Any, named: bool, token_ids: bool) -> list[str]:
    """Lists the datasets of a group that are sequences, in their order: floats, or where there are none of rank 2 token ids.

    None: floats of rank 2 are not what it holds. named: somebody says that it holds sequences, so that others among them are an
    error. Groups in it are gone through as well. Where all names of a group are numbers, their order is that of the numbers,
    else that of the file. Raises DataError for links, which would be left out.
    """
    import h5py

    links: list[bytes] = []

    def visit(name: bytes, info: Any) -> bytes | None:
        links.append(name)
        return None if info.type == h5py.h5l.TYPE_HARD else name  # an exception must not pass through libhdf5

    where = hdf5.label(group)
    with hdf5.reading(where):
        soft = group.id.links.visit(visit, info=True)
        names = [name.decode("utf-8", "surrogateescape") for name in links if name != soft]
        found = [(name, group[name]) for name in names]
        forms = {name: hdf5.entry_of(name, item) for name, item in found if isinstance(item, h5py.Dataset)}
    floats = {name: entry.shape for name, entry in forms.items() if entry.dtype is not None and entry.dtype.kind == "f"}
    shapes = [shape for shape in floats.values() if shape]
    ranks = {len(shape) for shape in shapes}
    names = []
    if 2 in ranks and max(ranks) == 2 and (named or ranks == {2} or len({shape[-1] for shape in shapes}) == 1):
        names = in_order([name for name, shape in floats.items() if shape])
    elif token_ids and not ranks & {2, 3}:
        names = in_order([name for name, entry in forms.items() if are_token_ids(entry)])
    if names and soft is not None:
        raise DataError(
            f"{where.rstrip('/')}/{shown(soft.decode('utf-8', 'backslashreplace'))}: is a soft or external link, which are "
            "not followed in a ragged input; copy into the file what it points to"
        )
    return names


def are_token_ids(entry: hdf5.Entry) -> bool:
    is_other = entry.name.rpartition("/")[2] in OTHERS
    return not is_other and entry.dtype is not None and entry.dtype.kind in "iu" and len(entry.shape or ()) == 1


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
