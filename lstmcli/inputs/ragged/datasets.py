"""Sequences as one HDF5 dataset each: (L, E), or (E,) for a single step; of token ids (L,)."""

import math
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.files.hdf5_bytes.list_datasets import UNKNOWN, UNREAD, Listed, datasets_below
from lstmcli.files.hdf5_bytes.texts import REFERENCE, from_heaps
from lstmcli.files.positioned_file import FileBytes
from lstmcli.inputs.beside.ids import as_id, ids_in
from lstmcli.inputs.ragged.placed import DECODED, Sequences, of_one_family
from lstmcli.inputs.valid_steps import LENGTHS, MASKS

OTHERS = {*LENGTHS, *MASKS, "offsets", "idptr", "ids", "keys", "names", "texts"}  # integers that are no token ids
ID = "original_id"  # the attribute with the id of a dataset, as bio_embeddings writes it


def in_datasets(group: Any, listed: list[Listed], token_ids: bool) -> Sequences:
    """Returns the sequences that are these datasets of an HDF5 group, in their order.

    Raises DataError, also for widths that differ, and for integers beside floats.
    """
    where = hdf5.label(group)
    dtype = hdf5.dtype_of(hdf5_safety.dataset(group, listed[0].name))
    takes_ids = token_ids and dtype.kind in "iu"
    width = 1 if takes_ids else listed[0].shape[-1]
    data = FileBytes(group.file.id.get_vfd_handle(), where)
    lengths, offsets, dtypes = np.empty(len(listed), np.int64), np.empty(len(listed), np.int64), []
    chunk = 0
    for k, (name, shape, kind, offset, _) in enumerate(listed):
        fits = len(shape) == 1 if takes_ids else len(shape) in (1, 2) and shape[-1] == width
        if not fits or kind is None or not of_one_family(kind, dtype):
            raise DataError(
                f"{where.rstrip('/')}/{shown(name)}: expected a sequence {'(steps,)' if takes_ids else f'(steps, {width})'} of "
                f"{dtype}, as {shown(listed[0].name)} is, got {shape} {kind}; all sequences have one width, and "
                "all are floats or all are integers"
            )
        lengths[k] = shape[0] if len(shape) == 2 or takes_ids else 1
        if offset == UNKNOWN:
            item = hdf5_safety.dataset(group, name)
            hdf5.dtype_of(item)
            raw = hdf5.raw_offset(item)
            offset = DECODED if raw is None else raw
            chunk = max(chunk, math.prod(item.chunks or (0,)))
        end = offset + math.prod(shape) * kind.itemsize
        if offset != DECODED and end > data.opened.st_size:  # before int64, which a damaged address may not fit
            raise DataError(f"{where.rstrip('/')}/{shown(name)}: ends at byte {end}, past the end of the file; it was cut")
        offsets[k] = offset
        dtypes.append(kind)

    decoded = {k: listed[k].name for k in np.flatnonzero(offsets == DECODED).tolist()}  # not all: there may be a million

    def decode(number: int, first: int, count: int) -> NDArray[Any]:
        item = hdf5_safety.dataset(group, decoded[number])
        if item.ndim == 2 or takes_ids:
            return hdf5.DatasetRows(item).rows(first, count).reshape(count, -1)
        return hdf5.DatasetRows(item).rows(0, width)[None]

    stored = data.opened.st_size
    ids = ids_of(group, listed)
    return Sequences(data, where, ids, lengths, width, dtypes, offsets, stored, decode, chunk, takes_ids)


def ids_of(group: Any, listed: list[Listed]) -> list[str]:
    """Returns the ids of datasets below a group: what they say themselves, or else their names. Raises DataError."""
    ids = [
        (original_id(hdf5_safety.dataset(group, one.name)) if one.attribute == UNREAD else "") or id_of(one.name)
        for one in listed
    ]
    held = [k for k, one in enumerate(listed) if one.attribute]
    references = np.frombuffer(b"".join(listed[k].attribute or b"" for k in held), REFERENCE)
    data = FileBytes(group.file.id.get_vfd_handle(), f"{hdf5.label(group)}, attributes {ID}")
    for k, text in zip(held, from_heaps(data, references, group.file.userblock_size), strict=True):
        ids[k] = text or ids[k]
    return ids


def original_id(item: Any) -> str:
    """Returns the id that a dataset says itself, as libhdf5 reads it, or nothing."""
    value = hdf5.attribute(item, ID)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return "" if value is None else as_id(value if isinstance(value, bytes) else str(value))


def sequences_below(group: Any, named: bool, token_ids: bool) -> list[Listed]:
    """Lists the datasets of a group that are sequences, in their order: floats, or where there are none of rank 2 token ids.

    None: floats of rank 2 are not what it holds. named: somebody says that it holds sequences, so that others among them are an
    error. Groups in it are gone through as well. Their order is that of the ids beside the group, if these are their names, as
    in a result; else, where all names of a group are numbers, that of the numbers, else that of the file. Raises DataError for
    links, which would be left out.
    """
    others: list[str] = []
    found = list(datasets_below(group, others, ID))
    floats = [one for one in found if one.dtype is not None and one.dtype.kind == "f" and one.shape]
    ranks = {len(one.shape) for one in floats}
    if 2 in ranks and max(ranks) == 2 and (named or ranks == {2} or len({one.shape[-1] for one in floats}) == 1):
        chosen = floats
    elif token_ids and not ranks & {2, 3}:
        chosen = [one for one in found if are_token_ids(one)]
    else:
        chosen = []
    if chosen and others:
        raise DataError(
            f"{hdf5.label(group).rstrip('/')}/{shown(others[0])}: is a soft or external link, which are not followed in a "
            "ragged input; copy into the file what it points to"
        )
    names = [one.name for one in chosen]
    return [chosen[k] for k in places_beside(group, names) or places_in_order(names)]


def places_beside(group: Any, names: list[str]) -> list[int] | None:
    """Returns the places of names in the order of a dataset `ids` beside the group, if that holds these names."""
    path = posixpath.join(posixpath.dirname(group.name), "ids")
    if names and (ids := ids_in(group.file, [path], len(names))[0]):
        places = {id_of(name): k for k, name in enumerate(names)}
        if places.keys() == set(ids):
            return [places[name] for name in ids]
    return None


def below_ids(file: Any, listed: list[Listed]) -> tuple[Any, list[Listed]]:
    """Returns the group that the sequences of a file are named in, and the sequences: the root, or a group beside their ids."""
    head = listed[0].name.partition("/")[0] + "/"
    if "ids" in file and all(one.name.startswith(head) for one in listed):
        inner = [one._replace(name=one.name.removeprefix(head)) for one in listed]
        if places := places_beside(file[head], [one.name for one in inner]):
            return file[head], [inner[k] for k in places]
    return file, listed


def id_of(name: str) -> str:
    """Returns the name of a dataset as an id."""
    return name if name.isascii() else as_id(name.encode("utf-8", "surrogateescape"))


def named_below(group: Any, names: Sequence[str]) -> list[Listed]:
    """Returns the datasets with these names below a group. Raises DataError."""
    found = {one.name: one for one in sequences_below(group, named=True, token_ids=False)}
    if absent := [name for name in names if name not in found]:
        raise DataError(f"{hdf5.label(group)}: no dataset {shown(absent[0])}")
    return [found[name] for name in names]


def are_token_ids(one: Listed) -> bool:
    is_other = one.name.rpartition("/")[2] in OTHERS
    return not is_other and one.dtype is not None and one.dtype.kind in "iu" and len(one.shape) == 1


def in_order(names: list[str]) -> list[str]:
    """Returns names in the order of the numbers at each level where all names are numbers, and else as they come."""
    return [names[k] for k in places_in_order(names)]


def places_in_order(names: list[str]) -> list[int]:
    """Returns the places of names in that order."""
    if not any("/" in name for name in names):
        are_numbers = all(name.isascii() and name.isdecimal() for name in names)
        return sorted(range(len(names)), key=lambda k: int(names[k])) if are_numbers else list(range(len(names)))
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
    return sorted(range(len(names)), key=keys.__getitem__)
